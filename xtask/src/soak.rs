//! `cargo xtask soak NAME`: what takes too long for every test run, and is run before an issue is called done.

use crate::{
    artifacts::{self, cargo},
    dist::{self, Zigbuild},
    packages,
    progress::Progress,
    test as tests,
};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::unistd::Uid;
use roce_lab::{
    Interrupt, Process,
    packages::{Need, authorise},
    process::{run_logged, tied_as_root},
};
use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to run
    name: Name,
    /// How many inputs each fuzz target is given, strangers call in `hostile`, faults there are in `ranks` and `faults`,
    /// and cases in `messages` and `verbs`; without it 1,000,000, 100,000, 200, 50, 100,000 and 100,000
    #[arg(long)]
    runs: Option<u64>,
    /// This fuzz target alone
    #[arg(long)]
    target: Option<String>,
    /// How many steps `host` and `steps` run; without it 10,000 and 1,000
    #[arg(long)]
    steps: Option<u32>,
    /// Which faults `steps`, `ranks` and `faults` meet and when, and which cases `messages` and `verbs` play; without it another seed each time, which it prints
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Every fuzz target (needs a nightly compiler and cargo-fuzz)
    Fuzz,
    /// Steps of the plugin in one process of a pretend Slurm, which must not grow
    Host,
    /// Steps in a real Slurm on this machine with random faults
    Steps,
    /// Strangers that call ranks while these join: nobody gets in, nothing grows, joining stays fast
    Hostile,
    /// Ranks on nodes that are network namespaces, killed, stopped and cut off at random moments
    Ranks,
    /// Random messages and collectives of 2 to 8 ranks in random groups, over shared memory and TCP, against a model
    Messages,
    /// The same over verbs, in a guest with a soft-RoCE device
    Verbs,
    /// Messages between guests whose rails and addresses go for a moment, at random, and whose ranks are killed
    Faults,
    /// The core of the address exchange in an interpreter that finds undefined behaviour (needs a nightly compiler)
    Miri,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    match arguments.name {
        Name::Fuzz => fuzz(arguments, interrupt),
        Name::Host => {
            let steps = arguments.steps.unwrap_or(10_000).to_string();
            with_plugin(&["-p", "roce-plugin-host"], "roce-plugin-host", &["soak", &steps], interrupt)
        }
        Name::Steps => {
            let steps = arguments.steps.unwrap_or(1_000).to_string();
            let seed = arguments.seed.map(|seed| seed.to_string());
            let words: Vec<&str> = [steps.as_str()].into_iter().chain(seed.as_deref()).collect();
            with_plugin(&["-p", "roce-tests", "--bin", "soak-steps"], "soak-steps", &words, interrupt)
        }
        Name::Hostile => {
            test("roce-bootstrap", "hostile", &[("SOAK_CONNECTIONS", arguments.runs)], interrupt)
        }
        Name::Ranks => {
            let numbers = [("SOAK_RUNS", arguments.runs), ("SOAK_SEED", arguments.seed)];
            test("roce-bootstrap", "faults", &numbers, interrupt)
        }
        Name::Messages => {
            let numbers = [("SOAK_CASES", arguments.runs), ("SOAK_SEED", arguments.seed)];
            test("roce-launcher", "messages", &numbers, interrupt)
        }
        Name::Verbs => {
            let cases = arguments.runs.unwrap_or(100_000);
            let numbers = [("SOAK_CASES", Some(cases)), ("SOAK_SEED", arguments.seed)];
            tests::run(&tests::Arguments::lab("soak::verbs", &numbers), interrupt)
        }
        Name::Faults => {
            let numbers = [("SOAK_RUNS", Some(arguments.runs.unwrap_or(50))), ("SOAK_SEED", arguments.seed)];
            tests::run(&tests::Arguments::lab("soak::faults", &numbers), interrupt)
        }
        Name::Miri => miri(interrupt),
    }
}

