//! Which NIC ports this rank uses, and in which class: what the plugin assigned, or the library's own choice.

use std::path::Path;

use roce_types::{CpuSet, DevicePort, Dscp, Gid, Priority, TrafficClass};
use roce_verbs::{GidRow, GidType, SysfsPort};

use crate::environment;
use crate::error::{Error, Result};

/// One NIC port that this rank may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Device and port.
    pub port: DevicePort,
    /// Its netdev.
    pub netdev: Option<String>,
    /// Its address. Its row in the port's table is looked up again whenever it is needed.
    pub gid: Gid,
    /// The row when the assignment was made.
    pub gid_index: Option<u32>,
    /// Which wire it is on. Ports of one rail reach each other, and so are those of no known rail assumed to do.
    pub rail: Option<u32>,
}

/// Who made an assignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The spank_roce plugin.
    Plugin,
    /// This library: there was no plugin, or it was not asked.
    OwnChoice,
}

/// What this rank works with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The ports, best first; never empty.
    pub nics: Vec<Nic>,
    /// The 802.1p priority, where a class was asked for.
    pub priority: Option<Priority>,
    /// The code point, where a class was asked for.
    pub dscp: Option<Dscp>,
    /// The byte of every packet's IP header: 0 where no class was asked for.
    pub traffic_class: TrafficClass,
    /// 0-7; the priority, or 0.
    pub service_level: u8,
    /// The CPUs that the plan gave this task.
    pub cpus: Option<CpuSet>,
    /// The NUMA nodes that the plan gave this task.
    pub numa_nodes: Option<CpuSet>,
    /// Who decided.
    pub source: Source,
}

impl Assignment {
    /// The plugin's assignment, or this library's own choice on the node called `node`.
    pub(crate) fn find(node: &str) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        match environment::read(variable)? {
            Some(assignment) => Ok(assignment),
            None => own_choice(Path::new(roce_verbs::INFINIBAND), node),
        }
    }
}

/// Every active RoCE port's first RoCE v2 GID that is not link-local, ports by name, rails numbered in that
/// order, and no class.
fn own_choice(infiniband: &Path, node: &str) -> Result<Assignment> {
    let no_port = |reason: String| Error::NoPort { node: node.to_owned(), reason };
    if !infiniband.exists() {
        return Err(no_port(format!("{} does not exist", infiniband.display())));
    }
    let unreadable = |error: roce_verbs::Error| no_port(crate::error::chain(&error));
    let ports = roce_verbs::read_ports(infiniband).map_err(unreadable)?;
    if ports.is_empty() {
        return Err(no_port(format!("{} lists no device", infiniband.display())));
    }
    let mut nics = Vec::new();
    let mut rejected = Vec::new();
    for port in ports {
        if !port.is_active_roce() {
            rejected.push(not_usable(&port));
            continue;
        }
        let table = roce_verbs::read_gid_table(infiniband, &port.port).map_err(unreadable)?;
        match table.into_iter().find(is_usable) {
            Some(row) => {
                let rail = u32::try_from(nics.len()).ok();
                let GidRow { gid, index, netdev, .. } = row;
                nics.push(Nic { port: port.port, netdev, gid, gid_index: Some(index), rail });
            }
            None => rejected.push(format!("{} has no RoCE v2 GID but link-local ones", port.port)),
        }
    }
    if nics.is_empty() {
        return Err(no_port(rejected.join(", ")));
    }
    Ok(Assignment {
        nics,
        priority: None,
        dscp: None,
        traffic_class: TrafficClass(0),
        service_level: 0,
        cpus: None,
        numa_nodes: None,
        source: Source::OwnChoice,
    })
}

fn is_usable(row: &GidRow) -> bool {
    row.kind == GidType::RoceV2 && !row.gid.is_link_local() && !row.gid.is_multicast()
}

fn not_usable(port: &SysfsPort) -> String {
    format!("{} is {} and {}", port.port, port.link_layer, port.state)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn port(root: &Path, device: &str, state: &str, gids: &[&str]) {
        let folder = root.join(device).join("ports/1");
        fs::create_dir_all(folder.join("gids")).unwrap();
        fs::create_dir_all(folder.join("gid_attrs/types")).unwrap();
        fs::write(folder.join("state"), format!("{state}\n")).unwrap();
        fs::write(folder.join("link_layer"), "Ethernet\n").unwrap();
        for (i, gid) in gids.iter().enumerate() {
            fs::write(folder.join(format!("gids/{i}")), format!("{gid}\n")).unwrap();
            fs::write(folder.join(format!("gid_attrs/types/{i}")), "RoCE v2\n").unwrap();
        }
    }

    #[test]
    fn every_active_port_is_taken_with_its_first_gid_that_is_not_link_local() {
        let root = tempfile::tempdir().unwrap();
        port(root.path(), "rxe0", "4: ACTIVE", &["fe80::1", "::ffff:10.0.0.1", "::ffff:10.9.0.1"]);
        port(root.path(), "rxe1", "1: DOWN", &["::ffff:10.0.1.1"]);
        port(root.path(), "rxe2", "4: ACTIVE", &["::ffff:10.0.2.1"]);
        let assignment = own_choice(root.path(), "vm1").unwrap();
        let told: Vec<_> =
            assignment.nics.iter().map(|nic| (nic.gid.to_string(), nic.gid_index, nic.rail)).collect();
        assert_eq!(
            told,
            [("::ffff:10.0.0.1".into(), Some(1), Some(0)), ("::ffff:10.0.2.1".into(), Some(0), Some(1))]
        );
    }

    #[test]
    fn a_node_without_roce_says_what_was_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let missing = own_choice(&root.path().join("infiniband"), "vm1").unwrap_err().to_string();
        assert!(missing.starts_with("this node (vm1) has no RoCE port: "), "{missing}");
        assert!(missing.contains("infiniband does not exist"), "{missing}");
        assert!(own_choice(root.path(), "vm1").unwrap_err().to_string().contains("lists no device"));
        port(root.path(), "rxe0", "1: DOWN", &[]);
        port(root.path(), "rxe1", "4: ACTIVE", &["fe80::1"]);
        let error = own_choice(root.path(), "vm1").unwrap_err().to_string();
        assert!(
            error.contains("rxe0:1 is Ethernet and DOWN, rxe1:1 has no RoCE v2 GID but link-local"),
            "{error}"
        );
    }
}
