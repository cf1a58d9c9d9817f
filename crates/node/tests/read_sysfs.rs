//! Reads made-up sysfs trees that look like the real ones where it matters.

use std::fs;
use std::path::Path;

use roce_node::{GidKind, LinkLayer, Node, PortState, RdmaPort};
use tempfile::TempDir;

/// A sysfs root under construction.
struct Root(TempDir);

impl Root {
    /// Two NUMA nodes with two CPUs each, no NIC.
    fn two_numa_nodes() -> Self {
        let root = Self(TempDir::new().unwrap());
        root.file("sys/devices/system/cpu/online", "0-3\n");
        for (id, cpus, distance) in [(0, "0-1", "10 21"), (1, "2-3", "21 10")] {
            root.file(&format!("sys/devices/system/node/node{id}/cpulist"), cpus);
            root.file(&format!("sys/devices/system/node/node{id}/distance"), distance);
        }
        root
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    fn netdev(&self, name: &str, pci: &str) {
        self.file(&format!("sys/class/net/{name}/operstate"), "up\n");
        self.file(&format!("sys/class/net/{name}/carrier"), "1\n");
        self.file(&format!("sys/class/net/{name}/mtu"), "4500\n");
        self.link(&format!("sys/class/net/{name}/device"), &format!("../../../devices/pci0000:20/{pci}"));
    }

    fn pci(&self, pci: &str, numa_node: &str) {
        self.file(&format!("sys/devices/pci0000:20/{pci}/numa_node"), numa_node);
    }

    fn port(&self, device: &str, state: &str) {
        let port = format!("sys/class/infiniband/{device}/ports/1");
        self.file(&format!("{port}/link_layer"), "Ethernet\n");
        self.file(&format!("{port}/state"), state);
        self.file(&format!("{port}/rate"), "100 Gb/sec (4X EDR)\n");
        fs::create_dir_all(self.0.path().join(port).join("gids")).unwrap();
    }

    fn gid(&self, device: &str, index: u32, gid: &str, attributes: Option<(&str, &str)>) {
        let port = format!("sys/class/infiniband/{device}/ports/1");
        self.file(&format!("{port}/gids/{index}"), &format!("{gid}\n"));
        if let Some((kind, netdev)) = attributes {
            self.file(&format!("{port}/gid_attrs/types/{index}"), &format!("{kind}\n"));
            self.file(&format!("{port}/gid_attrs/ndevs/{index}"), &format!("{netdev}\n"));
        }
    }

    fn hardware_nic(&self, device: &str, netdev: &str, pci: &str, numa_node: &str) {
        self.pci(pci, numa_node);
        self.netdev(netdev, pci);
        self.port(device, "4: ACTIVE\n");
        self.link(
            &format!("sys/class/infiniband/{device}/device"),
            &format!("../../../devices/pci0000:20/{pci}"),
        );
        self.gid(device, 3, "0000:0000:0000:0000:0000:ffff:0a00:0001", Some(("RoCE v2", netdev)));
    }

    fn read(&self) -> Node {
        roce_node::read(self.0.path()).unwrap()
    }
}

fn port<'a>(node: &'a Node, name: &str) -> &'a RdmaPort {
    node.ports.iter().find(|port| port.name.to_string() == name).unwrap()
}

#[test]
fn a_hardware_port_has_its_place_state_rate_and_gids() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("mlx5_0", "eth2", "0000:21:00.0", "1\n");
    let node = root.read();
    let port = port(&node, "mlx5_0:1");
    assert_eq!(port.link_layer, LinkLayer::Ethernet);
    assert_eq!(port.state, PortState::Active);
    assert_eq!(port.rate_mbit, Some(100_000));
    assert_eq!(port.pci.as_ref().unwrap().address.to_string(), "0000:21:00.0");
    assert_eq!(port.numa_node, Some(1));
    assert_eq!(port.netdev.as_deref(), Some("eth2"));
    assert_eq!(port.gids.len(), 1);
    assert_eq!((port.gids[0].index, port.gids[0].kind.clone()), (3, Some(GidKind::RoceV2)));
    assert_eq!(node.numa_node(0).unwrap().distances[&1], 21);
    assert_eq!(node.netdevs["eth2"].mtu, Some(4500));
    assert_eq!(node.netdevs["eth2"].addresses, None, "a captured tree has no addresses");
    assert_eq!(node.problems, Vec::<String>::new());
}

#[test]
fn a_software_port_is_where_its_netdev_is() {
    let root = Root::two_numa_nodes();
    root.pci("0000:21:00.0", "1\n");
    fs::create_dir_all(root.0.path().join("sys/devices/pci0000:20/0000:21:00.0/virtio3")).unwrap();
    root.netdev("enp1", "0000:21:00.0/virtio3");
    root.port("rxe0", "4: ACTIVE\n");
    root.file("sys/class/infiniband/rxe0/parent", "enp1\n");
    let node = root.read();
    assert_eq!(port(&node, "rxe0:1").numa_node, Some(1));
    assert_eq!(port(&node, "rxe0:1").netdev.as_deref(), Some("enp1"));
    assert_eq!(port(&node, "rxe0:1").pci.as_ref().unwrap().address.to_string(), "0000:21:00.0");
}

