//! Those who play: how each is built and started, and what its rank 0 prints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::Case;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Player {
    Ours,
    OpenMpi,
    Mpich,
}

impl Player {
    pub(super) const ALL: [Self; 3] = [Self::Ours, Self::OpenMpi, Self::Mpich];

    /// For people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "roce-launcher",
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
        }
    }

    /// Debian keeps several MPIs apart so.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Ours => "",
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
        }
    }
}

/// Nanoseconds, by case.
pub(super) type Times = Vec<(Case, f64)>;

const SOURCE: &str = include_str!("peer.c");

/// The programs of the ranks.
pub(super) struct Built {
    ours: PathBuf,
    folder: tempfile::TempDir,
}

impl Built {
    /// Compiles the peers' with their own compilers; ours lies beside this program.
    pub(super) fn new() -> Result<Self> {
        let ours = std::env::current_exe()?.with_file_name("roce-bench-messages-rank");
        ensure!(ours.exists(), "{} is missing: cargo build --release -p roce-benches", ours.display());
        let folder = tempfile::tempdir()?;
        let source = folder.path().join("peer.c");
        fs::write(&source, SOURCE)?;
        for player in [Player::OpenMpi, Player::Mpich] {
            let compiler = format!("mpicc.{}", player.suffix());
            let status = Command::new(&compiler)
                // Some compilers take MPICH's MPI_STATUSES_IGNORE for an array without room.
                .args(["-O3", "-Wno-stringop-overflow", "-o"])
                .arg(folder.path().join(player.suffix()))
                .arg(&source)
                .status()
                .with_context(|| format!("{compiler} (libopenmpi-dev, libmpich-dev)"))?;
            ensure!(status.success(), "{compiler}: {status}");
        }
        Ok(Self { ours, folder })
    }

    /// Which version of it is here: the first words that it says of itself.
    pub(super) fn version(&self, player: Player) -> Result<String> {
        let mut command = Command::new(format!("mpirun.{}", player.suffix()));
        let output = command.arg("--version").output().context("mpirun")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_number = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let number = text.split_whitespace().find(is_number).context("mpirun --version has no number")?;
        Ok(format!("{} {number}", player.name()))
    }

    /// Nanoseconds that two threads need to hand over a cache line.
    pub(super) fn line(&self) -> Result<f64> {
        let output = Command::new(&self.ours).args(["line", "200000"]).output()?;
        ensure!(output.status.success(), "line: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        Ok(text.trim().strip_prefix("line/8 ").with_context(|| text.clone())?.parse()?)
    }

    /// Has one play cases of one number of ranks, each rank on a core.
    pub(super) fn play(&self, player: Player, cases: &[Case]) -> Result<Times> {
        let ranks = cases.first().context("no case")?.ranks;
        let words = cases.iter().flat_map(|case| {
            let Case { what, size, window, times, .. } = case;
            [what.word().to_owned(), size.to_string(), window.to_string(), times.to_string()]
        });
        let words: Vec<String> = words.collect();
        let text = match player {
            Player::Ours => start_ours(&self.ours, ranks, &words)?,
            _ => start_mpi(player, &self.folder.path().join(player.suffix()), ranks, &words)?,
        };
        read(&text, cases).with_context(|| format!("{} with {ranks} ranks: {text:?}", player.name()))
    }
}

fn start_mpi(player: Player, program: &Path, ranks: u32, words: &[String]) -> Result<String> {
    let mut command = Command::new(format!("mpirun.{}", player.suffix()));
    command.args(["-n", &ranks.to_string()]);
    match player {
        // Without these it refuses to run as root, and to have more ranks than cores.
        Player::OpenMpi => command
            .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
            .args(["--oversubscribe", "--bind-to", "core:overload-allowed"]),
        _ => command.args(["-bind-to", "core"]),
    };
    let output = command.arg(program).args(words).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// With srun's variables, one node.
fn start_ours(program: &Path, ranks: u32, words: &[String]) -> Result<String> {
    static STEP: AtomicU32 = AtomicU32::new(0);
    let step = STEP.fetch_add(1, Ordering::Relaxed);
    let cpus = u32::try_from(std::thread::available_parallelism()?.get())?;
    let spawn = |rank: u32| {
        Command::new(program)
            .arg((rank % cpus).to_string())
            .args(words)
            .env("SLURM_JOB_ID", std::process::id().to_string())
            .env("SLURM_STEP_ID", step.to_string())
            .env("SLURM_PROCID", rank.to_string())
            .env("SLURM_LOCALID", rank.to_string())
            .env("SLURM_NODEID", "0")
            .env("SLURM_NTASKS", ranks.to_string())
            .env("SLURM_STEP_NODELIST", "127.0.0.1")
            .env("SLURM_STEP_TASKS_PER_NODE", ranks.to_string())
            .env("SLURM_ROCE_SECRET", "5f".repeat(32))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    let started: Vec<Child> =
        (0..ranks).map(spawn).collect::<Result<_, _>>().with_context(|| program.display().to_string())?;
    let mut text = String::new();
    for (rank, child) in started.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        let faults = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rank {rank}: {}\n{faults}", output.status);
        text += &String::from_utf8(output.stdout)?;
    }
    Ok(text)
}

/// The lines `what/size ns`, one for each case, in their order.
fn read(text: &str, cases: &[Case]) -> Result<Times> {
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == cases.len(), "{} lines for {} cases", lines.len(), cases.len());
    let read = |(case, line): (&Case, &str)| {
        let ns = line.strip_prefix(&format!("{}/{} ", case.what.word(), case.size));
        Ok((*case, ns.context("another case's line")?.parse()?))
    };
    cases.iter().zip(lines).map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::super::What;
    use super::*;

    #[test]
    fn every_case_has_its_line() {
        let case = |size| Case { what: What::Latency, ranks: 2, size, window: 1, times: 1 };
        let cases = [case(8), case(64)];
        let times = read("latency/8 150.5\nlatency/64 160.0\n", &cases).unwrap();
        assert_eq!(times, [(cases[0], 150.5), (cases[1], 160.0)]);
        assert!(read("latency/8 150.5\n", &cases).is_err());
        assert!(read("latency/64 150.5\nlatency/8 1.0\n", &cases).is_err());
    }
}
