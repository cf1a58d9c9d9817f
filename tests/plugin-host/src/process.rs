//! A process of its own for what may crash or change the process, and what a process holds.
#![expect(unsafe_code, reason = "forks")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How long a process may take for its result.
const PATIENCE: Duration = Duration::from_secs(60);

/// A forked process that is to give a result.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    result: File,
}

impl Child {
    /// Forks, and runs `body` there.
    ///
    /// # Errors
    /// If no process can be made.
    pub fn start<T: Serialize>(body: impl FnOnce() -> T) -> Result<Self> {
        let (read, write) = pipe()?;
        // SAFETY: this program has one thread, so the child is a whole copy of it; it leaves by `_exit`.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, result: read.into() }),
            ForkResult::Child => {
                drop(read);
                // SAFETY: asks the kernel to end this copy with its parent.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                // A panic is a crash of the host's own: it must not run on in the copy.
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                let code = match result.map(|result| serde_json::to_vec(&result)) {
                    Ok(Ok(bytes)) => i32::from(File::from(write).write_all(&bytes).is_err()),
                    _ => 101,
                };
                // SAFETY: ends the copy without the original's exit handlers.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// If it crashed, or takes too long: then it is ended.
    pub fn wait<T: DeserializeOwned>(mut self) -> Result<T> {
        let mut bytes = Vec::new();
        let start = Instant::now();
        let mut buffer = [0; 1 << 16];
        loop {
            let mut wait = [PollFd::new(self.result.as_fd(), PollFlags::POLLIN)];
            let left = PATIENCE.saturating_sub(start.elapsed());
            if left.is_zero() || poll(&mut wait, PollTimeout::try_from(left)?)? == 0 {
                kill(self.pid, Signal::SIGKILL)?;
                waitpid(self.pid, None)?;
                bail!("no result after {PATIENCE:?}");
            }
            match self.result.read(&mut buffer)? {
                0 => break,
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
        let status = waitpid(self.pid, None)?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the process crashed: {status:?}");
        serde_json::from_slice(&bytes).context("a process gave no whole result")
    }
}

/// Runs `body` in a process of its own and gives its result.
///
/// # Errors
/// If that process crashes.
pub fn apart<T: Serialize + DeserializeOwned>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let result: Result<T, String> = Child::start(|| body().map_err(|error| format!("{error:#}")))?.wait()?;
    result.map_err(anyhow::Error::msg)
}

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings besides heap and stack.
    pub mappings: usize,
    /// Mappings that are shared with other processes: the plugin's table of tasks.
    pub shared: usize,
    /// Bytes of the heap that are in use.
    pub heap: usize,
    /// Resident memory.
    pub resident_kib: usize,
}

impl Held {
    /// By this process, now.
    ///
    /// # Errors
    /// If /proc can't be read.
    pub fn now() -> Result<Self> {
        let count = |folder: &str| Ok::<_, std::io::Error>(fs::read_dir(folder)?.count());
        let maps = fs::read_to_string("/proc/self/maps")?;
        let of_files =
            maps.lines().filter(|line| !["[heap]", "[stack]"].iter().any(|name| line.ends_with(name)));
        let shared =
            maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.ends_with('s')));
        let status = fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(Self {
            descriptors: count("/proc/self/fd")?,
            threads: count("/proc/self/task")?,
            mappings: of_files.count(),
            shared: shared.count(),
            // SAFETY: only reads the allocator's own figures.
            heap: unsafe { libc::mallinfo2() }.uordblks,
            resident_kib: resident.context("/proc/self/status has no VmRSS")?,
        })
    }

    /// The same in everything but memory, which may be cached?
    ///
    /// # Errors
    /// What differs.
    pub fn same_as(&self, before: &Self) -> Result<()> {
        let of = |held: &Self| (held.descriptors, held.threads, held.mappings, held.shared);
        ensure!(of(self) == of(before), "before: {before:?}; after: {self:?}");
        Ok(())
    }
}
