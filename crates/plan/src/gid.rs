//! Which GID of a port, and why none of the others.

use ipnet::IpNet;
use roce_node::{GidKind, GidRow, LinkLayer, Node, PortState, RdmaPort};
use roce_types::Gid;
use std::net::IpAddr;

use crate::request::{GidSelection, LinkLayers, Request, UnknownFacts};
use crate::site::{Family, Site};

/// The outcome of looking for a GID on one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GidSearch {
    /// The best row that may be used.
    pub chosen: Option<GidRow>,
    /// Every row that may not, with the reason.
    pub rejected: Vec<RejectedGid>,
}

/// A row that may not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedGid {
    /// Row number.
    pub index: u32,
    /// Its value.
    pub gid: Gid,
    /// Why not.
    pub reason: GidRejection,
}

/// Why a row may not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GidRejection {
    /// The port is not up.
    #[error("port is {0}")]
    PortState(String),
    /// The port speaks InfiniBand.
    #[error("port is not Ethernet")]
    NotEthernet,
    /// RoCE v1, or a kind that is not known.
    #[error("{0}")]
    Kind(String),
    /// A group address.
    #[error("multicast")]
    Multicast,
    /// `fe80::/10` or `169.254.0.0/16`.
    #[error("link-local")]
    LinkLocal,
    /// The row has no network interface.
    #[error("it has no netdev")]
    NoNetdev,
    /// The row's network interface doesn't exist.
    #[error("its netdev {0} is missing")]
    NetdevMissing(String),
    /// The interface is down.
    #[error("its netdev {0} is {1}")]
    NetdevDown(String, String),
    /// The interface has no carrier.
    #[error("its netdev {0} has no carrier")]
    NoCarrier(String),
    /// The address was removed from the interface after the row was made.
    #[error("its netdev {0} no longer has this address")]
    AddressGone(String),
    /// Not what `--roce-gid` asks for.
    #[error("not {0}")]
    NotSelected(String),
}

/// Chooses among a port's rows: those that are usable and selected, ranked by the site's subnets,
/// the family, the port's own interface before a VLAN's, and the lowest index.
#[must_use]
pub fn choose_gid(port: &RdmaPort, node: &Node, request: &Request, site: &Site) -> GidSearch {
    let selection = &request.gid;
    let mut rejected = Vec::new();
    let mut usable = Vec::new();
    for row in &port.gids {
        match usable_row(port, row, node, request).and_then(|()| selected(row, selection)) {
            Ok(()) => usable.push(row),
            Err(reason) => rejected.push(RejectedGid { index: row.index, gid: row.gid, reason }),
        }
    }
    let family = match selection {
        GidSelection::Ipv6 => Family::Ipv6,
        _ => site.gid.family,
    };
    // Smaller is better.
    let rank = |row: &&GidRow| {
        let address = address(row.gid);
        let outside_site_subnets = !site.gid.subnets.iter().any(|subnet| subnet.contains(&address));
        let other_family = address.is_ipv4() != (family == Family::Ipv4);
        // Where kinds are unknown, a RoCE v2 row follows the v1 row of the same address.
        let first_of_unknown_kind = row.kind.is_none()
            && port.gids.iter().any(|other| other.gid == row.gid && other.index > row.index);
        let not_the_base_netdev = row.netdev != port.netdev;
        (outside_site_subnets, other_family, first_of_unknown_kind, not_the_base_netdev, row.index)
    };
    GidSearch { chosen: usable.into_iter().min_by_key(rank).cloned(), rejected }
}

/// The address that peers see: an IPv4-mapped GID is an IPv4 address.
fn address(gid: Gid) -> IpAddr {
    gid.to_ipv4().map_or(IpAddr::V6(gid.to_ipv6()), IpAddr::V4)
}

fn usable_row(port: &RdmaPort, row: &GidRow, node: &Node, request: &Request) -> Result<(), GidRejection> {
    if let PortState::Other(state) = &port.state {
        return Err(GidRejection::PortState(state.clone()));
    }
    if port.link_layer != LinkLayer::Ethernet {
        // InfiniBand's GIDs are link-local by their form and have neither kind nor interface.
        let any = request.link_layers == LinkLayers::Any;
        return if any { Ok(()) } else { Err(GidRejection::NotEthernet) };
    }
    let accept_unknown = request.unknown_facts == UnknownFacts::Accept;
    match &row.kind {
        Some(GidKind::RoceV2) => {}
        Some(GidKind::RoceV1) => return Err(GidRejection::Kind("RoCE v1".to_owned())),
        Some(GidKind::Other(kind)) => return Err(GidRejection::Kind(kind.clone())),
        None if accept_unknown => {}
        None => return Err(GidRejection::Kind("type unknown".to_owned())),
    }
    if row.gid.is_multicast() {
        return Err(GidRejection::Multicast);
    }
    if row.gid.is_link_local() {
        return Err(GidRejection::LinkLocal);
    }
    let Some(name) = row.netdev.clone() else {
        return if accept_unknown { Ok(()) } else { Err(GidRejection::NoNetdev) };
    };
    let Some(netdev) = node.netdevs.get(&name) else { return Err(GidRejection::NetdevMissing(name)) };
    // Virtual interfaces may say "unknown" while they work.
    if !matches!(netdev.operstate.as_str(), "up" | "unknown") {
        return Err(GidRejection::NetdevDown(name, netdev.operstate.clone()));
    }
    if netdev.carrier == Some(false) {
        return Err(GidRejection::NoCarrier(name));
    }
    if netdev.addresses.as_ref().is_some_and(|addresses| !addresses.contains(&address(row.gid))) {
        return Err(GidRejection::AddressGone(name));
    }
    Ok(())
}

fn selected(row: &GidRow, selection: &GidSelection) -> Result<(), GidRejection> {
    let in_subnet = |subnet: &IpNet| subnet.contains(&address(row.gid));
    let (fits, wanted) = match selection {
        GidSelection::Auto => (true, String::new()),
        GidSelection::Ipv4 => (row.gid.to_ipv4().is_some(), "an IPv4 GID".to_owned()),
        GidSelection::Ipv6 => (row.gid.to_ipv4().is_none(), "an IPv6 GID".to_owned()),
        GidSelection::Subnet(subnet) => (in_subnet(subnet), format!("in {subnet}")),
        GidSelection::Index(index) => (row.index == *index, format!("index {index}")),
    };
    if fits { Ok(()) } else { Err(GidRejection::NotSelected(wanted)) }
}
