//! The processes that a cluster's steps have.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::cluster::Cluster;

/// A process of a step: slurmstepd, or what runs under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    /// The first 15 bytes of its program's name.
    pub name: String,
}

impl Process {
    /// Is it a slurmstepd, or a task that has not become its program yet?
    #[must_use]
    pub fn is_stepd(&self) -> bool {
        self.name == "slurmstepd"
    }
}

impl Cluster {
    /// The processes of its steps: all whose environment names its configuration, without its daemons, the
    /// commands that submit, and their helpers.
    #[must_use]
    pub fn step_processes(&self) -> Vec<Process> {
        let folder = self.path("");
        let folder = folder.as_os_str().as_bytes();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let processes = entries.flatten().filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // A process may end while it is looked at. The name first: most have another one.
            let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned();
            if NOT_STEPS.contains(&name.as_str()) {
                return None;
            }
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let is_ours = environment.windows(folder.len()).any(|part| part == folder);
            is_ours.then_some(Process { pid, name })
        });
        processes.collect()
    }
}

/// The cluster's daemons, and what submits.
const NOT_STEPS: &[&str] = &[
    "munged",
    "slurmctld",
    "slurmscriptd",
    "slurmd",
    "setpriv",
    "timeout",
    "srun",
    "sbatch",
    "salloc",
    "scontrol",
    "sinfo",
];
