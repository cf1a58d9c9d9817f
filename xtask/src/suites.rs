//! The plugin in the Slurm of every Debian suite: the tests of `tests/tests/slurm.rs`, in roots of their own.
//!
//! One file, built once for an old glibc, is tested as it will be released. The test program is built the same way, for it
//! runs there too.

pub(crate) mod matrix;
mod outcome;

pub(crate) use outcome::Outcome;

use crate::{artifacts, demo::CACHE, dist::Zigbuild, package::Packages, progress::Progress};
use anyhow::{Context, Result, bail, ensure};
use roce_lab::{Interrupt, Process, Suite, process::tail};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Where each suite's output is left.
const RESULTS: &str = "target/suites";
/// Many times what every test together takes.
const LIMIT: Duration = Duration::from_secs(600);
/// The short tests that go once through everything.
pub(crate) const BRIEF: &str = "brief::";
/// Where things are inside.
const PROGRAM: &str = "/opt/roce/slurm";
const PLUGIN: &str = "/opt/roce/spank_roce.so";
const FAULTY_PLUGIN: &str = "/opt/roce/faulty.so";
const ROCECTL: &str = "/opt/roce/rocectl";
const PACKAGES: &str = "/opt/roce/packages";

/// What is run in each suite.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The tests.
    pub test: PathBuf,
    /// The plugin as it is released.
    pub plugin: PathBuf,
    /// The one that panics on demand.
    pub faulty_plugin: PathBuf,
    /// rocectl as it is released.
    pub rocectl: PathBuf,
    /// The packages of two revisions, the older first.
    pub packages: [Packages; 2],
}

/// What came of one suite.
pub(crate) struct Run {
    /// Debian's name for it.
    pub suite: String,
    /// What the tests gave, or why they gave nothing.
    pub outcome: Result<Outcome>,
}

/// Says what failed, and whether nothing did.
pub(crate) fn show_failures(runs: &[Run], progress: &Progress) -> bool {
    let mut ok = true;
    for Run { suite, outcome } in runs {
        match outcome {
            Ok(outcome) => {
                ok &= outcome.is_ok();
                for (name, reason) in &outcome.failures {
                    progress.line(format!(
                        "\n---- {suite} (Slurm {}) {name}\n{}",
                        outcome.slurm,
                        reason.trim_end()
                    ));
                }
            }
            Err(error) => {
                ok = false;
                progress.line(format!("\n---- {suite}: {error:#}"));
            }
        }
    }
    ok
}

/// Builds the test program for every suite's glibc.
pub(crate) fn build_test(tool: &Zigbuild, progress: &Progress, interrupt: &Interrupt) -> Result<PathBuf> {
    let step = progress.step("building the tests with real Slurm for glibc 2.28");
    fs::create_dir_all(RESULTS).with_context(|| RESULTS.to_owned())?;
    let (messages, log) = (Path::new(RESULTS).join("build.json"), Path::new(RESULTS).join("build.log"));
    let create = |path: &Path| File::create(path).with_context(|| path.display().to_string());
    let mut command = tool.cargo("test");
    command.args([
        "--no-run",
        "-p",
        "roce-tests",
        "--test",
        "slurm",
        "--message-format=json-render-diagnostics",
    ]);
    command.stdout(create(&messages)?).stderr(create(&log)?);
    if !Process::spawn(command)?.wait(interrupt)?.success() {
        bail!("cargo-zigbuild of the tests failed; {} ends with:\n{}", log.display(), tail(&log, 15));
    }
    let text = fs::read_to_string(&messages)?;
    let built = text.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "slurm" && message["target"]["kind"][0] == "test";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    step.done("");
    built.with_context(|| format!("{} names no test program", messages.display()))
}

/// Runs the tests that `arguments` select in these suites, side by side, and says how each went as soon as it ended. A
/// suite where not even the cluster starts is an error of that suite.
pub(crate) fn run(
    suites: &[String],
    programs: &Programs,
    arguments: &[String],
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Vec<Run>> {
    fs::create_dir_all(RESULTS).with_context(|| RESULTS.to_owned())?;
    // At the terminal, before progress is drawn over sudo's question.
    roce_lab::packages::authorise()?;
    thread::scope(|scope| {
        let running: Vec<_> = suites
            .iter()
            .map(|suite| {
                let one = move || {
                    let step = progress.step(format!("Debian {suite}"));
                    let outcome = run_one(suite, programs, arguments, interrupt)?;
                    if outcome.is_ok() {
                        step.done(&outcome.to_string());
                    } else {
                        drop(step);
                    }
                    Ok(outcome)
                };
                (suite, scope.spawn(one))
            })
            .collect();
        let join = |(suite, thread): (&String, thread::ScopedJoinHandle<'_, Result<Outcome>>)| Run {
            suite: suite.clone(),
            outcome: thread.join().unwrap_or_else(|_| bail!("its thread panicked")),
        };
        Ok(running.into_iter().map(join).collect())
    })
}

fn run_one(suite: &str, programs: &Programs, arguments: &[String], interrupt: &Interrupt) -> Result<Outcome> {
    let root = Suite::ensure(Path::new(CACHE), suite, interrupt)?;
    let [old, new] = &programs.packages;
    let packages = [(&old.deb, "1.deb"), (&old.rpm, "1.rpm"), (&new.deb, "2.deb"), (&new.rpm, "2.rpm")]
        .map(|(file, name)| (file, format!("{PACKAGES}/{name}")));
    let files = [
        (programs.test.as_path(), PROGRAM),
        (&programs.plugin, PLUGIN),
        (&programs.faulty_plugin, FAULTY_PLUGIN),
        (&programs.rocectl, ROCECTL),
    ];
    let words = [
        format!("{}={PLUGIN}", artifacts::PLUGIN),
        format!("{}={FAULTY_PLUGIN}", artifacts::FAULTY_PLUGIN),
        format!("{}={ROCECTL}", artifacts::ROCECTL),
        format!("ROCE_PACKAGES={PACKAGES}"),
        // These roots are made to have what the tests need.
        "ROCE_REQUIRE=slurm".to_owned(),
        PROGRAM.to_owned(),
        "--format=json".to_owned(),
    ];
    let output = Path::new(RESULTS).join(format!("{suite}.log"));
    let packages = packages.iter().map(|(file, inside)| (file.as_path(), inside.as_str()));
    let mut command = root.command(files.into_iter().chain(packages), LIMIT, words.iter().chain(arguments));
    let file = File::create(&output).with_context(|| output.display().to_string())?;
    command.stdout(file.try_clone()?).stderr(file);
    let status = Process::spawn(command)?.wait(interrupt)?;
    let text = fs::read_to_string(&output).with_context(|| output.display().to_string())?;
    let outcome = Outcome::parse(&text)
        .with_context(|| format!("{status}; {} ends with:\n{}", output.display(), tail(&output, 15)))?;
    ensure!(
        status.success() == outcome.is_ok(),
        "{status}, but {outcome}; its output is in {}",
        output.display()
    );
    Ok(outcome)
}
