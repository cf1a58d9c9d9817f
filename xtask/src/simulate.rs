//! `cargo xtask simulate NAME`: what no machine here is large enough for; its result goes to `target/simulate/NAME.json`.

use crate::{
    artifacts::{built, cargo},
    progress::Progress,
};
use anyhow::Result;
use clap::ValueEnum;
use roce_lab::{Interrupt, Process, process::run_logged};
use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to simulate
    name: Name,
    /// How many nodes, of 64 ranks each
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000, 100_000])]
    nodes: Vec<u32>,
    /// The same seed gives the same result
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the table and the plots into docs/ too
    #[arg(long)]
    docs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The address exchange between node leaders, on networks that lose packets and with nodes that are slow or late
    Bootstrap,
}

const FOLDER: &str = "target/simulate";

pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let Name::Bootstrap = arguments.name;
    let progress = Progress::new();
    let step = progress.step("building the simulation for release");
    fs::create_dir_all(FOLDER)?;
    let mut build = cargo();
    build.args(["build", "--release", "-p", "roce-benches"]);
    run_logged("cargo build of the simulation", build, &Path::new(FOLDER).join("build.log"), interrupt)?;
    step.done("");
    drop(progress);
    let mut command = Command::new(built("roce-bench")?);
    let nodes = arguments.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    command.args([
        "simulate-bootstrap",
        "target/simulate/bootstrap.json",
        &arguments.seed.to_string(),
        &nodes,
    ]);
    command.args(arguments.docs.then_some("docs"));
    let status = Process::spawn(command)?.wait(interrupt)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
