//! `cargo xtask demo`: the whole path once, real at every point.
//!
//! Two guests with two NUMA nodes and two rails each. Step one gives each task the NIC of its own NUMA node; step two
//! gives each task both. What the wires carried decides, not what anybody says about it.

use crate::{artifacts, packages, progress::Progress};
use anyhow::{Context, Result};
use roce_lab::{
    Accelerator, Cluster, GuestRoot, Interrupt, Options, Software,
    packages::Need,
    scenario::{Check, Expectation, RankReport, Step, StepResult, judge},
};
use serde::Serialize;
use std::{fs, path::Path, process::ExitCode, thread, time::Duration};

/// Where the demo leaves everything.
const RESULTS: &str = "target/demo";
/// Said with every failure of a guest.
const LOGS: &str = "the cluster failed; the guests' consoles and Slurm's logs are in target/demo/logs";
/// Where what can be used again is kept.
pub(crate) const CACHE: &str = "target/lab";
/// Many times what a step takes by emulation on two busy cores.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Debian suite of the guests: trixie has Slurm 24.11, bookworm 22.05
    #[arg(long, default_value = "trixie")]
    suite: String,
}

/// target/demo/report.json.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    seconds: f64,
    suite: &'a str,
    accelerator: String,
    steps: Vec<StepReport<'a>>,
}

#[derive(Serialize)]
struct StepReport<'a> {
    name: &'a str,
    command: &'a str,
    status: i32,
    seconds: f64,
    checks: &'a [Check],
    wire: Vec<WireRow>,
    ranks: &'a [RankReport],
}

/// Packets at their sender.
#[derive(Serialize)]
struct WireRow {
    rail: usize,
    from: String,
    to: String,
    dscp: u8,
    roce_v2_packets: u64,
}

/// Runs the demo. The exit code is zero only if every check holds.
pub(crate) fn run(arguments: &Arguments, interrupt: &Interrupt) -> Result<ExitCode> {
    let progress = Progress::new();
    packages::ensure(Need::Demo, &progress, interrupt)?;
    let (root, artifacts) = prepare(&arguments.suite, Software::Rdma, &progress, interrupt, || {
        let step = progress.step("building the plugin and the example for release");
        let artifacts = artifacts::build(&Path::new(CACHE).join("build.log"), interrupt)?;
        step.done("");
        Ok(artifacts)
    })?;

    let step = progress.step("booting 2 guests with 2 NUMA nodes and 2 rails each");
    let options = Options {
        plugin: Some(artifacts.plugin),
        programs: vec![artifacts.pair_exchange],
        ..Options::new(RESULTS)
    };
    let cluster = Cluster::boot(&root, options, interrupt).context(LOGS)?;
    let accelerator = cluster.accelerator().clone();
    step.done(&format!("by {accelerator}"));

    let results = steps()
        .into_iter()
        .map(|(step, expected)| {
            let shown = progress.step(step.command());
            let result = step.run(&cluster, STEP_TIMEOUT).context(LOGS)?;
            shown.done(&format!("exit code {}", result.output.status));
            let checks = judge(&result, &expected);
            Ok((step, result, checks))
        })
        .collect::<Result<Vec<_>>>()?;

    let step = progress.step("shutting down");
    cluster.shut_down().context(LOGS)?;
    step.done("");
    for (step, result, checks) in &results {
        show(step, result, checks);
    }
    finish(&arguments.suite, &accelerator, &results, &progress)
}

/// The two steps with what must come of them.
pub(crate) fn steps() -> [(Step, Expectation); 2] {
    let all =
        Step::new("step2", "--roce-tc=3 --roce=verbose --roce-nics=all").with_program_options("--peers all");
    [
        (Step::new("step1", "--roce-tc=3 --roce=verbose"), Expectation::pairs(26)),
        (all, Expectation::all_to_all(26)),
    ]
}

/// The guests' root and the programs, side by side: one waits for the network while the other compiles.
pub(crate) fn prepare<T>(
    suite: &str,
    software: Software,
    progress: &Progress,
    interrupt: &Interrupt,
    build: impl FnOnce() -> Result<T>,
) -> Result<(GuestRoot, T)> {
    let cache = Path::new(CACHE);
    let exists = GuestRoot::at(cache, suite, software)?.exists();
    if !exists {
        // At the terminal, before progress is drawn over sudo's question.
        roce_lab::packages::authorise()?;
    }
    fs::create_dir_all(cache).with_context(|| format!("making {CACHE}"))?;
    thread::scope(|scope| {
        let root = scope.spawn(|| {
            let what = if exists { "checking" } else { "making, once," };
            let step = progress.step(format!("{what} the guests' root, Debian {suite}"));
            let root = GuestRoot::ensure(cache, suite, software, interrupt)?;
            step.done("");
            Ok::<_, anyhow::Error>(root)
        });
        let artifacts = build();
        let root = root.join().unwrap_or_else(|_| anyhow::bail!("making the guests' root panicked"));
        Ok((root?, artifacts?))
    })
}

fn show(step: &Step, result: &StepResult, checks: &[Check]) {
    println!("\n{}: {}", step.name, result.command);
    for line in result.output.stdout.lines().chain(result.output.stderr.lines()) {
        println!("    {line}");
    }
    println!("\n{}", result.table());
    for check in checks {
        println!("{:<6} {} ({})", if check.ok { "ok" } else { "FAILED" }, check.what, check.seen);
    }
}

fn finish(
    suite: &str,
    accelerator: &Accelerator,
    results: &[(Step, StepResult, Vec<Check>)],
    progress: &Progress,
) -> Result<ExitCode> {
    let failed = results.iter().flat_map(|(_, _, checks)| checks).filter(|check| !check.ok).count();
    let row = |(flow, count): (&roce_lab::wire::Flow, u64)| WireRow {
        rail: flow.rail,
        from: flow.from.clone(),
        to: flow.to.clone(),
        dscp: flow.dscp,
        roce_v2_packets: count,
    };
    let steps = results.iter().map(|(step, result, checks)| StepReport {
        name: &step.name,
        command: &result.command,
        status: result.output.status,
        seconds: result.output.elapsed.as_secs_f64(),
        checks,
        wire: result.table().flows().map(row).collect(),
        ranks: &result.ranks,
    });
    let report = Report {
        ok: failed == 0,
        seconds: progress.elapsed().as_secs_f64(),
        suite,
        accelerator: accelerator.to_string(),
        steps: steps.collect(),
    };
    let path = Path::new(RESULTS).join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("writing {}", path.display()))?;

    println!("\nleft in {RESULTS}: report.json, wire/<node>.rail<k>.pcap, logs/");
    let seconds = progress.elapsed().as_secs_f64();
    if failed == 0 {
        println!("demo: every check holds, after {seconds:.1} s");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("demo: FAILED, {failed} checks don't hold, after {seconds:.1} s");
        Ok(ExitCode::FAILURE)
    }
}
