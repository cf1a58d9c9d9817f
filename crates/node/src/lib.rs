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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A driver that tells, one that has nothing to tell, and one that fails.
    struct Drivers;

    impl dcb::DcbSource for Drivers {
        fn qos(&self, netdev: &str) -> io::Result<Option<Qos>> {
            match netdev {
                "tells" => Ok(Some(Qos { trust: Some(Trust::Dscp), ..Qos::default() })),
                "silent" => Ok(None),
                _ => Err(io::Error::from_raw_os_error(nix::libc::ENODEV)),
            }
        }
    }

    fn port(netdev: &str, link_layer: LinkLayer) -> RdmaPort {
        RdmaPort {
            name: format!("{netdev}:1").parse().unwrap(),
            link_layer,
            state: PortState::Active,
            rate_mbit: None,
            pci: None,
            numa_node: None,
            asic: None,
            physical_function: None,
            qos: None,
            forced_traffic_class: None,
            netdev: Some(netdev.to_owned()),
            gids: Vec::new(),
        }
    }

    #[test]
    fn each_ethernet_port_is_asked_for_its_qos_and_a_failure_is_a_problem() {
        let ethernet = |netdev| port(netdev, LinkLayer::Ethernet);
        let mut ports =
            [ethernet("tells"), ethernet("silent"), ethernet("broken"), port("tells", LinkLayer::InfiniBand)];
        let mut problems = Vec::new();
        ask_qos(&mut ports, &Drivers, &mut problems);
        let told: Vec<bool> = ports.iter().map(|port| port.qos.is_some()).collect();
        assert_eq!(told, [true, false, false, false]);
        assert_eq!(problems, ["the QoS of broken is unknown: DCB netlink: No such device (os error 19)"]);
    }
}
