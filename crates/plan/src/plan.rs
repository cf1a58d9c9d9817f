//! The plan of one node for one step.

use std::fmt;

use roce_node::Node;
use roce_types::{CpuSet, DevicePort, PciAddress};

use crate::cpus::{MemoryPolicy, bind};
use crate::distance::{Distance, distance};
use crate::nics::{Nic, PhysicalPort, Pool, PortRejection, matches_entry, pool};
use crate::placement::{Board, assign};
use crate::request::{BindMode, GidSelection, NicSelection, Placement, Request};
use crate::site::Site;
use crate::traffic_class::{Class, ClassError};

/// A task of the step on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Rank among the tasks of this node, from 0 (`SLURM_LOCALID`).
    pub local_rank: u32,
    /// The CPUs that Slurm gave it.
    pub cpus: CpuSet,
    /// How many CPUs it was promised (`--cpus-per-task`), at least 1: it is never narrowed below.
    pub cpus_needed: usize,
    /// The GPUs that it uses.
    pub gpus: Vec<PciAddress>,
}

/// What every task of a node gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every NIC that the step may use on this node, whoever it was assigned to.
    pub nics: Vec<Nic>,
    /// Every port that is none, with the reason.
    pub rejected: Vec<(DevicePort, PortRejection)>,
    /// How their GIDs were selected.
    pub gid: GidSelection,
    /// The traffic class, if one was asked for.
    pub class: Option<Class>,
    /// One per task, in the order in which they were given.
    pub tasks: Vec<TaskPlan>,
}

/// What one task gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlan {
    /// Rank among the tasks of this node.
    pub local_rank: u32,
    /// Its NICs, best first; never empty.
    pub nics: Vec<Nic>,
    /// How far its first NIC is.
    pub distance: Distance,
    /// Its CPUs: those it had, or fewer.
    pub cpus: CpuSet,
    /// The NUMA nodes of those CPUs.
    pub numa_nodes: Vec<u32>,
    /// Where its memory comes from.
    pub memory: MemoryPolicy,
    /// Why all this, for people.
    pub reasons: Vec<String>,
}

/// Why a node can't give what was asked, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no RDMA at all.
    #[error("{asked_by}: this node has no RoCE port: {why}")]
    NoRdma {
        /// The options.
        asked_by: String,
        /// What was looked at.
        why: String,
    },
    /// There are RDMA ports, and each has a reason against it.
    #[error("{asked_by}: no RoCE port of this node can be used: {}", list(ports))]
    NoUsablePort {
        /// The options.
        asked_by: String,
        /// Each port with its reason.
        ports: Vec<(String, PortRejection)>,
    },
    /// `--roce-nics` names a port that isn't there.
    #[error("--roce-nics={name}: this node has no such NIC; allowed here: {}", .present.join(", "))]
    NoSuchNic {
        /// The name.
        name: String,
        /// What there is.
        present: Vec<String>,
    },
    /// `--roce-nics` names a port that can't be used.
    #[error("--roce-nics={name}: {name} can't be used: {reason}")]
    NamedNicUnusable {
        /// The name.
        name: String,
        /// Why not.
        reason: PortRejection,
    },
    /// `--roce-nics=COUNT` asks for more than there are.
    #[error("--roce-nics={asked}: this node has {} usable RoCE ports: {}", present.len(), .present.join(", "))]
    TooFewNics {
        /// The count.
        asked: usize,
        /// What there is.
        present: Vec<String>,
    },
    /// The NICs can't carry the class.
    #[error("{asked_by}: {why}")]
    Class {
        /// The options.
        asked_by: String,
        /// Why not.
        why: ClassError,
    },
    /// `--roce-bind=numa`, and Slurm gave the task CPUs elsewhere.
    #[error(
        "--roce-bind=numa: CPUs {cpus} of local rank {local_rank} have none on the NUMA node of {nics}; use --roce-bind=auto or another --cpu-bind"
    )]
    NoCpuNearNic {
        /// The task.
        local_rank: u32,
        /// Its CPUs.
        cpus: String,
        /// Its NICs.
        nics: String,
    },
}

/// A number for each distinct physical port, in the order of the NICs.
fn physical_ports(nics: &[Nic]) -> Vec<usize> {
    let mut distinct: Vec<&PhysicalPort> = Vec::new();
    let mut numbers = Vec::new();
    for nic in nics {
        let known = distinct.iter().position(|&port| *port == nic.physical_port);
        numbers.push(known.unwrap_or(distinct.len()));
        if known.is_none() {
            distinct.push(&nic.physical_port);
        }
    }
    numbers
}

