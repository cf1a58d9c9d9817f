//! What the tests of this folder share: a node as text that a person can check, and the folder of
//! real machines.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fmt::Write;
use std::path::PathBuf;

use roce_node::{GidKind, LinkLayer, Node, PciPlace, PortState, Qos, RdmaPort};

/// The folder of real machines' topologies beside the project; `None`, and a line that says so,
/// where it is absent. `ROCE_REQUIRE=data` makes that a failure.
pub(crate) fn data() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if folder.is_dir() {
        return Some(folder);
    }
    let reason = format!("the real machines' topologies are not at {}", folder.display());
    let required = std::env::var("ROCE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|tier| tier == "data"), "ROCE_REQUIRE names data, but {reason}");
    eprintln!("skipped: {reason}");
    None
}

/// A node in a few lines. What is unknown is `?`.
pub(crate) fn summary(node: &Node) -> String {
    let mut text = format!("cpus {}\n", node.cpus);
    for package in &node.packages {
        writeln!(text, "package {}: cpus {}", package.id, package.cpus).unwrap();
    }
    for numa in &node.numa_nodes {
        let distances: Vec<String> =
            numa.distances.iter().map(|(to, distance)| format!("{to}:{distance}")).collect();
        writeln!(
            text,
            "numa {}: cpus {} distances {}",
            numa.id,
            none(&numa.cpus.to_string()),
            distances.join(" ")
        )
        .unwrap();
    }
    for gpu in &node.gpus {
        writeln!(text, "gpu {:?} numa {} at {}", gpu.vendor, known(gpu.numa_node), place(Some(&gpu.pci)))
            .unwrap();
    }
    for port in &node.ports {
        text += &port_lines(port);
    }
    for (name, netdev) in &node.netdevs {
        let carrier = netdev.carrier.map(|carrier| if carrier { "carrier" } else { "no carrier" });
        write!(text, "netdev {name}: {} {} mtu {}", netdev.operstate, known(carrier), known(netdev.mtu))
            .unwrap();
        if let Some(kind) = &netdev.kind {
            write!(text, " {kind}").unwrap();
        }
        if !netdev.lower.is_empty() {
            write!(text, " over {}", netdev.lower.join(" ")).unwrap();
        }
        let addresses = netdev.addresses.as_ref().map(|addresses| {
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            none(&all.join(" ")).to_owned()
        });
        writeln!(text, " addresses {}", known(addresses)).unwrap();
    }
    if !node.rdma_class_exists {
        text += "no RDMA class\n";
    }
    for problem in &node.problems {
        writeln!(text, "problem: {problem}").unwrap();
    }
    text
}

fn port_lines(port: &RdmaPort) -> String {
    let layer = match &port.link_layer {
        LinkLayer::Ethernet => "Ethernet",
        LinkLayer::InfiniBand => "InfiniBand",
        LinkLayer::Other(word) => word,
    };
    let state = match &port.state {
        PortState::Active => "ACTIVE",
        PortState::Other(word) => word,
    };
    let mut text = format!("port {} {layer} {state}", port.name);
    write!(text, " rate {}", known(port.rate_mbit.map(|mbit| format!("{mbit} Mbit/s")))).unwrap();
    write!(text, " numa {} netdev {}", known(port.numa_node), known(port.netdev.as_ref())).unwrap();
    writeln!(text, "\n    asic {} at {}", known(port.asic.as_ref()), place(port.pci.as_ref())).unwrap();
    if let Some(function) = port.physical_function {
        writeln!(text, "    virtual function of {function}").unwrap();
    }
    if let Some(class) = port.forced_traffic_class {
        writeln!(text, "    forced traffic class {class}").unwrap();
    }
    if let Some(Qos { trust, dscp_to_priority, pfc }) = &port.qos {
        let table = dscp_to_priority.as_ref().map(|table| {
            let rows: Vec<String> = table.iter().map(|(dscp, p)| format!("{dscp}->{p}")).collect();
            rows.join(" ")
        });
        let pfc = pfc.as_ref().map(|pfc| format!("{:?}", pfc.iter().map(|p| p.get()).collect::<Vec<_>>()));
        let trust = trust.map(|trust| format!("{trust:?}"));
        writeln!(text, "    trust {} dscp {} pfc {}", known(trust), known(table), known(pfc)).unwrap();
    }
    for row in &port.gids {
        let kind = row.kind.as_ref().map(|kind| match kind {
            GidKind::RoceV2 => "v2",
            GidKind::RoceV1 => "v1",
            GidKind::Other(word) => word,
        });
        writeln!(text, "    gid {} {} {} {}", row.index, row.gid, known(kind), known(row.netdev.as_ref()))
            .unwrap();
    }
    text
}

fn place(place: Option<&PciPlace>) -> String {
    let Some(place) = place else { return "?".into() };
    let mut parts = vec![if place.host_bridge.is_empty() { "?".into() } else { place.host_bridge.clone() }];
    parts.extend(place.bridges.iter().map(|bridge| {
        let bridge = bridge.to_string();
        // The domain is that of the host bridge.
        bridge.split_once(':').map(|(_, rest)| rest.to_owned()).unwrap_or(bridge)
    }));
    parts.push(place.address.to_string());
    parts.join(" > ")
}

fn none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn known<T: ToString>(fact: Option<T>) -> String {
    fact.map_or_else(|| "?".into(), |fact| fact.to_string())
}
