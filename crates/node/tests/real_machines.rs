//! Topologies of real machines, read where they lie beside the project.

mod common;

use std::path::Path;

use common::{data, summary};
use roce_node::{GidKind, LinkLayer, Node, PortState, RdmaPort, read_any};

fn read(path: &Path) -> Node {
    read_any(path).unwrap_or_else(|error| panic!("{error}"))
}

fn port<'a>(node: &'a Node, name: &str) -> &'a RdmaPort {
    node.ports.iter().find(|port| port.name.to_string() == name).unwrap()
}

/// Reads a file of a folder of the data and compares it with what a person has checked.
fn snapshot(folder: &str, file: &str) -> Option<Node> {
    let node = read(&data()?.join(folder).join(file));
    let name = file.split('.').next().unwrap();
    insta::assert_snapshot!(format!("{folder}_{name}"), summary(&node));
    Some(node)
}

#[test]
fn arm64_ulna_has_one_roce_port_up_beside_infiniband() {
    let Some(node) = snapshot("hwloc-xml", "mpibind-arm64-ulna-hwloc1.xml") else { return };
    assert_eq!(node.numa_nodes.len(), 2);
    assert_eq!(node.numa_nodes[0].distances[&1], 20);
    let roce = port(&node, "mlx5_1:1");
    assert_eq!((&roce.link_layer, &roce.state), (&LinkLayer::Ethernet, &PortState::Active));
    assert_eq!(roce.gids.len(), 4);
    assert_eq!(roce.gids[2].gid.to_ipv4(), Some("192.168.64.32".parse().unwrap()));
    assert_eq!(roce.asic, None, "a GUID of zeros is none");
    assert_eq!(port(&node, "mlx5_2:1").state, PortState::Other("DOWN".into()));
    assert_eq!(port(&node, "mlx5_0:1").link_layer, LinkLayer::InfiniBand);
}

#[test]
fn coral_lassen_has_one_card_on_two_sockets() {
    let Some(node) = snapshot("hwloc-xml", "mpibind-coral-lassen-hwloc1.xml") else { return };
    let places: Vec<_> = node.ports.iter().map(|port| (port.name.to_string(), port.numa_node)).collect();
    let expected = [(0, 0), (1, 0), (2, 8), (3, 8)];
    assert_eq!(places, expected.map(|(port, numa)| (format!("mlx5_{port}:1"), Some(numa))));
    assert!(node.ports.iter().all(|other| other.asic == node.ports[0].asic && other.asic.is_some()));
    assert_eq!(node.gpus.len(), 4);
    // The GPUs' memory is nodes without CPUs.
    assert!(node.numa_node(255).unwrap().cpus.is_empty());
}

#[test]
fn cts1_pascal_has_two_gpus_below_the_switch_of_its_card() {
    let Some(node) = snapshot("hwloc-xml", "mpibind-cts1-pascal.xml") else { return };
    assert_eq!((node.gpus.len(), node.ports.len()), (2, 1));
}

#[test]
fn epyc_corona_has_eight_numa_nodes_and_one_card() {
    let Some(node) = snapshot("hwloc-xml", "mpibind-epyc-corona-hwloc1.xml") else { return };
    assert_eq!((node.numa_nodes.len(), node.packages.len(), node.gpus.len()), (8, 2, 4));
    assert_eq!(port(&node, "mlx5_0:1").numa_node, Some(3));
}

#[test]
fn knl_has_numa_nodes_without_cpus() {
    let Some(node) = snapshot("hwloc-xml", "mpibind-knl-snc4-flat-hwloc1.xml") else { return };
    let without: Vec<u32> =
        node.numa_nodes.iter().filter(|node| node.cpus.is_empty()).map(|node| node.id).collect();
    assert_eq!(without, [4, 5, 6, 7]);
    assert_eq!(node.numa_nodes.iter().map(|node| node.cpus.len()).sum::<usize>(), node.cpus.len());
    // The fast memory near to the same CPUs doesn't make the place of the card doubtful.
    assert_eq!(port(&node, "mlx5_0:1").numa_node, Some(0));
}

