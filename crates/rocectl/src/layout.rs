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

/// The CPUs of each of `tasks` tasks: `per_task`, or an even share. `None` where there are too few.
pub(crate) fn share(
    node: &Node,
    cores: &[CpuSet],
    cpus: &CpuSet,
    tasks: usize,
    per_task: Option<usize>,
    distribution: Distribution,
) -> Option<Vec<CpuSet>> {
    let cores = in_order(node, cores, cpus);
    let total = cpus.len();
    if tasks == 0 || per_task.unwrap_or(1).checked_mul(tasks)? > total {
        return None;
    }
    let flat = || cores.iter().flat_map(CpuSet::iter).collect::<Vec<_>>();
    match distribution {
        Distribution::Spread => {
            // Whole cores, unless that leaves a task with too few CPUs.
            let whole = cut(&cores, tasks);
            let whole: Vec<Vec<usize>> =
                whole.iter().map(|cores| cores.iter().flat_map(CpuSet::iter).collect()).collect();
            let enough = whole.iter().all(|cpus| cpus.len() >= per_task.unwrap_or(1));
            let cut =
                if enough { whole } else { cut(&flat(), tasks).into_iter().map(<[_]>::to_vec).collect() };
            Some(cut.into_iter().map(|cpus| first(&cpus, per_task.unwrap_or(cpus.len()))).collect())
        }
        Distribution::Block => {
            let count = per_task.unwrap_or(total / tasks);
            Some(flat().chunks(count).take(tasks).map(|cpus| first(cpus, count)).collect())
        }
        Distribution::Cyclic => {
            let count = per_task.unwrap_or(total / tasks);
            Some(cyclic(node, &flat(), tasks, count))
        }
    }
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
        let shares = share(&node, &cores, &node.cpus, tasks, per_task, distribution).unwrap();
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
    fn too_few_cpus_are_no_share() {
        let (node, cores) = two_packages();
        for (tasks, per_task) in [(17, None), (2, Some(9)), (0, None), (2, Some(usize::MAX))] {
            assert_eq!(share(&node, &cores, &node.cpus, tasks, per_task, Distribution::Spread), None);
        }
    }
}
