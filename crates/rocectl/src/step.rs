//! One task under a launcher that isn't Slurm: its row of a plan that every task of the node
//! computes alike. docs/decisions/006-mpirun-plans-alone.md says why it is done this way.

use anyhow::{Context as _, bail};
use roce_plan::{Plan, Request, Site, Task, exports, plan};
use roce_types::{CpuSet, PciAddress};

use crate::cli::{Distribution, NodeArgs, RankArgs, RoceArgs, SiteArgs};
use crate::rank::{self, Rank};
use crate::source::Source;
use crate::{layout, request};
use roce_plan::Change;

/// What this task is to do.
pub(crate) struct Step {
    pub(crate) site: Site,
    pub(crate) rank: Rank,
    /// `SLURM_ROCE=off`: nothing.
    pub(crate) planned: Option<Planned>,
}

/// A plan in which this task has a row.
pub(crate) struct Planned {
    pub(crate) request: Request,
    /// Or why there is none.
    pub(crate) plan: anyhow::Result<Plan>,
}

impl Step {
    pub(crate) fn of(
        command: &str,
        rank: &RankArgs,
        node: &NodeArgs,
        site_arguments: &SiteArgs,
        roce: &RoceArgs,
    ) -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let place = rank::find(rank, &variable)?;
        let site = request::site(site_arguments)?;
        // Options are judged before the node is looked at: what is wrong with them is wrong everywhere.
        let unknown_facts = Source::unknown_facts_of(node);
        let Some(request) = request::request(command, roce, site_arguments, &site, unknown_facts)? else {
            return Ok(Self { site, rank: place, planned: None });
        };
        let planned = || {
            let source = Source::read(node)?;
            let tasks = tasks(&source, place, rank)?;
            Ok(plan(&source.node, &request, &site, &tasks)?)
        };
        let planned = Some(Planned { plan: planned(), request });
        Ok(Self { site, rank: place, planned })
    }

    /// What the plan changes in this task's environment.
    pub(crate) fn changes(&self, plan: &Plan) -> Vec<Change> {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        roce_plan::changes(exports(plan, self.rank.local, &self.site), &variable)
    }
}

/// The tasks of this node, as this one sees them.
fn tasks(source: &Source, rank: Rank, arguments: &RankArgs) -> anyhow::Result<Vec<Task>> {
    let node = &source.node;
    let (own, permitted) = if source.is_live {
        let own = roce_bind::affinity(0).context("can't read this process's CPU affinity")?;
        let permitted = roce_bind::permitted_cpus().context("can't find out which CPUs are permitted")?;
        (own.intersection(&node.cpus), permitted.intersection(&node.cpus))
    } else {
        (node.cpus.clone(), node.cpus.clone())
    };
    let gpus = match arguments.gpus_per_task {
        Some(gpus) => layout::gpus(node, &source.name, rank.size, gpus)?,
        None => vec![Vec::new(); rank.size as usize],
    };
    tasks_at(source, rank, &own, &permitted, arguments.cpus_per_task, gpus)
}

/// The same for a process that may run on its `own` CPUs of those that are `permitted` here at all.
fn tasks_at(
    source: &Source,
    rank: Rank,
    own: &CpuSet,
    permitted: &CpuSet,
    per_task: Option<u32>,
    gpus: Vec<Vec<PciAddress>>,
) -> anyhow::Result<Vec<Task>> {
    let node = &source.node;
    if own.is_empty() {
        bail!("none of the CPUs of {} ({}) may be used by this process", source.name, node.cpus);
    }
    let wanted = per_task.map(|count| count as usize);
    if own.len() < permitted.len() {
        return bound(source, rank, own, permitted, wanted, gpus);
    }
    let homes = layout::homes(node, &gpus);
    let shares = layout::share(node, &source.cores, permitted, &homes, wanted, Distribution::Spread);
    match (shares, per_task) {
        (Some(shares), _) => Ok(layout::tasks(shares, CpuSet::len, gpus)),
        // More tasks than CPUs: whoever wants that shares them all.
        (None, None) => Ok(layout::tasks(vec![permitted.clone(); rank.size as usize], |_| 1, gpus)),
        (None, Some(count)) => bail!(
            "--cpus-per-task={count} for {} tasks: {} has {} CPUs ({permitted}) for them",
            rank.size,
            source.name,
            permitted.len()
        ),
    }
}

