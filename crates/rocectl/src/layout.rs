//! Which CPUs and GPUs the tasks of a node have where no Slurm gives them.

use anyhow::bail;
use roce_node::Node;
use roce_plan::Task;
use roce_types::{CpuSet, PciAddress};

use crate::cli::Distribution;

/// The CPUs in the order in which tasks get them: by package, NUMA node and core, the threads of a
/// core together. CPUs without a known core are cores of their own.
pub(crate) fn in_order(node: &Node, cores: &[CpuSet], cpus: &CpuSet) -> Vec<CpuSet> {
    let mut known: Vec<CpuSet> = cores.iter().map(|core| core.intersection(cpus)).collect();
    known.retain(|core| !core.is_empty());
    let alone = cpus.iter().filter(|&cpu| !known.iter().any(|core| core.contains(cpu)));
    let alone: Vec<CpuSet> = alone.map(|cpu| [cpu].into_iter().collect()).collect();
    known.extend(alone);
    known.sort_by_key(|core| {
        let first = core.iter().next();
        (node.packages_of(core).first().copied(), node.numa_nodes_of(core).first().copied(), first)
    });
    known
}

/// The CPUs of as many tasks as there are `homes`: `per_task`, or an even share. `None` where there
/// are too few.
///
/// A home is the NUMA node of a task's GPUs. Where all tasks have one, and CPUs enough for them are
/// there, they stay at home; on other nodes than their GPUs they would be far from their NICs too.
pub(crate) fn share(
    node: &Node,
    cores: &[CpuSet],
    cpus: &CpuSet,
    homes: &[Option<u32>],
    per_task: Option<usize>,
    distribution: Distribution,
) -> Option<Vec<CpuSet>> {
    let tasks = homes.len();
    let total = cpus.len();
    if tasks == 0 || per_task.unwrap_or(1).checked_mul(tasks)? > total {
        return None;
    }
    let flat = || in_order(node, cores, cpus).iter().flat_map(CpuSet::iter).collect::<Vec<_>>();
    let count = per_task.unwrap_or(total / tasks);
    match distribution {
        Distribution::Spread => at_home(node, cores, cpus, homes, per_task)
            .or_else(|| spread(&in_order(node, cores, cpus), tasks, per_task)),
        Distribution::Block => {
            Some(flat().chunks(count).take(tasks).map(|cpus| first(cpus, count)).collect())
        }
        Distribution::Cyclic => Some(cyclic(node, &flat(), tasks, count)),
    }
}

/// Each NUMA node divided among the tasks at home there.
fn at_home(
    node: &Node,
    cores: &[CpuSet],
    cpus: &CpuSet,
    homes: &[Option<u32>],
    per_task: Option<usize>,
) -> Option<Vec<CpuSet>> {
    let mut shares = vec![CpuSet::new(); homes.len()];
    for numa in &node.numa_nodes {
        let here: Vec<usize> = (0..homes.len()).filter(|&task| homes[task] == Some(numa.id)).collect();
        let order = in_order(node, cores, &numa.cpus.intersection(cpus));
        for (task, share) in here.iter().zip(spread(&order, here.len(), per_task)?) {
            shares[*task] = share;
        }
    }
    if shares.iter().any(CpuSet::is_empty) { None } else { Some(shares) }
}

/// Even shares of the cores, whole ones unless that leaves a task with too few CPUs.
fn spread(cores: &[CpuSet], tasks: usize, per_task: Option<usize>) -> Option<Vec<CpuSet>> {
    let flat: Vec<usize> = cores.iter().flat_map(CpuSet::iter).collect();
    let least = per_task.unwrap_or(1);
    if least * tasks > flat.len() {
        return None;
    }
    let whole = cut(cores, tasks).into_iter().map(|cores| cores.iter().flat_map(CpuSet::iter).collect());
    let whole: Vec<Vec<usize>> = whole.collect();
    let enough = whole.iter().all(|cpus| cpus.len() >= least);
    let shares = if enough { whole } else { cut(&flat, tasks).into_iter().map(<[_]>::to_vec).collect() };
    Some(shares.into_iter().map(|cpus| first(&cpus, per_task.unwrap_or(cpus.len()))).collect())
}

/// Even pieces in order.
fn cut<T>(items: &[T], pieces: usize) -> Vec<&[T]> {
    (0..pieces).map(|i| &items[i * items.len() / pieces..(i + 1) * items.len() / pieces]).collect()
}

fn first(cpus: &[usize], count: usize) -> CpuSet {
    cpus.iter().take(count).copied().collect()
}

/// Deals the tasks over the packages in turn; one that is full is passed over, and what is left
/// over everywhere makes up the last tasks.
fn cyclic(node: &Node, cpus: &[usize], tasks: usize, count: usize) -> Vec<CpuSet> {
    let mut packages: Vec<Vec<usize>> = Vec::new();
    let mut ids = Vec::new();
    for &cpu in cpus {
        let id = node.packages_of(&[cpu].into_iter().collect()).first().copied();
        let place = ids.iter().position(|&known| known == id).unwrap_or_else(|| {
            ids.push(id);
            packages.push(Vec::new());
            packages.len() - 1
        });
        packages[place].push(cpu);
    }
    let mut turn = 0;
    let mut next = || {
        let open = (0..packages.len()).map(|i| (turn + i) % packages.len());
        if let Some(place) = open.into_iter().find(|&place| packages[place].len() >= count) {
            turn = place + 1;
            return packages[place].drain(..count).collect();
        }
        let mut rest = CpuSet::new();
        for package in &mut packages {
            package.drain(..package.len().min(count - rest.len())).for_each(|cpu| rest.insert(cpu));
        }
        rest
    };
    (0..tasks).map(|_| next()).collect()
}

