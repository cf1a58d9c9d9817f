//! The faults, and what mends them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roce_cluster::{Cluster, run::program, sysfs};

/// What may happen to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    TaskKilled,
    StepdKilled,
    Interrupted,
    SysfsGone,
    SysfsFolder,
    SysfsUnreadable,
    NicDown,
    SiteGarbage,
    PluginReplaced,
}

impl Fault {
    pub(crate) const ALL: [Self; 10] = [
        Self::None,
        Self::TaskKilled,
        Self::StepdKilled,
        Self::Interrupted,
        Self::SysfsGone,
        Self::SysfsFolder,
        Self::SysfsUnreadable,
        Self::NicDown,
        Self::SiteGarbage,
        Self::PluginReplaced,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TaskKilled => "a task killed",
            Self::StepdKilled => "slurmstepd killed",
            Self::Interrupted => "srun interrupted",
            Self::SysfsGone => "files of sysfs gone",
            Self::SysfsFolder => "a file of sysfs is a folder",
            Self::SysfsUnreadable => "a file of sysfs unreadable",
            Self::NicDown => "a NIC goes down",
            Self::SiteGarbage => "site file replaced by garbage",
            Self::PluginReplaced => "plugin replaced",
        }
    }

    /// Does a process get a signal?
    pub(crate) fn is_signal(self) -> bool {
        matches!(self, Self::TaskKilled | Self::StepdKilled | Self::Interrupted)
    }
}

/// Where the faults happen: a machine as a folder, a site file, the plugin's file.
pub(crate) struct Field<'a> {
    pub(crate) cluster: &'a Cluster,
    plugin: &'a Path,
    root: PathBuf,
    site: PathBuf,
    files: Vec<PathBuf>,
}

const SITE: &str = "[policy]\nallowed_priorities = [3]\nnode_wide = true\n[limits]\nmemlock = \"keep\"\n";
const GARBAGE: &str = "\u{1}\u{2}[[[ = \"\n";

/// A step is launched some 30 ms after srun has started; faults of files come before or about then.
const BEFORE_LAUNCH_MS: u64 = 50;
/// A step whose tasks sleep ends some 350 ms after that.
const WHILE_IT_RUNS_MS: u64 = 400;

impl<'a> Field<'a> {
    pub(crate) fn new(cluster: &'a Cluster, plugin: &'a Path) -> Result<Self> {
        let root = cluster.path("soaked");
        sysfs::write_two_nics(&root)?;
        let mut files = Vec::new();
        sysfs::list(&root, &mut files)?;
        // Whatever order the folder has, a seed means the same files.
        files.sort();
        for file in node_wide_files(&root) {
            fs::create_dir_all(file.parent().context("no parent")?)?;
            fs::write(file, "0\n")?;
        }
        cluster.with_site(SITE, &format!("sysfs={}", root.display()))?;
        Ok(Self { cluster, plugin, site: cluster.path("roce.toml"), root, files })
    }

    /// Does to a step what the fault is, at a random moment. Gives what has to be put back.
    pub(crate) fn meet(&self, fault: Fault, rng: &mut Rng, srun: u32) -> Result<Vec<PathBuf>> {
        let most = if fault.is_signal() { WHILE_IT_RUNS_MS } else { BEFORE_LAUNCH_MS };
        let moment = Duration::from_micros(rng.u64(..most * 1_000));
        if matches!(fault, Fault::TaskKilled | Fault::StepdKilled) {
            self.wait_for_stepd();
        }
        if fault != Fault::None {
            sleep(moment);
        }
        let mut one = || self.files[rng.usize(..self.files.len())].clone();
        match fault {
            Fault::None => Ok(Vec::new()),
            Fault::TaskKilled => self.kill_one(rng, false),
            Fault::StepdKilled => {
                let touched = self.kill_one(rng, true)?;
                // Slurm doesn't notice by itself: somebody has to cancel the job.
                sleep(Duration::from_millis(300));
                program("scancel").args(["--partition=all"]).run(self.cluster)?;
                Ok(touched)
            }
            Fault::Interrupted => interrupt(srun),
            Fault::SysfsGone => {
                let gone = [one(), one(), one()];
                gone.iter().try_for_each(|file| ignore_absent(fs::remove_file(file)))?;
                Ok(gone.into())
            }
            Fault::SysfsFolder => {
                let file = one();
                fs::remove_file(&file)?;
                fs::create_dir(&file)?;
                Ok(vec![file])
            }
            Fault::SysfsUnreadable => {
                let file = one();
                fs::set_permissions(&file, Permissions::from_mode(0o000))?;
                Ok(vec![file])
            }
            Fault::NicDown => {
                // One of them, or both.
                let cards = [&["0000:01:00.0"] as &[_], &["0000:11:00.0"], &["0000:01:00.0", "0000:11:00.0"]];
                let cards = cards[rng.usize(..cards.len())];
                let is_down = |file: &&PathBuf| {
                    let text = file.to_string_lossy();
                    cards.iter().any(|card| text.contains(card))
                        && ["operstate", "carrier", "ports/1/state"].iter().any(|end| text.ends_with(end))
                };
                let files: Vec<PathBuf> = self.files.iter().filter(is_down).cloned().collect();
                ensure!(files.len() == 3 * cards.len(), "{files:?}");
                for file in &files {
                    let text = if file.ends_with("state") {
                        "1: DOWN\n"
                    } else if file.ends_with("carrier") {
                        "0\n"
                    } else {
                        "down\n"
                    };
                    fs::write(file, text)?;
                }
                Ok(files)
            }
            Fault::SiteGarbage => {
                self.write_site(GARBAGE)?;
                Ok(vec![self.site.clone()])
            }
            Fault::PluginReplaced => {
                self.cluster.install(self.plugin)?;
                Ok(Vec::new())
            }
        }
    }

