use std::collections::BTreeMap;
use std::path::PathBuf;

use roce_types::{DevicePort, Gid, TrafficClass};

use crate::tree::{NodeError, Tree};
use crate::{GidKind, GidRow, LinkLayer, Netdev, NumaNode, PciPlace, PortState, RDMA_CLASS, RdmaPort, numa};

/// Every RDMA port of the tree. A device or port that can't be read is left out and becomes a
/// problem: one broken card must not hide the others.
pub(crate) fn read(
    tree: &Tree,
    numa_nodes: &[NumaNode],
    netdevs: &BTreeMap<String, Netdev>,
    problems: &mut Vec<String>,
) -> Result<Vec<RdmaPort>, NodeError> {
    let mut ports = Vec::new();
    for device in tree.list(RDMA_CLASS)? {
        let numbers = match tree.list(&format!("{RDMA_CLASS}/{device}/ports")) {
            Ok(numbers) => numbers,
            Err(error) => {
                problems.push(format!("RDMA device {device} is left out: {error}"));
                continue;
            }
        };
        for number in numbers.iter().filter_map(|number| number.parse().ok().filter(|&number| number > 0)) {
            let name = DevicePort { device: device.clone(), port: number };
            match read_port(tree, name.clone(), numa_nodes, netdevs) {
                Ok(port) => ports.push(port),
                Err(error) => problems.push(format!("RDMA port {name} is left out: {error}")),
            }
        }
    }
    sort(&mut ports);
    Ok(ports)
}

/// By PCI address, those without one last, then by name.
pub(crate) fn sort(ports: &mut [RdmaPort]) {
    ports.sort_by(|a, b| (a.pci.is_none(), &a.pci, &a.name).cmp(&(b.pci.is_none(), &b.pci, &b.name)));
}

fn read_port(
    tree: &Tree,
    name: DevicePort,
    numa_nodes: &[NumaNode],
    netdevs: &BTreeMap<String, Netdev>,
) -> Result<RdmaPort, NodeError> {
    let device = format!("{RDMA_CLASS}/{}", name.device);
    let folder = format!("{device}/ports/{}", name.port);
    let link_layer = link_layer(tree.text(&format!("{folder}/link_layer"))?);
    let gids = read_gids(tree, &folder, &link_layer)?;
    let netdev = main_netdev(tree, &device, name.port, &gids, netdevs)?;
    let place = place(tree, &device, netdev.as_deref(), numa_nodes, netdevs)?;
    let forced = tree.optional_text(&format!("{device}/tc/{}/traffic_class", name.port))?;
    let asic = tree.optional_text(&format!("{device}/sys_image_guid"))?;
    let physical_function = tree.link_name(&format!("{device}/device/physfn"));
    Ok(RdmaPort {
        link_layer,
        state: port_state(&tree.text(&format!("{folder}/state"))?),
        rate_mbit: tree.optional_text(&format!("{folder}/rate"))?.as_deref().and_then(rate_mbit),
        pci: place.pci,
        numa_node: place.numa_node,
        asic: asic.filter(|guid| guid.chars().any(|digit| !matches!(digit, '0' | ':'))),
        physical_function: physical_function.and_then(|name| name.parse().ok()),
        qos: None,
        forced_traffic_class: forced.as_deref().and_then(forced_traffic_class),
        name,
        netdev,
        gids,
    })
}

/// Where a port sits, as far as it sits in one place.
#[derive(Default)]
struct Place {
    pci: Option<PciPlace>,
    numa_node: Option<u32>,
}

/// A hardware device is where its PCI function is. A software device (rxe, siw) is where its netdev
/// is, and that where the hardware below it is: a bond of one card's ports is on that card, one
/// over two cards only on the NUMA node that both share, if they do.
fn place(
    tree: &Tree,
    device: &str,
    netdev: Option<&str>,
    numa_nodes: &[NumaNode],
    netdevs: &BTreeMap<String, Netdev>,
) -> Result<Place, NodeError> {
    let own = tree.device_ancestry(&format!("{device}/device"));
    let hardware = match netdev {
        Some(netdev) if own.is_empty() => below(tree, netdev, netdevs, 0),
        _ => vec![own],
    };
    let mut places = Vec::new();
    for ancestry in hardware.iter().filter(|ancestry| !ancestry.is_empty()) {
        places.push(Place {
            pci: PciPlace::from_ancestry(ancestry),
            numa_node: numa::of_device(tree, ancestry, numa_nodes)?,
        });
    }
    let Some(first) = places.first() else { return Ok(Place::default()) };
    let one_numa_node = places.iter().all(|place| place.numa_node == first.numa_node);
    let one_device = places.iter().all(|place| match (&place.pci, &first.pci) {
        (Some(pci), Some(first)) => pci.is_same_device(first),
        _ => false,
    });
    Ok(Place {
        pci: first.pci.clone().filter(|_| one_device),
        numa_node: first.numa_node.filter(|_| one_numa_node),
    })
}

/// The ancestries of the hardware at the bottom of a stack of interfaces. A stack is never deep;
/// the bound guards against links that form a ring.
fn below(tree: &Tree, netdev: &str, netdevs: &BTreeMap<String, Netdev>, depth: usize) -> Vec<Vec<PathBuf>> {
    let own = tree.device_ancestry(&format!("sys/class/net/{netdev}/device"));
    let lower = netdevs.get(netdev).map_or(&[][..], |netdev| &netdev.lower);
    if !own.is_empty() || lower.is_empty() || depth > 8 {
        return vec![own];
    }
    lower.iter().flat_map(|name| below(tree, name, netdevs, depth + 1)).collect()
}

