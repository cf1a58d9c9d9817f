//! `cargo xtask bench NAME`: a benchmark, built for release; its result goes to `target/bench/NAME.json`.

use crate::{
    artifacts::{self, built, cargo},
    demo,
    dist::{self, Zigbuild},
    packages,
    progress::Progress,
};
use anyhow::Result;
use clap::ValueEnum;
use nix::unistd::Uid;
use roce_lab::{
    Interrupt, Process, Software,
    packages::{Need, authorise},
    process::{run_logged, tied_as_root},
};
use std::{
    path::Path,
    process::{Command, ExitCode},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure
    name: Name,
    /// How many steps of each kind `plugin` takes the time of (200; each hook's it takes in fifty times as many), and
    /// `bootstrap` (10), and how many rounds `messages` has (10)
    #[arg(long)]
    rounds: Option<usize>,
    /// How many ranks `bootstrap` starts
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128, 256, 512])]
    ranks: Vec<usize>,
    /// Whom `bootstrap` is compared with: pmi2, pmix, mpi (all)
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// What `messages` go over: shared, verbs (both, one after the other)
    #[arg(long, value_delimiter = ',', default_values = ["shared", "verbs"])]
    over: Vec<Over>,
    /// Write what `bootstrap` or `messages` measures into docs/bootstrap.md or docs/messages.md, and docs/images, too
    #[arg(long)]
    docs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Reading a node and planning its tasks, against limits and hwloc's lstopo
    Plan,
    /// What the plugin costs a step of a real Slurm on this machine, in time and memory
    Plugin,
    /// How long it takes until every rank knows every other: ours, PMI2, PMIx and Open MPI's MPI_Init in a real Slurm of eight
    /// nodes on this machine
    Bootstrap,
    /// Messages and collectives within a node, against Open MPI, MPICH and a bare cache line; and messages over a soft-RoCE device of
    /// a guest, against perftest, Open MPI and libfabric
    Messages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Shared,
    Verbs,
}

const LOG: &str = "target/bench/build.log";

pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    std::fs::create_dir_all("target/bench")?;
    let command = match arguments.name {
        Name::Plan => {
            packages::ensure(Need::Bench, &progress, interrupt)?;
            let mut command = cargo();
            command.args(["run", "--release", "-p", "roce-benches", "--", "plan", "target/bench/plan.json"]);
            command
        }
        Name::Plugin => {
            packages::ensure(Need::Test, &progress, interrupt)?;
            plugin(arguments.rounds.unwrap_or(200), &progress, interrupt)?
        }
        Name::Bootstrap => {
            packages::ensure(Need::Test, &progress, interrupt)?;
            packages::ensure(Need::Bench, &progress, interrupt)?;
            bootstrap(arguments, &progress, interrupt)?
        }
        Name::Messages => {
            packages::ensure(Need::Bench, &progress, interrupt)?;
            let mut commands = Vec::new();
            if arguments.over.contains(&Over::Shared) {
                commands.push(messages(arguments, &progress, interrupt)?);
            }
            if arguments.over.contains(&Over::Verbs) {
                commands.push(messages_over_verbs(arguments, &progress, interrupt)?);
            }
            return all(progress, commands, interrupt);
        }
    };
    all(progress, vec![command], interrupt)
}

/// One after the other; all must succeed, and none is left out.
fn all(progress: Progress, commands: Vec<Command>, interrupt: &Interrupt) -> Result<ExitCode> {
    drop(progress);
    let mut all_hold = true;
    for command in commands {
        all_hold &= Process::spawn(command)?.wait(interrupt)?.success();
    }
    Ok(if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In a guest, and before all others, as below: what else runs takes the guest's processors away for longer than a message takes.
fn messages_over_verbs(arguments: &Arguments, progress: &Progress, interrupt: &Interrupt) -> Result<Command> {
    let (_, mut command) = demo::prepare("trixie", Software::Bench, progress, interrupt, || {
        before_all_others(progress, interrupt)
    })?;
    command.args(["messages-verbs", "target/bench/messages-verbs.json"]);
    command.args([&arguments.rounds.unwrap_or(10).to_string(), "target"]);
    command.args(arguments.docs.then_some("docs"));
    Ok(command)
}

/// Before all others, as below.
fn messages(arguments: &Arguments, progress: &Progress, interrupt: &Interrupt) -> Result<Command> {
    let mut command = before_all_others(progress, interrupt)?;
    command.args(["messages", "target/bench/messages.json", &arguments.rounds.unwrap_or(10).to_string()]);
    command.args(arguments.docs.then_some("docs"));
    Ok(command)
}

/// Builds the benchmark; it runs as root, with a priority that only root can give.
fn before_all_others(progress: &Progress, interrupt: &Interrupt) -> Result<Command> {
    if !Uid::effective().is_root() {
        authorise()?;
    }
    let step = progress.step("building the benchmark for release");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "roce-benches"]);
    run_logged("cargo build of the benchmark", build, Path::new(LOG), interrupt)?;
    let bench = built("roce-bench")?;
    step.done("");
    let mut command = tied_as_root("nice");
    command.args(["-n", "-15"]).arg(bench);
    Ok(command)
}

/// As root and before all others, as below.
fn bootstrap(arguments: &Arguments, progress: &Progress, interrupt: &Interrupt) -> Result<Command> {
    let mut command = before_all_others(progress, interrupt)?;
    let ranks = arguments.ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    command.args(["bootstrap", "target/bench/bootstrap.json"]);
    command.args([arguments.rounds.unwrap_or(10).to_string(), ranks, arguments.peers.join(",")]);
    command.args(arguments.docs.then_some("docs"));
    Ok(command)
}

/// As root, for slurmd needs it; and before all others, for what runs beside it would be measured too.
fn plugin(rounds: usize, progress: &Progress, interrupt: &Interrupt) -> Result<Command> {
    if !Uid::effective().is_root() {
        authorise()?;
    }
    let log = Path::new(LOG);
    let plugin = dist::plugin_or_given(&Zigbuild::ensure(progress, interrupt)?, progress, interrupt)?;
    let step = progress.step("building the benchmark for release");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "roce-benches", "-p", "roce-plugin-host"]);
    run_logged("cargo build of the benchmark", build, log, interrupt)?;
    let (bench, host) = (built("roce-bench")?, built("roce-plugin-host")?);
    step.done("");
    let mut command = tied_as_root("nice");
    // Not by an environment variable alone: sudo would drop it.
    command.args(["-n", "-15", "env"]);
    command.arg(format!("{}={}", artifacts::PLUGIN, plugin.display()));
    command.arg(bench).args(["plugin", "target/bench/plugin.json", &rounds.to_string()]).arg(host);
    Ok(command)
}