#[test]
fn pmix_has_ethernet_and_infiniband_functions() {
    let Some(node) = snapshot("hwloc-xml", "pmix-test-topo.xml") else { return };
    assert_eq!(port(&node, "mlx5_an0:1").link_layer, LinkLayer::Ethernet);
    assert_eq!(port(&node, "mlx5_an0:1").netdev.as_deref(), Some("eth1"));
    assert_eq!(port(&node, "mlx5_ib0:1").link_layer, LinkLayer::InfiniBand);
}

#[test]
fn eight_gpus_and_nics_of_an_nccl_topology() {
    let Some(node) = snapshot("nccl-xml", "topo_8p_940.xml") else { return };
    assert_eq!((node.gpus.len(), node.ports.len()), (8, 8));
    for (i, gpu) in node.gpus.iter().enumerate() {
        let nic = port(&node, &format!("mlx5_{i}:1"));
        // Each pair hangs on one switch: they have its upstream port in common.
        assert_eq!(nic.pci.as_ref().unwrap().bridges[0], gpu.pci.bridges[0]);
        assert_eq!(nic.rate_mbit, Some(400_000));
    }
}

#[test]
fn a_bond_of_an_nccl_topology_is_an_interface() {
    let Some(node) = snapshot("nccl-xml", "topo_8p_90a_1.xml") else { return };
    assert_eq!((node.gpus.len(), node.ports.len()), (8, 0));
    assert!(node.netdevs.contains_key("bond0"));
}

/// What a captured tree and hwloc's view of the same machine agree about.
fn agrees_with_hwloc(name: &str, device: &str) -> Option<(Node, Node)> {
    let ours = snapshot("sysfs", &format!("{name}.tar.bz2"))?;
    let theirs = read(&data()?.join("sysfs").join(format!("{name}.expected.xml")));
    assert_eq!(ours.cpus, theirs.cpus);
    assert_eq!(ours.packages, theirs.packages);
    assert_eq!(ours.numa_nodes, theirs.numa_nodes);
    let (mine, other) = (port(&ours, device), port(&theirs, device));
    assert_eq!(mine.pci.as_ref().unwrap().address, other.pci.as_ref().unwrap().address);
    assert_eq!(mine.pci, other.pci);
    assert_eq!((&mine.link_layer, &mine.state), (&other.link_layer, &other.state));
    assert_eq!((&mine.asic, &mine.netdev), (&other.asic, &other.netdev));
    let gids = |port: &RdmaPort| port.gids.iter().map(|row| (row.index, row.gid)).collect::<Vec<_>>();
    assert_eq!(gids(mine), gids(other));
    assert!(mine.gids.iter().all(|row| row.kind != Some(GidKind::RoceV2)));
    Some((ours, theirs))
}

#[test]
fn mlx4_of_a_captured_tree_is_where_hwloc_sees_it() {
    let found = agrees_with_hwloc("32em64t-2n8c+dax+nvme+mic+dimms", "mlx4_0:1");
    let Some((ours, theirs)) = found else { return };
    assert_eq!(port(&ours, "mlx4_0:1").numa_node, Some(1));
    assert_eq!(port(&theirs, "mlx4_0:1").numa_node, Some(1));
}

#[test]
fn qib_of_a_captured_tree_is_where_hwloc_sees_it() {
    let Some((ours, theirs)) = agrees_with_hwloc("fakepcilocalities", "qib0:1") else { return };
    assert_eq!(port(&ours, "qib0:1").numa_node, Some(1));
    assert_eq!(port(&theirs, "qib0:1").numa_node, Some(1));
}

#[test]
fn the_kernels_numa_node_counts_where_hwloc_was_told_otherwise() {
    // This test of hwloc's overrides the locality from outside, to two NUMA nodes at once.
    let Some((ours, theirs)) = agrees_with_hwloc("40intel64-2g2n4c+pcilocality", "qib0:1") else { return };
    assert_eq!(port(&ours, "qib0:1").numa_node, Some(2));
    assert_eq!(port(&theirs, "qib0:1").numa_node, None);
}
