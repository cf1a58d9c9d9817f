//! Finds the slurmstepd of a cluster.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use roce_cluster::Cluster;

/// Waits until the last step's slurmstepd is gone.
pub(crate) fn wait_for_none(cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    while find(cluster)?.is_some() {
        ensure!(start.elapsed() < Duration::from_secs(10), "a slurmstepd does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits for a step's slurmstepd.
pub(crate) fn wait_for_one(cluster: &Cluster) -> Result<u32> {
    let start = Instant::now();
    loop {
        if let Some(pid) = find(cluster)? {
            return Ok(pid);
        }
        ensure!(start.elapsed() < Duration::from_secs(10), "no slurmstepd has started");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process of the step that runs on this cluster's slurmd, if there is one.
fn find(cluster: &Cluster) -> Result<Option<u32>> {
    let spool = cluster.path("slurm.conf").into_os_string().into_encoded_bytes();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(name) = fs::read(format!("/proc/{pid}/comm")) else { continue };
        if name != b"slurmstepd\n" {
            continue;
        }
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if environment.windows(spool.len()).any(|part| part == spool) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}
