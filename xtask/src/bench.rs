//! `cargo xtask bench NAME`: a benchmark, built for release; its result goes to `target/bench/NAME.json`.

use crate::{artifacts::cargo, packages, progress::Progress};
use anyhow::Result;
use clap::ValueEnum;
use roce_lab::{Interrupt, Process, packages::Need};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure
    name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Reading a node and planning its tasks, against limits and hwloc's lstopo
    Plan,
}

pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Bench, &progress, interrupt)?;
    let name = match arguments.name {
        Name::Plan => "plan",
    };
    std::fs::create_dir_all("target/bench")?;
    let mut command = cargo();
    let output = format!("target/bench/{name}.json");
    command.args(["run", "--release", "-p", "roce-benches", "--", name, &output]);
    let status = Process::spawn(command)?.wait(interrupt)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
