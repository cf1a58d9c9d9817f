//! The node's side: what each hook in slurmstepd and in its tasks does.
//!
//! Whatever goes wrong is kept in the step and raised in `task_init`, the only place where Slurm ends the
//! task for it and neither drains the node nor reports success.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use roce_node::Node;
use roce_plan::{
    Draft, Export, Memlock, OnFailure, Options, Plan, Request, RoceOption, Site, Task, VisibleGpus,
};
use roce_spank::{Context, Spank, Verdict};
use roce_types::CpuSet;

use crate::environment::Environment;
use crate::gather::{self, Settled};
use crate::orders::{ALIKE, Order, Orders};
use crate::state::{State, state};
use crate::table::{Row, TaskTable};
use crate::{apply, gpus, node_wide, os, report};

/// Slurm's own record of the memlock limit in the shell that submitted; it is applied to each task.
const SUBMITTED_MEMLOCK: &str = "SLURM_RLIMIT_MEMLOCK";

/// The first release whose tasks are bound before `task_post_fork`. Earlier ones bind in the task itself,
/// later than that.
const BOUND_AT_FORK: (u32, u32) = (22, 5);

/// From so many tasks on, making room for their variables once costs less than each task asking Slurm for it.
const MANY_TASKS: u32 = 4;

/// A step of this node that is to be placed.
#[derive(Debug)]
pub(crate) struct Step {
    facts: Result<Facts, String>,
    on_failure: OnFailure,
}

/// What became of the memlock limit in this slurmstepd.
#[derive(Debug, Default)]
pub(crate) enum Limit {
    /// The site's, or nobody asked for another.
    #[default]
    AsAsked,
    /// As high as this slurmstepd may; the warning says so.
    Lower(String),
    /// The kernel refused.
    Refused(String),
}

/// All that the tasks have in common.
#[derive(Debug)]
struct Facts {
    site: Site,
    verbose: bool,
    /// Where the node's facts are read.
    sysfs: PathBuf,
    node: Node,
    draft: Draft,
    table: TaskTable,
    /// CPUs that each task was promised.
    cpus_per_task: usize,
    settled_by: SettledBy,
    /// What the task is told although nothing failed.
    warning: Option<String>,
}

/// Who assigns the NICs of all tasks. docs/decisions/008-plan-once-per-node.md
#[derive(Debug)]
enum SettledBy {
    /// slurmstepd, when it has seen the CPUs of every task; these are the ones so far.
    Slurmstepd { seen: u32, tasks: Vec<Task>, orders: Option<Orders> },
    /// The tasks: what decides is known inside each of them only.
    Tasks,
}

/// In slurmstepd, as the user, before the fork: reads all there is to read.
pub(crate) fn user_init(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    state.step = None;
    state.environment = Environment::default();
    // A batch script, an extern step or an interactive shell is no step of ours: its sruns are.
    if spank.context() == Context::Remote && !spank.is_special_step().unwrap_or(false) {
        state.step = prepare(&mut state, spank);
        if state.environment.has_reserved() {
            os::return_free_memory();
        }
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
        Ok(Some(request)) => step(facts(state, spank, site, &request)),
    }
}

/// What was asked for.
pub(crate) fn asked(state: &State, spank: &Spank<'_>) -> Result<Options, String> {
    let is_ours = |name: &[u8]| RoceOption::of_variable(name).is_some();
    let variables = spank.environment(is_ours).map_err(|error| error.to_string())?;
    let variables = variables
        .iter()
        .filter_map(|(name, value)| Some((RoceOption::of_variable(name.as_bytes())?, value.as_bytes())));
    let delivered = state.delivered.iter().map(|(option, value)| (*option, value.as_slice()));
    Options::on_node(variables, delivered).map_err(|error| error.to_string())
}

