//! The traffic class of every rdma_cm connection of a node, for programs that set none: the kernel's
//! `default_roce_tos`, per port, in configfs (Documentation/ABI/testing/configfs-rdma_cm).
//!
//! It outlives the process that sets it, so what was there before is remembered in a file before it is changed,
//! below /run, where only root can write: whoever finds the file later puts things back. The file also says which
//! processes still need the class; the last one to let go puts things back, and a process that is gone needs
//! nothing.
//!
//! *Whether* to do this is not decided here: see the plugin's `node_wide.rs`.

mod configfs;
mod owner;
mod record;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use roce_types::{DevicePort, TrafficClass};

use crate::configfs::Configfs;
pub use crate::owner::Owner;
use crate::record::Record;

/// Below the root that is looked at.
const FOLDER: &str = "run/roce-launch";
const RECORD: &str = "node-wide.toml";

/// How long another process may be at it: it makes a few small reads and writes.
const PATIENCE: Duration = Duration::from_secs(2);

/// The class can't be set, or not put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of configfs, or of our own.
    #[error("can't {what} {}: {error}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// configfs has no rdma_cm.
    #[error(
        "{} does not exist: load the kernel module rdma_cm, and mount configfs (mount -t configfs none /sys/kernel/config)",
        .0.display()
    )]
    NoConfigfs(PathBuf),
    /// Our own folder or file in it can't be relied on.
    #[error(transparent)]
    Untrusted(roce_trust::Error),
    /// The record is not what we write.
    #[error("{} is not understood: {reason}; remove it, and look at default_roce_tos by hand", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// Somebody else needs another class, or another port.
    #[error("step {step} has made {class} node-wide on {ports} and is still running")]
    InUse {
        /// The step.
        step: String,
        /// Its class.
        class: TrafficClass,
        /// Its ports.
        ports: String,
    },
    /// The lock is held by another process, and does not become free.
    #[error("another process has {} locked", .0.display())]
    Locked(PathBuf),
}

/// The path is in the messages of what is refused, but not in those of the system.
impl From<roce_trust::Error> for Error {
    fn from(error: roce_trust::Error) -> Self {
        match error {
            roce_trust::Error::Io { path, error } => Self::File { what: "open", path, error },
            error => Self::Untrusted(error),
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File { what, path, error }
}

/// What became of one port when things were put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The port.
    pub port: DevicePort,
    /// The class that a step had set.
    pub from: TrafficClass,
    /// The class before.
    pub to: TrafficClass,
    /// What is there instead of what the step set, if somebody changed it meanwhile; it is left so.
    pub kept: Option<TrafficClass>,
    /// The step.
    pub step: String,
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { port, from, to, kept, step } = self;
        match kept {
            None => write!(f, "{port}: default traffic class {from} of step {step} is {to} again"),
            Some(kept) => write!(
                f,
                "{port}: default traffic class is {kept}, not the {from} of step {step}: left so, it was {to} before"
            ),
        }
    }
}

/// The default class of a node's rdma_cm connections.
#[derive(Debug, Clone)]
pub struct NodeWide {
    root: PathBuf,
}

