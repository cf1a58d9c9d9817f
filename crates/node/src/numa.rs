use std::collections::BTreeMap;
use std::path::PathBuf;

use roce_types::CpuSet;

use crate::tree::{NodeError, Tree};
use crate::{NumaNode, Package};

pub(crate) fn online_cpus(tree: &Tree) -> Result<CpuSet, NodeError> {
    tree.parse("sys/devices/system/cpu/online")
}

/// The NUMA nodes; one node 0 with every CPU where the kernel has none.
pub(crate) fn read(tree: &Tree, cpus: &CpuSet) -> Result<Vec<NumaNode>, NodeError> {
    let folder = "sys/devices/system/node";
    let mut ids: Vec<u32> = tree.list(folder)?.iter().filter_map(|name| node_id(name)).collect();
    ids.sort_unstable();
    if ids.is_empty() {
        return Ok(vec![NumaNode { id: 0, cpus: cpus.clone(), distances: BTreeMap::from([(0, 10)]) }]);
    }
    ids.iter()
        .map(|&id| {
            let online: CpuSet = tree.parse(&format!("{folder}/node{id}/cpulist"))?;
            let distances = tree.text(&format!("{folder}/node{id}/distance"))?;
            // The kernel writes one number per online node, ascending by id.
            let distances =
                ids.iter().copied().zip(distances.split_whitespace().map_while(|d| d.parse().ok()));
            Ok(NumaNode { id, cpus: online, distances: distances.collect() })
        })
        .collect()
}

/// The packages with their online CPUs; empty where the tree has no `topology` folders. The first
/// CPU of each names the others, so that large machines take few reads.
pub(crate) fn packages(tree: &Tree, cpus: &CpuSet) -> Result<Vec<Package>, NodeError> {
    let mut packages: BTreeMap<u32, CpuSet> = BTreeMap::new();
    let mut seen = CpuSet::new();
    for cpu in cpus.iter() {
        if seen.contains(cpu) {
            continue;
        }
        let folder = format!("sys/devices/system/cpu/cpu{cpu}/topology");
        // Some virtual machines say -1.
        let id = tree.optional_text(&format!("{folder}/physical_package_id"))?;
        let Some(id) = id.and_then(|text| text.parse().ok()) else { continue };
        let siblings = tree.optional_text(&format!("{folder}/core_siblings_list"))?;
        let siblings: Option<CpuSet> = siblings.and_then(|text| text.parse().ok());
        let own: CpuSet = [cpu].into_iter().collect();
        let all = siblings.map_or_else(|| own.clone(), |all| all.intersection(cpus).union(&own));
        seen = seen.union(&all);
        let package = packages.entry(id).or_default();
        *package = package.union(&all);
    }
    Ok(packages.into_iter().map(|(id, cpus)| Package { id, cpus }).collect())
}

fn node_id(name: &str) -> Option<u32> {
    name.strip_prefix("node")?.parse().ok()
}

/// The NUMA node of a device, from its own `numa_node` or that of the nearest folder above it that
/// knows; where all say -1, from `local_cpulist` if that is exactly one node's CPUs.
pub(crate) fn of_device(
    tree: &Tree,
    ancestry: &[PathBuf],
    nodes: &[NumaNode],
) -> Result<Option<u32>, NodeError> {
    for folder in ancestry {
        let Some(text) = read_beside(tree, folder, "numa_node")? else { continue };
        // Firmware has been seen to name nodes that don't exist.
        if let Some(id) = text.parse().ok().filter(|id| nodes.iter().any(|node| node.id == *id)) {
            return Ok(Some(id));
        }
    }
    for folder in ancestry {
        let Some(text) = read_beside(tree, folder, "local_cpulist")? else { continue };
        let Ok(cpus) = text.parse::<CpuSet>() else { continue };
        let mut matching = nodes.iter().filter(|node| node.cpus == cpus && !cpus.is_empty());
        return Ok(matching.next().map(|node| node.id));
    }
    Ok(None)
}

fn read_beside(tree: &Tree, folder: &std::path::Path, name: &str) -> Result<Option<String>, NodeError> {
    // Only ASCII names lie below `sys/devices`.
    let Some(folder) = folder.to_str() else { return Ok(None) };
    tree.optional_text(&format!("{folder}/{name}"))
}