fn facts(state: &mut State, spank: &Spank<'_>, site: Site, request: &Request) -> Result<Facts, String> {
    let asked_by = request.asked_by();
    let failed = |error: &dyn Display| format!("{asked_by}: {error}");
    let tasks = spank.local_task_count().map_err(|error| failed(&error))?;
    let cpus_per_task = spank.cpus_per_task().map_err(|error| failed(&error))?.max(1) as usize;
    let sysfs = state.arguments()?.sysfs.clone();
    let node = roce_node::read(&sysfs).map_err(|error| failed(&error))?;
    let draft = Draft::new(&node, request, &site).map_err(|error| error.to_string())?;
    let settled_by = if node.gpus.is_empty() && roce_spank::release() >= Some(BOUND_AT_FORK) {
        let orders = Orders::new(tasks);
        let orders = orders.map_err(|error| failed(&format_args!("can't map {tasks} orders: {error}")))?;
        SettledBy::Slurmstepd { seen: 0, tasks: Vec::new(), orders }
    } else {
        SettledBy::Tasks
    };
    let joining = matches!(settled_by, SettledBy::Tasks);
    let table = TaskTable::new(tasks, draft.nics_per_task(), joining)
        .map_err(|error| failed(&format_args!("can't map a table of {tasks} tasks: {error}")))?;
    state.environment = Environment::of(spank).map_err(|error| failed(&error))?;
    if tasks >= MANY_TASKS {
        let examples = examples(&node, &draft, &site);
        state.environment.reserve(spank, examples).map_err(|error| failed(&error))?;
    }
    // Else Slurm would set the submitting shell's limit in each task.
    if site.limits.memlock != Memlock::Keep && state.environment.has(SUBMITTED_MEMLOCK) {
        spank.unsetenv(SUBMITTED_MEMLOCK).map_err(|error| failed(&error))?;
    }
    let warning = match &state.memlock {
        Limit::AsAsked => None,
        Limit::Lower(warning) => Some(warning.clone()),
        Limit::Refused(error) => return Err(failed(error)),
    };
    let verbose = request.verbose;
    Ok(Facts { site, verbose, sysfs, node, draft, table, cpus_per_task, settled_by, warning })
}

/// What tasks might export: with all CPUs and NICs, which makes the longest lists, and with one of each.
fn examples(node: &Node, draft: &Draft, site: &Site) -> Vec<Vec<Export>> {
    let all: Vec<usize> = (0..draft.nics().len()).collect();
    let one_cpu: CpuSet = node.cpus.iter().take(1).collect();
    let exports = |(cpus, nics): (&CpuSet, &[usize])| {
        let task = Task { local_rank: 0, cpus: cpus.clone(), cpus_needed: 1, gpus: Vec::new() };
        // Without a row there is no room made, and the tasks ask Slurm for it.
        let row = draft.row(node, &task, nics).ok()?;
        Some(roce_plan::exports(&draft.clone().finish(vec![row]), 0, site))
    };
    [(&node.cpus, all.as_slice()), (&one_cpu, &all[..1])].into_iter().filter_map(exports).collect()
}

/// In slurmstepd, as root, all options known: sets the memlock limit of a step that is to be placed, for RDMA
/// registers memory by locking it. The tasks inherit it; to set it in each would cost each a system call and, after
/// the fork, the pages of code around it.
pub(crate) fn begin(state: &mut State, spank: &Spank<'_>) {
    state.memlock = Limit::default();
    if spank.is_special_step().unwrap_or(true) {
        return;
    }
    // A site file or a request that is no good, `user_init` finds too.
    let Ok(site) = state.site() else { return };
    if let Ok(Some(_)) = asked(state, spank).map(|asked| asked.request(&site).ok().flatten()) {
        state.memlock = set_memlock(site.limits.memlock);
    }
}

fn set_memlock(memlock: Memlock) -> Limit {
    let bytes = match memlock {
        Memlock::Keep => return Limit::AsAsked,
        Memlock::Unlimited => None,
        Memlock::Bytes(bytes) => Some(bytes),
    };
    match roce_bind::set_memlock(bytes) {
        Ok(None) => Limit::AsAsked,
        Ok(Some(limit)) => {
            let wanted =
                bytes.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
            Limit::Lower(format!(
                "warning: the memlock limit is {} KiB, not {wanted}: slurmd lacks CAP_SYS_RESOURCE",
                limit / 1024
            ))
        }
        Err(error) => Limit::Refused(format!("can't set the memlock limit: {error}")),
    }
}

