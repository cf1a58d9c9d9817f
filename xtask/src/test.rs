//! `cargo xtask test`: every test, tier by tier, the cheap ones first.

use crate::{
    artifacts::{self, cargo},
    demo,
    dist::{self, Zigbuild},
    package, packages,
    progress::Progress,
    suites,
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::unistd::Uid;
use roce_lab::{Interrupt, Process, Software, Suite, packages::Need};
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
    /// Run all tests of the plugin in the Slurm of every Debian suite, and write docs/support-matrix.md
    #[arg(long, conflicts_with = "only")]
    all_slurm: bool,
    /// Run in this Debian suite alone, in the tier suites and with --all-slurm; may be repeated
    #[arg(long, value_name = "SUITE", value_parser = Suite::ALL)]
    suite: Vec<String>,
    /// Handed to the test programs of the tiers unit, host, slurm, suites and lab, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
    /// More variables for the test programs
    #[arg(skip)]
    variables: Vec<(&'static str, String)>,
}

impl Arguments {
    /// A test of the lab alone, with numbers in its environment.
    pub(crate) fn lab(name: &str, numbers: &[(&'static str, Option<u64>)]) -> Self {
        let variables = numbers.iter().filter_map(|(name, number)| Some((*name, (*number)?.to_string())));
        Self {
            only: vec![Tier::Lab],
            all_slurm: false,
            suite: Vec::new(),
            arguments: vec![name.to_owned(), "--nocapture".to_owned()],
            variables: variables.collect(),
        }
    }
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
    /// The plugin in the Slurm of every Debian suite: one short test in each
    Suites,
    /// The whole path in guests
    Lab,
}

impl Tier {
    const ALL: [Self; 7] =
        [Self::Fmt, Self::Clippy, Self::Unit, Self::Host, Self::Slurm, Self::Suites, Self::Lab];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Host => "host",
            Self::Slurm => "slurm",
            Self::Suites => "suites",
            Self::Lab => "lab",
        }
    }

    /// What cargo is given, one command after the other.
    fn cargo_commands(self) -> &'static [&'static [&'static str]] {
        // `host`, `slurm` and `lab` have `test = false` in their Cargo.toml: they are taken only where they are named.
        match self {
            Self::Fmt => &[&["fmt", "--all", "--check"]],
            Self::Clippy => &[
                &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                &["clippy", "-p", "roce-tests", "--test", "slurm", "--test", "lab", "--", "-D", "warnings"],
                &["clippy", "-p", "roce-plugin-host", "--test", "host", "--", "-D", "warnings"],
            ],
            // One broken program must not hide what is wrong with the next.
            Self::Unit => &[&["test", "--workspace", "--no-fail-fast"]],
            Self::Host => &[&["test", "-p", "roce-plugin-host", "--test", "host"]],
            Self::Slurm => &[&["test", "-p", "roce-tests", "--test", "slurm"]],
            // Not cargo's: see `in_brief`.
            Self::Suites => &[],
            Self::Lab => &[&["test", "-p", "roce-tests", "--test", "lab"]],
        }
    }

    /// slurmd and what plays it need root; guests don't.
    fn needs_root(self) -> bool {
        matches!(self, Self::Host | Self::Slurm)
    }
}

/// What the tiers run.
struct Built {
    /// What names it to test programs.
    variables: Vec<(&'static str, PathBuf)>,
    /// The same for other suites.
    suites: Option<suites::Programs>,
}

/// Runs the tiers. A tier that fails doesn't keep the next ones from running; the exit code tells.
pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Test, &progress, interrupt)?;
    if arguments.all_slurm {
        return all_slurm(arguments, &progress, interrupt);
    }
    let tiers: Vec<_> = Tier::ALL
        .into_iter()
        .filter(|tier| arguments.only.is_empty() || arguments.only.contains(tier))
        .collect();
    let build = || build(&tiers, &progress, interrupt);
    let built = if tiers.contains(&Tier::Lab) {
        demo::prepare("trixie", Software::Mpi, &progress, interrupt, build)?.1
    } else {
        build()?
    };

    let mut verdicts = Vec::new();
    let mut failed = false;
    for tier in tiers {
        let start = Instant::now();
        let ok = match &built.suites {
            Some(programs) if tier == Tier::Suites => {
                progress.line("\n==== suites: the plugin in the Slurm of every Debian suite");
                in_brief(arguments, programs, &progress, interrupt)?
            }
            _ => {
                let mut ok = true;
                for words in tier.cargo_commands() {
                    let mut command = command(tier, words, &arguments.arguments);
                    progress.line(format!("\n==== {}: cargo {}", tier.name(), words.join(" ")));
                    command.envs(built.variables.iter().cloned());
                    command.envs(arguments.variables.iter().cloned());
                    // Its own output is the progress.
                    command.env("CARGO_TERM_PROGRESS_WHEN", "never");
                    ok &= Process::spawn(command)?.wait(interrupt)?.success();
                }
                ok
            }
        };
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

/// One short test in every suite, or those that were asked for by a part of their name.
fn in_brief(
    arguments: &Arguments,
    programs: &suites::Programs,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<bool> {
    let brief = [suites::BRIEF.to_owned()];
    let chosen = if arguments.arguments.is_empty() { &brief } else { arguments.arguments.as_slice() };
    let runs = suites::run(&chosen_suites(arguments), programs, chosen, progress, interrupt)?;
    Ok(suites::show_failures(&runs, progress))
}

/// Every test in every suite, and the table of it.
fn all_slurm(arguments: &Arguments, progress: &Progress, interrupt: &Interrupt) -> Result<ExitCode> {
    let programs = build(&[Tier::Suites], progress, interrupt)?.suites.context("nothing was built")?;
    let runs = suites::run(&chosen_suites(arguments), &programs, &arguments.arguments, progress, interrupt)?;
    let ok = suites::show_failures(&runs, progress);
    if arguments.suite.is_empty() && arguments.arguments.is_empty() {
        match suites::matrix::write(&runs, &programs.plugin)? {
            Some(file) => progress.line(format!("\nwritten: {file}")),
            None => progress.line("\nno table: not every suite was tested to the end"),
        }
    }
    progress.line(format!("\ntest: {} in {}", if ok { "ok" } else { "FAILED" }, rounded(progress.elapsed())));
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen_suites(arguments: &Arguments) -> Vec<String> {
    if arguments.suite.is_empty() { Suite::ALL.map(str::to_owned).into() } else { arguments.suite.clone() }
}

/// Builds what the tiers run. The plugin is the one that is released.
fn build(tiers: &[Tier], progress: &Progress, interrupt: &Interrupt) -> Result<Built> {
    let mut built = Built { variables: Vec::new(), suites: None };
    let needed = |some: &[Tier]| tiers.iter().any(|tier| some.contains(tier));
    if !needed(&[Tier::Host, Tier::Slurm, Tier::Suites, Tier::Lab]) {
        return Ok(built);
    }
    let tool = Zigbuild::ensure(progress, interrupt)?;
    let plugin = dist::plugin_or_given(&tool, progress, interrupt)?;
    let rocectl = dist::rocectl_or_given(&tool, progress, interrupt)?;
    if needed(&[Tier::Host, Tier::Slurm, Tier::Suites]) {
        let faulty_plugin = dist::faulty_plugin(&tool, progress, interrupt)?;
        built.variables.push((artifacts::FAULTY_PLUGIN, faulty_plugin.clone()));
        if needed(&[Tier::Suites]) {
            let test = suites::build_test(&tool, progress, interrupt)?;
            built.suites = Some(suites::Programs {
                test,
                plugin: plugin.clone(),
                faulty_plugin,
                rocectl: rocectl.clone(),
                packages: [
                    package::build(1, &tool, progress, interrupt)?,
                    package::build(2, &tool, progress, interrupt)?,
                ],
            });
        }
    }
    built.variables.push((artifacts::PLUGIN, plugin));
    built.variables.push((artifacts::ROCECTL, rocectl));
    if needed(&[Tier::Lab]) {
        let log = artifacts::target().join("build.log");
        let step = progress.step("building the examples for release");
        built.variables.extend(artifacts::build_examples(&log, interrupt)?);
        step.done("");
    }
    Ok(built)
}

fn command(tier: Tier, words: &[&str], arguments: &[String]) -> Command {
    let mut command = cargo();
    command.args(words);
    if !matches!(tier, Tier::Fmt | Tier::Clippy) && !arguments.is_empty() {
        command.arg("--").args(arguments);
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
