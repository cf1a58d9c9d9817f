//! The environment of a task: the `ROCE_*` variables, and what each communication library reads.

use std::fmt::Display;

use crate::nics::Nic;
use crate::plan::{Plan, TaskPlan};
use crate::request::GidSelection;
use crate::site::{Library, Site};

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
    let mut exports = own(plan, task, site);
    for (library, variables) in LIBRARIES {
        if site.exports.libraries.as_ref().is_none_or(|libraries| libraries.contains(&library)) {
            let variables = variables(plan, task).into_iter().flatten();
            exports.extend(variables.map(|(name, value)| (name, value, site.exports.overwrite)));
        }
    }
    exports.into_iter().map(|(name, value, overwrite)| Export { name, value, overwrite }).collect()
}

/// Stands in a list for what is not known.
const UNKNOWN: &str = "-";

/// A variable, or `None` where there is nothing to say.
type Variable = Option<(&'static str, String)>;

/// The variables of one library.
type Exporter = fn(&Plan, &TaskPlan) -> Vec<Variable>;

/// What each library is told.
const LIBRARIES: [(Library, Exporter); 10] = [
    (Library::Ucx, ucx),
    (Library::Nccl, nccl),
    (Library::Libfabric, libfabric),
    (Library::Openmpi, openmpi),
    (Library::Mvapich, mvapich),
    (Library::Nvshmem, nvshmem),
    (Library::Rocshmem, rocshmem),
    (Library::Gloo, gloo),
    (Library::Mooncake, mooncake),
    (Library::Hccl, hccl),
];

fn join<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn ports(nics: &[Nic]) -> String {
    join(nics.iter().map(|nic| &nic.port))
}

fn netdevs(task: &TaskPlan) -> String {
    join(task.nics.iter().map(|nic| nic.netdev.as_deref().unwrap_or(UNKNOWN)))
}

/// One GID index for all of these NICs, if it is the same on all.
fn common_gid_index(nics: &[Nic]) -> Option<String> {
    let first = nics.first()?.gid.as_ref()?.index;
    let same = nics.iter().all(|nic| nic.gid.as_ref().is_some_and(|row| row.index == first));
    same.then(|| first.to_string())
}

fn byte(plan: &Plan) -> Option<String> {
    Some(plan.class.as_ref()?.traffic_class.to_string())
}

fn service_level(plan: &Plan) -> Option<String> {
    Some(plan.class.as_ref()?.priority.to_string())
}

fn variable(name: &'static str, value: Option<String>) -> Variable {
    Some((name, value?))
}

/// The contract with roce-launcher and with scripts: lists are in the order of `ROCE_DEVICES`.
fn own(plan: &Plan, task: &TaskPlan, site: &Site) -> Vec<(&'static str, String, bool)> {
    let gids = |of: fn(&roce_node::GidRow) -> String| {
        join(task.nics.iter().map(|nic| nic.gid.as_ref().map_or_else(|| UNKNOWN.to_owned(), of)))
    };
    let dscp = plan.class.as_ref().map(|class| class.dscp.to_string());
    let bootstrap = site.bootstrap.ports.map(|(first, last)| format!("{first}-{last}"));
    let variables = [
        variable("ROCE_DEVICES", Some(ports(&task.nics))),
        variable("ROCE_NETDEVS", Some(netdevs(task))),
        variable("ROCE_GIDS", Some(gids(|row| row.gid.to_string()))),
        variable("ROCE_GID_INDEXES", Some(gids(|row| row.index.to_string()))),
        variable("ROCE_RAILS", Some(join(task.nics.iter().map(|nic| nic.rail)))),
        variable("ROCE_CPUS", Some(task.cpus.to_string())),
        variable("ROCE_NUMA_NODES", Some(join(&task.numa_nodes))),
        variable("ROCE_PRIORITY", service_level(plan)),
        variable("ROCE_DSCP", dscp),
        variable("ROCE_TRAFFIC_CLASS", byte(plan)),
        variable("ROCE_BOOTSTRAP_PORTS", bootstrap),
    ];
    // Which of the node's addresses a job's own ranks use among themselves is the user's to say.
    let addresses = Some(site.bootstrap.addresses.join(",")).filter(|list| !list.is_empty());
    let addresses = variable("ROCE_NODE_ADDRS", addresses).map(|(name, value)| (name, value, false));
    variables.into_iter().flatten().map(|(name, value)| (name, value, true)).chain(addresses).collect()
}

/// UCX 1.10 and later (`ucx_info -c -f`). Without a common GID index it is left to UCX's `auto`.
///
/// Open MPI prefers UCX to TCP only on devices of drivers that it lists, `mlx*` by default
/// (`ompi_info --param pml ucx --level 9`): with a plan, every planned device is good.
fn ucx(plan: &Plan, task: &TaskPlan) -> Vec<Variable> {
    vec![
        variable("UCX_NET_DEVICES", Some(ports(&task.nics))),
        variable("UCX_IB_GID_INDEX", common_gid_index(&task.nics)),
        variable("UCX_IB_TRAFFIC_CLASS", byte(plan)),
        variable("UCX_IB_SL", service_level(plan)),
        variable("OMPI_MCA_pml_ucx_devices", Some("any".to_owned())),
    ]
}

/// NCCL and RCCL. Its rings are built from one list that all ranks share, so every task is told
/// every NIC of the step; the leading `=` asks for exact names. Where no one GID index serves all,
/// NCCL finds the GID itself by family and range (2.21 and later). Its documentation asks for
/// traffic class and service level together.
fn nccl(plan: &Plan, _: &TaskPlan) -> Vec<Variable> {
    let index = common_gid_index(&plan.nics);
    let (mut family, mut range) = (None, None);
    if index.is_none() {
        let ipv4 = |nic: &Nic| nic.gid.as_ref().is_some_and(|row| row.gid.to_ipv4().is_some());
        family = Some(if plan.nics.iter().all(ipv4) { "AF_INET" } else { "AF_INET6" }.to_owned());
        if let GidSelection::Subnet(subnet) = plan.gid {
            range = Some(subnet.to_string());
        }
    }
    vec![
        variable("NCCL_IB_HCA", Some(format!("={}", ports(&plan.nics)))),
        variable("NCCL_IB_GID_INDEX", index),
        variable("NCCL_IB_ADDR_FAMILY", family),
        variable("NCCL_IB_ADDR_RANGE", range),
        variable("NCCL_IB_TC", byte(plan)),
        variable("NCCL_IB_SL", service_level(plan)),
    ]
}

/// libfabric's verbs provider (fi_verbs(7)), which takes one device; it has no traffic class.
fn libfabric(_: &Plan, task: &TaskPlan) -> Vec<Variable> {
    let first = &task.nics[0];
    vec![
        variable("FI_VERBS_DEVICE_NAME", Some(first.port.device.clone())),
        variable("FI_VERBS_IFACE", first.netdev.clone()),
        variable("FI_VERBS_GID_IDX", common_gid_index(&task.nics[..1])),
    ]
}

/// The openib component of Open MPI up to 4.
fn openmpi(plan: &Plan, task: &TaskPlan) -> Vec<Variable> {
    vec![
        variable("OMPI_MCA_btl_openib_if_include", Some(ports(&task.nics))),
        variable("OMPI_MCA_btl_openib_gid_index", common_gid_index(&task.nics)),
        variable("OMPI_MCA_btl_openib_ib_service_level", service_level(plan)),
    ]
}

/// MVAPICH2 (`MV2_`) and MVAPICH 3 (`MVP_`).
fn mvapich(plan: &Plan, task: &TaskPlan) -> Vec<Variable> {
    let devices = join(task.nics.iter().map(|nic| &nic.port.device));
    vec![
        variable("MV2_IBA_HCA", Some(devices.clone())),
        variable("MVP_IBA_HCA", Some(devices)),
        variable("MV2_USE_RoCE", Some("1".to_owned())),
        variable("MV2_DEFAULT_GID_INDEX", common_gid_index(&task.nics)),
        variable("MV2_DEFAULT_SERVICE_LEVEL", service_level(plan)),
    ]
}

/// NVSHMEM. Like NCCL's, its list is the same in every task; it maps processing elements to NICs
/// itself.
fn nvshmem(plan: &Plan, _: &TaskPlan) -> Vec<Variable> {
    vec![
        variable("NVSHMEM_ENABLE_NIC_PE_MAPPING", Some("1".to_owned())),
        variable("NVSHMEM_HCA_LIST", Some(ports(&plan.nics))),
        variable("NVSHMEM_IB_GID_INDEX", common_gid_index(&plan.nics)),
        variable("NVSHMEM_IB_TRAFFIC_CLASS", byte(plan)),
        variable("NVSHMEM_IB_SL", service_level(plan)),
    ]
}

/// rocSHMEM finds the GID itself.
fn rocshmem(plan: &Plan, _: &TaskPlan) -> Vec<Variable> {
    vec![
        variable("ROCSHMEM_HCA_LIST", Some(ports(&plan.nics))),
        variable("ROCSHMEM_GDA_TRAFFIC_CLASS", byte(plan)),
    ]
}

/// Gloo talks over sockets: the interface of the first NIC.
fn gloo(_: &Plan, task: &TaskPlan) -> Vec<Variable> {
    vec![variable("GLOO_SOCKET_IFNAME", task.nics[0].netdev.clone())]
}

/// Mooncake's transfer engine.
fn mooncake(plan: &Plan, task: &TaskPlan) -> Vec<Variable> {
    vec![
        variable("MC_GID_INDEX", common_gid_index(&task.nics)),
        variable("MC_IB_TC", byte(plan)),
        variable("MC_IB_SL", service_level(plan)),
    ]
}

/// HCCL takes a traffic class only without the two ECN bits.
fn hccl(plan: &Plan, _: &TaskPlan) -> Vec<Variable> {
    let dscp_only = plan.class.as_ref().map(|class| (class.traffic_class.0 & !0b11).to_string());
    vec![variable("HCCL_RDMA_TC", dscp_only), variable("HCCL_RDMA_SL", service_level(plan))]
}
