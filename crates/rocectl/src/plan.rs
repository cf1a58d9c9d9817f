//! `rocectl plan`: which task would get what, and why.

use anyhow::bail;
use roce_plan::{Class, Plan, Task, TaskPlan};
use roce_types::CpuSet;

use crate::cli::PlanArgs;
use crate::show::list;
use crate::source::Source;
use crate::table::{BOLD, DIM, GOOD, Table, WARNING, cell, styled};
use crate::{Usage, layout, picture, plan_json, print, request, show, survey};

/// Who asks, where no option does.
const COMMAND: &str = "plan";

pub(crate) fn run(arguments: &PlanArgs) -> anyhow::Result<()> {
    let site = request::site(&arguments.site)?;
    let unknown_facts = Source::unknown_facts_of(&arguments.node);
    let request = request::request(COMMAND, &arguments.roce, &arguments.site, &site, unknown_facts)?;
    let Some(request) = request else {
        bail!("SLURM_ROCE=off: tasks would be left alone; unset it to see a plan");
    };
    let count = count(arguments)?;
    let source = Source::read(&arguments.node)?;
    let tasks = tasks(&source, arguments, count)?;
    let plan = roce_plan::plan(&source.node, &request, &site, &tasks)?;
    // Without any option, who asks is this command: nothing to repeat.
    let asked = if request.asked_by == [COMMAND] { String::new() } else { request.asked_by() };
    let planned = Planned { source: &source, tasks: &tasks, plan: &plan, asked };
    if let Some(path) = &arguments.svg {
        let ports = survey::judged(&source.node, &request, &site, &plan);
        picture::write(path, &picture::draw(&source.name, &source.node, &ports, Some(&planned), None))?;
    }
    if arguments.json {
        return print(&plan_json::text(&planned)?);
    }
    print(&text(&planned))
}

/// A plan and what it was made for.
pub(crate) struct Planned<'a> {
    pub(crate) source: &'a Source,
    /// In the order of the plan's tasks.
    pub(crate) tasks: &'a [Task],
    pub(crate) plan: &'a Plan,
    /// The options; empty where there were none.
    pub(crate) asked: String,
}

impl Planned<'_> {
    /// The indexes of a task's GPUs.
    pub(crate) fn gpus(&self, task: &Task) -> Vec<usize> {
        let gpus = self.source.node.gpus.iter().enumerate();
        gpus.filter(|(_, gpu)| task.gpus.contains(&gpu.pci.address)).map(|(index, _)| index).collect()
    }

    pub(crate) fn warnings(&self) -> &[String] {
        self.plan.class.as_ref().map_or(&[], |class| &class.warnings)
    }
}

fn count(arguments: &PlanArgs) -> anyhow::Result<u32> {
    let masks = u32::try_from(arguments.mask.len()).unwrap_or(u32::MAX);
    match arguments.tasks {
        Some(tasks) if masks > 0 && tasks != masks => {
            let masks = show::count(arguments.mask.len(), "mask");
            bail!(Usage(format!("--tasks={tasks}: {masks} given; give --mask once for each task")))
        }
        Some(tasks) => Ok(tasks),
        None => Ok(masks),
    }
}

fn tasks(source: &Source, arguments: &PlanArgs, count: u32) -> anyhow::Result<Vec<Task>> {
    let (node, name) = (&source.node, &source.name);
    let gpus = match arguments.gpus_per_task {
        Some(gpus) => layout::gpus(node, name, count, gpus)?,
        None => vec![Vec::new(); count as usize],
    };
    if !arguments.mask.is_empty() {
        for mask in &arguments.mask {
            if mask.is_empty() || !mask.is_subset(&node.cpus) {
                bail!("--mask={mask}: {name} has the CPUs {}", node.cpus);
            }
        }
        // Whoever gives a mask says where a task may be, not how much it needs.
        return Ok(layout::tasks(arguments.mask.clone(), |_| 1, gpus));
    }
    let per_task = arguments.cpus_per_task.map(|cpus| cpus as usize);
    let homes = layout::homes(node, &gpus);
    let shares = layout::share(node, &source.cores, &node.cpus, &homes, per_task, arguments.distribution);
    let Some(shares) = shares else {
        let each = per_task.map_or_else(String::new, |cpus| format!(" --cpus-per-task={cpus}"));
        bail!("--tasks={count}{each}: {name} has {} CPUs ({})", node.cpus.len(), node.cpus);
    };
    Ok(layout::tasks(shares, CpuSet::len, gpus))
}

fn text(planned: &Planned<'_>) -> String {
    let Planned { source, tasks, plan, asked } = planned;
    let mut out = styled(&format!("{} on {}", show::count(tasks.len(), "task"), source.name), BOLD);
    out += &if asked.is_empty() { "\n".to_owned() } else { format!(": {asked}\n") };
    out += &match &plan.class {
        Some(class) => format!("{}: {}\n", class_line(class), class.reason),
        None => "no traffic class: packets go out unmarked\n".to_owned(),
    };
    out += "\n";
    out += &table(planned);
    out += "\n";
    out += &reasons(plan);
    for (port, reason) in &plan.rejected {
        out += &styled(&format!("not used: {port}: {reason}\n"), DIM);
    }
    for warning in planned.warnings() {
        out += &format!("{} {warning}\n", styled("warning:", WARNING));
    }
    for problem in &source.node.problems {
        out += &format!("{} {problem}\n", styled("problem:", WARNING));
    }
    out
}

pub(crate) fn class_line(class: &Class) -> String {
    let name = class.dscp.name().map_or_else(String::new, |name| format!(" ({name})"));
    format!("priority {}, DSCP {}{name}, traffic class {}", class.priority, class.dscp, class.traffic_class)
}

fn table(planned: &Planned<'_>) -> String {
    let mut table = Table::new(&[
        "TASK", "CPUS", "NUMA", "MEMORY", "GPUS", "NICS", "NETDEVS", "RAILS", "DISTANCE", "GIDS",
    ]);
    for (task, row) in planned.tasks.iter().zip(&planned.plan.tasks) {
        table.row(vec![
            row.local_rank.to_string().into(),
            row.cpus.to_string().into(),
            list(&row.numa_nodes).into(),
            row.memory.to_string().into(),
            list(planned.gpus(task)).into(),
            cell(list(row.nics.iter().map(|nic| &nic.port)), GOOD),
            list(row.nics.iter().map(|nic| nic.netdev.as_deref().unwrap_or("?"))).into(),
            list(row.nics.iter().map(|nic| nic.rail)).into(),
            row.distance.to_string().into(),
            gids(row).into(),
        ]);
    }
    table.render()
}

/// `3 ::ffff:10.0.0.1`, for each NIC.
fn gids(row: &TaskPlan) -> String {
    let gid = |nic: &roce_plan::Nic| {
        nic.gid.as_ref().map_or_else(|| "?".to_owned(), |row| format!("{} {}", row.index, row.gid))
    };
    row.nics.iter().map(gid).collect::<Vec<_>>().join(", ")
}

/// Why, task by task; the reason for the class is the same for all and stands above.
fn reasons(plan: &Plan) -> String {
    let class = plan.class.as_ref().map(|class| class.reason.as_str());
    let line = |row: &TaskPlan| {
        let own = row.reasons.iter().filter(|reason| Some(reason.as_str()) != class);
        format!("task {}: {}\n", row.local_rank, own.cloned().collect::<Vec<_>>().join("; "))
    };
    plan.tasks.iter().map(line).collect()
}
