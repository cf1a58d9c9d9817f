//! `cargo xtask test`: every test, tier by tier, the cheap ones first.

use crate::{
    artifacts::{self, cargo},
    demo,
    dist::{self, Zigbuild},
    packages,
    progress::Progress,
};
use anyhow::Result;
use clap::ValueEnum;
use nix::unistd::Uid;
use roce_lab::{Interrupt, Process, Software, packages::Need};
use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this tier alone; may be repeated
    #[arg(long, value_name = "TIER")]
    only: Vec<Tier>,
    /// Handed to the test programs of the tiers unit, slurm and lab, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// cargo fmt --check
    Fmt,
    /// cargo clippy, warnings are errors
    Clippy,
    /// Everything that needs no cluster
    Unit,
    /// The plugin in a real Slurm on this machine
    Slurm,
    /// The whole path in guests
    Lab,
}

impl Tier {
    const ALL: [Self; 5] = [Self::Fmt, Self::Clippy, Self::Unit, Self::Slurm, Self::Lab];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Slurm => "slurm",
            Self::Lab => "lab",
        }
    }

    fn cargo_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Fmt => &["fmt", "--all", "--check"],
            Self::Clippy => &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
            // The two big ones have `test = false` in tests/Cargo.toml: they run only when they are named.
            Self::Unit => &["test", "--workspace"],
            Self::Slurm => &["test", "-p", "roce-tests", "--test", "slurm"],
            Self::Lab => &["test", "-p", "roce-tests", "--test", "lab"],
        }
    }

    fn needs_plugin(self) -> bool {
        matches!(self, Self::Slurm | Self::Lab)
    }
}

/// Runs the tiers. A tier that fails doesn't keep the next ones from running; the exit code tells.
pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Test, &progress, interrupt)?;
    let tiers: Vec<_> = Tier::ALL
        .into_iter()
        .filter(|tier| arguments.only.is_empty() || arguments.only.contains(tier))
        .collect();
    let build = || build(&tiers, &progress, interrupt);
    let variables = if tiers.contains(&Tier::Lab) {
        demo::prepare("trixie", Software::Mpi, &progress, interrupt, build)?.1
    } else {
        build()?
    };

    let mut verdicts = Vec::new();
    let mut failed = false;
    for tier in tiers {
        let mut command = command(tier, &arguments.arguments);
        let shown: Vec<_> = tier.cargo_arguments().iter().chain([&""]).copied().collect();
        progress.line(format!("\n==== {}: cargo {}", tier.name(), shown.join(" ").trim_end()));
        command.envs(variables.iter().cloned());
        let start = Instant::now();
        // Its own output is the progress.
        command.env("CARGO_TERM_PROGRESS_WHEN", "never");
        let ok = Process::spawn(command)?.wait(interrupt)?.success();
        failed |= !ok;
        let seconds = start.elapsed().as_secs_f64();
        verdicts.push(format!("{} {} ({seconds:.0} s)", tier.name(), if ok { "ok" } else { "FAILED" }));
    }
    let total = rounded(progress.elapsed());
    progress.line(format!(
        "\ntest: {} in {total}: {}",
        if failed { "FAILED" } else { "ok" },
        verdicts.join(", ")
    ));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Builds what the tiers run, and gives the variables that name it. The plugin is the one that is released.
fn build(tiers: &[Tier], progress: &Progress, interrupt: &Interrupt) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut variables = Vec::new();
    if !tiers.iter().any(|tier| tier.needs_plugin()) {
        return Ok(variables);
    }
    let tool = Zigbuild::ensure(progress, interrupt)?;
    let plugin = match artifacts::given(artifacts::PLUGIN)? {
        Some(given) => given,
        None => dist::plugin(&tool, progress, interrupt)?,
    };
    variables.push((artifacts::PLUGIN, plugin));
    if tiers.contains(&Tier::Slurm) {
        variables.push((artifacts::FAULTY_PLUGIN, dist::faulty_plugin(&tool, progress, interrupt)?));
    }
    if tiers.contains(&Tier::Lab) {
        let log = artifacts::target().join("build.log");
        let step = progress.step("building the example and rocectl for release");
        variables.push((artifacts::PAIR_EXCHANGE, artifacts::build_pair_exchange(&log, interrupt)?));
        variables.push((artifacts::ROCECTL, artifacts::build_rocectl(&log, interrupt)?));
        step.done("");
    }
    Ok(variables)
}

fn command(tier: Tier, arguments: &[String]) -> Command {
    let mut command = cargo();
    command.args(tier.cargo_arguments());
    if matches!(tier, Tier::Unit | Tier::Slurm | Tier::Lab) && !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    // Where nobody reads along, a test that was skipped must not look like one that passed.
    if env::var_os("CI").is_some() && env::var_os("ROCE_REQUIRE").is_none() {
        command.env("ROCE_REQUIRE", "slurm,lab,data");
    }
    // slurmd needs root; guests don't.
    if tier == Tier::Slurm && !Uid::effective().is_root() {
        let target = format!("{}_UNKNOWN_LINUX_GNU", env::consts::ARCH.to_uppercase());
        command.env(format!("CARGO_TARGET_{target}_RUNNER"), "sudo -n -E");
    }
    command
}

fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}
