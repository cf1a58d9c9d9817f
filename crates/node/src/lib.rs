//! What a node is made of, as far as RoCE is concerned: RDMA ports with their GIDs, network
//! interfaces, CPUs and NUMA nodes, read from sysfs into plain data.
//!
//! [`read`] takes the root of the tree, so a captured `/sys` of another machine reads like the live
//! one. Nothing is decided here: which port and which GID to use is `roce-plan`'s business.
//!
//! A port that can't be read is left out and named in [`Node::problems`]; a fact that the machine
//! doesn't tell is `None`, never a default.

mod addresses;
mod model;
mod netdev;
mod numa;
mod rdma;
mod tree;

use std::path::Path;

pub use model::{GidKind, GidRow, LinkLayer, Netdev, Node, NumaNode, PortState, RdmaPort};
pub use tree::NodeError;
use tree::Tree;

/// Where the kernel lists RDMA devices, relative to the root.
pub const RDMA_CLASS: &str = "sys/class/infiniband";

/// Reads the node whose `/sys` lies under `root`: `/` for the live machine, where the addresses of
/// the network interfaces are read too (a captured tree has none, so they are unknown there).
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
    let tree = Tree::new(root);
    let cpus = numa::online_cpus(&tree)?;
    let numa_nodes = numa::read(&tree, &cpus)?;
    let mut problems = Vec::new();
    let mut netdevs = netdev::read(&tree, &mut problems)?;
    if tree.is_live() {
        addresses::fill_in(&mut netdevs, &mut problems);
    }
    let ports = rdma::read(&tree, &numa_nodes, &netdevs, &mut problems)?;
    let rdma_class_exists = tree.exists(RDMA_CLASS);
    Ok(Node { cpus, numa_nodes, ports, netdevs, rdma_class_exists, problems })
}
