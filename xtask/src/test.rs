//! `cargo xtask test`: every test, tier by tier, the cheap ones first.

use crate::{
    artifacts::{self, Artifacts, cargo},
    demo, packages,
    progress::Progress,
};
use anyhow::Result;
use clap::ValueEnum;
use nix::unistd::Uid;
use roce_lab::{Interrupt, Process, Software, packages::Need};
use std::{
    env,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this tier alone; may be repeated
    #[arg(long, value_name = "TIER")]
    only: Vec<Tier>,
    /// Handed to the test programs of the tiers unit, host, slurm and lab, such as a part of a test's name
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
    /// The plugin in a pretend Slurm, with faults at every place
    Host,
    /// The plugin in a real Slurm on this machine
    Slurm,
    /// The whole path in guests
    Lab,
}

impl Tier {
    const ALL: [Self; 6] = [Self::Fmt, Self::Clippy, Self::Unit, Self::Host, Self::Slurm, Self::Lab];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Host => "host",
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
            Self::Host => &["test", "-p", "roce-plugin-host", "--test", "host"],
            Self::Slurm => &["test", "-p", "roce-tests", "--test", "slurm"],
            Self::Lab => &["test", "-p", "roce-tests", "--test", "lab"],
        }
    }

    fn needs_artifacts(self) -> bool {
        matches!(self, Self::Host | Self::Slurm | Self::Lab)
    }

    /// slurmd and what plays it need root; guests don't.
    fn needs_root(self) -> bool {
        matches!(self, Self::Host | Self::Slurm)
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
    let artifacts = if tiers.contains(&Tier::Lab) {
        Some(demo::prepare("trixie", Software::Mpi, &progress, interrupt)?.1)
    } else if tiers.iter().any(|tier| tier.needs_artifacts()) {
        let step = progress.step("building the plugin and the example for release");
        std::fs::create_dir_all(demo::CACHE)?;
        let artifacts = artifacts::build(&std::path::Path::new(demo::CACHE).join("build.log"), interrupt)?;
        step.done("");
        Some(artifacts)
    } else {
        None
    };

    let log = std::path::Path::new(demo::CACHE).join("build.log");
    let mut extra = Vec::new();
    if tiers.iter().any(|tier| tier.needs_root()) {
        let step = progress.step("building a plugin that panics on demand");
        extra.push((artifacts::FAULTY_PLUGIN, artifacts::build_faulty_plugin(&log, interrupt)?));
        step.done("");
    }
    if tiers.contains(&Tier::Lab) {
        let step = progress.step("building rocectl for release");
        extra.push((artifacts::ROCECTL, artifacts::build_rocectl(&log, interrupt)?));
        step.done("");
    }

    let mut verdicts = Vec::new();
    let mut failed = false;
    for tier in tiers {
        let mut command = command(tier, artifacts.as_ref(), &arguments.arguments);
        let shown: Vec<_> = tier.cargo_arguments().iter().chain([&""]).copied().collect();
        progress.line(format!("\n==== {}: cargo {}", tier.name(), shown.join(" ").trim_end()));
        command.envs(extra.iter().cloned());
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

fn command(tier: Tier, artifacts: Option<&Artifacts>, arguments: &[String]) -> Command {
    let mut command = cargo();
    command.args(tier.cargo_arguments());
    if !matches!(tier, Tier::Fmt | Tier::Clippy) && !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    if let Some(artifacts) = artifacts {
        command
            .env(artifacts::PLUGIN, &artifacts.plugin)
            .env(artifacts::PAIR_EXCHANGE, &artifacts.pair_exchange);
    }
    // Where nobody reads along, a test that was skipped must not look like one that passed.
    if env::var_os("CI").is_some() && env::var_os("ROCE_REQUIRE").is_none() {
        command.env("ROCE_REQUIRE", "slurm,lab,data");
    }
    if tier.needs_root() && !Uid::effective().is_root() {
        let target = format!("{}_UNKNOWN_LINUX_GNU", env::consts::ARCH.to_uppercase());
        command.env(format!("CARGO_TARGET_{target}_RUNNER"), "sudo -n -E");
    }
    command
}

fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}