    /// Is no class node-wide any more, and no record of one left?
    pub(crate) fn expect_put_back(&self) -> Result<()> {
        for file in node_wide_files(&self.root) {
            let value = fs::read_to_string(&file)?;
            ensure!(value.trim() == "0", "{} is {}", file.display(), value.trim());
        }
        let record = self.root.join("run/roce-launch/node-wide.toml");
        ensure!(!record.exists(), "{} is left", record.display());
        Ok(())
    }

    /// Puts everything back as it was.
    pub(crate) fn mend(&self, touched: Vec<PathBuf>) -> Result<()> {
        if touched.is_empty() {
            return Ok(());
        }
        if touched.contains(&self.site) {
            return self.write_site(SITE);
        }
        for file in touched {
            if file.is_dir() {
                fs::remove_dir(&file)?;
            }
        }
        // The whole tree again, but its links, which stay.
        let fresh = self.cluster.path("fresh");
        sysfs::write_two_nics(&fresh)?;
        for file in &self.files {
            let from = fresh.join(file.strip_prefix(&self.root)?);
            fs::rename(&from, file).with_context(|| file.display().to_string())?;
        }
        Ok(fs::remove_dir_all(fresh)?)
    }

    fn write_site(&self, text: &str) -> Result<()> {
        let new = self.cluster.path("roce.toml.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, &self.site)?)
    }

    /// Until there is somebody to kill, but for two seconds at most.
    fn wait_for_stepd(&self) {
        let start = Instant::now();
        while self.cluster.step_processes().is_empty() && start.elapsed() < Duration::from_secs(2) {
            sleep(Duration::from_millis(2));
        }
    }

    /// Kills a slurmstepd, or something that runs under it; if there is none at this moment, nothing.
    fn kill_one(&self, rng: &mut Rng, stepd: bool) -> Result<Vec<PathBuf>> {
        let mut victims = self.cluster.step_processes();
        victims.retain(|process| process.is_stepd() == stepd);
        if !victims.is_empty() {
            let victim = &victims[rng.usize(..victims.len())];
            ignore_absent(kill(Pid::from_raw(victim.pid), Signal::SIGKILL).map_err(io::Error::from))?;
        }
        Ok(Vec::new())
    }
}

/// Plain files that stand in for the kernel's configuration of both NICs.
fn node_wide_files(root: &Path) -> [PathBuf; 2] {
    [0, 1].map(|nic| root.join(format!("sys/kernel/config/rdma_cm/mlx5_{nic}/ports/1/default_roce_tos")))
}

/// As a user does who means it: twice.
fn interrupt(timeout: u32) -> Result<Vec<PathBuf>> {
    for _ in 0..2 {
        // `timeout` has srun as its only child.
        let children = fs::read_to_string(format!("/proc/{timeout}/task/{timeout}/children"));
        if let Some(srun) = children.unwrap_or_default().split_whitespace().next() {
            let srun = Pid::from_raw(srun.parse()?);
            ignore_absent(kill(srun, Signal::SIGINT).map_err(io::Error::from))?;
        }
        sleep(Duration::from_millis(100));
    }
    Ok(Vec::new())
}

/// What is to be removed or ended may be gone already.
fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | ESRCH)) => Ok(()),
        result => result,
    }
}

const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
const ESRCH: i32 = nix::errno::Errno::ESRCH as i32;
