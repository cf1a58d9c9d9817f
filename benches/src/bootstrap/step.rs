//! One step of Slurm, whose ranks each exchange once and report when.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use roce_bootstrap::{SECRET_VARIABLE, Secret};
use roce_cluster::{Cluster, run::program};

use super::{NODES, Peer};
use crate::stepd;

/// A rank ends itself after so many seconds, and its step with it: several times what any peer but MPI_Init takes.
const RANK_LIMIT: Duration = Duration::from_secs(120);

/// A step may take so long with all that Slurm does before and after.
const LIMIT: Duration = Duration::from_secs(180);

/// The program of a rank, beside this one.
const RANK: &str = "roce-bench-rank";

/// Before the time at which a rank began, which it writes before its clock starts.
const START: &str = "start ";

/// How a step ended.
pub(super) enum Outcome {
    /// Everybody knew everybody.
    Done(Step),
    /// The ranks were ended before, but not before so many milliseconds were over since the last one's start.
    Unfinished { more_than: f64 },
}

/// What one step showed.
pub(super) struct Step {
    /// Milliseconds from the start of the last rank to the end of the last one.
    pub(super) ms: f64,
    /// The most that any node needed, where it is counted.
    pub(super) rounds: u32,
    pub(super) connections: u32,
}

/// Runs it.
pub(super) fn run(cluster: &Cluster, peer: &Peer, ranks: usize) -> Result<Outcome> {
    let rank = std::env::current_exe()?.with_file_name(RANK);
    // In memory: what the first ranks write must not disturb the last ones much.
    let folder = tempfile::Builder::new().prefix("roce-bench-").tempdir_in("/dev/shm")?;
    let report = folder.path().join("report");
    File::create_new(&report)?;
    mkfifo(&folder.path().join("gate"), Mode::S_IRUSR | Mode::S_IWUSR)?;
    let [rank, path] = [rank.as_path(), folder.path()].map(|path| path.display().to_string());
    let (nodes, tasks, mpi) = (format!("-N{NODES}"), format!("-n{ranks}"), format!("--mpi={}", peer.mpi));
    let mut srun = program("srun")
        .limit(LIMIT)
        .args([nodes.as_str(), &tasks, "--overcommit", "--kill-on-bad-exit=1", &mpi])
        .args([rank.as_str(), peer.word, &path, &ranks.to_string(), &RANK_LIMIT.as_secs().to_string()])
        .env(SECRET_VARIABLE, &Secret::random()?.to_hex());
    for (name, value) in peer.variables {
        srun = srun.env(name, value);
    }
    let begun = Instant::now();
    let ran = srun.run(cluster)?;
    let took = begun.elapsed();
    // slurmstepd lives a little longer than srun; it must not run beside the next step.
    stepd::wait_for_none(cluster)?;
    let text = fs::read_to_string(report)?;
    if ran.status != 0
        && took >= RANK_LIMIT
        && let Some(more_than) = unfinished(&text, ranks)
    {
        return Ok(Outcome::Unfinished { more_than });
    }
    ensure!(ran.status == 0, "srun {mpi} {tasks}: exit code {}: {}", ran.status, first_line(&ran.stderr));
    read(&text, ranks).map(Outcome::Done).with_context(|| format!("srun {mpi} {tasks}"))
}

/// What is wrong, without the rest: every rank says it.
fn first_line(stderr: &str) -> &str {
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.ends_with(roce_cluster::run::HINT));
    lines.find(|line| !line.is_empty()).unwrap_or("it says nothing")
}

/// For how many milliseconds the exchange went on at least, where it had no end, by the ranks' lines `start`: all had
/// started, and the first that had ended itself when its time was over.
fn unfinished(report: &str, ranks: usize) -> Option<f64> {
    let starts = report.lines().filter_map(|line| line.strip_prefix(START)?.parse::<i64>().ok());
    let starts: Vec<i64> = starts.collect();
    let (first, last) = (starts.iter().min()?, starts.iter().max()?);
    #[expect(clippy::cast_precision_loss, reason = "a difference far below 2^53")]
    let ms = RANK_LIMIT.as_secs_f64() * 1e3 - (last - first) as f64 / 1e6;
    (starts.len() == ranks && ms > 0.0).then_some(ms)
}

/// From the ranks' lines `rank start end [rounds connections]`, the times in nanoseconds of one clock.
fn read(report: &str, ranks: usize) -> Result<Step> {
    let mut seen = vec![false; ranks];
    let (mut start, mut end) = (i64::MIN, i64::MIN);
    let (mut rounds, mut connections) = (0, 0);
    for line in report.lines().filter(|line| !line.starts_with(START)) {
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
        assert!((read("start 3\n0 1000000 2000000\n", 1).unwrap().ms - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_without_end_went_on_from_its_last_start_to_the_end_of_its_first_rank() {
        let report = "start 4000000000\nstart 1000000000\n0 4000000000 5000000000\n";
        assert!((unfinished(report, 2).unwrap() - 117_000.0).abs() < 1e-9);
        assert_eq!(unfinished(report, 3), None, "one had not even started");
        assert_eq!(
            unfinished("start 1\nstart 130000000000\n", 2),
            None,
            "the first was gone before the last came"
        );
    }

    #[test]
    fn of_all_nodes_the_one_that_needed_most_counts() {
        let step = read("0 5 9 3 6\n1 5 9 3 5\n", 2).unwrap();
        assert_eq!((step.rounds, step.connections), (3, 6));
    }
}
