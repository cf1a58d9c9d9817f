//! `cargo xtask soak NAME`: what takes too long for every test run, and is run before an issue is called done.

use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use roce_lab::{Interrupt, process::run_logged};
use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to run
    name: Name,
    /// How many inputs each fuzz target is given
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// This fuzz target alone
    #[arg(long)]
    target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Every fuzz target (needs a nightly compiler and cargo-fuzz)
    Fuzz,
}

/// Runs it. A crash is a failure, and its input stays in fuzz/artifacts.
pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let Name::Fuzz = arguments.name;
    let progress = Progress::new();
    let fuzz = |words: &[&str]| {
        let mut command = roce_lab::process::tied("cargo");
        // The cargo that runs this has chosen a compiler; cargo-fuzz needs another.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").args(["+nightly", "fuzz"]).args(words);
        command
    };
    let mut probe: Command = fuzz(&["--version"]);
    if !probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
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
    let runs = format!("-runs={}", arguments.runs);
    for target in chosen {
        let step = progress.step(format!("fuzzing {target}, {} inputs", arguments.runs));
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