#[test]
fn a_numa_node_of_minus_one_is_asked_of_the_ancestors_then_of_local_cpulist_else_unknown() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("by_bridge", "eth0", "0000:20:01.0/0000:21:00.0", "-1\n");
    root.pci("0000:20:01.0", "1\n");
    root.hardware_nic("by_cpus", "eth1", "0000:20:02.0/0000:22:00.0", "-1\n");
    root.file("sys/devices/pci0000:20/0000:20:02.0/0000:22:00.0/local_cpulist", "2-3\n");
    root.hardware_nic("unknown", "eth2", "0000:20:03.0/0000:23:00.0", "-1\n");
    root.file("sys/devices/pci0000:20/0000:20:03.0/0000:23:00.0/local_cpulist", "0-3\n");
    let node = root.read();
    assert_eq!(port(&node, "by_bridge:1").numa_node, Some(1));
    assert_eq!(port(&node, "by_cpus:1").numa_node, Some(1));
    assert_eq!(port(&node, "unknown:1").numa_node, None);
}

#[test]
fn empty_rows_are_skipped_and_rows_without_attributes_keep_them_unknown() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("mlx5_0", "eth0", "0000:21:00.0", "0\n");
    root.gid("mlx5_0", 10, "0000:0000:0000:0000:0000:0000:0000:0000", None);
    root.gid("mlx5_0", 11, "fe80:0000:0000:0000:0000:0000:0000:0001", None);
    let node = root.read();
    let rows: Vec<_> = port(&node, "mlx5_0:1").gids.iter().map(|row| (row.index, row.kind.clone())).collect();
    assert_eq!(rows, [(3, Some(GidKind::RoceV2)), (11, None)]);
}

#[test]
fn one_broken_port_is_named_and_hides_no_other() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("good", "eth0", "0000:21:00.0", "0\n");
    root.hardware_nic("broken", "eth1", "0000:22:00.0", "0\n");
    root.gid("broken", 0, "nonsense", None);
    let node = root.read();
    assert_eq!(node.ports.len(), 1);
    assert_eq!(node.problems.len(), 1);
    assert!(node.problems[0].starts_with("RDMA port broken:1 is left out: "), "{:?}", node.problems);
    assert!(node.problems[0].contains("ports/1/gids/0: \"nonsense\" is not a GID"), "{:?}", node.problems);
}

#[test]
fn a_machine_without_rdma_is_no_error() {
    let node = Root::two_numa_nodes().read();
    assert!(node.ports.is_empty());
    assert!(!node.rdma_class_exists);
}

#[test]
fn a_tree_without_cpus_is_an_error_with_its_path() {
    let empty = TempDir::new().unwrap();
    let error = roce_node::read(empty.path()).unwrap_err().to_string();
    assert!(error.contains("sys/devices/system/cpu/online"), "{error}");
}

#[test]
fn this_machine_can_be_read() {
    let node = roce_node::read(Path::new("/")).unwrap();
    assert!(!node.cpus.is_empty());
    assert!(node.netdevs["lo"].addresses.as_ref().unwrap().iter().any(std::net::IpAddr::is_loopback));
}

#[test]
fn packages_are_known_with_and_without_the_list_of_siblings() {
    let root = Root::two_numa_nodes();
    let topology = |cpu: usize, name: &str| format!("sys/devices/system/cpu/cpu{cpu}/topology/{name}");
    for cpu in 0..4 {
        root.file(&topology(cpu, "physical_package_id"), if cpu < 2 { "0\n" } else { "1\n" });
    }
    let alone = root.read();
    let packages: Vec<_> = alone.packages.iter().map(|package| package.cpus.to_string()).collect();
    assert_eq!(packages, ["0-1", "2-3"]);
    // CPU 9 is of the package too, but not online.
    root.file(&topology(0, "core_siblings_list"), "0-1,9\n");
    assert_eq!(root.read(), alone);
}

#[test]
fn a_numa_node_that_does_not_exist_is_not_believed() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("mlx5_0", "eth0", "0000:21:00.0", "7\n");
    assert_eq!(port(&root.read(), "mlx5_0:1").numa_node, None);
}

#[test]
fn a_port_zero_is_none() {
    let root = Root::two_numa_nodes();
    root.hardware_nic("mlx5_0", "eth0", "0000:21:00.0", "0\n");
    root.file("sys/class/infiniband/mlx5_0/ports/0/state", "4: ACTIVE\n");
    assert_eq!(root.read().ports.len(), 1);
}

#[test]
fn empty_rows_of_infiniband_have_the_prefix_of_the_subnet() {
    let root = Root::two_numa_nodes();
    root.port("mlx4_0", "4: ACTIVE\n");
    root.file("sys/class/infiniband/mlx4_0/ports/1/link_layer", "InfiniBand\n");
    root.gid("mlx4_0", 0, "fe80:0000:0000:0000:0002:c903:00f9:bfa1", None);
    root.gid("mlx4_0", 1, "fe80:0000:0000:0000:0000:0000:0000:0000", None);
    assert_eq!(port(&root.read(), "mlx4_0:1").gids.len(), 1);
}

#[test]
fn a_file_that_is_no_attribute_is_an_error_and_not_read_to_its_end() {
    let root = Root::two_numa_nodes();
    for (content, expected) in
        [("0".repeat(300_000), "longer than 262144 bytes"), ("\u{e9}".into(), "not a CPU")]
    {
        root.file("sys/devices/system/cpu/online", &content);
        let error = roce_node::read(root.0.path()).unwrap_err().to_string();
        assert!(error.contains("cpu/online") && error.contains(expected), "{error}");
    }
    fs::write(root.0.path().join("sys/devices/system/cpu/online"), b"\xff").unwrap();
    let error = roce_node::read(root.0.path()).unwrap_err().to_string();
    assert!(error.ends_with("cpu/online: not text"), "{error}");
}
