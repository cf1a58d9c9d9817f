//! What the kernel says about another process of this node.

use std::fs;
use std::io::ErrorKind;

/// What it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It runs, or nothing is known.
    Runs,
    /// A signal or a debugger has stopped it.
    Stopped,
    /// It is no more, although a process that it started may hold its connections.
    Ended,
}

/// The state of a process; 0 is one whose number is not known here.
pub(crate) fn state(process: i32) -> State {
    if process == 0 {
        return State::Runs;
    }
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        // `PID (name) state ...`; the name may contain anything (proc_pid_stat(5)).
        Ok(stat) if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 't'])) => {
            State::Stopped
        }
        Err(error)
            if error.kind() == ErrorKind::NotFound && fs::exists("/proc/self/stat").unwrap_or(false) =>
        {
            State::Ended
        }
        // A zombie is not taken for ended: its first thread may be, and others still run.
        _ => State::Runs,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_process_runs_is_stopped_and_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = i32::try_from(child.id()).unwrap();
        assert_eq!((state(process), state(0)), (State::Runs, State::Runs));
        kill(Pid::from_raw(process), Signal::SIGSTOP).unwrap();
        let becomes = |wanted| {
            (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                state(process) == wanted
            })
        };
        assert!(becomes(State::Stopped));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(becomes(State::Ended));
    }
}
