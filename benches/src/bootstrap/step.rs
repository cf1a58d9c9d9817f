//! One step of Slurm, whose ranks each exchange once and report when.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use roce_bootstrap::{SECRET_VARIABLE, Secret};
use roce_cluster::{Cluster, run::program};

use super::{NODES, Peer};
use crate::stepd;

/// Many times what the slowest peer takes.
const LIMIT: Duration = Duration::from_secs(240);

/// The program of a rank, beside this one.
const RANK: &str = "roce-bench-rank";

/// What one step showed.
pub(super) struct Step {
    /// Milliseconds from the start of the last rank to the end of the last one.
    pub(super) ms: f64,
    /// The most that any node needed, where it is counted.
    pub(super) rounds: u32,
    pub(super) connections: u32,
}

/// Runs it.
pub(super) fn run(cluster: &Cluster, peer: &Peer, ranks: usize) -> Result<Step> {
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
    read(&text, ranks).with_context(|| format!("srun {mpi} {tasks}"))
}

/// What is wrong, without the rest: every rank says it.
fn first_line(stderr: &str) -> &str {
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.ends_with(roce_cluster::run::HINT));
    lines.find(|line| !line.is_empty()).unwrap_or("it says nothing")
}

/// From the ranks' lines `rank start end [rounds connections]`, the times in nanoseconds of one clock.
fn read(report: &str, ranks: usize) -> Result<Step> {
    let mut seen = vec![false; ranks];
    let (mut start, mut end) = (i64::MIN, i64::MIN);
    let (mut rounds, mut connections) = (0, 0);
    for line in report.lines() {
        let numbers: Vec<i64> =
            line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| line.to_owned())?;
        let (rank, started, ended, counted) = match numbers[..] {
            [rank, started, ended] => (rank, started, ended, [0, 0]),
            [rank, started, ended, rounds, connections] => (rank, started, ended, [rounds, connections]),
            _ => bail!("not three numbers, nor five: {line:?}"),
        };
        let seen = usize::try_from(rank).ok().and_then(|rank| seen.get_mut(rank));
        *seen.with_context(|| format!("rank {rank} of {ranks}"))? = true;
        (start, end) = (start.max(started), end.max(ended));
        (rounds, connections) = (rounds.max(counted[0]), connections.max(counted[1]));
    }
    let missing = seen.iter().filter(|seen| !**seen).count();
    ensure!(missing == 0, "{missing} of {ranks} ranks did not report");
    #[expect(clippy::cast_precision_loss, reason = "a difference far below 2^53")]
    let ms = (end - start) as f64 / 1e6;
    Ok(Step { ms, rounds: u32::try_from(rounds)?, connections: u32::try_from(connections)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_from_the_last_start_to_the_last_end_of_all_ranks() {
        assert!((read("1 5000000 9000000\n0 1000000 9500000\n", 2).unwrap().ms - 4.5).abs() < 1e-9);
        assert!(read("1 5000000 9000000\n", 2).is_err());
        assert!(read("1 5 9\n1 5 9\n", 2).is_err());
        assert!(read("0 5 9\n2 5 9\n", 2).is_err());
        assert!(read("0 5\n", 1).is_err());
    }

    #[test]
    fn of_all_nodes_the_one_that_needed_most_counts() {
        let step = read("0 5 9 3 6\n1 5 9 3 5\n", 2).unwrap();
        assert_eq!((step.rounds, step.connections), (3, 6));
    }
}
