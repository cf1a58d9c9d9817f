//! A running cluster: its start, the watch over its guests, the commands on it, and its end.

use crate::{
    Accelerator, Captures, Error, GuestFault, GuestRoot, Interrupt, Options, Output, Process,
    command::{Files, User},
    console::Console,
    options::node_name,
    qemu, share,
    switch::{PortFiles, Switch},
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How often guests are looked at.
const POLL: Duration = Duration::from_millis(30);
/// What a guest may take to kill a command that is out of time, and to say so.
const ANSWER: Duration = Duration::from_secs(20);
/// What a guest may take to halt.
const HALT: Duration = Duration::from_secs(20);

/// Guests that run a Slurm. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: guests before their wires, wires before their sockets' folder.
    guests: Vec<Guest>,
    _switches: Vec<Switch>,
    _sockets: TempDir,
    started: Instant,
    options: Options,
    accelerator: Accelerator,
    captures: Captures,
    interrupt: Interrupt,
    /// The folder of results is this cluster's.
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Guest {
    name: String,
    process: Process,
    console: Mutex<Console>,
    /// The number of the last command. Its holder is the one whose command runs.
    commands: Mutex<usize>,
}

impl Cluster {
    /// Boots the guests and waits until Slurm is ready on all of them.
    ///
    /// # Errors
    /// [`Error::Guest`] tells which guest failed, how, after what time, and the end of its console.
    pub fn boot(root: &GuestRoot, options: Options, interrupt: &Interrupt) -> Result<Self, Error> {
        options.check()?;
        let folders = Folders::prepare(&options.results)?;
        share::fill(&folders.share, &options, root.suite())?;
        let accelerator = Accelerator::choose(root, interrupt)?;

        let sockets = socket_folder()?;
        let socket = |number: usize, rail: usize| sockets.path().join(format!("{number}.{rail}"));
        let captures = Captures::new(&folders.wire);
        let switches = (0..options.rails)
            .map(|rail| {
                let port = |number| PortFiles {
                    socket: socket(number, rail),
                    capture: captures.path(&node_name(number), rail),
                };
                Switch::start(&(1..=options.nodes).map(port).collect::<Vec<_>>())
            })
            .collect::<Result<_, _>>()?;

        let started = Instant::now();
        let guests = (1..=options.nodes)
            .map(|number| {
                let name = node_name(number);
                let console = folders.logs.join(format!("console.{name}.log"));
                let guest = qemu::Guest {
                    number,
                    root,
                    accelerator: &accelerator,
                    share: &folders.share,
                    console: &console,
                    sockets: &(0..options.rails).map(|rail| socket(number, rail)).collect::<Vec<_>>(),
                };
                let mut command = qemu::command(&guest, &options);
                // QEMU's own complaints belong to the guest's console.
                let open = || File::options().create(true).append(true).open(&console);
                command.stdout(open().map_err(Error::file("create", &console))?);
                command.stderr(open().map_err(Error::file("create", &console))?);
                let process = Process::spawn(command)?;
                Ok(Guest {
                    name,
                    process,
                    console: Mutex::new(Console::new(console)),
                    commands: Mutex::new(0),
                })
            })
            .collect::<Result<_, Error>>()?;

        let cluster = Self {
            guests,
            _switches: switches,
            _sockets: sockets,
            started,
            options,
            accelerator,
            captures,
            _lock: folders.lock,
            interrupt: interrupt.clone(),
        };
        cluster.wait_for(cluster.options.boot_timeout, &GuestFault::NeverBooted, |console| console.booted)?;
        cluster.wait_for(cluster.options.ready_timeout, &GuestFault::NeverReady, |console| console.ready)?;
        Ok(cluster)
    }

    /// Runs a bash script on a guest as an ordinary user whose locked memory is limited to 64 KiB. The working
    /// directory is /tmp and /lab is the folder that all share. One script at a time runs on each guest.
    ///
    /// # Errors
    /// [`Error::CommandTimeout`] if it takes longer than `timeout`; it is killed then. [`Error::Guest`] if a guest fails
    /// meanwhile. A script's own failure is no error: it is in the output's status.
    pub fn run(&self, node: &str, script: &str, timeout: Duration) -> Result<Output, Error> {
        self.run_as(node, script, User::Ordinary, timeout)
    }

    /// As [`run`](Self::run), but as root.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_as_root(&self, node: &str, script: &str, timeout: Duration) -> Result<Output, Error> {
        self.run_as(node, script, User::Root, timeout)
    }

    /// The captures of this run, which grow while it lasts.
    #[must_use]
    pub fn captures(&self) -> &Captures {
        &self.captures
    }

    /// The folder that guests see as /lab.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.options.results.join("share")
    }

    /// The guests' names.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.guests.iter().map(|guest| guest.name.as_str())
    }

    /// What runs the guests.
    #[must_use]
    pub fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    /// The process ids of the guests' process groups.
    pub fn process_ids(&self) -> impl Iterator<Item = i32> {
        self.guests.iter().map(|guest| guest.process.id())
    }

    /// Lets the guests halt, and collects their logs.
    ///
    /// # Errors
    /// [`Error::Guest`] if a guest doesn't halt in time or its set-up script failed.
    pub fn shut_down(self) -> Result<(), Error> {
        let start = Instant::now();
        for guest in &self.guests {
            let path = self.share().join("cmd").join(&guest.name).join("halt");
            fs::write(&path, "").map_err(Error::file("write", &path))?;
        }
        for guest in &self.guests {
            while guest.process.ended().is_none() {
                if start.elapsed() > HALT {
                    return Err(self.failed(guest, GuestFault::NeverHalted));
                }
                self.interrupt.sleep(POLL)?;
            }
            let exit = {
                let mut console = lock(&guest.console);
                console.read();
                console.exit.clone().unwrap_or_else(|| "none".into())
            };
            if exit != "0" {
                return Err(self.failed(guest, GuestFault::SetupFailed(exit)));
            }
        }
        Ok(())
    }

    fn run_as(&self, node: &str, script: &str, user: User, timeout: Duration) -> Result<Output, Error> {
        let guest = self.guests.iter().find(|guest| guest.name == node).ok_or_else(|| {
            Error::UnknownNode { node: node.into(), known: self.nodes().collect::<Vec<_>>().join(", ") }
        })?;
        let mut number = lock(&guest.commands);
        *number += 1;
        let files = Files::new(&self.share(), node, *number);
        let start = Instant::now();
        files.hand_over(node, script, user, timeout)?;
        let status = loop {
            if let Some(status) = files.status() {
                break status;
            }
            self.watch()?;
            if start.elapsed() > timeout + ANSWER {
                return Err(self.failed(guest, GuestFault::Silent));
            }
            self.interrupt.sleep(POLL)?;
        };
        let elapsed = start.elapsed();
        let (stdout, stderr) = (files.printed("out")?, files.printed("err")?);
        // What `timeout` returns when it had to act. A script's own 124 comes before its time is over.
        if matches!(status, 124 | 137) && elapsed >= timeout {
            let (node, script) = (node.into(), script.into());
            return Err(Error::CommandTimeout { node, script, timeout, stdout, stderr });
        }
        Ok(Output { status, stdout, stderr, elapsed })
    }

    /// Waits until all guests have come as far as `there` says.
    fn wait_for(
        &self,
        bound: Duration,
        late: &GuestFault,
        there: impl Fn(&Console) -> bool,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            self.watch()?;
            let Some(guest) = self.guests.iter().find(|guest| !there(&lock(&guest.console))) else {
                return Ok(());
            };
            if start.elapsed() > bound {
                return Err(self.failed(guest, late.clone()));
            }
            self.interrupt.sleep(POLL)?;
        }
    }

    /// Looks at every guest once.
    fn watch(&self) -> Result<(), Error> {
        for guest in &self.guests {
            // In this order: a guest that is gone has said all that it had to say.
            let ended = guest.process.ended();
            let (panic, exit) = {
                let mut console = lock(&guest.console);
                console.read();
                (console.panic.clone(), console.exit.clone())
            };
            // The terminal's Ctrl-C may have reached the guest first.
            self.interrupt.check()?;
            let fault = match (panic, exit, ended) {
                (Some(line), _, _) => GuestFault::Panicked(line),
                (None, Some(code), _) => GuestFault::SetupFailed(code),
                (None, None, Some(status)) => GuestFault::Exited(status.to_string()),
                (None, None, None) => continue,
            };
            return Err(self.failed(guest, fault));
        }
        Ok(())
    }

    fn failed(&self, guest: &Guest, fault: GuestFault) -> Error {
        let console = lock(&guest.console).tail();
        Error::Guest { node: guest.name.clone(), fault, elapsed: self.started.elapsed(), console }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for guest in &mut self.guests {
            guest.process.stop(Duration::from_secs(2));
        }
        // Slurm's logs are in the shared folder. A failure here must not hide the one that ended the run.
        let from = self.share().join("log");
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let _ = fs::copy(entry.path(), self.options.results.join("logs").join(entry.file_name()));
        }
    }
}

