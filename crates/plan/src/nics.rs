//! Which ports of the node are NICs for this step, and their rails.

use ipnet::IpNet;
use roce_node::{GidRow, LinkLayer, Node, PciPlace, PortState, Qos, RdmaPort};
use roce_types::{DevicePort, PciAddress, TrafficClass};

use crate::gid::{GidSearch, choose_gid};
use crate::request::{LinkLayers, NicSelection, Request, UnknownFacts};
use crate::site::Site;

/// A port that this step may use, with the GID chosen for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// `mlx5_0:1`.
    pub port: DevicePort,
    /// The interface of the GID.
    pub netdev: Option<String>,
    /// Where it sits in the PCI tree, `None` is unknown.
    pub pci: Option<PciPlace>,
    /// NUMA node, `None` is unknown.
    pub numa_node: Option<u32>,
    /// Which rail (wire, subnet) of the fabric the port is on. The same number on another node is
    /// the same rail.
    pub rail: u32,
    /// The GID chosen; `None` only where the source of the node tells no GIDs and unknown facts are
    /// accepted.
    pub gid: Option<GidRow>,
    /// What the port does with packets of each class.
    pub qos: Option<Qos>,
    /// The class that the driver forces on the device.
    pub forced_traffic_class: Option<TrafficClass>,
    /// The port that the packets leave by: several virtual functions share one.
    pub physical_port: PhysicalPort,
}

/// A plug of a card: what load is counted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PhysicalPort {
    /// The physical PCI function and its port number.
    Hardware(PciAddress, u8),
    /// A software device of unknown place.
    Software(DevicePort),
}

/// Why a port is no NIC for this step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRejection {
    /// It speaks InfiniBand or something else.
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
    let rails = rails(node, request, site);
    // Whoever names a port, user or site, knows its rate.
    let fastest =
        if named.is_none() && site.nics.include.is_empty() { fastest(node, request, site) } else { None };
    let mut pool = Pool { nics: Vec::new(), rejected: Vec::new() };
    for (port, rail) in node.ports.iter().zip(rails) {
        match judge(port, node, named, fastest, request, site) {
            Ok(row) => pool.nics.push(Nic {
                port: port.name.clone(),
                netdev: row.as_ref().and_then(|row| row.netdev.clone()).or_else(|| port.netdev.clone()),
                pci: port.pci.clone(),
                numa_node: port.numa_node,
                rail,
                gid: row,
                qos: port.qos.clone(),
                forced_traffic_class: port.forced_traffic_class,
                physical_port: physical_port(port),
            }),
            Err(reason) => pool.rejected.push((port.name.clone(), reason)),
        }
    }
    pool
}

fn physical_port(port: &RdmaPort) -> PhysicalPort {
    let function = port.physical_function.or(port.pci.as_ref().map(|pci| pci.address));
    function.map_or_else(
        || PhysicalPort::Software(port.name.clone()),
        |function| PhysicalPort::Hardware(function, port.name.port),
    )
}

fn judge(
    port: &RdmaPort,
    node: &Node,
    named: Option<&[String]>,
    fastest: Option<u64>,
    request: &Request,
    site: &Site,
) -> Result<Option<GidRow>, PortRejection> {
    if !speaks_roce(port, request) {
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
    let search = choose_gid(port, node, request, site);
    let none_known = request.unknown_facts == UnknownFacts::Accept && port.gids.is_empty();
    match &search.chosen {
        Some(row) => Ok(Some(row.clone())),
        None if none_known => Ok(None),
        None => Err(PortRejection::NoGid(search)),
    }
}

/// Does the port count by what it speaks? NCCL's topologies don't tell.
fn speaks_roce(port: &RdmaPort, request: &Request) -> bool {
    let unknown = matches!(&port.link_layer, LinkLayer::Other(word) if word == "unknown");
    port.link_layer == LinkLayer::Ethernet
        || request.link_layers == LinkLayers::Any
        || (unknown && request.unknown_facts == UnknownFacts::Accept)
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

/// The highest rate among the active ports that the site allows.
fn fastest(node: &Node, request: &Request, site: &Site) -> Option<u64> {
    let candidates = node.ports.iter().filter(|port| {
        speaks_roce(port, request) && port.state == PortState::Active && site_allows(port, site).is_ok()
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
        || port.pci.as_ref().is_some_and(|pci| pci.address.to_string() == entry)
}

/// The rail of each port. Where the site lists its rails, the position in that list; a port that
/// is in none, or every port without a list, is numbered in the node's order (PCI address), down
/// ports counted too, so that a cable that falls out doesn't move the rails behind it.
fn rails(node: &Node, request: &Request, site: &Site) -> Vec<u32> {
    let entries = &site.nics.rails;
    let mut next = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let number = |port: &RdmaPort| {
        let listed = entries.iter().position(|entry| matches_entry(port, entry));
        listed.and_then(|position| u32::try_from(position).ok()).unwrap_or_else(|| {
            let usable = speaks_roce(port, request) && site_allows(port, site).is_ok();
            let rail = next;
            next += u32::from(usable);
            rail
        })
    };
    node.ports.iter().map(number).collect()
}
