//! The environment of a task: the `ROCE_*` variables, and what each communication library reads.

use std::fmt::Display;

use crate::nics::Nic;
use crate::plan::{Plan, TaskPlan};
use crate::request::GidSelection;
use crate::site::{Library, Site};
use crate::traffic_class::Class;

/// A variable for the task's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Replace a value that the user set? Ours always, a library's only if the site says so.
    pub overwrite: bool,
}

/// The variables of one task; empty if the plan has no such task.
#[must_use]
pub fn exports(plan: &Plan, local_rank: u32, site: &Site) -> Vec<Export> {
    let Some(task) = plan.task(local_rank) else { return Vec::new() };
    let mut exports: Vec<Export> = own(plan, task, site)
        .into_iter()
        .map(|(name, value)| Export { name, value, overwrite: true })
        .collect();
    let told = |library| site.exports.libraries.as_ref().is_none_or(|libraries| libraries.contains(&library));
    for (library, variables) in [
        (Library::Ucx, ucx(task, plan.class.as_ref())),
        (Library::Nccl, nccl(plan)),
        (Library::Libfabric, libfabric(task)),
    ] {
        let overwrite = site.exports.overwrite;
        if told(library) {
            exports.extend(variables.into_iter().map(|(name, value)| Export { name, value, overwrite }));
        }
    }
    exports
}

type Variables = Vec<(&'static str, String)>;

fn join<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// The contract with roce-launcher and with scripts: lists are in the order of `ROCE_DEVICES`.
fn own(plan: &Plan, task: &TaskPlan, site: &Site) -> Variables {
    let mut variables = vec![
        ("ROCE_DEVICES", join(task.nics.iter().map(|nic| &nic.port))),
        ("ROCE_NETDEVS", join(task.nics.iter().map(|nic| nic.netdev.as_deref().unwrap_or_default()))),
        ("ROCE_GIDS", join(task.nics.iter().map(|nic| nic.gid))),
        ("ROCE_GID_INDEXES", join(task.nics.iter().map(|nic| nic.gid_index))),
        ("ROCE_RAILS", join(task.nics.iter().map(|nic| nic.rail))),
        ("ROCE_CPUS", task.cpus.to_string()),
        ("ROCE_NUMA_NODES", join(&task.numa_nodes)),
    ];
    if let Some(class) = &plan.class {
        variables.push(("ROCE_PRIORITY", class.priority.to_string()));
        variables.push(("ROCE_DSCP", class.dscp.to_string()));
        variables.push(("ROCE_TRAFFIC_CLASS", class.traffic_class.to_string()));
    }
    if let Some((first, last)) = site.bootstrap.ports {
        variables.push(("ROCE_BOOTSTRAP_PORTS", format!("{first}-{last}")));
    }
    variables
}

/// One GID index for all of these NICs, if it is the same on all.
fn common_gid_index(nics: &[Nic]) -> Option<u32> {
    let first = nics.first()?.gid_index;
    nics.iter().all(|nic| nic.gid_index == first).then_some(first)
}

/// UCX 1.10 and later (`ucx_info -c -f`). Without a common GID index it is left to UCX's `auto`.
fn ucx(task: &TaskPlan, class: Option<&Class>) -> Variables {
    let mut variables = vec![("UCX_NET_DEVICES", join(task.nics.iter().map(|nic| &nic.port)))];
    if let Some(index) = common_gid_index(&task.nics) {
        variables.push(("UCX_IB_GID_INDEX", index.to_string()));
    }
    if let Some(class) = class {
        variables.push(("UCX_IB_TRAFFIC_CLASS", class.traffic_class.to_string()));
        variables.push(("UCX_IB_SL", class.priority.to_string()));
    }
    variables
}

/// NCCL and RCCL. Its rings are built from one list that all ranks share, so every task is told
/// every NIC of the step; the leading `=` asks for exact names. Where no one GID index serves all,
/// NCCL finds the GID itself by family and range (2.21 and later).
fn nccl(plan: &Plan) -> Variables {
    let mut variables = vec![("NCCL_IB_HCA", format!("={}", join(plan.nics.iter().map(|nic| &nic.port))))];
    if let Some(index) = common_gid_index(&plan.nics) {
        variables.push(("NCCL_IB_GID_INDEX", index.to_string()));
    } else {
        let ipv4 = plan.nics.iter().all(|nic| nic.gid.to_ipv4().is_some());
        variables.push(("NCCL_IB_ADDR_FAMILY", if ipv4 { "AF_INET" } else { "AF_INET6" }.to_owned()));
        if let GidSelection::Subnet(subnet) = &plan.gid {
            variables.push(("NCCL_IB_ADDR_RANGE", subnet.to_string()));
        }
    }
    if let Some(class) = &plan.class {
        variables.push(("NCCL_IB_TC", class.traffic_class.to_string()));
        variables.push(("NCCL_IB_SL", class.priority.to_string()));
    }
    variables
}

/// libfabric's verbs provider (fi_verbs(7)), which takes one device; it has no traffic class.
fn libfabric(task: &TaskPlan) -> Variables {
    let first = &task.nics[0];
    let mut variables = vec![("FI_VERBS_DEVICE_NAME", first.port.device.clone())];
    if let Some(netdev) = &first.netdev {
        variables.push(("FI_VERBS_IFACE", netdev.clone()));
    }
    variables.push(("FI_VERBS_GID_IDX", first.gid_index.to_string()));
    variables
}
