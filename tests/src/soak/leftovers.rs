//! What a step could leave behind: files, shared memory, configuration of the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use roce_cluster::Cluster;

/// Folders that any program may write to, which [`hide`] makes private.
const COMMON: [&str; 4] = ["/tmp", "/dev/shm", "/run", "/var/tmp"];

/// Where the kernel's own configuration of RDMA lies, such as the class of connections by `rdma_cm`.
const CONFIGFS: &str = "/sys/kernel/config/rdma_cm";

/// Gives this process and its children empty folders of their own in place of the common ones, and shared memory
/// of their own, so that whatever appears there comes from them.
///
/// # Errors
/// If the kernel refuses: it takes root.
pub fn hide() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)
        .context("can't have a mount namespace of one's own (are you root?)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("/")?;
    for folder in COMMON {
        let options = Some("mode=1777");
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), options).context(folder)?;
    }
    Ok(())
}

/// What is there at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    pub(crate) fn now(cluster: &Cluster) -> Result<Self> {
        let mut found = BTreeSet::new();
        let own = cluster.path("");
        for folder in COMMON {
            list(Path::new(folder), &own, &mut found)?;
        }
        let spool = cluster.path("spool-n1");
        list(&spool, Path::new("/nowhere"), &mut found)?;
        found.retain(|path| !is_slurms(Path::new(path), &spool));
        // A line per segment, semaphore or queue.
        for table in ["shm", "sem", "msg"] {
            let text = fs::read_to_string(format!("/proc/sysvipc/{table}"))?;
            found.extend(text.lines().skip(1).map(|line| format!("{table} {line}")));
        }
        // With its values: a changed one is a leftover too.
        let mut files = BTreeSet::new();
        list(Path::new(CONFIGFS), Path::new("/nowhere"), &mut files)?;
        for path in files {
            let value = fs::read_to_string(&path).unwrap_or_default();
            found.insert(format!("{path}: {}", value.trim()));
        }
        Ok(Self(found))
    }

    /// Is there nothing that was not there before, and all that was?
    pub(crate) fn compare(&self, cluster: &Cluster) -> Result<()> {
        let now = Self::now(cluster)?;
        let new: Vec<&String> = now.0.difference(&self.0).collect();
        let gone: Vec<&String> = self.0.difference(&now.0).collect();
        ensure!(new.is_empty() && gone.is_empty(), "left behind: {new:?}; gone: {gone:?}");
        Ok(())
    }
}

/// A killed slurmstepd leaves its socket, which slurmd removes when it starts; the credentials and the topology
/// are files that it writes now and then.
fn is_slurms(path: &Path, spool: &Path) -> bool {
    let Ok(name) = path.strip_prefix(spool) else { return false };
    let name = name.to_string_lossy();
    let socket = name.strip_prefix(roce_cluster::cluster::NODE).and_then(|rest| rest.strip_prefix('_'));
    let is_socket = socket.is_some_and(|step| step.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
    is_socket || name.starts_with("cred_state") || name.starts_with("hwloc_topo")
}

/// All paths below a folder, if it is there.
fn list(folder: &Path, except: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    for entry in entries {
        let path = entry?.path();
        if except.starts_with(&path) {
            continue;
        }
        found.insert(path.display().to_string());
        if path.is_dir() && !path.is_symlink() {
            list(&path, except, found)?;
        }
    }
    Ok(())
}