/// The folders of a run.
struct Folders {
    wire: PathBuf,
    logs: PathBuf,
    share: PathBuf,
    lock: Flock<File>,
}

impl Folders {
    /// Makes them, empty.
    fn prepare(results: &Path) -> Result<Self, Error> {
        fs::create_dir_all(results).map_err(Error::file("create", results))?;
        let path = results.join("lock");
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => Error::InUse { path: results.to_owned() },
            error => Error::file("lock", &path)(error.into()),
        })?;
        let empty = |name: &str| {
            let path = results.join(name);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
            fs::create_dir(&path).map_err(Error::file("create", &path))?;
            // QEMU wants no relative path, whatever its working directory.
            path.canonicalize().map_err(Error::file("find", &path))
        };
        Ok(Self { wire: empty("wire")?, logs: empty("logs")?, share: empty("share")?, lock })
    }
}

/// A folder with a short name: a Unix socket's path has 107 bytes at most, and a build folder's may be longer.
fn socket_folder() -> Result<TempDir, Error> {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base =
        runtime.filter(|path| path.is_dir() && path.as_os_str().len() < 60).unwrap_or_else(|| "/tmp".into());
    tempfile::Builder::new()
        .prefix("roce-lab.")
        .tempdir_in(&base)
        .map_err(Error::file("create a folder in", &base))
}

/// A lock whose holder panicked still guards plain data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_a_cluster_uses_is_no_other_ones() {
        let results = tempfile::tempdir().unwrap();
        let folders = Folders::prepare(results.path()).unwrap();
        let kept = folders.share.join("kept");
        fs::write(&kept, "").unwrap();
        let error = Folders::prepare(results.path()).err().unwrap().to_string();
        assert!(error.starts_with("another cluster runs with /"), "{error}");
        assert!(kept.exists());
        drop(folders);
        Folders::prepare(results.path()).unwrap();
    }
}
