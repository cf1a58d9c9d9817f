//! What the kernel says about another process of this node.

use std::fs;

/// Whether a signal or a debugger has stopped it. Where /proc does not say, it is not.
pub(crate) fn is_stopped(process: i32) -> bool {
    // `PID (name) state ...`; the name may contain anything (proc_pid_stat(5)).
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}
