//! What can go wrong in the lab, told so that the reader knows what to do next.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

/// A failure of the lab. The text says what was attempted, on what, why it failed and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A signal (Ctrl-C, SIGTERM) asked the run to end.
    #[error("interrupted")]
    Interrupted,

    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted, as a verb phrase: `read`, `create`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },

    /// Another cluster that runs has its files there.
    #[error("another cluster runs with {} as its folder; wait for its end, or name another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },

    /// A program could not be started.
    #[error("cannot start {program}; is it installed? `cargo xtask demo` installs what the lab needs")]
    Start {
        /// The program's name.
        program: String,
        /// The operating system's reason.
        source: io::Error,
    },

    /// A host program ended with a failure.
    #[error("{what} failed ({status}); its output is in {}, which ends with:\n{tail}", log.display())]
    Program {
        /// What the program was to do.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of that output.
        tail: String,
    },

    /// The host's apt configuration names no mirror to build guests from.
    #[error(
        "no Debian mirror found: no source in /etc/apt/sources.list or /etc/apt/sources.list.d offers the suite \
         `{codename}` with component main; add one, `apt-get update` must work on this machine"
    )]
    NoMirror {
        /// The host's own Debian suite.
        codename: String,
    },

    /// A guest failed. The lab ends with the first guest that does.
    #[error("guest {node} {fault} after {:.1} s; its console ends with:\n{console}", elapsed.as_secs_f64())]
    Guest {
        /// Which guest: `vm1`, `vm2`, ...
        node: String,
        /// What is wrong with it.
        fault: GuestFault,
        /// Time since the guest was started.
        elapsed: Duration,
        /// The last lines of its console.
        console: String,
    },

    /// A command in a guest took longer than it was given. It was killed there.
    #[error("command on {node} did not end within {:.0} s and was killed: {script}\nstdout: {stdout}\nstderr: {stderr}", timeout.as_secs_f64())]
    CommandTimeout {
        /// The guest.
        node: String,
        /// The command.
        script: String,
        /// The time that it had.
        timeout: Duration,
        /// What it had printed.
        stdout: String,
        /// What it had printed on standard error.
        stderr: String,
    },

    /// The caller named a guest that this cluster doesn't have.
    #[error("the cluster has no guest {node}; its guests are {known}")]
    UnknownNode {
        /// The name that was asked for.
        node: String,
        /// The names that exist.
        known: String,
    },

    /// The caller asked for a cluster that can't be built.
    #[error("{option} = {value} is not possible: {allowed}")]
    Option {
        /// The field of [`Options`](crate::Options).
        option: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },

    /// A capture can't be read.
    #[error("capture {} is not a pcap file: {reason}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
}

/// What is wrong with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestFault {
    /// Its kernel gave up; the console's line is kept.
    Panicked(String),
    /// Its emulator ended although nobody asked it to.
    Exited(String),
    /// It never reached its own PID 1 in the given time.
    NeverBooted,
    /// PID 1 ran, but Slurm was not ready in the given time.
    NeverReady,
    /// Its set-up script ended; the code is what it returned.
    SetupFailed(String),
    /// It ran, but no longer answers commands.
    Silent,
    /// It was asked to shut down and did not.
    NeverHalted,
}

impl fmt::Display for GuestFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(line) => write!(out, "panicked ({line})"),
            Self::Exited(status) => write!(out, "ended by itself ({status})"),
            Self::NeverBooted => write!(out, "never booted: its PID 1 has not reported"),
            Self::NeverReady => write!(out, "booted but Slurm never became ready"),
            Self::SetupFailed(code) => write!(out, "failed in its set-up script (exit code {code})"),
            Self::Silent => write!(out, "no longer answers commands"),
            Self::NeverHalted => write!(out, "did not shut down when asked to"),
        }
    }
}

impl Error {
    /// Keeps path and operation beside an I/O error: use as `.map_err(Error::file("read", path))`.
    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::File { action, path, source }
    }
}