/// The launcher has bound this task, and where the others are is not known. They are taken to be
/// where this one is, so that tasks near the same NICs take these in turn.
fn bound(
    source: &Source,
    rank: Rank,
    own: &CpuSet,
    permitted: &CpuSet,
    per_task: Option<usize>,
    gpus: Vec<Vec<PciAddress>>,
) -> anyhow::Result<Vec<Task>> {
    if let Some(count) = per_task.filter(|&count| count > own.len()) {
        bail!(
            "--cpus-per-task={count}: the launcher has bound this task to {} CPUs ({own}); bind it to more, or not at all",
            own.len()
        );
    }
    // How many such sets of CPUs there are, and how many tasks share one.
    let sets = permitted.len() / own.len();
    let sharing = (rank.size as usize).div_ceil(sets);
    let needed = per_task.unwrap_or(own.len() / sharing);
    let mut tasks = layout::tasks(vec![own.clone(); rank.size as usize], |_| needed, gpus);
    let order: Vec<usize> =
        layout::in_order(&source.node, &source.cores, permitted).iter().flat_map(CpuSet::iter).collect();
    let before = order.iter().take_while(|&&cpu| !own.contains(cpu)).count();
    let turn = turn(rank, before / own.len(), sets);
    // The planner serves tasks in the order of the list.
    let mine = tasks.remove(rank.local as usize);
    tasks.insert(turn, mine);
    Ok(tasks)
}

/// The how-manieth of the tasks with its CPUs this one is; `set` is which of the `sets` these are.
///
/// Launchers that bind several tasks to the same set deal them out in turn (Open MPI's socket,
/// Hydra's numa), so task i is on set i mod sets. Otherwise neighbours are taken to be together.
fn turn(rank: Rank, set: usize, sets: usize) -> usize {
    let local = rank.local as usize;
    let dealt = rank.size as usize > sets && local % sets == set;
    if dealt { local / sets } else { local }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use super::*;

    /// A node of two packages with 56 cores and 4 NICs each.
    static DGX: LazyLock<Source> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        roce_machines::named("dgx_h100").unwrap().build(folder.path()).unwrap();
        let arguments = NodeArgs { topology: Some(folder.path().to_owned()), sysfs: None };
        Source::read(&arguments).unwrap()
    });

    /// How many of the ranks get each NIC if every one plans for itself from its own mask.
    fn load(source: &Source, masks: &[CpuSet]) -> BTreeMap<String, usize> {
        let size = u32::try_from(masks.len()).unwrap();
        let mut load = BTreeMap::new();
        for (local, own) in (0..).zip(masks) {
            let gpus = vec![Vec::new(); masks.len()];
            let tasks = tasks_at(source, Rank { local, size }, own, &source.node.cpus, None, gpus).unwrap();
            let plan = plan(&source.node, &Request::default(), &Site::default(), &tasks).unwrap();
            let row = plan.task(local).unwrap();
            assert!(row.cpus.is_subset(own), "never outside of what the launcher gave");
            let nic = &row.nics[0];
            let near = source.node.numa_nodes_of(own);
            assert!(near.contains(&nic.numa_node.unwrap()), "rank {local} on {own} got {nic}");
            *load.entry(nic.port.to_string()).or_default() += 1;
        }
        load
    }

    fn each_its_own(load: &BTreeMap<String, usize>) -> bool {
        load.values().all(|&ranks| ranks == 1)
    }

    #[test]
    fn ranks_that_plan_alone_share_no_nic_however_usual_launchers_bind_them() {
        let source = &*DGX;
        let node = &source.node;
        let package = |id: usize| node.packages[id].cpus.clone();
        let cores = layout::in_order(node, &source.cores, &node.cpus);
        let unbound = vec![node.cpus.clone(); 8];
        assert!(each_its_own(&load(source, &unbound)), "unbound");
        let dealt: Vec<_> = (0..8).map(|rank| package(rank % 2)).collect();
        assert!(each_its_own(&load(source, &dealt)), "dealt over the packages");
        assert!(each_its_own(&load(source, &cores[..4])), "a core each, one behind the other");
        let shares = layout::share(node, &source.cores, &node.cpus, &[None; 8], None, Distribution::Spread);
        assert!(each_its_own(&load(source, &shares.unwrap())), "an even share each");
    }

    #[test]
    fn ranks_packed_onto_packages_share_a_nic_by_two_at_most() {
        let source = &*DGX;
        let packed: Vec<_> = (0..8).map(|rank| source.node.packages[rank / 4].cpus.clone()).collect();
        assert!(load(source, &packed).values().all(|&ranks| ranks <= 2));
    }

    #[test]
    fn tasks_dealt_over_two_packages_count_by_twos() {
        let turn = |local| turn(Rank { local, size: 8 }, local as usize % 2, 2);
        assert_eq!((0..8).map(turn).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_bound_task_that_needs_more_is_told_so() {
        let source = &*DGX;
        let own = "0-3".parse().unwrap();
        let rank = Rank { local: 0, size: 2 };
        let gpus = vec![Vec::new(); 2];
        let error = tasks_at(source, rank, &own, &source.node.cpus, Some(8), gpus.clone()).unwrap_err();
        insta::assert_snapshot!(error, @"--cpus-per-task=8: the launcher has bound this task to 4 CPUs (0-3); bind it to more, or not at all");
        let error = tasks_at(source, rank, &CpuSet::new(), &source.node.cpus, None, gpus).unwrap_err();
        assert!(error.to_string().starts_with("none of the CPUs of "), "{error}");
    }
}
