//! How far a NIC is from a task: from its GPUs first, then from its CPUs.

use std::fmt;

use roce_node::{Gpu, Node, PciRelation};

use crate::nics::Nic;
use crate::plan::Task;

/// How far a NIC is from a task. The order is the order of preference: whatever is nearer to the
/// task's GPUs, then whatever is nearer to its CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance {
    /// From the nearest of the task's GPUs; `None` for a task without any.
    pub gpu: Option<GpuDistance>,
    /// From the task's CPUs.
    pub cpu: CpuDistance,
}

/// How far a NIC is from a GPU, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuDistance {
    /// They meet in the PCI tree.
    Pci(PciRelation),
    /// Below different host bridges of one NUMA node: every device of some processors has a host
    /// bridge of its own.
    SameNuma,
    /// On different NUMA nodes, by the firmware's distance (10 is local).
    OtherNuma(u32),
    /// Not known.
    Unknown,
}

/// How far a NIC is from a set of CPUs, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuDistance {
    /// On a NUMA node that the task has CPUs of.
    SameNuma,
    /// On another one.
    OtherNuma {
        /// The firmware's distance (10 is local).
        distance: u32,
        /// Is that node in another package than every CPU of the task?
        other_package: bool,
    },
    /// The NIC's NUMA node, or the distance to it, is not known.
    Unknown,
}

/// How far this NIC is from this task.
pub(crate) fn distance(node: &Node, task: &Task, nic: &Nic) -> Distance {
    let own = node.gpus.iter().filter(|gpu| task.gpus.contains(&gpu.pci.address));
    let known = own.map(|gpu| gpu_distance(node, gpu, nic)).min();
    // A GPU that the node doesn't know is somewhere all the same.
    let gpu = known.or((!task.gpus.is_empty()).then_some(GpuDistance::Unknown));
    Distance { gpu, cpu: cpu_distance(node, task, nic) }
}

fn gpu_distance(node: &Node, gpu: &Gpu, nic: &Nic) -> GpuDistance {
    let relation = nic.pci.as_ref().map(|pci| pci.relation(&gpu.pci));
    if let Some(relation) = relation.filter(|&relation| relation != PciRelation::Apart) {
        return GpuDistance::Pci(relation);
    }
    let (Some(from), Some(to)) = (gpu.numa_node, nic.numa_node) else { return GpuDistance::Unknown };
    if from == to {
        return GpuDistance::SameNuma;
    }
    let distance = node.numa_node(from).and_then(|from| from.distances.get(&to));
    distance.map_or(GpuDistance::Unknown, |&distance| GpuDistance::OtherNuma(distance))
}

fn cpu_distance(node: &Node, task: &Task, nic: &Nic) -> CpuDistance {
    let Some(home) = nic.numa_node else { return CpuDistance::Unknown };
    let near = node.numa_nodes_of(&task.cpus);
    if near.contains(&home) {
        return CpuDistance::SameNuma;
    }
    let distances = near.iter().filter_map(|&id| node.numa_node(id)?.distances.get(&home).copied());
    let packages = node.packages_of(&task.cpus);
    let home_packages = node.numa_node(home).map(|numa| node.packages_of(&numa.cpus)).unwrap_or_default();
    let other_package = !home_packages.iter().any(|package| packages.contains(package));
    distances
        .min()
        .map_or(CpuDistance::Unknown, |distance| CpuDistance::OtherNuma { distance, other_package })
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gpu) = self.gpu {
            write!(f, "GPU: {gpu}, CPUs: ")?;
        }
        self.cpu.fmt(f)
    }
}

impl fmt::Display for GpuDistance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(PciRelation::SameDevice) => f.write_str("same device"),
            Self::Pci(PciRelation::OneSwitch) => f.write_str("one PCI switch (PIX)"),
            Self::Pci(PciRelation::SeveralSwitches) => f.write_str("several PCI switches (PXB)"),
            Self::Pci(PciRelation::HostBridge | PciRelation::Apart) => f.write_str("host bridge (PHB)"),
            Self::SameNuma => f.write_str("same NUMA node (NODE)"),
            Self::OtherNuma(distance) => write!(f, "other NUMA node (SYS), distance {distance}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for CpuDistance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameNuma => f.write_str("same NUMA node"),
            Self::OtherNuma { distance, .. } => write!(f, "other NUMA node, distance {distance}"),
            Self::Unknown => f.write_str("distance unknown"),
        }
    }
}
