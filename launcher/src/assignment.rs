//! Which NIC ports this rank uses, and in which class: what the plugin assigned, or the library's own choice.

use std::path::Path;

use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use roce_node::Node;
use roce_plan::{NicSelection, PlanError, Request, Site, Task};
use roce_types::{CpuSet, DevicePort, Dscp, Gid, Priority, TrafficClass};

use crate::environment;
use crate::error::{Error, Result};
use crate::transport::Class;

/// One NIC port that this rank may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Device and port.
    pub port: DevicePort,
    /// Its netdev.
    pub netdev: Option<String>,
    /// Its address. Its row in the port's table is looked up again whenever it is needed.
    pub gid: Gid,
    /// The row when the assignment was made.
    pub gid_index: Option<u32>,
    /// Which wire it is on. Ports of one rail reach each other, and so are those of no known rail assumed to do.
    pub rail: Option<u32>,
}

/// Who made an assignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The spank_roce plugin.
    Plugin,
    /// This library: there was no plugin, or it was not asked.
    OwnChoice,
}

/// What this rank works with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The ports, best first; never empty.
    pub nics: Vec<Nic>,
    /// The 802.1p priority, where a class was asked for.
    pub priority: Option<Priority>,
    /// The code point, where a class was asked for.
    pub dscp: Option<Dscp>,
    /// The byte of every packet's IP header: 0 where no class was asked for.
    pub traffic_class: TrafficClass,
    /// 0-7; the priority, or 0.
    pub service_level: u8,
    /// The CPUs that the plan gave this task.
    pub cpus: Option<CpuSet>,
    /// The NUMA nodes that the plan gave this task.
    pub numa_nodes: Option<CpuSet>,
    /// Who decided.
    pub source: Source,
}

impl Assignment {
    /// How packets are marked.
    pub(crate) fn class(&self) -> Class {
        Class { traffic_class: self.traffic_class, service_level: self.service_level }
    }

    /// The plugin's assignment, or this library's own choice on the node called `node`.
    pub(crate) fn find(node: &str) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        match environment::read(variable)? {
            Some(assignment) => Ok(assignment),
            None => {
                let no_port = |reason: String| Error::NoPort { node: node.to_owned(), reason };
                let facts = roce_node::read(Path::new("/")).map_err(|error| no_port(error.to_string()))?;
                let cpus = own_cpus().map_err(|error| no_port(format!("sched_getaffinity: {error}")))?;
                own_choice(&facts, cpus, node)
            }
        }
    }
}

/// What the plugin would plan for one task with these CPUs that asks for every NIC and no class.
fn own_choice(node: &Node, cpus: CpuSet, host: &str) -> Result<Assignment> {
    let no_port = |reason: String| Error::NoPort { node: host.to_owned(), reason };
    let request = Request {
        nics: NicSelection::All,
        asked_by: vec!["a rank without ROCE_DEVICES in its environment".to_owned()],
        ..Request::default()
    };
    let task = Task { local_rank: 0, cpus, cpus_needed: 1, gpus: Vec::new() };
    let plan = roce_plan::plan(node, &request, &Site::default(), &[task]).map_err(|error| match error {
        PlanError::NoRdma { why, .. } => no_port(why),
        other => no_port(other.to_string()),
    })?;
    // On a live machine every NIC of a plan has a GID.
    let nics = plan.tasks.into_iter().flat_map(|task| task.nics).filter_map(|nic| {
        let row = nic.gid?;
        let rail = Some(nic.rail);
        Some(Nic { port: nic.port, netdev: nic.netdev, gid: row.gid, gid_index: Some(row.index), rail })
    });
    Ok(Assignment {
        nics: nics.collect(),
        priority: None,
        dscp: None,
        traffic_class: TrafficClass(0),
        service_level: 0,
        cpus: None,
        numa_nodes: None,
        source: Source::OwnChoice,
    })
}

/// The CPUs that this process may run on.
fn own_cpus() -> Result<CpuSet, nix::Error> {
    let mask = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..nix::sched::CpuSet::count()).filter(|&cpu| mask.is_set(cpu).unwrap_or(false)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_roce_says_what_was_looked_at() {
        let bare = Node { cpus: own_cpus().unwrap(), ..Node::default() };
        let error = own_choice(&bare, own_cpus().unwrap(), "vm1").unwrap_err().to_string();
        let expected = "this node (vm1) has no RoCE port: /sys/class/infiniband does not exist: no RDMA driver is loaded; ";
        assert!(error.starts_with(expected), "{error}");
    }
}