/// In slurmstepd, once per task, while all tasks wait: one system call, and once the assignment.
pub(crate) fn task_post_fork(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    let State { step, environment, .. } = &mut *state;
    let Some(Step { facts: Ok(facts), .. }) = step else { return Verdict::Continue };
    let SettledBy::Slurmstepd { seen, tasks, .. } = &mut facts.settled_by else { return Verdict::Continue };
    *seen += 1;
    match task_and_cpus(spank) {
        Ok((local_rank, cpus)) => {
            tasks.push(Task { local_rank, cpus, cpus_needed: facts.cpus_per_task, gpus: Vec::new() });
        }
        // It has ended already, or it will say that it has no place in the plan.
        Err(error) => report::log(&error),
    }
    if *seen as usize == facts.table.tasks() {
        facts.settle(environment);
    }
    Verdict::Continue
}

/// The task that was forked, and the CPUs that Slurm has bound it to.
fn task_and_cpus(spank: &Spank<'_>) -> Result<(u32, CpuSet), String> {
    let task = spank.task_id().map_err(|error| error.to_string())?;
    let pid = spank.task_pid().map_err(|error| error.to_string())?;
    let cpus = roce_bind::affinity(pid);
    Ok((task, cpus.map_err(|error| format!("can't read the CPU mask of local task {task}: {error}"))?))
}

/// In the task, as the user, after Slurm's own binding.
pub(crate) fn task_init(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    let State { step, environment, .. } = &mut *state;
    // Used where it is and never dropped: the fork has left its pages shared, and to free something is to copy
    // its page. The task's exec ends all of it.
    let Some(step) = step else { return Verdict::Continue };
    let on_failure = step.on_failure;
    let is_verbose = step.facts.as_ref().is_ok_and(|facts| facts.verbose);
    let placed = match &mut step.facts {
        Ok(facts) => place(spank, facts, environment),
        Err(error) => Err(error.clone()),
    };
    match placed {
        Ok(mut lines) => {
            if spank.task_id() == Ok(0) {
                lines.extend(node_wide::lines(&state, is_verbose));
            }
            lines.iter().for_each(|line| report::to_task(spank, line));
            Verdict::Continue
        }
        Err(error) => give_up(spank, environment, &error, on_failure),
    }
}

