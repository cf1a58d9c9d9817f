//! The node's side: what each hook in slurmstepd and in its tasks does.
//!
//! Whatever goes wrong is kept in the step and raised in `task_init`, the only place where Slurm ends the
//! task for it and neither drains the node nor reports success.

use std::ffi::CStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use roce_node::Node;
use roce_plan::{Memlock, OnFailure, Options, Request, RoceOption, Site, Source, Task};
use roce_spank::{Context, Spank, Verdict};

use crate::state::{State, state};
use crate::table::{RowError, TaskTable};
use crate::{apply, node_wide, report};

/// Slurm's own record of the memlock limit in the shell that submitted; it is applied to the task after
/// `task_init_privileged`.
const SUBMITTED_MEMLOCK: &str = "SLURM_RLIMIT_MEMLOCK";

/// A step of this node that is to be placed.
#[derive(Debug)]
pub(crate) struct Step {
    facts: Result<Facts, String>,
    on_failure: OnFailure,
}

impl Step {
    fn is_verbose(&self) -> bool {
        self.facts.as_ref().is_ok_and(|facts| facts.request.verbose)
    }
}

/// All that a plan is made from.
#[derive(Debug)]
struct Facts {
    site: Site,
    request: Request,
    node: Node,
    table: TaskTable,
    /// CPUs that each task was promised.
    cpus_per_task: usize,
    /// What the task is told although nothing failed.
    warning: Option<String>,
}

/// In slurmstepd, as the user, before the fork: reads all there is to read.
pub(crate) fn user_init(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    state.step = None;
    // A batch script, an extern step or an interactive shell is no step of ours: its sruns are.
    if spank.context() == Context::Remote && !spank.is_special_step().unwrap_or(false) {
        state.step = prepare(&mut state, spank);
    }
    Verdict::Continue
}

/// The step, or nothing if it is to be left alone.
fn prepare(state: &mut State, spank: &Spank<'_>) -> Option<Step> {
    let asked = asked(state, spank);
    let site = match (state.site(), &asked) {
        (Ok(site), _) => site,
        // Nobody asked, or --roce=off: a broken site file is no reason to stop it.
        (Err(error), Ok(asked)) if asked.request(&Site::default()) == Ok(None) => {
            report::log(&format!("{error}; this step runs without RoCE placement"));
            return None;
        }
        (Err(error), _) => return Some(Step { facts: Err(error), on_failure: OnFailure::Fail }),
    };
    let on_failure = site.policy.on_failure;
    let step = |facts| Some(Step { facts, on_failure });
    match asked.and_then(|asked| asked.request(&site).map_err(|error| error.to_string())) {
        Ok(None) => None,
        Err(error) => step(Err(error)),
        Ok(Some(request)) => step(facts(state, spank, site, request)),
    }
}

/// What was asked for. srun has put the settled request into the environment; only when nothing is there do
/// the options that Slurm delivered count.
pub(crate) fn asked(state: &State, spank: &Spank<'_>) -> Result<Options, String> {
    let option_of =
        |name: &[u8]| RoceOption::ALL.into_iter().find(|option| option.variable().as_bytes() == name);
    let variables = spank.environment(|name| option_of(name).is_some()).map_err(|error| error.to_string())?;
    let mut options = Options::default();
    for (name, value) in &variables {
        if let Some(option) = option_of(name.as_bytes()) {
            // Users know the option, and that is what srun settled on, wherever it came from.
            options.set(option, text(option, value.as_bytes())?, Source::CommandLine);
        }
    }
    if variables.is_empty() {
        for (option, value) in &state.delivered {
            options.set_last(*option, text(*option, value)?);
        }
    }
    Ok(options)
}

/// Any user may have written these bytes, whatever srun checked.
fn text(option: RoceOption, value: &[u8]) -> Result<&str, String> {
    let lossy = || String::from_utf8_lossy(value).into_owned();
    std::str::from_utf8(value).map_err(|_| format!("--{}={}: not UTF-8 text", option.name(), lossy()))
}

fn facts(state: &State, spank: &Spank<'_>, site: Site, request: Request) -> Result<Facts, String> {
    let asked_by = request.asked_by();
    let failed = |error: &dyn Display| format!("{asked_by}: {error}");
    let tasks = spank.local_task_count().map_err(|error| failed(&error))?;
    let cpus_per_task = spank.cpus_per_task().map_err(|error| failed(&error))?.max(1) as usize;
    let table = TaskTable::new(tasks)
        .map_err(|error| failed(&format_args!("can't map a table of {tasks} tasks: {error}")))?;
    let node = roce_node::read(&state.arguments()?.sysfs).map_err(|error| failed(&error))?;
    Ok(Facts { site, request, node, table, cpus_per_task, warning: None })
}

