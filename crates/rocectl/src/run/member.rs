//! One program of a run, a rank or the ssh to a host: a process group of its own, tied to this process.

use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use zeroize::Zeroizing;

use super::{Event, LAST_LINES, output, tie};

/// A running program.
pub(super) struct Member {
    /// As in `rank 3` or `host b`.
    pub(super) name: String,
    child: Child,
    group: Pid,
    /// Where its other end, on a host, is told what to do. Closed, it ends its ranks.
    words: Option<Sender<Zeroizing<String>>>,
    /// Its process was collected: the number of its group may be somebody else's.
    collected: bool,
}

impl Member {
    /// Starts it. What becomes of it and of its output arrives as events, under this number.
    ///
    /// Its input is what the command says: where it is a pipe, words go there.
    pub(super) fn start(
        number: u32,
        name: String,
        mut command: Command,
        prefix: String,
        events: &Sender<Event>,
    ) -> io::Result<Self> {
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        tie::tie(&mut command);
        let mut child = command.spawn()?;
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);

        let stderr_prefix = prefix.clone();
        let (words, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let is_host = words.is_some();
        let mut started = Self { name, child, group, words: None, collected: false };
        let threads = (|| {
            started.words = words.map(writer).transpose()?;
            if let Some(stdout) = stdout {
                reader(events, move || output::forward(stdout, &prefix, || io::stdout().lock(), |_| false))?;
            }
            let (last_word, last_words) = mpsc::channel();
            if let Some(stderr) = stderr {
                let is_last_word = move |line: &[u8]| is_host && line == super::hosts::LAST_WORD.as_bytes();
                let keep = move |line: &[u8]| {
                    let keep = is_last_word(line);
                    if keep {
                        // Where it comes too late nobody listens; it is shown to nobody all the same.
                        let _ = last_word.send(());
                    }
                    keep
                };
                reader(events, move || {
                    output::forward(stderr, &stderr_prefix, || io::stderr().lock(), keep)
                })?;
            }
            let events = events.clone();
            thread::Builder::new().spawn(move || {
                // It stays to be collected, so that its group keeps its number.
                while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
                {
                }
                // What ssh printed may be on its way still; and somebody who outlives it may hold the pipe open.
                let in_order = !is_host || last_words.recv_timeout(LAST_LINES).is_ok();
                // After the end nobody listens.
                let _ = events.send(Event::Ended { number, in_order });
            })
        })();
        if let Err(error) = threads {
            let _ = started.collect();
            return Err(error);
        }
        Ok(started)
    }

    /// Is it the way to a host?
    pub(super) fn is_host(&self) -> bool {
        self.words.is_some()
    }

    /// One line for the other end. Says whether there is somebody to hear it; it does not wait for that.
    pub(super) fn say(&self, line: &str) -> bool {
        let line = Zeroizing::new(format!("{line}\n"));
        self.words.as_ref().is_some_and(|words| words.send(line).is_ok())
    }

    /// To every process of its group, wherever that is.
    pub(super) fn signal(&self, signal: Signal) {
        if self.collected {
            return;
        }
        // Killing the way to a host closes its other end's input, which then ends its ranks.
        if signal != Signal::SIGKILL && self.say(&super::signal_word(signal)) {
            return;
        }
        // Nobody left to be told is well, too.
        let _ = killpg(self.group, signal);
    }

    /// Ends what is left of its group, and says how it ended.
    pub(super) fn collect(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait();
        self.collected = true;
        status
    }
}

/// However this process leaves the run: no member stays.
impl Drop for Member {
    fn drop(&mut self) {
        if !self.collected {
            let _ = self.collect();
        }
    }
}

/// Writes lines in a thread of its own: while ssh connects, a pipe takes 64 KiB and no more.
fn writer(mut to: ChildStdin) -> io::Result<Sender<Zeroizing<String>>> {
    let (sender, lines) = mpsc::channel::<Zeroizing<String>>();
    thread::Builder::new().spawn(move || {
        // Where nobody reads any more, the sender hears of it when it says the next.
        lines.iter().try_for_each(|line| to.write_all(line.as_bytes()))
    })?;
    Ok(sender)
}

/// Forwards one of a member's outputs in a thread of its own.
fn reader(
    events: &Sender<Event>,
    forward: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    thread::Builder::new().spawn(move || {
        // Where nobody reads what we print, the rank finds its own output closed, as in any pipeline.
        let _ = forward();
        let _ = events.send(Event::Closed);
    })?;
    Ok(())
}

/// As the shells have it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
