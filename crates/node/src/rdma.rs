use std::collections::BTreeMap;
use std::path::PathBuf;

use roce_types::{DevicePort, Gid, PciAddress};

use crate::tree::{NodeError, Tree};
use crate::{GidKind, GidRow, LinkLayer, Netdev, NumaNode, PortState, RDMA_CLASS, RdmaPort, numa};

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
        for number in numbers.iter().filter_map(|number| number.parse().ok()) {
            let name = DevicePort { device: device.clone(), port: number };
            match read_port(tree, name.clone(), numa_nodes, netdevs) {
                Ok(port) => ports.push(port),
                Err(error) => problems.push(format!("RDMA port {name} is left out: {error}")),
            }
        }
    }
    ports.sort_by(|a, b| (a.pci.is_none(), a.pci, &a.name).cmp(&(b.pci.is_none(), b.pci, &b.name)));
    Ok(ports)
}

fn read_port(
    tree: &Tree,
    name: DevicePort,
    numa_nodes: &[NumaNode],
    netdevs: &BTreeMap<String, Netdev>,
) -> Result<RdmaPort, NodeError> {
    let device = format!("{RDMA_CLASS}/{}", name.device);
    let folder = format!("{device}/ports/{}", name.port);
    let gids = read_gids(tree, &folder)?;
    let netdev = main_netdev(tree, &device, name.port, &gids, netdevs)?;
    let ancestry = ancestry(tree, &device, netdev.as_deref());
    Ok(RdmaPort {
        link_layer: link_layer(tree.text(&format!("{folder}/link_layer"))?),
        state: port_state(&tree.text(&format!("{folder}/state"))?),
        rate_mbit: tree.optional_text(&format!("{folder}/rate"))?.as_deref().and_then(rate_mbit),
        pci: ancestry.iter().find_map(|path| path.file_name()?.to_str()?.parse::<PciAddress>().ok()),
        numa_node: numa::of_device(&ancestry, numa_nodes)?,
        name,
        netdev,
        gids,
    })
}

/// Where the device sits. A software device (rxe, siw) has no place of its own: it is where its
/// netdev is.
fn ancestry(tree: &Tree, device: &str, netdev: Option<&str>) -> Vec<PathBuf> {
    let own = tree.device_ancestry(&format!("{device}/device"));
    match netdev {
        Some(netdev) if own.is_empty() => tree.device_ancestry(&format!("sys/class/net/{netdev}/device")),
        _ => own,
    }
}

fn read_gids(tree: &Tree, port: &str) -> Result<Vec<GidRow>, NodeError> {
    let mut indexes: Vec<u32> =
        tree.list(&format!("{port}/gids"))?.iter().filter_map(|name| name.parse().ok()).collect();
    indexes.sort_unstable();
    let mut rows = Vec::new();
    for index in indexes {
        // The table can shrink while it is read.
        let Some(text) = tree.optional_text(&format!("{port}/gids/{index}"))? else { continue };
        let path = || tree.path(format!("{port}/gids/{index}"));
        let gid: Gid = text.parse().map_err(|source| NodeError::Content { path: path(), source })?;
        if gid.is_zero() {
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
        if below.len() == 1 || dev_port.and_then(|text| text.parse().ok()) == Some(port - 1) {
            return Ok(Some(name.clone()));
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
