//! The topology that NCCL and RCCL dump (`NCCL_TOPO_DUMP_FILE`).

use std::collections::BTreeMap;

use roce_types::{CpuSet, DevicePort, PciAddress};

use super::mask;
use super::xml::{Element, Problem};
use crate::{Gpu, LinkLayer, Netdev, Node, NumaNode, PciPlace, PortState, RdmaPort, gpu, rdma};

/// Where the walk through the tree is.
struct Position<'a> {
    /// `None` where the machine doesn't tell NCCL.
    numa_node: Option<u32>,
    /// NCCL doesn't tell host bridges. What hangs on one CPU meets in the CPU, as below one.
    host_bridge: String,
    /// Only the upstream port of each switch: NCCL leaves out the others.
    bridges: Vec<PciAddress>,
    function: Option<&'a Element>,
}

/// The node that a `<system>` describes.
pub(super) fn read(system: &Element) -> Result<Node, Problem> {
    let mut node = Node::default();
    for cpu in system.named("cpu") {
        read_cpu(cpu, &mut node)?;
    }
    if node.numa_nodes.is_empty() && node.cpus.is_empty() {
        return Err(Problem::new(system, "no <cpu> in the topology"));
    }
    if node.numa_nodes.is_empty() {
        // As the kernel does where it knows no NUMA.
        let distances = BTreeMap::from([(0, 10)]);
        node.numa_nodes.push(NumaNode { id: 0, cpus: node.cpus.clone(), distances });
    }
    node.numa_nodes.sort_by_key(|node| node.id);
    node.gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
    rdma::sort(&mut node.ports);
    node.rdma_class_exists = !node.ports.is_empty();
    Ok(node)
}

fn read_cpu(cpu: &Element, node: &mut Node) -> Result<(), Problem> {
    let id = cpu.required("numaid")?;
    let id: i64 = id.parse().map_err(|_| Problem::new(cpu, format!("numaid: {id:?} is not a number")))?;
    let affinity = cpu.required("affinity")?;
    let cpus: CpuSet = mask::cpus(affinity)
        .ok_or_else(|| Problem::new(cpu, format!("affinity: {affinity:?} is not a mask of CPUs")))?;
    node.cpus = node.cpus.union(&cpus);
    // -1 is "unknown", as in sysfs.
    let numa_node = u32::try_from(id).ok();
    if let Some(id) = numa_node {
        if node.numa_nodes.iter().any(|known| known.id == id) {
            return Err(Problem::new(cpu, format!("NUMA node {id} twice")));
        }
        node.numa_nodes.push(NumaNode { id, cpus, distances: BTreeMap::from([(id, 10)]) });
    }
    let host_bridge = numa_node.map(|id| format!("numa{id}")).unwrap_or_default();
    walk(cpu, &Position { numa_node, host_bridge, bridges: Vec::new(), function: None }, node)
}

fn walk(element: &Element, here: &Position<'_>, node: &mut Node) -> Result<(), Problem> {
    for child in &element.children {
        match child.name.as_str() {
            "pci" => {
                let mut bridges = here.bridges.clone();
                if let Some(function) = here.function {
                    bridges.push(address(function)?);
                }
                let host_bridge = here.host_bridge.clone();
                let below =
                    Position { numa_node: here.numa_node, host_bridge, bridges, function: Some(child) };
                address(child)?;
                walk(child, &below, node)?;
            }
            "gpu" => read_gpu(child, here, node)?,
            "nic" => {
                for net in child.named("net") {
                    read_net(net, here, node)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn address(function: &Element) -> Result<PciAddress, Problem> {
    let text = function.required("busid")?;
    text.parse().map_err(|error| Problem::new(function, format!("busid: {error}")))
}

fn place(here: &Position<'_>) -> Result<Option<PciPlace>, Problem> {
    let Some(function) = here.function else { return Ok(None) };
    let (host_bridge, bridges) = (here.host_bridge.clone(), here.bridges.clone());
    Ok(Some(PciPlace { address: address(function)?, host_bridge, bridges }))
}

/// An attribute such as `class="0x020700"`.
fn hex(function: &Element, name: &str) -> Option<u32> {
    u32::from_str_radix(function.attribute(name)?.strip_prefix("0x")?, 16).ok()
}

fn read_gpu(gpu: &Element, here: &Position<'_>, node: &mut Node) -> Result<(), Problem> {
    let vendor = here.function.and_then(|function| hex(function, "vendor")).and_then(gpu::vendor_of);
    let (Some(pci), Some(vendor)) = (place(here)?, vendor) else {
        node.problems.push(format!("the GPU of line {} is left out: its vendor is unknown", gpu.line));
        return Ok(());
    };
    node.gpus.push(Gpu { pci, vendor, numa_node: here.numa_node });
    Ok(())
}

fn read_net(net: &Element, here: &Position<'_>, node: &mut Node) -> Result<(), Problem> {
    let name = net.required("name")?;
    let port = net.required("port")?;
    let port: u8 = port.parse().map_err(|_| Problem::new(net, format!("port: {port:?} is not a number")))?;
    // NCCL's transport over sockets counts no ports: that is an interface.
    if port == 0 {
        node.netdevs.insert(name.to_owned(), Netdev { operstate: "unknown".into(), ..Netdev::default() });
        return Ok(());
    }
    if name.contains('+') {
        node.problems.push(format!(
            "{name} is left out: NCCL has merged several devices, it doesn't tell where each is"
        ));
        return Ok(());
    }
    let name: DevicePort =
        format!("{name}:{port}").parse().map_err(|error| Problem::new(net, format!("name: {error}")))?;
    if node.ports.iter().any(|known| known.name == name) {
        return Err(Problem::new(net, format!("RDMA port {name} twice")));
    }
    let link_layer = match here.function.and_then(|function| hex(function, "class")).map(|class| class >> 8) {
        Some(0x0200) => LinkLayer::Ethernet,
        Some(0x0207) => LinkLayer::InfiniBand,
        _ => LinkLayer::Other("unknown".into()),
    };
    node.ports.push(RdmaPort {
        name,
        link_layer,
        // NCCL lists no others.
        state: PortState::Active,
        rate_mbit: net.attribute("speed").and_then(|speed| speed.parse().ok()).filter(|&speed| speed > 0),
        pci: place(here)?,
        numa_node: here.numa_node,
        asic: net.attribute("guid").and_then(asic),
        physical_function: None,
        qos: None,
        forced_traffic_class: None,
        netdev: None,
        gids: Vec::new(),
    });
    Ok(())
}

/// NCCL prints the GUID's eight bytes as a number of the host, the first byte last; sysfs writes
/// them in order.
fn asic(text: &str) -> Option<String> {
    let guid = u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?.swap_bytes();
    let part = |shift: u32| guid >> shift & 0xffff;
    let text = format!("{:04x}:{:04x}:{:04x}:{:04x}", part(48), part(32), part(16), part(0));
    (guid != 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_turned_into_the_order_of_sysfs() {
        assert_eq!(asic("0xf01cbc0103dd6838").as_deref(), Some("3868:dd03:01bc:1cf0"));
        assert_eq!(asic("0x0"), None);
        assert_eq!(asic("f01c"), None);
    }
}