/// Builds the plugin as it is released, and a program that loads it; runs that, as root.
fn with_plugin(build: &[&str], program: &str, words: &[&str], interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Test, &progress, interrupt)?;
    if !Uid::effective().is_root() {
        authorise()?;
    }
    fs::create_dir_all("target/soak")?;
    let log = Path::new("target/soak/build.log");
    let plugin = dist::plugin_or_given(&Zigbuild::ensure(&progress, interrupt)?, &progress, interrupt)?;
    let step = progress.step(format!("building {program}"));
    let mut command = cargo();
    command.arg("build").args(build);
    run_logged(&format!("cargo build of {program}"), command, log, interrupt)?;
    let program = artifacts::target().join("debug").join(program);
    step.done("");
    // Not by an environment variable alone: sudo would drop it.
    let mut command = tied_as_root("env");
    command.arg(format!("{}={}", artifacts::PLUGIN, plugin.display())).arg(program).args(words);
    let status = Process::spawn(command)?.wait(interrupt)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the soak among a package's tests that are in this file.
fn test(
    package: &str,
    file: &str,
    numbers: &[(&str, Option<u64>)],
    interrupt: &Interrupt,
) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Test, &progress, interrupt)?;
    drop(progress);
    let mut command = cargo();
    command.args(["test", "--release", "-p", package, "--test", file]);
    command.args(["--", "--ignored", "--exact", "--nocapture", "soak"]);
    command.envs(numbers.iter().filter_map(|(name, number)| Some((name, number.as_ref()?.to_string()))));
    let status = Process::spawn(command)?.wait(interrupt)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A command of the nightly compiler's cargo. The cargo that runs this has chosen another compiler.
fn nightly() -> Command {
    let mut command = roce_lab::process::tied("cargo");
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").arg("+nightly");
    command
}

fn runs(mut command: Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs the tests of the exchange's state machine, of the shared memory's rings, of messages that two ranks copy, and of windows, in Miri.
fn miri(interrupt: &Interrupt) -> Result<ExitCode> {
    let miri = |words: &[&str]| {
        let mut command = nightly();
        command.arg("miri").args(words);
        command
    };
    if !runs(miri(&["--version"])) {
        let mut install = roce_lab::process::tied("rustup");
        install.args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
        if !runs(install) {
            bail!(
                "no Miri: `rustup toolchain install nightly --component miri,rust-src` (a nightly compiler is needed, and some \
                 nightlies come without Miri)"
            );
        }
    }
    for (package, tests) in [
        ("roce-bootstrap", "core::"),
        ("roce-launcher", "ring::"),
        ("roce-launcher", "together::"),
        ("roce-launcher", "windows::"),
    ] {
        let mut command = miri(&["test", "-p", package, "--lib", tests]);
        // Proptest asks for the current folder.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
        if !Process::spawn(command)?.wait(interrupt)?.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the fuzz targets. A crash is a failure, and its input stays in fuzz/artifacts.
fn fuzz(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    let fuzz = |words: &[&str]| {
        let mut command = nightly();
        command.arg("fuzz").args(words);
        command
    };
    if !runs(fuzz(&["--version"])) {
        bail!(
            "no cargo-fuzz on a nightly compiler: `rustup toolchain install nightly` and `cargo install cargo-fuzz`"
        );
    }
    let all = targets()?;
    let chosen: Vec<&String> =
        all.iter().filter(|target| arguments.target.as_ref().is_none_or(|only| only == *target)).collect();
    if chosen.is_empty() {
        bail!("no such fuzz target; there are {}", all.join(", "));
    }
    let inputs = arguments.runs.unwrap_or(1_000_000);
    let runs = format!("-runs={inputs}");
    for target in chosen {
        let step = progress.step(format!("fuzzing {target}, {inputs} inputs"));
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(&corpus).with_context(|| corpus.clone())?;
        let mut words = vec!["run", "-O", target, &corpus];
        if Path::new(&seeds).is_dir() {
            words.push(&seeds);
        }
        words.extend(["--", &runs, "-max_len=2048", "-timeout=20"]);
        fs::create_dir_all("target/fuzz")?;
        let log = format!("target/fuzz/{target}.log");
        run_logged(&format!("fuzz target {target}"), fuzz(&words), Path::new(&log), interrupt)?;
        step.done("no crash");
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of the fuzz targets.
fn targets() -> Result<Vec<String>> {
    let folder = "fuzz/fuzz_targets";
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context(folder)? {
        names.extend(entry?.path().file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
