//! How long a step waits for its plan: reading the node, and planning its tasks.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use roce_node::Node;
use roce_plan::{Options, RoceOption, Site, Source, Task};

use crate::report::{Case, Report};

/// How this program is told to read a tree once and end.
pub(crate) const READ_ONCE: &str = "read-once";

const ROUNDS: usize = 51;

/// A node of 128 CPUs, 10 NICs and 8 GPUs: the DGX H100 of the fixtures with fewer cores.
fn machine() -> Result<tempfile::TempDir> {
    let shipped = roce_machines::all().iter().find(|shipped| shipped.name == "dgx_h100");
    let text = shipped.context("no machine dgx_h100")?.text;
    let smaller =
        text.replace("\"0-55,112-167\"", "\"0-31,64-95\"").replace("\"56-111,168-223\"", "\"32-63,96-127\"");
    let root = tempfile::tempdir()?;
    roce_machines::Machine::parse(&smaller)?.build(root.path())?;
    Ok(root)
}

/// Measures.
pub(crate) fn run() -> Result<Report> {
    let root = machine()?;
    let node = roce_node::read(root.path())?;
    ensure!(
        node.cpus.len() == 128 && node.ports.len() == 10 && node.gpus.len() == 8,
        "not the machine meant"
    );
    let read = time(|| roce_node::read(root.path()).map(|node| node.ports.len()))?;
    let mut cases = vec![
        limit("read 128 CPUs, 10 NICs, 8 GPUs from a sysfs tree", read, 5_000.0),
        limit("plan 8 tasks with a GPU each", plan(&node, 8)?, 200.0),
        limit("plan 256 tasks", plan(&node, 256)?, 5_000.0),
    ];
    let (ours, theirs) = processes(root.path())?;
    cases.push(Case::times(
        "read the same tree, as a process",
        "lstopo-no-graphics --whole-io",
        ours,
        theirs,
        None,
    ));
    Ok(Report { name: "plan", cases })
}

fn limit(case: &str, ours: Vec<f64>, microseconds: f64) -> Case {
    Case::times(case, &format!("limit of {microseconds} us"), ours, vec![microseconds], Some(1.0))
}

/// Microseconds of each of many runs, after one that warms the caches.
fn time<T, E: std::error::Error + Send + Sync + 'static>(
    mut run: impl FnMut() -> Result<T, E>,
) -> Result<Vec<f64>> {
    run()?;
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run()?);
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn plan(node: &Node, count: u32) -> Result<Vec<f64>> {
    let site = Site::default();
    let mut options = Options::default();
    options.set(RoceOption::Tc, "3", Source::CommandLine);
    let request = options.request(&site)?.context("an option was given")?;
    let cpus: Vec<usize> = node.cpus.iter().collect();
    let tasks: Vec<Task> = (0..count)
        .map(|local_rank| {
            let rank = local_rank as usize;
            let gpu = node.gpus.get(rank).map(|gpu| gpu.pci.address);
            let share = cpus.len().div_ceil(count as usize);
            let own = cpus.iter().cycle().skip(rank * share).take(share).copied().collect();
            Task { local_rank, cpus: own, cpus_needed: 1, gpus: gpu.into_iter().collect() }
        })
        .collect();
    time(|| roce_plan::plan(node, &request, &site, &tasks))
}

/// This program and hwloc's, in turns, on the same tree.
fn processes(root: &Path) -> Result<(Vec<f64>, Vec<f64>)> {
    let own = std::env::current_exe()?;
    let run = |command: &mut Command| -> Result<f64> {
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.with_context(|| format!("{}", command.get_program().display()))?;
        let time = start.elapsed().as_secs_f64() * 1e6;
        ensure!(status.success(), "{}: {status}", command.get_program().display());
        Ok(time)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(run(Command::new(&own).arg(READ_ONCE).arg(root))?);
        theirs.push(run(Command::new("lstopo-no-graphics")
            .args(["--whole-io", "--of", "console"])
            .env("HWLOC_FSROOT", root)
            .env("HWLOC_THISSYSTEM", "0")
            // Else it asks the processor of this machine about caches, and complains that it isn't the tree's.
            .env("HWLOC_COMPONENTS", "-x86"))?);
    }
    Ok((ours, theirs))
}