/// In the task, still root: sets the memlock limit, for RDMA registers memory by locking it.
pub(crate) fn task_init_privileged(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    if let Some(step) = &mut state.step
        && let Ok(facts) = &mut step.facts
    {
        // This is the task's own copy of the state.
        match set_memlock(spank, facts.site.limits.memlock) {
            Ok(warning) => facts.warning = warning,
            Err(error) => step.facts = Err(error),
        }
    }
    Verdict::Continue
}

fn set_memlock(spank: &Spank<'_>, memlock: Memlock) -> Result<Option<String>, String> {
    let bytes = match memlock {
        Memlock::Keep => return Ok(None),
        Memlock::Unlimited => None,
        Memlock::Bytes(bytes) => Some(bytes),
    };
    let lower =
        roce_bind::set_memlock(bytes).map_err(|error| format!("can't set the memlock limit: {error}"))?;
    // Else Slurm would put the submitting shell's limit back. Absent is as good.
    if spank.getenv(SUBMITTED_MEMLOCK).map_err(|error| error.to_string())?.is_some() {
        spank.unsetenv(SUBMITTED_MEMLOCK).map_err(|error| error.to_string())?;
    }
    Ok(lower.map(|limit| {
        let limit = limit / 1024;
        let wanted = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
        format!("warning: the memlock limit is {limit} KiB, not {wanted}: slurmd lacks CAP_SYS_RESOURCE")
    }))
}

/// In slurmstepd, once per task, while all tasks wait: one system call, no more.
pub(crate) fn task_post_fork(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let state = state();
    if let Some(Step { facts: Ok(facts), .. }) = &state.step {
        match (spank.task_id(), spank.task_pid()) {
            (Ok(task), Ok(pid)) => facts.table.record(task, roce_bind::affinity(pid)),
            // The row stays empty, and the tasks say so.
            (Err(error), _) | (_, Err(error)) => report::log(&error),
        }
    }
    Verdict::Continue
}

/// In the task, as the user, after Slurm's own binding.
pub(crate) fn task_init(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let state = state();
    let Some(step) = &state.step else { return Verdict::Continue };
    match step.facts.as_ref().map_err(Clone::clone).and_then(|facts| place(spank, facts)) {
        Ok(mut lines) => {
            if spank.task_id() == Ok(0) {
                lines.extend(node_wide::lines(&state, step.is_verbose()));
            }
            lines.iter().for_each(|line| report::to_task(spank, line));
            Verdict::Continue
        }
        Err(error) => give_up(spank, &error, step.on_failure),
    }
}

/// The plan is the same in every task of the node; each carries out its own row. Gives what to say.
fn place(spank: &Spank<'_>, facts: &Facts) -> Result<Vec<String>, String> {
    let tasks = (0..facts.table.tasks())
        .map(|local_rank| {
            let cpus = facts.table.mask(local_rank)?;
            Ok(Task { local_rank, cpus, cpus_needed: facts.cpus_per_task, gpus: Vec::new() })
        })
        .collect::<Result<Vec<_>, RowError>>()
        .map_err(|error| error.to_string())?;
    let plan = roce_plan::plan(&facts.node, &facts.request, &facts.site, &tasks)
        .map_err(|error| error.to_string())?;
    let local_rank = spank.task_id().map_err(|error| error.to_string())?;
    let task = plan.task(local_rank).ok_or_else(|| format!("the plan has no local task {local_rank}"))?;
    let exports = roce_plan::exports(&plan, local_rank, &facts.site);
    let notes = apply::apply(spank, task, &exports).map_err(|error| error.to_string())?;
    // The same for all tasks of the node: one of them says it.
    let of_class = plan.class.iter().flat_map(|class| &class.warnings).map(|text| format!("warning: {text}"));
    let warnings = facts.warning.iter().cloned().chain(of_class);
    let mut lines: Vec<String> = warnings.filter(|_| local_rank == 0).collect();
    if facts.request.verbose {
        lines.extend(plan.describe(local_rank));
        lines.extend(notes);
    }
    Ok(lines)
}

/// Ends the task, or lets it run as it is.
pub(crate) fn give_up(spank: &Spank<'_>, error: &str, on_failure: OnFailure) -> Verdict {
    match on_failure {
        OnFailure::Fail => {
            report::to_task(spank, &error);
            Verdict::Fail
        }
        OnFailure::Warn => {
            report::to_task(spank, &format!("warning: {error}; running without RoCE placement"));
            Verdict::Continue
        }
    }
}
