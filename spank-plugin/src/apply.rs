//! Carries out one task's part of the plan: CPUs, memory, environment; all of it or nothing.

use std::io;

use roce_bind::MemoryMode;
use roce_plan::MemoryPolicy;
use roce_spank::{Failure, Spank};
use roce_types::CpuSet;

use crate::environment::Environment;
use crate::orders::Order;

/// A row that can't be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("can't bind to CPUs {cpus}: {error}")]
    Bind { cpus: CpuSet, error: io::Error },
    #[error("can't read this task's memory policy: {0}")]
    MemoryPolicy(io::Error),
    #[error("can't bind memory to NUMA nodes {nodes:?}: {error}; --roce-bind=none leaves memory alone")]
    Memory { nodes: Vec<u32>, error: io::Error },
    #[error(transparent)]
    Environment(#[from] Failure),
}

/// Why a task keeps its memory policy, though the plan would have another. As text it is for the verbose output only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyKept {
    #[error("memory policy kept: it was chosen before (--mem-bind or numactl)")]
    Chosen,
    #[error("memory policy kept: can't prefer NUMA node {node}: {error}")]
    NotPreferred { node: u32, error: io::Error },
    /// A kernel without NUMA has no policy to prefer anything with.
    #[error("memory policy kept: can't read it: {0}")]
    Unread(io::Error),
}

/// Carries out an order in its task. Gives what could not be had and was not insisted on.
///
/// # Errors
/// If something that the plan insists on is refused. The task is then as it was before.
pub(crate) fn apply(
    spank: &Spank<'_>,
    order: &Order,
    environment: &Environment,
) -> Result<Option<PolicyKept>, ApplyError> {
    let memory = bind_memory(&order.memory)?;
    let undo_memory = || {
        if matches!(memory, Memory::Set) {
            // It was the default one before, and going back to that can't be refused.
            let _ = roce_bind::set_memory_policy(MemoryMode::Default, &[]);
        }
    };
    let has_bound = bind_cpus(&order.cpus, &order.own).inspect_err(|_| undo_memory())?;
    environment.write(spank, &order.edits).inspect_err(|_| {
        undo_memory();
        if has_bound {
            // These CPUs were this task's a moment ago.
            let _ = roce_bind::set_affinity(&order.own);
        }
    })?;
    Ok(match memory {
        Memory::Kept(why) => Some(why),
        Memory::Set | Memory::AsPlanned => None,
    })
}

/// Narrows the task to the plan's CPUs, never beyond what Slurm gave it. Was there anything to do?
fn bind_cpus(planned: &CpuSet, own: &CpuSet) -> Result<bool, ApplyError> {
    let cpus = planned.intersection(own);
    if cpus.is_empty() || cpus == *own {
        return Ok(false);
    }
    roce_bind::set_affinity(&cpus).map_err(|error| ApplyError::Bind { cpus, error })?;
    Ok(true)
}

/// What became of a task's memory policy.
enum Memory {
    AsPlanned,
    Set,
    Kept(PolicyKept),
}

/// Sets the memory policy, unless the user chose one.
fn bind_memory(policy: &MemoryPolicy) -> Result<Memory, ApplyError> {
    Ok(match policy {
        MemoryPolicy::Keep => Memory::AsPlanned,
        MemoryPolicy::Prefer(node) => match roce_bind::has_default_memory_policy() {
            Ok(true) => match roce_bind::set_memory_policy(MemoryMode::Preferred, &[*node]) {
                Ok(()) => Memory::Set,
                Err(error) => Memory::Kept(PolicyKept::NotPreferred { node: *node, error }),
            },
            Ok(false) => Memory::Kept(PolicyKept::Chosen),
            Err(error) => Memory::Kept(PolicyKept::Unread(error)),
        },
        MemoryPolicy::Bind(nodes) => {
            if roce_bind::has_default_memory_policy().map_err(ApplyError::MemoryPolicy)? {
                roce_bind::set_memory_policy(MemoryMode::Bind, nodes)
                    .map_err(|error| ApplyError::Memory { nodes: nodes.clone(), error })?;
                Memory::Set
            } else {
                Memory::Kept(PolicyKept::Chosen)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_narrowed_and_never_widened() {
        let own = roce_bind::affinity(0).unwrap();
        let elsewhere: CpuSet = "8000".parse().unwrap();
        assert!(!bind_cpus(&elsewhere, &own).unwrap());
        assert!(!bind_cpus(&own.union(&elsewhere), &own).unwrap());
        assert_eq!(roce_bind::affinity(0).unwrap(), own);
    }
}
