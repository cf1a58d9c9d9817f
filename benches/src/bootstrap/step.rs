//! One step of Slurm, whose ranks each exchange once and report when.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roce_bootstrap::{SECRET_VARIABLE, Secret};
use roce_cluster::{Cluster, run::program};

use super::{NODES, Peer};
use crate::stepd;

/// Many times what the slowest peer takes.
const LIMIT: Duration = Duration::from_secs(240);

/// The program of a rank, beside this one.
const RANK: &str = "roce-bench-rank";

/// Milliseconds from the start of the last rank to the end of the last one.
pub(super) fn run(cluster: &Cluster, peer: &Peer, ranks: usize) -> Result<f64> {
    let rank = std::env::current_exe()?.with_file_name(RANK);
    // In memory: what the first ranks write must not disturb the last ones much.
    let mut report = tempfile::Builder::new().prefix("roce-bench-").tempfile_in("/dev/shm")?;
    let [rank, path] = [rank.as_path(), report.path()].map(|path| path.display().to_string());
    let (nodes, tasks, mpi) = (format!("-N{NODES}"), format!("-n{ranks}"), format!("--mpi={}", peer.mpi));
    let mut srun = program("srun")
        .limit(LIMIT)
        .args([nodes.as_str(), &tasks, "--overcommit", &mpi, &rank, peer.word, &path, &ranks.to_string()])
        .env(SECRET_VARIABLE, &Secret::random()?.to_hex());
    for (name, value) in peer.variables {
        srun = srun.env(name, value);
    }
    let ran = srun.run(cluster)?;
    // slurmstepd lives a little longer than srun; it must not run beside the next step.
    stepd::wait_for_none(cluster)?;
    ensure!(ran.status == 0, "srun {mpi} {tasks}: exit code {}: {}", ran.status, first_line(&ran.stderr));
    let mut text = String::new();
    report.as_file_mut().read_to_string(&mut text)?;
    figure(&text, ranks).with_context(|| format!("srun {mpi} {tasks}"))
}

/// What is wrong, without the rest: every rank says it.
fn first_line(stderr: &str) -> &str {
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.ends_with(roce_cluster::run::HINT));
    lines.find(|line| !line.is_empty()).unwrap_or("it says nothing")
}

/// From the ranks' lines `rank start end`, in nanoseconds of one clock.
fn figure(report: &str, ranks: usize) -> Result<f64> {
    let mut seen = vec![false; ranks];
    let (mut start, mut end) = (i64::MIN, i64::MIN);
    for line in report.lines() {
        let numbers: Vec<i64> =
            line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| line.to_owned())?;
        let [rank, started, ended] = numbers[..] else { anyhow::bail!("not three numbers: {line:?}") };
        let seen = usize::try_from(rank).ok().and_then(|rank| seen.get_mut(rank));
        *seen.with_context(|| format!("rank {rank} of {ranks}"))? = true;
        (start, end) = (start.max(started), end.max(ended));
    }
    let missing = seen.iter().filter(|seen| !**seen).count();
    ensure!(missing == 0, "{missing} of {ranks} ranks did not report");
    #[expect(clippy::cast_precision_loss, reason = "a difference far below 2^53")]
    Ok((end - start) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_from_the_last_start_to_the_last_end_of_all_ranks() {
        assert!((figure("1 5000000 9000000\n0 1000000 9500000\n", 2).unwrap() - 4.5).abs() < 1e-9);
        assert!(figure("1 5000000 9000000\n", 2).is_err());
        assert!(figure("1 5 9\n1 5 9\n", 2).is_err());
        assert!(figure("0 5 9\n2 5 9\n", 2).is_err());
        assert!(figure("0 5\n", 1).is_err());
    }
}
