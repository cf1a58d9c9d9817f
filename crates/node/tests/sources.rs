//! What `read_any` recognises, refuses and says.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use roce_node::{GpuVendor, LinkLayer, PortState, read_any, read_bytes};

/// hwloc 3: kinds of devices are bits, one device may be network and RDMA.
const HWLOC_3: &str = include_str!("inputs/hwloc3.xml");

fn error(text: &str) -> String {
    read_bytes(Path::new("machine.xml"), text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn hwloc_3_is_read_with_its_own_numbers() {
    let node = read_bytes(Path::new("machine.xml"), HWLOC_3.as_bytes()).unwrap();
    assert_eq!(node.numa_nodes[0].distances[&1], 21);
    let port = &node.ports[0];
    assert_eq!(
        (&port.link_layer, &port.state, port.numa_node),
        (&LinkLayer::Ethernet, &PortState::Active, Some(0))
    );
    assert_eq!((port.netdev.as_deref(), port.rate_mbit), (Some("eth0"), None));
    assert_eq!((port.gids.len(), port.gids[0].index, &port.gids[0].kind), (1, 3, &None));
    assert_eq!(node.ports[1].state, PortState::Other("INIT".into()));
    let place = port.pci.as_ref().unwrap();
    assert_eq!((place.host_bridge.as_str(), place.bridges.len()), ("pci0000:00", 1));
    assert_eq!(node.gpus.len(), 1, "neither the service processor's display nor an NPU is a GPU");
    assert_eq!(node.gpus[0].vendor, GpuVendor::Nvidia);
    assert_eq!(node.netdevs["eth0"].operstate, "unknown");
}

#[test]
fn a_compressed_file_is_read_by_what_is_in_it() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(HWLOC_3.as_bytes()).unwrap();
    let node = read_bytes(Path::new("machine.tar"), &gzip.finish().unwrap()).unwrap();
    assert_eq!(node.ports.len(), 2);
}

#[test]
fn a_folder_with_one_tree_in_it_is_that_tree() {
    let folder = roce_machines::scratch().unwrap();
    let tree = folder.path().join("node17");
    fs::create_dir(&tree).unwrap();
    roce_machines::named("four_sockets").unwrap().build(&tree).unwrap();
    assert_eq!(read_any(folder.path()).unwrap(), read_any(&tree).unwrap());
}

#[test]
fn an_nccl_topology_without_numa_is_one_node() {
    let text = r#"<system version="1"><cpu numaid="-1" affinity="0000000f" arch="x86_64">
      <pci busid="0000:01:00.0" class="0x020000" vendor="0x15b3"><nic>
        <net name="mlx5_0" port="1" speed="100000" guid="0x0"/><net name="mlx5_1+mlx5_2" port="1" speed="1"/>
      </nic></pci>
      <pci busid="0000:02:00.0" class="0x030200" vendor="0x10de"><gpu dev="0"/></pci>
      </cpu></system>"#;
    let node = read_bytes(Path::new("topo.xml"), text.as_bytes()).unwrap();
    assert_eq!((node.numa_nodes.len(), node.cpus.len()), (1, 4));
    assert_eq!((node.ports[0].numa_node, &node.ports[0].asic), (None, &None));
    assert_eq!(node.ports[0].link_layer, LinkLayer::Ethernet);
    // Nothing tells whether the two meet below one host bridge.
    let relation = node.gpus[0].pci.relation(node.ports[0].pci.as_ref().unwrap());
    assert_eq!(relation, roce_node::PciRelation::Apart);
    assert_eq!(node.problems.len(), 1, "{:?}", node.problems);
}

#[test]
fn errors_say_where_and_what() {
    let without = |piece: &str| HWLOC_3.replace(piece, "");
    let with = |piece: &str, other: &str| HWLOC_3.replace(piece, other);
    let cases = [
        ("an empty file", String::new()),
        ("something else", "Filename: foo\n".into()),
        ("cut short", HWLOC_3[..1500].into()),
        ("version 1", with("version=\"3.0\"", "")),
        ("version 4", with("version=\"3.0\"", "version=\"4.0\"")),
        ("no objects", "<topology version=\"2.0\"/>".into()),
        ("no cpuset", without("cpuset=\"0x0000000f\"")),
        ("infinite cpuset", with("cpuset=\"0x0000000f\"", "cpuset=\"0xf...f\"")),
        ("a NUMA node twice", with("type=\"NUMANode\" os_index=\"1\"", "type=\"NUMANode\" os_index=\"0\"")),
        ("too few distances", with("10 21 21 10", "10 21 21")),
        ("a distance that is none", with("10 21 21 10", "10 21 21 x")),
        ("a bad PCI address", with("0000:01:00.0", "01:00")),
        ("a bad PCI type", with("0200 [15b3", "ethernet [15b3")),
        ("a bad bus range", with("0000:[00-04]", "everywhere")),
        ("a bad device name", with("name=\"mlx5_0\"", "name=\"../mlx5\"")),
        ("a bad GID", with("0000:0000:0000:0000:0000:ffff:0a00:0001", "10.0.0.1")),
        ("a bad kind", with("osdev_type=\"48\"", "osdev_type=\"nic\"")),
        ("NCCL's graphs", "<graphs version=\"1\"/>".into()),
        ("other XML", "<html></html>".into()),
        ("NCCL without CPUs", "<system version=\"1\"/>".into()),
        ("NCCL's mask", "<system><cpu numaid=\"0\" affinity=\"all\"/></system>".into()),
        (
            "NCCL's address",
            "<system>\n<cpu numaid=\"0\" affinity=\"1\">\n<pci busid=\"x\"/></cpu></system>".into(),
        ),
    ];
    let lines: Vec<String> =
        cases.iter().map(|(name, text)| format!("{name}:\n    {}", error(text))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn missing_files_and_wrong_folders_are_told() {
    let folder = roce_machines::scratch().unwrap();
    let told = |path: &Path| {
        let error = read_any(path).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "FOLDER")
    };
    let several = folder.path().join("several");
    for tree in ["a/sys", "b/sys"] {
        fs::create_dir_all(several.join(tree)).unwrap();
    }
    let empty = folder.path().join("empty");
    fs::create_dir_all(empty.join("sys")).unwrap();
    let xz = folder.path().join("capture.tar.xz");
    fs::write(&xz, b"\xfd7zXZ\0rest").unwrap();
    let cut = folder.path().join("cut.tar.gz");
    fs::write(&cut, b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc").unwrap();
    let lines =
        [&folder.path().join("missing"), folder.path(), &several, &empty, &xz, &cut, Path::new("/dev/null")]
            .map(told)
            .join("\n");
    insta::assert_snapshot!(lines);
}
