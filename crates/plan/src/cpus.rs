//! CPUs and memory of a task once its NICs are known.

use roce_node::Node;
use roce_types::CpuSet;

use crate::nics::Nic;
use crate::plan::{PlanError, Task};
use crate::request::BindMode;

/// Where a task's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// As Slurm left it.
    Keep,
    /// From this NUMA node while it has some, else from another (`MPOL_PREFERRED`).
    Prefer(u32),
    /// From these NUMA nodes only (`MPOL_BIND`).
    Bind(Vec<u32>),
}

/// What a task is bound to.
pub(crate) struct Binding {
    pub(crate) cpus: CpuSet,
    pub(crate) memory: MemoryPolicy,
    pub(crate) reason: String,
}

pub(crate) fn bind(node: &Node, task: &Task, nics: &[&Nic], mode: BindMode) -> Result<Binding, PlanError> {
    let keep = |memory, reason: String| Binding { cpus: task.cpus.clone(), memory, reason };
    if mode == BindMode::None {
        return Ok(keep(MemoryPolicy::Keep, "CPUs and memory left as they are: --roce-bind=none".to_owned()));
    }
    let homes: Option<Vec<u32>> = nics.iter().map(|nic| nic.numa_node).collect();
    let local_cpus = |homes: &[u32]| {
        let near = homes.iter().filter_map(|&home| node.numa_node(home));
        near.fold(CpuSet::new(), |cpus, numa| cpus.union(&numa.cpus)).intersection(&task.cpus)
    };
    let local = homes.as_deref().map(local_cpus).unwrap_or_default();
    let names = || nics.iter().map(|nic| nic.port.to_string()).collect::<Vec<_>>().join(", ");

    if mode == BindMode::Numa {
        if local.is_empty() {
            return Err(PlanError::NoCpuNearNic {
                local_rank: task.local_rank,
                cpus: task.cpus.to_string(),
                nics: names(),
            });
        }
        let memory = MemoryPolicy::Bind(node.numa_nodes_of(&local));
        return Ok(Binding {
            cpus: local,
            memory,
            reason: format!("CPUs and memory bound to the NUMA node of {}", names()),
        });
    }

    let (cpus, reason) = if local == task.cpus {
        (local, format!("CPUs are on the NUMA node of {} already", names()))
    } else if homes.is_none() {
        (task.cpus.clone(), format!("the NUMA node of {} is not known", names()))
    } else if local.is_empty() {
        (task.cpus.clone(), format!("no CPU of the task is on the NUMA node of {}", names()))
    } else if local.len() < task.cpus_needed {
        let reason = format!(
            "only {} of the {} CPUs that the task needs are near {}",
            local.len(),
            task.cpus_needed,
            names()
        );
        (task.cpus.clone(), format!("CPUs not narrowed: {reason}"))
    } else {
        (local, format!("CPUs narrowed from {} to the NUMA node of {}", task.cpus, names()))
    };
    let memory = match node.numa_nodes_of(&cpus)[..] {
        [only] => MemoryPolicy::Prefer(only),
        _ => MemoryPolicy::Keep,
    };
    Ok(Binding { cpus, memory, reason })
}