/// Reads `Global tclass=106`; the vendor's driver writes nothing, or 0, while none is forced.
fn forced_traffic_class(text: &str) -> Option<TrafficClass> {
    let value = text.trim().strip_prefix("Global tclass=")?.parse().ok()?;
    (value != 0).then_some(TrafficClass(value))
}

fn read_gids(tree: &Tree, port: &str, link_layer: &LinkLayer) -> Result<Vec<GidRow>, NodeError> {
    let mut indexes: Vec<u32> =
        tree.list(&format!("{port}/gids"))?.iter().filter_map(|name| name.parse().ok()).collect();
    indexes.sort_unstable();
    let mut rows = Vec::new();
    for index in indexes {
        // The table can shrink while it is read.
        let Some(text) = tree.optional_text(&format!("{port}/gids/{index}"))? else { continue };
        let path = || tree.path(format!("{port}/gids/{index}"));
        let gid: Gid = text.parse().map_err(|source| NodeError::Content { path: path(), source })?;
        // The empty rows of InfiniBand have the subnet's prefix but no identifier.
        let no_identifier = *link_layer == LinkLayer::InfiniBand && gid.0[8..] == [0; 8];
        if gid.is_zero() || no_identifier {
            continue;
        }
        let kind = tree.optional_text(&format!("{port}/gid_attrs/types/{index}"))?.map(gid_kind);
        let netdev = tree.optional_text(&format!("{port}/gid_attrs/ndevs/{index}"))?;
        rows.push(GidRow { index, gid, kind, netdev: netdev.filter(|name| !name.is_empty()) });
    }
    Ok(rows)
}

/// The interface of the port itself: `parent` (software devices have it), else the one of the
/// device's interfaces whose `dev_port` is this port's, else that of the first GID row.
fn main_netdev(
    tree: &Tree,
    device: &str,
    port: u8,
    gids: &[GidRow],
    netdevs: &BTreeMap<String, Netdev>,
) -> Result<Option<String>, NodeError> {
    if let Some(parent) = tree.optional_text(&format!("{device}/parent"))?
        && netdevs.contains_key(&parent)
    {
        return Ok(Some(parent));
    }
    let below = tree.list(&format!("{device}/device/net"))?;
    for name in &below {
        let dev_port = tree.optional_text(&format!("{device}/device/net/{name}/dev_port"))?;
        if below.len() == 1 || dev_port.and_then(|text| text.parse().ok()) == port.checked_sub(1) {
            // The ports of a bond answer to the bond's addresses.
            let master = tree.link_name(&format!("sys/class/net/{name}/master"));
            let bond = master.filter(|master| {
                netdevs.get(master).is_some_and(|netdev| netdev.kind.as_deref() == Some("bond"))
            });
            return Ok(Some(bond.unwrap_or_else(|| name.clone())));
        }
    }
    Ok(gids.iter().find_map(|row| row.netdev.clone()))
}

fn link_layer(text: String) -> LinkLayer {
    match text.as_str() {
        "Ethernet" => LinkLayer::Ethernet,
        "InfiniBand" => LinkLayer::InfiniBand,
        _ => LinkLayer::Other(text),
    }
}

/// Reads `4: ACTIVE`.
fn port_state(text: &str) -> PortState {
    let word = text.split_once(':').map_or(text, |(_, word)| word.trim());
    if word == "ACTIVE" { PortState::Active } else { PortState::Other(word.to_owned()) }
}

fn gid_kind(text: String) -> GidKind {
    match text.as_str() {
        "RoCE v2" => GidKind::RoceV2,
        "IB/RoCE v1" => GidKind::RoceV1,
        _ => GidKind::Other(text),
    }
}

/// Reads `100 Gb/sec (4X EDR)` and `2.5 Gb/sec (1X SDR)` without floating point: the rates that
/// exist have at most one decimal.
fn rate_mbit(text: &str) -> Option<u64> {
    let number = text.split_once(" Gb/sec")?.0;
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let tenths = tenths.parse::<u64>().ok().filter(|&tenths| tenths < 10)?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(tenths * 100)
}

/// Reads a text as each of the values above.
#[cfg(feature = "sources")]
pub(crate) fn read_values(text: &str) {
    rate_mbit(text);
    port_state(text);
    forced_traffic_class(text);
    link_layer(text.to_owned());
    gid_kind(text.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_mbit() {
        assert_eq!(rate_mbit("100 Gb/sec (4X EDR)"), Some(100_000));
        assert_eq!(rate_mbit("2.5 Gb/sec (1X SDR)"), Some(2_500));
        for text in ["", "fast", "1.25 Gb/sec", "99999999999999999999 Gb/sec", "-1 Gb/sec"] {
            assert_eq!(rate_mbit(text), None, "{text:?}");
        }
    }

    #[test]
    fn states_are_read_with_and_without_their_number() {
        assert_eq!(port_state("4: ACTIVE"), PortState::Active);
        assert_eq!(port_state("1: DOWN"), PortState::Other("DOWN".into()));
    }
}