fn list(ports: &[(String, PortRejection)]) -> String {
    ports.iter().map(|(name, reason)| format!("{name}: {reason}")).collect::<Vec<_>>().join("; ")
}

/// Decides what each task of a node gets. The same facts give the same plan, in whatever process.
///
/// # Errors
/// When no NIC can be used, or not those, or not so many, as were asked for.
pub fn plan(node: &Node, request: &Request, site: &Site, tasks: &[Task]) -> Result<Plan, PlanError> {
    let draft = Draft::new(node, request, site)?;
    let assigned = draft.assign(node, tasks);
    let row = |(task, assigned): (&Task, &Vec<usize>)| draft.row(node, task, assigned);
    let rows = tasks.iter().zip(&assigned).map(row).collect::<Result<_, _>>()?;
    Ok(draft.finish(rows))
}

/// A plan in the making: all of it that is settled before the tasks are known.
///
/// [`plan`] makes a whole plan at once. Where tasks are processes of their own, what they have in common
/// is drafted before they are forked, their NICs are assigned in one process, and each makes its own row.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Without rows.
    plan: Plan,
    place: Placement,
    bind: BindMode,
    wanted: usize,
}

impl Draft {
    /// Drafts the plan of a node.
    ///
    /// # Errors
    /// When no NIC can be used, or not those, or not so many, as were asked for.
    pub fn new(node: &Node, request: &Request, site: &Site) -> Result<Self, PlanError> {
        let pool = pool(node, request, site);
        check(node, request, &pool)?;
        let Pool { nics, rejected } = pool;
        let wanted = match &request.nics {
            NicSelection::Auto => 1,
            NicSelection::Count(count) => *count,
            NicSelection::All | NicSelection::Names(_) => nics.len(),
        };
        let class = request.class.as_ref().map(|class| {
            let resolved = Class::resolve(class, &nics, site);
            resolved.map_err(|why| PlanError::Class { asked_by: request.asked_by(), why })
        });
        let plan =
            Plan { nics, rejected, gid: request.gid.clone(), class: class.transpose()?, tasks: Vec::new() };
        Ok(Self { plan, place: request.place, bind: request.bind, wanted })
    }

    /// Every NIC that the step may use on this node; never empty.
    #[must_use]
    pub fn nics(&self) -> &[Nic] {
        &self.plan.nics
    }

    /// How many of them each task gets; at least 1.
    #[must_use]
    pub fn nics_per_task(&self) -> usize {
        self.wanted
    }

    /// The NICs of each task, best first, as positions in [`nics`](Self::nics). All tasks of the node are
    /// settled together.
    #[must_use]
    pub fn assign(&self, node: &Node, tasks: &[Task]) -> Vec<Vec<usize>> {
        let nics = &self.plan.nics;
        let distances: Vec<Vec<Distance>> =
            tasks.iter().map(|task| nics.iter().map(|nic| distance(node, task, nic)).collect()).collect();
        let rails: Vec<u32> = nics.iter().map(|nic| nic.rail).collect();
        let ports = physical_ports(nics);
        assign(self.place, &Board { distances: &distances, rails: &rails, ports: &ports }, self.wanted)
    }

    /// What one task gets, with the NICs that [`assign`](Self::assign) gave it.
    ///
    /// # Errors
    /// When it can't be bound as was asked.
    ///
    /// # Panics
    /// If no NIC is assigned, or one that isn't there.
    pub fn row(&self, node: &Node, task: &Task, assigned: &[usize]) -> Result<TaskPlan, PlanError> {
        let nics = &self.plan.nics;
        let own: Vec<&Nic> = assigned.iter().map(|&nic| &nics[nic]).collect();
        let binding = bind(node, task, &own, self.bind)?;
        let distances: Vec<Distance> = nics.iter().map(|nic| distance(node, task, nic)).collect();
        let why_this = why_this(nics, &distances, assigned[0], self.place);
        let why_class = self.plan.class.as_ref().map(|class| class.reason.clone());
        Ok(TaskPlan {
            local_rank: task.local_rank,
            distance: distances[assigned[0]],
            numa_nodes: node.numa_nodes_of(&binding.cpus),
            cpus: binding.cpus,
            memory: binding.memory,
            reasons: [why_this, binding.reason].into_iter().chain(why_class).collect(),
            nics: own.into_iter().cloned().collect(),
        })
    }

    /// The plan as far as it is known, with one row more.
    pub fn add(&mut self, row: TaskPlan) -> &Plan {
        self.plan.tasks.push(row);
        &self.plan
    }

