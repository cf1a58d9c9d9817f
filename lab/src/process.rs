//! Child processes that never outlive the lab.
//!
//! Three nets, each for a way to die: `Drop` kills the child's whole process group; the kernel kills the child when the
//! thread that started it ends, for which every child has a thread of its own (`setpriv --pdeathsig`), so even SIGKILL
//! of this process leaves nothing; and guests run under `timeout`, see `qemu.rs`.

use crate::{Error, Interrupt};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Pid, Uid},
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A running child with all that it starts. Dropping it kills them.
#[derive(Debug)]
pub struct Process {
    group: Pid,
    ended: Arc<OnceLock<ExitStatus>>,
    stop: mpsc::Sender<Duration>,
    keeper: Option<JoinHandle<()>>,
}

/// A command that the kernel kills when the thread that started it ends.
#[must_use]
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A command that runs as root: through sudo where this process is not. The caller has made sure that sudo asks for no
/// password now (`sudo -v`), for this one has no terminal.
#[must_use]
pub fn tied_as_root(program: impl AsRef<OsStr>) -> Command {
    if Uid::effective().is_root() {
        return tied(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(program);
    command
}

impl Process {
    /// Starts a command in a process group of its own, with no standard input.
    ///
    /// # Errors
    /// [`Error::Start`] if it can't be started.
    pub fn spawn(mut command: Command) -> Result<Self, Error> {
        let program = program_name(&command);
        command.process_group(0).stdin(Stdio::null());
        let ended = Arc::new(OnceLock::new());
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let keeper = thread::spawn({
            let ended = Arc::clone(&ended);
            move || match command.spawn() {
                Ok(child) => {
                    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
                    // The files that the child was given are its own from here on.
                    drop(command);
                    let _ = started.send(Ok(group));
                    keep(child, group, &ended, &stopped);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        });
        let group = start
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread died")))
            .map_err(|source| Error::Start { program, source })?;
        Ok(Self { group, ended, stop, keeper: Some(keeper) })
    }

    /// How the child ended, or `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.ended.get().copied()
    }

    /// The child's process group, which is its process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.group.as_raw()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; the child is killed then, once this value is dropped.
    pub fn wait(&self, interrupt: &Interrupt) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            interrupt.sleep(POLL)?;
        }
    }

    /// Asks the child's group to end, kills what is left after `grace`, and returns when it is gone.
    pub fn stop(&mut self, grace: Duration) {
        let _ = self.stop.send(grace);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(3));
    }
}

/// Runs a command to its end with all its output in a file.
///
/// # Errors
/// [`Error::Program`] with the output's last lines if it fails; [`Error::Interrupted`].
pub fn run_logged(what: &str, mut command: Command, log: &Path, interrupt: &Interrupt) -> Result<(), Error> {
    let file = File::options().create(true).append(true).open(log).map_err(Error::file("create", log))?;
    let copy = file.try_clone().map_err(Error::file("open", log))?;
    command.stdout(file).stderr(copy);
    let status = Process::spawn(command)?.wait(interrupt)?;
    if status.success() {
        return Ok(());
    }
    // Ctrl-C may have reached the child first, by the terminal.
    interrupt.check()?;
    Err(Error::Program { what: what.into(), status, log: log.into(), tail: tail(log, 15) })
}

/// The last lines of a text file, as far as it can be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    // A console never has lines so long that 25 of them fill this.
    const WINDOW: u64 = 16 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes =
        read().unwrap_or_else(|error| format!("(cannot read {}: {error})", path.display()).into_bytes());
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The life of the thread that owns a child.
fn keep(mut child: Child, group: Pid, ended: &OnceLock<ExitStatus>, stopped: &mpsc::Receiver<Duration>) {
    let mut kill_at: Option<Instant> = None;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // What the child left running in its group has no parent any more.
                signal(group, Signal::SIGKILL);
                let _ = ended.set(status);
                return;
            }
            Ok(None) => {}
            // Only possible if somebody else reaped it: nothing is left to keep.
            Err(_) => return,
        }
        match stopped.recv_timeout(POLL) {
            Ok(grace) if kill_at.is_none() => {
                signal(group, Signal::SIGTERM);
                kill_at = Some(Instant::now() + grace);
            }
            // The owner's end of the channel is gone, and the child still there: as if it had been stopped.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                kill_at.get_or_insert_with(Instant::now);
                thread::sleep(POLL);
            }
            _ => {}
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            signal(group, Signal::SIGKILL);
        }
    }
}

/// Signals a group. One that runs as root through sudo is out of an ordinary user's reach, but not of sudo's.
fn signal(group: Pid, signal: Signal) {
    if killpg(group, signal) == Err(Errno::EPERM) {
        let _ = Command::new("sudo")
            .args(["-n", "kill", "-s", signal.as_str().trim_start_matches("SIG"), "--"])
            .arg(format!("-{group}"))
            .stderr(Stdio::null())
            .status();
    }
}

/// The program behind setpriv, sudo and the like, for messages.
fn program_name(command: &Command) -> String {
    let first = command.get_program().to_string_lossy().into_owned();
    match first.as_str() {
        "setpriv" => {
            command.get_args().nth(3).map_or(first, |program| program.to_string_lossy().into_owned())
        }
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn the_end_of_a_child_is_seen() -> Result<(), Error> {
        let mut command = tied("sh");
        command.args(["-c", "exit 7"]);
        let status = Process::spawn(command)?.wait(&Interrupt::default())?;
        assert_eq!(status.code(), Some(7));
        Ok(())
    }

    #[test]
    fn dropping_kills_the_child_and_its_children() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let pids = folder.path().join("pids");
        let mut command = tied("sh");
        command
            .arg("-c")
            .arg(format!("sleep 600 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", pids.display()));
        let process = Process::spawn(command)?;
        while !pids.exists() {
            thread::sleep(POLL);
        }
        let text = std::fs::read_to_string(&pids)?;
        drop(process);
        for pid in text.split_whitespace() {
            assert!(!alive(pid.parse()?), "{pid} of {text} is alive");
        }
        Ok(())
    }

    #[test]
    fn a_failed_program_is_reported_with_the_end_of_its_output() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let mut command = tied("sh");
        command.args(["-c", "seq 100; echo disk full >&2; exit 3"]);
        let error = run_logged("the build", command, &log, &Interrupt::default()).err().ok_or("no error")?;
        let text = error.to_string();
        assert!(text.starts_with("the build failed") && text.ends_with("100\ndisk full"), "{text}");
        assert!(!text.contains("\n50\n"), "{text}");
        Ok(())
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Process::spawn(Command::new("no-such-program-here")).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("no-such-program-here")));
    }
}
