//! A plan as JSON.

use roce_plan::{Nic, TaskPlan};
use roce_types::CpuSet;
use serde::Serialize;

use crate::plan::Planned;

#[derive(Serialize)]
struct Document<'a> {
    asked: &'a str,
    tasks: Vec<Task<'a>>,
    /// Every NIC that the tasks share.
    nics: Vec<NicFacts<'a>>,
    rejected: Vec<Rejected>,
    warnings: &'a [String],
    /// What could not be read of the node.
    problems: &'a [String],
}

#[derive(Serialize)]
struct Task<'a> {
    local_rank: u32,
    cpus: &'a CpuSet,
    numa_nodes: &'a [u32],
    memory: String,
    gpus: Vec<usize>,
    /// Ports, best first; the lists below are in this order.
    nics: Vec<String>,
    netdevs: Vec<Option<&'a str>>,
    rails: Vec<u32>,
    gids: Vec<Option<String>>,
    /// Of the first NIC.
    distance: String,
    gid: Option<String>,
    gid_index: Option<u32>,
    dscp: Option<u8>,
    priority: Option<u8>,
    traffic_class: Option<u8>,
    reasons: &'a [String],
}

#[derive(Serialize)]
struct NicFacts<'a> {
    port: String,
    netdev: Option<&'a str>,
    numa_node: Option<u32>,
    pci: Option<String>,
    rail: u32,
    gid: Option<String>,
    gid_index: Option<u32>,
}

#[derive(Serialize)]
struct Rejected {
    port: String,
    reason: String,
}

pub(crate) fn text(planned: &Planned<'_>) -> anyhow::Result<String> {
    let plan = planned.plan;
    let rows = planned.tasks.iter().zip(&plan.tasks);
    let document = Document {
        asked: &planned.asked,
        tasks: rows.map(|(task, row)| task_of(planned, planned.gpus(task), row)).collect(),
        nics: plan.nics.iter().map(nic_of).collect(),
        rejected: plan
            .rejected
            .iter()
            .map(|(port, reason)| Rejected { port: port.to_string(), reason: reason.to_string() })
            .collect(),
        warnings: planned.warnings(),
        problems: &planned.source.node.problems,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn task_of<'a>(planned: &Planned<'a>, gpus: Vec<usize>, row: &'a TaskPlan) -> Task<'a> {
    let class = planned.plan.class.as_ref();
    let first = row.nics.first().and_then(|nic| nic.gid.as_ref());
    Task {
        local_rank: row.local_rank,
        cpus: &row.cpus,
        numa_nodes: &row.numa_nodes,
        memory: row.memory.to_string(),
        gpus,
        nics: row.nics.iter().map(|nic| nic.port.to_string()).collect(),
        netdevs: row.nics.iter().map(|nic| nic.netdev.as_deref()).collect(),
        rails: row.nics.iter().map(|nic| nic.rail).collect(),
        gids: row.nics.iter().map(|nic| nic.gid.as_ref().map(|row| row.gid.to_string())).collect(),
        distance: row.distance.to_string(),
        gid: first.map(|row| row.gid.to_string()),
        gid_index: first.map(|row| row.index),
        dscp: class.map(|class| class.dscp.get()),
        priority: class.map(|class| class.priority.get()),
        traffic_class: class.map(|class| class.traffic_class.0),
        reasons: &row.reasons,
    }
}

fn nic_of(nic: &Nic) -> NicFacts<'_> {
    NicFacts {
        port: nic.port.to_string(),
        netdev: nic.netdev.as_deref(),
        numa_node: nic.numa_node,
        pci: nic.pci.as_ref().map(|pci| pci.address.to_string()),
        rail: nic.rail,
        gid: nic.gid.as_ref().map(|row| row.gid.to_string()),
        gid_index: nic.gid.as_ref().map(|row| row.index),
    }
}
