use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roce_types::CpuSet;

use crate::tree::{NodeError, Tree, optional, read_text};
use crate::{NumaNode, tree};

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

fn node_id(name: &str) -> Option<u32> {
    name.strip_prefix("node")?.parse().ok()
}

/// The NUMA node of a device, from its own `numa_node` or that of the nearest folder above it that
/// knows; where all say -1, from `local_cpulist` if that is exactly one node's CPUs.
pub(crate) fn of_device(ancestry: &[PathBuf], nodes: &[NumaNode]) -> Result<Option<u32>, NodeError> {
    for folder in ancestry {
        let Some(text) = read_beside(folder, "numa_node")? else { continue };
        if let Ok(id) = text.parse::<u32>() {
            return Ok(Some(id));
        }
    }
    for folder in ancestry {
        let Some(text) = read_beside(folder, "local_cpulist")? else { continue };
        let Ok(cpus) = text.parse::<CpuSet>() else { continue };
        let mut matching = nodes.iter().filter(|node| node.cpus == cpus && !cpus.is_empty());
        return Ok(matching.next().map(|node| node.id));
    }
    Ok(None)
}

fn read_beside(folder: &Path, name: &str) -> Result<Option<String>, tree::NodeError> {
    optional(read_text(&folder.join(name)))
}
