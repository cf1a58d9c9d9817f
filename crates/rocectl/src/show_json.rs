//! The node as JSON.

use std::collections::BTreeMap;

use roce_node::{LinkLayer, Node, PortState};
use roce_types::CpuSet;
use serde::Serialize;

use crate::show::{kind, trust, vendor};
use crate::survey::Judged;

#[derive(Serialize)]
struct Document<'a> {
    cpus: &'a CpuSet,
    packages: Vec<Package<'a>>,
    numa_nodes: Vec<NumaNode<'a>>,
    gpus: Vec<Gpu<'a>>,
    ports: Vec<Port<'a>>,
    rdma_class_exists: bool,
    problems: &'a [String],
}

#[derive(Serialize)]
struct Package<'a> {
    id: u32,
    cpus: &'a CpuSet,
}

#[derive(Serialize)]
struct NumaNode<'a> {
    id: u32,
    cpus: &'a CpuSet,
    packages: Vec<u32>,
    distances: &'a BTreeMap<u32, u32>,
}

#[derive(Serialize)]
struct Gpu<'a> {
    index: usize,
    vendor: &'a str,
    numa_node: Option<u32>,
    pci: String,
    host_bridge: &'a str,
    bridges: Vec<String>,
}

#[derive(Serialize)]
struct Port<'a> {
    port: String,
    netdev: Option<&'a str>,
    link_layer: &'a str,
    state: &'a str,
    rate_mbit: Option<u64>,
    numa_node: Option<u32>,
    pci: Option<String>,
    host_bridge: Option<&'a str>,
    bridges: Vec<String>,
    asic: Option<&'a str>,
    physical_function: Option<String>,
    /// May tasks use it?
    usable: bool,
    /// If not, why.
    reason: Option<String>,
    rail: Option<u32>,
    /// The GID that tasks get, or would get if the port were usable.
    gid: Option<String>,
    gid_index: Option<u32>,
    gids: Vec<Gid<'a>>,
    pfc: Option<Vec<u8>>,
    trust: Option<&'a str>,
    dscp_to_priority: Option<BTreeMap<u8, u8>>,
    forced_traffic_class: Option<u8>,
    mtu: Option<u32>,
}

#[derive(Serialize)]
struct Gid<'a> {
    index: u32,
    gid: String,
    #[serde(rename = "type")]
    kind: &'a str,
    netdev: Option<&'a str>,
    usable: bool,
    reason: Option<String>,
}

pub(crate) fn text(node: &Node, judged: &[Judged<'_>]) -> anyhow::Result<String> {
    let document = Document {
        cpus: &node.cpus,
        packages: node
            .packages
            .iter()
            .map(|package| Package { id: package.id, cpus: &package.cpus })
            .collect(),
        numa_nodes: node
            .numa_nodes
            .iter()
            .map(|numa| NumaNode {
                id: numa.id,
                cpus: &numa.cpus,
                packages: node.packages_of(&numa.cpus),
                distances: &numa.distances,
            })
            .collect(),
        gpus: node.gpus.iter().enumerate().map(|(index, gpu)| gpu_of(index, gpu)).collect(),
        ports: judged.iter().map(|judged| port_of(node, judged)).collect(),
        rdma_class_exists: node.rdma_class_exists,
        problems: &node.problems,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn gpu_of(index: usize, gpu: &roce_node::Gpu) -> Gpu<'_> {
    Gpu {
        index,
        vendor: vendor(gpu),
        numa_node: gpu.numa_node,
        pci: gpu.pci.address.to_string(),
        host_bridge: &gpu.pci.host_bridge,
        bridges: gpu.pci.bridges.iter().map(ToString::to_string).collect(),
    }
}

fn port_of<'a>(node: &Node, judged: &'a Judged<'_>) -> Port<'a> {
    let port = judged.port;
    let qos = port.qos.as_ref();
    let gids = port.gids.iter().map(|row| {
        let rejected = judged.gids.rejected.iter().find(|rejected| rejected.index == row.index);
        Gid {
            index: row.index,
            gid: row.gid.to_string(),
            kind: kind(row),
            netdev: row.netdev.as_deref(),
            usable: rejected.is_none(),
            reason: rejected.map(|rejected| rejected.reason.to_string()),
        }
    });
    Port {
        port: port.name.to_string(),
        netdev: port.netdev.as_deref(),
        link_layer: match &port.link_layer {
            LinkLayer::Ethernet => "Ethernet",
            LinkLayer::InfiniBand => "InfiniBand",
            LinkLayer::Other(word) => word,
        },
        state: match &port.state {
            PortState::Active => "ACTIVE",
            PortState::Other(word) => word,
        },
        rate_mbit: port.rate_mbit,
        numa_node: port.numa_node,
        pci: port.pci.as_ref().map(|pci| pci.address.to_string()),
        host_bridge: port.pci.as_ref().map(|pci| pci.host_bridge.as_str()),
        bridges: port.pci.iter().flat_map(|pci| &pci.bridges).map(ToString::to_string).collect(),
        asic: port.asic.as_deref(),
        physical_function: port.physical_function.map(|function| function.to_string()),
        usable: judged.nic.is_ok(),
        reason: judged.nic.as_ref().err().map(ToString::to_string),
        rail: judged.nic.as_ref().ok().map(|nic| nic.rail),
        gid: judged.gids.chosen.as_ref().map(|row| row.gid.to_string()),
        gid_index: judged.gids.chosen.as_ref().map(|row| row.index),
        gids: gids.collect(),
        pfc: qos
            .and_then(|qos| qos.pfc.as_ref())
            .map(|on| on.iter().map(|priority| priority.get()).collect()),
        trust: qos.and_then(|qos| qos.trust).map(trust),
        dscp_to_priority: qos
            .and_then(|qos| qos.dscp_to_priority.as_ref())
            .map(|table| table.iter().map(|(dscp, priority)| (dscp.get(), priority.get())).collect()),
        forced_traffic_class: port.forced_traffic_class.map(|class| class.0),
        mtu: port.netdev.as_ref().and_then(|name| node.netdevs.get(name)?.mtu),
    }
}