impl NodeWide {
    /// That of the machine whose `sys` and `run` are below `root`.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Has anybody set it and not put it back? One look at one file.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.record_path().exists()
    }

    /// Makes `class` the default of these ports until `owner` lets go of it. A step that asks for what another
    /// has set already shares it.
    ///
    /// # Errors
    /// If another step needs another class, or if anything can't be written; nothing is changed then.
    pub fn set(
        &self,
        owner: Owner,
        ports: &[DevicePort],
        class: TrafficClass,
    ) -> Result<Vec<Restored>, Error> {
        self.make_folder()?;
        let _lock = self.lock()?;
        let restored = self.recover_locked()?;
        if let Some(mut record) = self.read()? {
            if record.class() != class || !ports.iter().all(|port| record.has(port)) {
                return Err(Error::InUse {
                    step: record.steps(),
                    class: record.class(),
                    ports: record.port_list(),
                });
            }
            record.owners.push(owner);
            self.write(&record)?;
            return Ok(restored);
        }
        let configfs = Configfs::below(&self.root)?;
        let mut record = Record::new(owner, ports, class, |port| !configfs.has(port));
        // Twice: what has to be made first shows what is there only after it is made.
        if record.ports.iter().any(|saved| saved.created) {
            self.write(&record)?;
        }
        let done = (|| {
            for saved in &mut record.ports {
                if saved.created {
                    configfs.create(&saved.port)?;
                }
                saved.before = Some(configfs.get(&saved.port)?.0);
            }
            self.write(&record)?;
            record.ports.iter().try_for_each(|saved| configfs.set(&saved.port, class))
        })();
        if let Err(error) = done {
            // The first failure says more than a second one would, and the record stays if this fails.
            let _ = self.put_back(&record);
            return Err(error);
        }
        Ok(restored)
    }

    /// Lets go: the last one puts things back. Of whoever doesn't hold it, nothing is known, and nothing done.
    ///
    /// # Errors
    /// If something can't be put back; the record stays then.
    pub fn release(&self, owner: &Owner) -> Result<Vec<Restored>, Error> {
        self.drop_owners(|known| known == owner || !known.is_alive())
    }

    /// Puts back what processes that are gone have left.
    ///
    /// # Errors
    /// As those of [`release`](Self::release).
    pub fn recover(&self) -> Result<Vec<Restored>, Error> {
        self.drop_owners(|known| !known.is_alive())
    }

    /// As [`recover`](Self::recover), but of processes that are still there too.
    ///
    /// # Errors
    /// As those of [`release`](Self::release).
    pub fn take_away(&self) -> Result<Vec<Restored>, Error> {
        self.drop_owners(|_| true)
    }

    /// The processes that need it still.
    ///
    /// # Errors
    /// If the record can't be read.
    pub fn owners(&self) -> Result<Vec<Owner>, Error> {
        let record = self.read()?;
        Ok(record.map_or_else(Vec::new, |record| record.owners).into_iter().filter(Owner::is_alive).collect())
    }

    fn drop_owners(&self, is_gone: impl Fn(&Owner) -> bool) -> Result<Vec<Restored>, Error> {
        if !self.is_set() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.drop_owners_locked(is_gone)
    }

    fn recover_locked(&self) -> Result<Vec<Restored>, Error> {
        self.drop_owners_locked(|known| !known.is_alive())
    }

    fn drop_owners_locked(&self, is_gone: impl Fn(&Owner) -> bool) -> Result<Vec<Restored>, Error> {
        let Some(mut record) = self.read()? else { return Ok(Vec::new()) };
        let count = record.owners.len();
        if record.owners.iter().all(&is_gone) {
            return self.put_back(&record);
        }
        record.owners.retain(|owner| !is_gone(owner));
        if record.owners.len() != count {
            self.write(&record)?;
        }
        Ok(Vec::new())
    }

    /// Writes the classes of before, removes what was made, and the record last.
    fn put_back(&self, record: &Record) -> Result<Vec<Restored>, Error> {
        let configfs = Configfs::below(&self.root)?;
        let mut restored = Vec::new();
        for saved in &record.ports {
            restored.extend(configfs.put_back(saved, record)?);
        }
        for saved in record.ports.iter().filter(|saved| saved.created) {
            configfs.remove(&saved.port)?;
        }
        let path = self.record_path();
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        Ok(restored)
    }

    fn record_path(&self) -> PathBuf {
        self.root.join(FOLDER).join(RECORD)
    }

    /// Only root may look in, so that no other user can take the lock and keep it.
    fn make_folder(&self) -> Result<(), Error> {
        let mut path = self.root.clone();
        roce_trust::check_folder(&path)?;
        for (name, mode) in [("run", 0o755), ("roce-launch", 0o700)] {
            path.push(name);
            match DirBuilder::new().mode(mode).create(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make the folder", &path)(error));
                }
                _ => roce_trust::check_folder(&path)?,
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.root.join(FOLDER);
        roce_trust::check_folder(&path)?;
        let mut folder = File::open(&path).map_err(failed("open", &path))?;
        let start = Instant::now();
        loop {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((same, Errno::EWOULDBLOCK)) if start.elapsed() < PATIENCE => folder = same,
                Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Locked(path)),
                Err((_, error)) => return Err(failed("lock", &path)(error.into())),
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn read(&self) -> Result<Option<Record>, Error> {
        let path = self.record_path();
        let text = match roce_trust::read(&path, 1 << 20) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            other => other?,
        };
        let record = Record::parse(&text).map_err(|reason| Error::Record { path, reason })?;
        Ok(Some(record))
    }

    /// By rename, so that whoever reads it finds the old one or the new one.
    fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.record_path();
        let new = path.with_extension("new");
        // With a mode of its own: slurmstepd may have taken the user's umask.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let mut file = file.map_err(failed("write", &new))?;
        file.write_all(record.text().as_bytes()).map_err(failed("write", &new))?;
        std::fs::rename(&new, &path).map_err(failed("write", &path))
    }
}

#[cfg(test)]
mod tests;
