//! Waits for the slurmstepd of a cluster.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use roce_cluster::{Cluster, processes::Process};

/// Waits until the last step's slurmstepd is gone.
pub(crate) fn wait_for_none(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    while find(cluster).is_some() {
        ensure!(start.elapsed() < Duration::from_secs(10), "a slurmstepd does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits for a step's slurmstepd.
pub(crate) fn wait_for_one(cluster: &Cluster) -> Result<i32> {
    let start = Instant::now();
    loop {
        if let Some(pid) = find(cluster) {
            return Ok(pid);
        }
        ensure!(start.elapsed() < Duration::from_secs(10), "no slurmstepd has started");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn find(cluster: &Cluster) -> Option<i32> {
    cluster.step_processes().into_iter().find(Process::is_stepd).map(|process| process.pid)
}