    /// The plan, with these rows.
    #[must_use]
    pub fn finish(self, tasks: Vec<TaskPlan>) -> Plan {
        Plan { tasks, ..self.plan }
    }
}

/// Why a task got its first NIC: how near it is, and which others are as near or nearer.
fn why_this(nics: &[Nic], distances: &[Distance], first: usize, policy: Placement) -> String {
    let others = |keep: fn(&Distance, &Distance) -> bool| {
        let others = (0..nics.len()).filter(|&nic| nic != first && keep(&distances[nic], &distances[first]));
        others.map(|nic| nics[nic].port.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (tied, nearer) = (others(|a, b| a == b), others(|a, b| a < b));
    let by = match policy {
        Placement::Nearest => "nearest",
        Placement::Rail => "by rail",
        Placement::RoundRobin => "by round-robin",
        Placement::Block => "by block",
    };
    let mut why = match nics.len() {
        1 => format!("{} is the only NIC: {}", nics[first].port, distances[first]),
        count => format!("{} {by} of {count} NICs: {}", nics[first].port, distances[first]),
    };
    if !tied.is_empty() {
        why += &format!("; as near: {tied}");
    }
    if !nearer.is_empty() {
        why += &format!("; nearer: {nearer}");
    }
    why
}

/// Are there NICs, those that were named, and as many as were asked for?
fn check(node: &Node, request: &Request, pool: &Pool) -> Result<(), PlanError> {
    if node.ports.is_empty() {
        let why = if !node.problems.is_empty() {
            node.problems.join("; ")
        } else if node.rdma_class_exists {
            format!("/{} is empty: no RDMA device has been set up", roce_node::RDMA_CLASS)
        } else {
            format!("/{} does not exist: no RDMA driver is loaded", roce_node::RDMA_CLASS)
        };
        return Err(PlanError::NoRdma { asked_by: request.asked_by(), why });
    }
    if let NicSelection::Names(names) = &request.nics {
        for name in names {
            let Some(port) = node.ports.iter().find(|port| matches_entry(port, name)) else {
                let present = node.ports.iter().map(|port| port.name.device.clone()).collect();
                return Err(PlanError::NoSuchNic { name: name.clone(), present });
            };
            if let Some((_, reason)) = pool.rejected.iter().find(|(rejected, _)| *rejected == port.name) {
                return Err(PlanError::NamedNicUnusable { name: name.clone(), reason: reason.clone() });
            }
        }
    }
    if pool.nics.is_empty() {
        let ports = pool.rejected.iter().map(|(port, reason)| (port.to_string(), reason.clone())).collect();
        return Err(PlanError::NoUsablePort { asked_by: request.asked_by(), ports });
    }
    match request.nics {
        NicSelection::Count(asked) if asked > pool.nics.len() => Err(PlanError::TooFewNics {
            asked,
            present: pool.nics.iter().map(|nic| nic.port.to_string()).collect(),
        }),
        _ => Ok(()),
    }
}

impl Plan {
    /// The row of one task.
    #[must_use]
    pub fn task(&self, local_rank: u32) -> Option<&TaskPlan> {
        self.tasks.iter().find(|task| task.local_rank == local_rank)
    }

    /// The row of one task in one line, for `--roce=verbose`.
    #[must_use]
    pub fn describe(&self, local_rank: u32) -> Option<String> {
        let task = self.task(local_rank)?;
        let nics: Vec<String> = task.nics.iter().map(ToString::to_string).collect();
        let class = self.class.as_ref().map_or("no traffic class".to_owned(), |class| {
            format!("priority {} DSCP {} traffic class {}", class.priority, class.dscp, class.traffic_class)
        });
        Some(format!(
            "{}; {}; {class}; CPUs {}; memory {}",
            nics.join(", "),
            task.distance,
            task.cpus,
            task.memory
        ))
    }
}

impl fmt::Display for Nic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.port)?;
        if let Some(netdev) = &self.netdev {
            write!(f, "{netdev}, ")?;
        }
        write!(f, "rail {}, ", self.rail)?;
        if let Some(numa_node) = self.numa_node {
            write!(f, "NUMA {numa_node}, ")?;
        }
        match &self.gid {
            Some(row) => write!(f, "GID {} index {})", row.gid, row.index),
            None => f.write_str("GID unknown)"),
        }
    }
}

impl fmt::Display for MemoryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("as it was"),
            Self::Prefer(node) => write!(f, "prefer:{node}"),
            Self::Bind(nodes) => {
                let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                write!(f, "bind:{}", nodes.join(","))
            }
        }
    }
}
