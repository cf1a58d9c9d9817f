//! How the plugin speaks: one line, with its name first.

use std::fmt::Display;
use std::io::Write;

use roce_spank::{Level, Spank, log as log_line};

/// Says why nothing was launched: on the standard error of srun, sbatch, salloc.
pub(crate) fn error(what: &dyn Display) {
    log_line(Level::Error, &format!("spank_roce: {what}"));
}

/// Puts something that no user asked about into slurmd's log. An error would be shown by srun too.
pub(crate) fn log(what: &dyn Display) {
    log_line(Level::Info, &format!("spank_roce: {what}"));
}

/// Something that nobody asked about, where a job is submitted: shown by `srun -v`.
pub(crate) fn note(what: &dyn Display) {
    log_line(Level::Verbose, &format!("spank_roce: {what}"));
}

/// Writes one line to the task's own standard error, as `--cpu-bind=verbose` does.
pub(crate) fn to_task(spank: &Spank<'_>, what: &dyn Display) {
    let rank = spank.task_global_id().map_or_else(|_| "?".to_owned(), |rank| rank.to_string());
    // The value is the user's: an escape must not reach a terminal, nor a newline feign a second line.
    let what: String = what.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let line = format!("spank_roce: {}: task {rank}: {what}\n", node_name(spank));
    // In one write, so that the tasks' lines don't mix. If the task has no standard error left, there is
    // nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The node's name in Slurm (several nodes may share one host), else the host's.
fn node_name(spank: &Spank<'_>) -> String {
    if let Ok(Some(name)) = spank.getenv("SLURMD_NODENAME") {
        return name.to_string_lossy().into_owned();
    }
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this node".to_owned(), |name| name.trim().to_owned())
}
