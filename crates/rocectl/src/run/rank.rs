//! One rank: a process group of its own, tied to this process.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use roce_bootstrap::{FOREIGN_VARIABLES, LocalRun};

use super::{Event, output, tie};

/// A running rank.
pub(super) struct Rank {
    child: Child,
    group: Pid,
    /// Its process was collected: the number of its group may be somebody else's.
    collected: bool,
}

impl Rank {
    /// Starts it. What becomes of it and of its output arrives as events.
    pub(super) fn start(
        rank: u32,
        run: &LocalRun<'_>,
        command: &[OsString],
        label: bool,
        events: &Sender<Event>,
    ) -> io::Result<Self> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::other("no command was given"))?;
        let mut start = Command::new(program);
        start.args(arguments).process_group(0);
        for name in FOREIGN_VARIABLES {
            start.env_remove(name);
        }
        start.envs(run.variables(rank).iter().map(|(name, value)| (name, value.as_str())));
        // A group in the background that reads from the terminal would be stopped by it.
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tie::tie(&mut start);
        let mut child = start.spawn()?;
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);

        let prefix = if label {
            format!("{rank:0$}: ", run.size.saturating_sub(1).to_string().len())
        } else {
            String::new()
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut started = Self { child, group, collected: false };
        let threads = (|| {
            if let Some(stdout) = stdout {
                reader(prefix.clone(), events, move |prefix| {
                    output::forward(stdout, prefix, || io::stdout().lock())
                })?;
            }
            if let Some(stderr) = stderr {
                reader(prefix, events, move |prefix| {
                    output::forward(stderr, prefix, || io::stderr().lock())
                })?;
            }
            let events = events.clone();
            thread::Builder::new().spawn(move || {
                // It stays to be collected, so that its group keeps its number.
                while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
                {
                }
                // After the end nobody listens.
                let _ = events.send(Event::Ended(rank));
            })
        })();
        if let Err(error) = threads {
            let _ = started.collect();
            return Err(error);
        }
        Ok(started)
    }

    /// To every process of its group.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.collected {
            // Nobody left to be told is well, too.
            let _ = killpg(self.group, signal);
        }
    }

    /// Ends what is left of its group, and says how it ended.
    pub(super) fn collect(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait();
        self.collected = true;
        status
    }
}

/// However this process leaves the run: no rank stays.
impl Drop for Rank {
    fn drop(&mut self) {
        if !self.collected {
            let _ = self.collect();
        }
    }
}

/// Forwards one of a rank's outputs in a thread of its own.
fn reader(
    prefix: String,
    events: &Sender<Event>,
    forward: impl FnOnce(&str) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    thread::Builder::new().spawn(move || {
        // Where nobody reads what we print, the rank finds its own output closed, as in any pipeline.
        let _ = forward(&prefix);
        let _ = events.send(Event::Closed);
    })?;
    Ok(())
}

/// As the shells have it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