/// Carries out the task's own row of the plan. Gives what to say.
fn place(spank: &Spank<'_>, facts: &mut Facts, environment: &Environment) -> Result<Vec<String>, String> {
    let local_rank = spank.task_id().map_err(|error| error.to_string())?;
    if let SettledBy::Slurmstepd { orders: Some(orders), .. } = &facts.settled_by
        && let Some(order) = orders.of(local_rank)
    {
        // What could not be had is for the verbose output, and then there are no orders.
        return match apply::apply(spank, &order, environment) {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
    }
    let cpus = roce_bind::affinity(0);
    let cpus = cpus.map_err(|error| format!("can't read this task's own CPU mask: {error}"))?;
    let visible = if facts.node.gpus.is_empty() {
        VisibleGpus::default()
    } else {
        gpus::of_task(spank, &facts.node, &facts.sysfs).map_err(|error| error.to_string())?
    };
    let own = Row { local_rank, cpus, gpus: visible.gpus };
    let Settled { nics, warning } = match facts.settled_by {
        SettledBy::Slurmstepd { .. } => facts.by_slurmstepd(local_rank)?,
        SettledBy::Tasks => facts.by_tasks(&own)?,
    };
    let row = facts.draft.row(&facts.node, &facts.task(&own), &nics).map_err(|error| error.to_string())?;
    let plan = facts.draft.add(row);
    let order = order(plan, own.cpus, &facts.site, environment);
    let kept = apply::apply(spank, &order, environment).map_err(|error| error.to_string())?;
    // The same for all tasks of the node: one of them says it.
    let of_class = plan.class.iter().flat_map(|class| &class.warnings).map(|text| format!("warning: {text}"));
    let of_all = facts.warning.iter().cloned().chain(of_class).filter(|_| local_rank == 0);
    let mut lines: Vec<String> = of_all.chain(warning.map(|text| format!("warning: {text}"))).collect();
    if facts.verbose {
        lines.extend(plan.describe(local_rank));
        let by_cpus = |note| format!("{note}; it does not count for the NIC");
        lines.extend(visible.notes.into_iter().map(by_cpus).chain(kept.map(|why| why.to_string())));
    }
    Ok(lines)
}

/// What the task of a plan's first row, with its `own` CPUs, is to do.
fn order(plan: &Plan, own: CpuSet, site: &Site, environment: &Environment) -> Order {
    let task = &plan.tasks[0];
    let edits = environment.edits(roce_plan::exports(plan, task.local_rank, site));
    Order { own, cpus: task.cpus.clone(), memory: task.memory.clone(), edits }
}

impl Facts {
    /// In slurmstepd: assigns the NICs of all tasks, and does for them what many would do alike.
    fn settle(&mut self, environment: &Environment) {
        let SettledBy::Slurmstepd { tasks, orders, .. } = &mut self.settled_by else { return };
        let assigned = self.draft.assign(&self.node, tasks);
        if let Some(orders) = orders {
            let mut alike: HashMap<(&CpuSet, &[usize]), Vec<&Task>> = HashMap::new();
            for (task, nics) in tasks.iter().zip(&assigned) {
                // The first task speaks for all, and verbose ones have much to say: they go the long way.
                if task.local_rank != 0 && !self.verbose {
                    alike.entry((&task.cpus, nics)).or_default().push(task);
                }
            }
            for ((cpus, nics), tasks) in alike.into_iter().filter(|(_, tasks)| tasks.len() >= ALIKE) {
                // What can't be had, each task finds out and tells by itself.
                let Ok(row) = self.draft.row(&self.node, tasks[0], nics) else { continue };
                let order =
                    order(&self.draft.clone().finish(vec![row]), cpus.clone(), &self.site, environment);
                if let Some(text) = orders.write(&order) {
                    tasks.iter().for_each(|task| orders.give(task.local_rank, text));
                }
            }
        }
        let ranks = tasks.iter().map(|task| task.local_rank);
        self.table.settle(ranks.zip(assigned.iter().map(Vec::as_slice)));
    }

    /// A task as the plan wants it.
    fn task(&self, row: &Row) -> Task {
        let gpus = row.gpus.iter().filter_map(|&gpu| Some(self.node.gpus.get(gpu)?.pci.address)).collect();
        let Row { local_rank, cpus, .. } = row.clone();
        Task { local_rank, cpus, cpus_needed: self.cpus_per_task, gpus }
    }

    /// The NICs that slurmstepd gave a task.
    fn by_slurmstepd(&self, local_rank: u32) -> Result<Settled, String> {
        let nics = self.draft.nics().len();
        if !self.table.is_settled() {
            return Err("slurmstepd has not planned for the tasks of this node; its log says why".to_owned());
        }
        let nics = self.table.assigned(local_rank, nics);
        let nics = nics.ok_or("slurmstepd could not read this task's CPU mask; its log says why")?;
        Ok(Settled { nics, warning: None })
    }

    /// The NICs that the tasks settle on.
    fn by_tasks(&self, own: &Row) -> Result<Settled, String> {
        let assign = |rows: &[Row]| {
            let tasks: Vec<Task> = rows.iter().map(|row| self.task(row)).collect();
            self.draft.assign(&self.node, &tasks)
        };
        gather::settle(&self.table, own, self.draft.nics().len(), gather::PATIENCE, assign)
    }
}

/// Ends the task, or lets it run as it would have without the plugin.
pub(crate) fn give_up(
    spank: &Spank<'_>,
    environment: &Environment,
    error: &str,
    on_failure: OnFailure,
) -> Verdict {
    match on_failure {
        OnFailure::Fail => {
            report::to_task(spank, &error);
            Verdict::Fail
        }
        OnFailure::Warn => {
            environment.restore(spank);
            report::to_task(spank, &format!("warning: {error}; running without RoCE placement"));
            Verdict::Continue
        }
    }
}