/// The NUMA node of each task's GPUs, where they are all on one.
pub(crate) fn homes(node: &Node, gpus: &[Vec<PciAddress>]) -> Vec<Option<u32>> {
    let home = |own: &Vec<PciAddress>| {
        let mut nodes =
            node.gpus.iter().filter(|gpu| own.contains(&gpu.pci.address)).map(|gpu| gpu.numa_node);
        let first = nodes.next()??;
        nodes.all(|other| other == Some(first)).then_some(first)
    };
    gpus.iter().map(home).collect()
}

/// The GPUs of each task, in index order.
pub(crate) fn gpus(
    node: &Node,
    name: &str,
    tasks: u32,
    per_task: u32,
) -> anyhow::Result<Vec<Vec<PciAddress>>> {
    let needed = u64::from(tasks) * u64::from(per_task);
    if needed > node.gpus.len() as u64 {
        bail!(
            "--gpus-per-task={per_task} for {tasks} tasks is {needed} GPUs: {name} has {}",
            node.gpus.len()
        );
    }
    let addresses: Vec<PciAddress> = node.gpus.iter().map(|gpu| gpu.pci.address).collect();
    let per_task = per_task as usize;
    Ok((0..tasks as usize).map(|task| addresses[task * per_task..(task + 1) * per_task].to_vec()).collect())
}

/// The tasks with their CPUs and GPUs.
pub(crate) fn tasks(
    cpus: Vec<CpuSet>,
    needed: impl Fn(&CpuSet) -> usize,
    gpus: Vec<Vec<PciAddress>>,
) -> Vec<Task> {
    let rows = (0..).zip(cpus).zip(gpus);
    rows.map(|((local_rank, cpus), gpus)| Task { local_rank, cpus_needed: needed(&cpus).max(1), cpus, gpus })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use roce_node::{NumaNode, Package};

    use super::*;

    fn cpus(list: &str) -> CpuSet {
        list.parse().unwrap()
    }

    /// Two packages of four cores; CPU n and CPU n + 8 are threads of one core.
    fn two_packages() -> (Node, Vec<CpuSet>) {
        let mut node = Node { cpus: cpus("0-15"), ..Node::default() };
        for (id, list) in [(0, "0-3,8-11"), (1, "4-7,12-15")] {
            node.packages.push(Package { id, cpus: cpus(list) });
            node.numa_nodes.push(NumaNode { id, cpus: cpus(list), distances: BTreeMap::new() });
        }
        (node, (0..8).map(|cpu| [cpu, cpu + 8].into_iter().collect()).collect())
    }

    fn shares(tasks: usize, per_task: Option<usize>, distribution: Distribution) -> Vec<String> {
        let (node, cores) = two_packages();
        let shares = share(&node, &cores, &node.cpus, &vec![None; tasks], per_task, distribution).unwrap();
        shares.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_even_share_is_whole_cores_in_order() {
        assert_eq!(shares(2, None, Distribution::Spread), ["0-3,8-11", "4-7,12-15"]);
        assert_eq!(shares(4, None, Distribution::Spread), ["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"]);
        assert_eq!(shares(3, None, Distribution::Spread), ["0-1,8-9", "2-4,10-12", "5-7,13-15"]);
    }

    #[test]
    fn more_tasks_than_cores_share_cores_but_no_cpu() {
        let shares = shares(16, None, Distribution::Spread);
        assert_eq!(shares[..4], ["0", "8", "1", "9"]);
        assert_eq!(shares.len(), 16);
    }

    #[test]
    fn cpus_per_task_are_taken_from_the_beginning_of_each_share() {
        assert_eq!(shares(2, Some(2), Distribution::Spread), ["0,8", "4,12"]);
        assert_eq!(shares(2, Some(1), Distribution::Spread), ["0", "4"]);
        assert_eq!(
            shares(5, Some(3), Distribution::Spread),
            ["0-1,8", "2,9-10", "3-4,11", "5,12-13", "6-7,14"]
        );
    }

    #[test]
    fn block_and_cyclic_are_as_sruns() {
        assert_eq!(shares(3, Some(2), Distribution::Block), ["0,8", "1,9", "2,10"]);
        assert_eq!(shares(3, Some(2), Distribution::Cyclic), ["0,8", "4,12", "1,9"]);
        assert_eq!(shares(2, None, Distribution::Cyclic), ["0-3,8-11", "4-7,12-15"]);
        assert_eq!(shares(3, Some(5), Distribution::Cyclic), ["0-2,8-9", "4-6,12-13", "3,7,10-11,14"]);
    }

    #[test]
    fn tasks_with_gpus_stay_on_the_numa_node_of_these_while_there_is_room() {
        let (node, cores) = two_packages();
        let shares = |homes: &[Option<u32>], per_task| {
            let shares = share(&node, &cores, &node.cpus, homes, per_task, Distribution::Spread).unwrap();
            shares.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[Some(1), Some(1)], None), ["4-5,12-13", "6-7,14-15"]);
        assert_eq!(shares(&[Some(1), Some(0)], Some(2)), ["4,12", "0,8"]);
        assert_eq!(shares(&[Some(1), Some(1)], Some(5)), ["0-2,8-9", "4-6,12-13"]);
        assert_eq!(shares(&[Some(1), None], None), ["0-3,8-11", "4-7,12-15"]);
    }

    #[test]
    fn too_few_cpus_are_no_share() {
        let (node, cores) = two_packages();
        for (tasks, per_task) in [(17, None), (2, Some(9)), (0, None), (2, Some(usize::MAX))] {
            let homes = vec![None; tasks];
            assert_eq!(share(&node, &cores, &node.cpus, &homes, per_task, Distribution::Spread), None);
        }
    }
}
