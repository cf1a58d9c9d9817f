//! A capture reads back as the machine that it was taken of, and tells nothing else.

mod common;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use roce_node::{Node, capture, read, read_any};
use roce_types::Gid;
use tempfile::TempDir;

/// The tree of a machine and a folder for its capture.
fn built(name: &str) -> (TempDir, TempDir) {
    let tree = roce_machines::scratch().unwrap();
    roce_machines::named(name).unwrap().build(tree.path()).unwrap();
    (tree, roce_machines::scratch().unwrap())
}

fn captured(tree: &Path, out: &Path, raw: bool) -> Node {
    capture(tree, out, raw).unwrap_or_else(|error| panic!("{error}"));
    read_any(out).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_raw_capture_of_every_machine_reads_as_its_tree() {
    for machine in roce_machines::all() {
        let (tree, folder) = built(machine.name);
        for name in ["capture.tar", "capture.tar.gz"] {
            let again = captured(tree.path(), &folder.path().join(name), true);
            assert_eq!(again, read(tree.path()).unwrap(), "{}", machine.name);
        }
    }
}

/// The node without what a capture replaces.
fn without_identity(mut node: Node) -> Node {
    for port in &mut node.ports {
        port.asic = port.asic.as_ref().map(|_| "replaced".into());
        for row in &mut port.gids {
            row.gid = Gid::ZERO;
        }
    }
    for netdev in node.netdevs.values_mut() {
        let addresses = netdev.addresses.as_ref();
        netdev.addresses = addresses.map(|all| all.iter().map(|_| IpAddr::from([0, 0, 0, 0])).collect());
    }
    node
}

#[test]
fn an_anonymised_capture_differs_in_addresses_and_guids_alone() {
    for machine in roce_machines::all() {
        let (tree, folder) = built(machine.name);
        let original = read(tree.path()).unwrap();
        let again = captured(tree.path(), &folder.path().join("capture.tar.gz"), false);
        assert_eq!(without_identity(again.clone()), without_identity(original.clone()), "{}", machine.name);
        check_pairs(machine.name, &original, &again);
    }
}

/// Every address of a node with its replacement, in the same order.
fn addresses(node: &Node) -> Vec<Gid> {
    let rows = node.ports.iter().flat_map(|port| port.gids.iter().map(|row| row.gid));
    let all = node.netdevs.values().flat_map(|netdev| netdev.addresses.iter().flatten()).map(|ip| match ip {
        IpAddr::V4(v4) => Gid::from(*v4),
        IpAddr::V6(v6) => Gid::from(*v6),
    });
    rows.chain(all).collect()
}

/// The subnet of 24 or 64 bits.
fn subnet(gid: Gid) -> Vec<u8> {
    gid.to_ipv4().map_or(gid.0[..8].to_vec(), |v4| v4.octets()[..3].to_vec())
}

fn check_pairs(name: &str, original: &Node, again: &Node) {
    let pairs: Vec<(Gid, Gid)> = addresses(original).into_iter().zip(addresses(again)).collect();
    for (before, after) in &pairs {
        assert_eq!(before.is_link_local(), after.is_link_local(), "{name}: {before} -> {after}");
        assert_eq!(before.to_ipv4().is_some(), after.to_ipv4().is_some(), "{name}: {before} -> {after}");
        let private = |gid: &Gid| gid.to_ipv4().map(|v4| v4.is_private());
        assert_eq!(private(before), private(after), "{name}: {before} -> {after}");
        for (other_before, other_after) in &pairs {
            assert_eq!(before == other_before, after == other_after, "{name}: {before} and {other_before}");
            assert_eq!(
                subnet(*before) == subnet(*other_before),
                subnet(*after) == subnet(*other_after),
                "{name}: {before} and {other_before}"
            );
        }
    }
    for (a, b) in original.ports.iter().zip(&again.ports) {
        for (other_a, other_b) in original.ports.iter().zip(&again.ports) {
            assert_eq!(a.asic == other_a.asic, b.asic == other_b.asic, "{name}");
        }
    }
}

#[test]
fn nothing_of_the_machine_is_left_in_an_anonymised_capture() {
    let (tree, folder) = built("dgx_h100");
    let out = folder.path().join("capture.tar");
    capture(tree.path(), &out, false).unwrap();
    let text = String::from_utf8_lossy(&fs::read(&out).unwrap()).into_owned();
    let node = read(tree.path()).unwrap();
    for port in &node.ports {
        assert!(!text.contains(port.asic.as_deref().unwrap()), "{:?}", port.asic);
        for row in &port.gids {
            let long = row.gid.to_ipv6().segments().map(|group| format!("{group:04x}")).join(":");
            assert!(!text.contains(&long), "{long}");
        }
    }
    // "10.0.0.1" might be the replacement of another; all ten of them are not.
    let left = (0..8).filter(|rail| text.contains(&format!("\"10.{rail}.0.1\""))).count();
    assert!(left < 3, "{left} addresses are left");
    assert!(!text.contains("b8:ce:f6"), "a MAC");
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(hostname.trim().len() < 4 || !text.contains(hostname.trim()), "the hostname");
}

#[test]
fn a_capture_holds_what_is_read_and_no_more() {
    let (tree, folder) = built("dgx_h100");
    let out = folder.path().join("capture.tar.gz");
    let captured = capture(tree.path(), &out, false).unwrap();
    let mut files = Vec::new();
    let archive = flate2_reader(&out);
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            files.push(entry.path().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(captured.files, files.len());
    // `address` has the MAC, `node_guid` a GUID: nothing reads them.
    for unread in ["/address", "node_guid", "local_cpus", "core_id", "cpumap"] {
        assert!(files.iter().all(|file| !file.ends_with(unread)), "{unread}");
    }
    assert!(fs::metadata(&out).unwrap().len() < 64 * 1024, "a capture is small");
}

fn flate2_reader(path: &Path) -> impl std::io::Read {
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap())
}

#[test]
fn what_is_not_understood_is_not_kept() {
    let (tree, folder) = built("four_sockets");
    let device = tree.path().join("sys/class/infiniband/mlx5_0");
    fs::write(device.join("sys_image_guid"), "serial number 4711\n").unwrap();
    fs::write(device.join("ports/1/gids/0"), "owner@example.org\n").unwrap();
    let out = folder.path().join("capture.tar");
    capture(tree.path(), &out, false).unwrap();
    let text = String::from_utf8_lossy(&fs::read(&out).unwrap()).into_owned();
    assert!(!text.contains("4711") && !text.contains("owner"));
}

#[test]
fn this_machine_can_be_captured_with_its_addresses() {
    let folder = roce_machines::scratch().unwrap();
    let out = folder.path().join("capture.tar.gz");
    let again = captured(Path::new("/"), &out, true);
    let live = read(Path::new("/")).unwrap();
    assert_eq!(again.cpus, live.cpus);
    assert_eq!(again.netdevs["lo"].addresses, live.netdevs["lo"].addresses);
    let hidden = captured(Path::new("/"), &out, false);
    assert_eq!(hidden.numa_nodes, live.numa_nodes);
    assert!(hidden.netdevs["lo"].addresses.as_ref().unwrap().iter().all(IpAddr::is_loopback));
}

#[test]
fn a_capture_that_cannot_be_written_names_the_file() {
    let (tree, _) = built("no_rdma");
    let error = capture(tree.path(), Path::new("/nonexistent/capture.tar"), false).unwrap_err().to_string();
    assert_eq!(error, "can't write /nonexistent/capture.tar: No such file or directory (os error 2)");
}
