//! A made-up machine as a folder: two NUMA nodes of one CPU each, and a RoCE NIC on each of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cluster::Cluster;

/// Writes the tree below `name` of the cluster's folder and gives plugstack.conf's argument for it.
///
/// # Errors
/// If it can't be written.
pub fn two_nics(cluster: &Cluster, name: &str) -> Result<String> {
    let root = cluster.path(name);
    if !root.exists() {
        write_two_nics(&root)?;
    }
    Ok(format!("sysfs={}", root.display()))
}

/// Writes the tree below this folder.
///
/// # Errors
/// If it can't be written.
pub fn write_two_nics(root: &Path) -> Result<()> {
    write(root, "sys/devices/system/cpu/online", "0-1")?;
    for (node, distance) in ["10 21", "21 10"].iter().enumerate() {
        let node_folder = format!("sys/devices/system/node/node{node}");
        write(root, &format!("{node_folder}/cpulist"), &node.to_string())?;
        write(root, &format!("{node_folder}/distance"), distance)?;
        nic(root, node)?;
    }
    Ok(())
}

/// The same with two GPUs of NVIDIA's below the PCI switch of each NIC, and other addresses: 10.1.N.7.
pub fn with_gpus(cluster: &Cluster, name: &str) -> Result<String> {
    let root = cluster.path(name);
    if !root.exists() {
        roce_machines::Machine::parse(WITH_GPUS)?.build(&root)?;
    }
    Ok(format!("sysfs={}", root.display()))
}

const WITH_GPUS: &str = r#"
about = "Two NUMA nodes of one CPU each, with a NIC and two GPUs below a switch"
numa = [{ cpus = "0", package = 0 }, { cpus = "1", package = 1 }]
host = { "pci0000:00" = { numa = 0 }, "pci0000:40" = { numa = 1 } }
nic = [
    { at = "pci0000:00/00:01.0/01:00.0/02:00.0/03:00.0", device = "mlx5_0", netdev = "eth0", addresses = ["10.1.0.7"] },
    { at = "pci0000:40/40:01.0/41:00.0/42:00.0/43:00.0", device = "mlx5_1", netdev = "eth1", addresses = ["10.1.1.7"] },
]
gpu = [
    { at = "pci0000:00/00:01.0/01:00.0/02:01.0/04:00.0", vendor = "nvidia" },
    { at = "pci0000:00/00:01.0/01:00.0/02:02.0/05:00.0", vendor = "nvidia" },
    { at = "pci0000:40/40:01.0/41:00.0/42:01.0/44:00.0", vendor = "nvidia" },
    { at = "pci0000:40/40:01.0/41:00.0/42:02.0/45:00.0", vendor = "nvidia" },
]
"#;

/// A machine without any RDMA device, as [`two_nics`] gives one with two.
pub fn without_rdma(cluster: &Cluster, name: &str) -> Result<String> {
    let root = cluster.path(name);
    write(&root, "sys/devices/system/cpu/online", "0-1")?;
    Ok(format!("sysfs={}", root.display()))
}

/// `mlx5_N` with netdev `ethN` on NUMA node N, address 10.0.N.7.
fn nic(root: &Path, n: usize) -> Result<()> {
    let pci = format!("sys/devices/pci0000:{n}0/0000:{n}1:00.0");
    write(root, &format!("{pci}/numa_node"), &n.to_string())?;
    write(root, &format!("{pci}/local_cpulist"), &n.to_string())?;
    let netdev = format!("{pci}/net/eth{n}");
    for (name, text) in [("operstate", "up"), ("carrier", "1"), ("mtu", "4200"), ("dev_port", "0")] {
        write(root, &format!("{netdev}/{name}"), text)?;
    }
    let device = format!("{pci}/infiniband/mlx5_{n}");
    let port = format!("{device}/ports/1");
    let facts = [("state", "4: ACTIVE"), ("link_layer", "Ethernet"), ("rate", "100 Gb/sec (4X EDR)")];
    for (name, text) in facts {
        write(root, &format!("{port}/{name}"), text)?;
    }
    let gids = [
        format!("fe80:0000:0000:0000:5054:00ff:fe00:000{n}"),
        format!("0000:0000:0000:0000:0000:ffff:0a00:0{n}07"),
    ];
    for (index, gid) in gids.iter().enumerate() {
        write(root, &format!("{port}/gids/{index}"), gid)?;
        write(root, &format!("{port}/gid_attrs/types/{index}"), "RoCE v2")?;
        write(root, &format!("{port}/gid_attrs/ndevs/{index}"), &format!("eth{n}"))?;
    }
    for (class, name, folder) in
        [("net", format!("eth{n}"), &netdev), ("infiniband", format!("mlx5_{n}"), &device)]
    {
        link(root, &format!("{folder}/device"), &pci)?;
        link(root, &format!("sys/class/{class}/{name}"), folder)?;
    }
    Ok(())
}

/// Adds the files below a folder to `all`, without following links.
///
/// # Errors
/// If a folder can't be read.
pub fn list(folder: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), all)?;
        } else if kind.is_file() {
            all.push(entry.path());
        }
    }
    Ok(())
}

fn write(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, format!("{text}\n"))?)
}

fn link(root: &Path, path: &str, target: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let up: PathBuf =
        path.strip_prefix(root)?.parent().into_iter().flat_map(Path::components).map(|_| "..").collect();
    Ok(symlink(up.join(target), path)?)
}
