//! What the plugin adds to the resident memory of slurmd and of slurmstepd.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roce_cluster::{Cluster, run::program};

use crate::report::Case;
use crate::stepd;

/// What slurmd may have more.
const LIMIT_KIB: f64 = 2_048.0;

/// Pairs of starts.
const STARTS: usize = 5;

/// Starts slurmd with and without the plugin, in turns, with a step each.
pub(crate) fn run(cluster: &mut Cluster, tree: &str) -> Result<Vec<Case>> {
    let mut with = Sizes::default();
    let mut without = Sizes::default();
    for _ in 0..STARTS {
        cluster.without_plugin()?;
        without.measure(cluster, &[])?;
        cluster.with_plugin(tree)?;
        with.measure(cluster, &["--roce-tc=3"])?;
    }
    Ok(vec![
        case("resident memory of slurmd", &with.slurmd, &without.slurmd),
        case("resident memory of slurmstepd", &with.stepd, &without.stepd),
    ])
}

/// KiB, start by start.
#[derive(Default)]
struct Sizes {
    slurmd: Vec<f64>,
    stepd: Vec<f64>,
}

impl Sizes {
    fn measure(&mut self, cluster: &mut Cluster, options: &[&str]) -> Result<()> {
        cluster.restart_slurmd()?;
        // After its first step, for that is how slurmd spends its life.
        program("srun").args(options.iter().copied()).args(["true"]).run(cluster)?;
        stepd::wait_for_none(cluster)?;
        let step = program("srun").args(options.iter().copied()).args(["sleep", "2"]).start(cluster)?;
        let stepd = stepd::wait_for_one(cluster)?;
        // Until its tasks run.
        std::thread::sleep(Duration::from_millis(500));
        self.slurmd.push(resident(cluster.slurmd()?.cast_signed())?);
        self.stepd.push(resident(stepd)?);
        let ran = step.wait()?;
        ensure!(ran.status == 0, "{ran}");
        cluster.expect_idle()
    }
}

/// The limit is for what is added, so the case's peer is the same program without the plugin, plus that.
fn case(name: &str, with: &[f64], without: &[f64]) -> Case {
    let added: Vec<f64> = with.iter().zip(without).map(|(with, without)| with - without).collect();
    println!(
        "{name}: {:+.0} KiB ({:.0} with the plugin, {:.0} without)",
        crate::report::median(&added),
        crate::report::median(with),
        crate::report::median(without)
    );
    let allowed = without.iter().map(|size| size + LIMIT_KIB).collect();
    let peer = "the same without it, plus 2 MiB";
    Case::less_is_better(name, peer, "KiB", with.to_vec(), allowed, Some(1.0))
}

/// KiB of a process that are in memory, shared pages counted whole.
fn resident(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
    kib.with_context(|| format!("{path} has no Rss: {text}"))
}
