//! Ties a program to this process: the kernel kills it when this one ends, however it ends.
#![expect(unsafe_code, reason = "what runs between fork and exec must be told so by hand")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Start the command from a thread that lives as long as this process: it is that thread whose end counts.
pub(super) fn tie(command: &mut Command) {
    let parent = Pid::this();
    let tie = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before the kernel was asked.
        if getppid() != parent {
            return Err(io::Error::from(Errno::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes two system calls, prctl and
    // getppid, and an errno becomes an `io::Error` without allocation.
    unsafe { command.pre_exec(tie) };
}
