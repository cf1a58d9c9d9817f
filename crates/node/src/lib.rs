//! What a node is made of, as far as RoCE is concerned: RDMA ports with their GIDs, network
//! interfaces, GPUs, CPUs and NUMA nodes, read into plain data.
//!
//! [`read`] takes the root of a sysfs tree, so a captured `/sys` of another machine reads like the
//! live one. With the feature `sources`, `read_any` also takes a tar of such a tree, hwloc's XML and
//! NCCL's topology XML, and `capture` writes such a tar. Nothing is decided here: which port and
//! which GID to use is `roce-plan`'s business.
//!
//! A port that can't be read is left out and named in [`Node::problems`]; a fact that the machine
//! doesn't tell is `None`, never a default.

mod addresses;
mod dcb;
mod facts;
#[cfg(feature = "sources")]
#[doc(hidden)]
pub mod fuzzing;
mod gpu;
mod model;
mod netdev;
mod numa;
mod pci;
mod rdma;
#[cfg(feature = "sources")]
mod sources;
mod tree;

use std::path::Path;

pub use model::{
    GidKind, GidRow, Gpu, GpuVendor, LinkLayer, Netdev, Node, NumaNode, Package, PortState, Qos, RdmaPort,
    Trust,
};
pub use pci::{PciPlace, PciRelation};
#[cfg(feature = "sources")]
pub use sources::{Captured, SourceError, capture, read_any, read_bytes};
pub use tree::NodeError;
use tree::Tree;

/// Where the kernel lists RDMA devices, relative to the root.
pub const RDMA_CLASS: &str = "sys/class/infiniband";

/// Reads the node whose `/sys` lies under `root`: `/` for the live machine, where the addresses of
/// the network interfaces are read too. A captured tree has those only where `rocectl capture` has
/// written them beside its `sys`; else they are unknown there.
///
/// # Errors
/// When the CPUs or NUMA nodes can't be read. A broken RDMA port is no error but an entry of
/// [`Node::problems`].
///
/// ```
/// let node = roce_node::read(std::path::Path::new("/"))?;
/// println!("{} CPUs, {} RDMA ports", node.cpus.len(), node.ports.len());
/// # Ok::<(), roce_node::NodeError>(())
/// ```
pub fn read(root: &Path) -> Result<Node, NodeError> {
    read_tree(&Tree::new(root))
}

fn read_tree(tree: &Tree) -> Result<Node, NodeError> {
    let cpus = numa::online_cpus(tree)?;
    let numa_nodes = numa::read(tree, &cpus)?;
    let mut problems = Vec::new();
    let mut netdevs = netdev::read(tree, &mut problems)?;
    if tree.is_live() {
        addresses::fill_in(&mut netdevs, &mut problems);
    }
    let packages = numa::packages(tree, &cpus)?;
    let gpus = gpu::read(tree, &numa_nodes, &mut problems)?;
    let mut ports = rdma::read(tree, &numa_nodes, &netdevs, &mut problems)?;
    if tree.is_live() {
        ask_qos(&mut ports, &dcb::Kernel, &mut problems);
    } else {
        facts::fill_in(tree, &mut netdevs, &mut ports)?;
    }
    let rdma_class_exists = tree.exists(RDMA_CLASS);
    Ok(Node { cpus, packages, numa_nodes, gpus, ports, netdevs, rdma_class_exists, problems })
}

/// Adds what the interface of each Ethernet port does with packets of each class.
fn ask_qos(ports: &mut [RdmaPort], source: &dyn dcb::DcbSource, problems: &mut Vec<String>) {
    for port in ports.iter_mut().filter(|port| port.link_layer == LinkLayer::Ethernet) {
        let Some(netdev) = &port.netdev else { continue };
        match source.qos(netdev) {
            Ok(qos) => port.qos = qos,
            Err(error) => problems.push(format!("the QoS of {netdev} is unknown: DCB netlink: {error}")),
        }
    }
}
