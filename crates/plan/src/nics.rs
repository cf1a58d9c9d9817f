//! Which ports of the node are NICs for this step, their rails, and how far they are from CPUs.

use std::fmt;

use ipnet::IpNet;
use roce_node::{GidRow, LinkLayer, Node, PortState, RdmaPort};
use roce_types::{CpuSet, DevicePort};

use crate::gid::{GidSearch, choose_gid};
use crate::request::{NicSelection, Request};
use crate::site::Site;

/// A port that this step may use, with the GID chosen for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// `mlx5_0:1`.
    pub port: DevicePort,
    /// The interface of the GID.
    pub netdev: Option<String>,
    /// NUMA node, `None` is unknown.
    pub numa_node: Option<u32>,
    /// Which rail (wire, subnet) of the fabric the port is on. The same number on another node is
    /// the same rail.
    pub rail: u32,
    /// Value of the GID, which outlives changes of the table.
    pub gid: roce_types::Gid,
    /// Its row at the moment of planning.
    pub gid_index: u32,
}

/// How far a NIC is from a task's CPUs, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// On a NUMA node that the task has CPUs of.
    SameNuma,
    /// On another one, by the firmware's distance (10 is local).
    OtherNuma(u32),
    /// The NIC's NUMA node, or the distance to it, is not known.
    Unknown,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameNuma => f.write_str("same NUMA node"),
            Self::OtherNuma(distance) => write!(f, "other NUMA node, distance {distance}"),
            Self::Unknown => f.write_str("distance unknown"),
        }
    }
}

/// How far this NIC is from these CPUs.
pub(crate) fn distance(node: &Node, cpus: &CpuSet, nic: &Nic) -> Distance {
    let Some(home) = nic.numa_node else { return Distance::Unknown };
    let near = node.numa_nodes_of(cpus);
    if near.contains(&home) {
        return Distance::SameNuma;
    }
    let distances = near.iter().filter_map(|&id| node.numa_node(id)?.distances.get(&home).copied());
    distances.min().map_or(Distance::Unknown, Distance::OtherNuma)
}

/// Why a port is no NIC for this step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRejection {
    /// It speaks InfiniBand.
    #[error("not Ethernet")]
    NotEthernet,
    /// It is down.
    #[error("port is {0}")]
    Down(String),
    /// `[nics] exclude`
    #[error("excluded by the site")]
    Excluded,
    /// `[nics] include` doesn't have it.
    #[error("not among the site's NICs")]
    NotIncluded,
    /// Others of the node are faster, so this is a storage or management port.
    #[error("only {0} Gbit/s, others have {1}")]
    Slower(u64, u64),
    /// `--roce-nics` names others.
    #[error("not named")]
    NotNamed,
    /// No row of its GID table may be used.
    #[error("no usable GID ({})", gid_reasons(.0))]
    NoGid(GidSearch),
}

fn gid_reasons(search: &GidSearch) -> String {
    if search.rejected.is_empty() {
        return "the table is empty".to_owned();
    }
    let row = |row: &crate::gid::RejectedGid| format!("row {} {}: {}", row.index, row.gid, row.reason);
    search.rejected.iter().map(row).collect::<Vec<_>>().join("; ")
}

/// The ports of a node, sorted into NICs for this step and the rest with its reasons.
pub(crate) struct Pool {
    pub(crate) nics: Vec<Nic>,
    pub(crate) rejected: Vec<(DevicePort, PortRejection)>,
}

pub(crate) fn pool(node: &Node, request: &Request, site: &Site) -> Pool {
    let named = match &request.nics {
        NicSelection::Names(names) => Some(names.as_slice()),
        _ => None,
    };
    let rails = rails(node, site);
    // Whoever names a port, user or site, knows its rate.
    let fastest = if named.is_none() && site.nics.include.is_empty() { fastest(node, site) } else { None };
    let mut pool = Pool { nics: Vec::new(), rejected: Vec::new() };
    for (port, rail) in node.ports.iter().zip(rails) {
        match judge(port, node, named, fastest, request, site) {
            Ok(row) => pool.nics.push(Nic {
                port: port.name.clone(),
                netdev: row.netdev,
                numa_node: port.numa_node,
                rail,
                gid: row.gid,
                gid_index: row.index,
            }),
            Err(reason) => pool.rejected.push((port.name.clone(), reason)),
        }
    }
    pool
}

fn judge(
    port: &RdmaPort,
    node: &Node,
    named: Option<&[String]>,
    fastest: Option<u64>,
    request: &Request,
    site: &Site,
) -> Result<GidRow, PortRejection> {
    if port.link_layer != LinkLayer::Ethernet {
        return Err(PortRejection::NotEthernet);
    }
    site_allows(port, site)?;
    if named.is_some_and(|names| !names.iter().any(|name| matches_entry(port, name))) {
        return Err(PortRejection::NotNamed);
    }
    if let PortState::Other(state) = &port.state {
        return Err(PortRejection::Down(state.clone()));
    }
    if let (Some(rate), Some(fastest)) = (port.rate_mbit, fastest)
        && rate < fastest
    {
        return Err(PortRejection::Slower(rate / 1000, fastest / 1000));
    }
    let search = choose_gid(port, node, &request.gid, site);
    search.chosen.clone().ok_or(PortRejection::NoGid(search))
}

fn site_allows(port: &RdmaPort, site: &Site) -> Result<(), PortRejection> {
    let listed = |entries: &[String]| entries.iter().any(|entry| matches_entry(port, entry));
    if listed(&site.nics.exclude) {
        return Err(PortRejection::Excluded);
    }
    if !site.nics.include.is_empty() && !listed(&site.nics.include) {
        return Err(PortRejection::NotIncluded);
    }
    Ok(())
}

/// The highest rate among the active Ethernet ports that the site allows.
fn fastest(node: &Node, site: &Site) -> Option<u64> {
    let candidates = node.ports.iter().filter(|port| {
        port.link_layer == LinkLayer::Ethernet
            && port.state == PortState::Active
            && site_allows(port, site).is_ok()
    });
    candidates.filter_map(|port| port.rate_mbit).max()
}

/// Is the port meant by this entry: device, `device:port`, netdev, PCI address or subnet?
pub(crate) fn matches_entry(port: &RdmaPort, entry: &str) -> bool {
    if let Ok(subnet) = entry.parse::<IpNet>() {
        return port.gids.iter().any(|row| match row.gid.to_ipv4() {
            Some(v4) => subnet.contains(&std::net::IpAddr::V4(v4)),
            None => subnet.contains(&std::net::IpAddr::V6(row.gid.to_ipv6())),
        });
    }
    entry == port.name.device
        || entry == port.name.to_string()
        || port.netdev.as_deref() == Some(entry)
        || port.pci.is_some_and(|pci| pci.to_string() == entry)
}

/// The rail of each port. Where the site lists its rails, the position in that list; a port that
/// is in none, or every port without a list, is numbered in the node's order (PCI address), down
/// ports counted too, so that a cable that falls out doesn't move the rails behind it.
fn rails(node: &Node, site: &Site) -> Vec<u32> {
    let entries = &site.nics.rails;
    let mut next = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let number = |port: &RdmaPort| {
        let listed = entries.iter().position(|entry| matches_entry(port, entry));
        listed.and_then(|position| u32::try_from(position).ok()).unwrap_or_else(|| {
            let usable = port.link_layer == LinkLayer::Ethernet && site_allows(port, site).is_ok();
            let rail = next;
            next += u32::from(usable);
            rail
        })
    };
    node.ports.iter().map(number).collect()
}
