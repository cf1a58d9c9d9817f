//! What must hold after every step, whatever went wrong in it.

use anyhow::{Context, Result, ensure};
use roce_plugin_host::step::{Outcome, Task};

/// The site's word on a step that can't be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnFailure {
    Fail,
    Warn,
}

/// How the tasks of a step that asked for RoCE went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) placed: usize,
    pub(crate) unplaced: usize,
}

/// Holds a step that asked for RoCE, and whose hooks came in Slurm's order, against all the rules.
pub(crate) fn judge(outcome: &Outcome, on_failure: OnFailure) -> Result<Ends> {
    codes(outcome)?;
    let mut ends = Ends { placed: 0, unplaced: 0 };
    for task in &outcome.tasks {
        let is_placed = judge_task(task, on_failure).with_context(|| format!("{outcome:#?}"))?;
        if is_placed {
            ends.placed += 1;
        } else {
            ends.unplaced += 1;
        }
    }
    Ok(ends)
}

/// Only 0 and -1, and -1 only where Slurm ends a task for it.
fn codes(outcome: &Outcome) -> Result<()> {
    for (hook, code, _) in outcome.calls.iter().chain(outcome.tasks.iter().flat_map(|task| &task.calls)) {
        let is_allowed = *code == 0 || (*code == -1 && hook.may_fail_on_a_node());
        ensure!(is_allowed, "{hook:?} returned {code}: {outcome:#?}");
    }
    Ok(())
}

/// Was the task placed? If not, it says so in one line, and nothing of it is changed.
fn judge_task(task: &Task, on_failure: OnFailure) -> Result<bool> {
    let lines = task.own_lines();
    if task.runs() && task.is_placed() {
        ensure!(lines.is_empty(), "placed, and complains");
        return Ok(true);
    }
    ensure!(lines.len() == 1, "not one line but {}", lines.len());
    ensure!(task.changes.is_empty(), "not placed, and its environment is changed");
    ensure!(task.cpus.0 == task.cpus.1, "not placed, and its CPUs are changed");
    match on_failure {
        OnFailure::Fail => ensure!(!task.runs(), "neither placed nor failed"),
        OnFailure::Warn => {
            ensure!(lines[0].contains(": warning: ") && lines[0].ends_with(WARNED), "no warning");
            ensure!(task.runs(), "failed, though the site only warns");
        }
    }
    Ok(false)
}

const WARNED: &str = "; running without RoCE placement";
