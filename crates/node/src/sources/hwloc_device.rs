//! The devices of hwloc's XML: GPUs, network interfaces, RDMA ports.

use roce_types::{DevicePort, Gid};

use super::hwloc::{Function, Position, Version};
use super::xml::{Element, Problem};
use crate::{GidRow, Gpu, GpuVendor, LinkLayer, Netdev, Node, PortState, RdmaPort, gpu, rdma};

/// The longest table that a driver offers has 256 rows.
const MAX_GIDS: u32 = 4096;

/// Adds the function if it is a GPU. hwloc doesn't tell the driver, so the class must do: an Intel
/// processing accelerator is no GPU but an NPU.
pub(super) fn gpu(function: &Function, numa_node: Option<u32>, node: &mut Node) {
    let Some(vendor) = gpu::vendor_of(function.vendor) else { return };
    let is_npu = vendor == GpuVendor::Intel && function.class == 0x1200;
    if gpu::is_display(function.class << 8) && !is_npu {
        node.gpus.push(Gpu { pci: function.place.clone(), vendor, numa_node });
    }
}

/// Adds the interfaces and RDMA ports that are directly in this object.
pub(super) fn read(
    object: &Element,
    here: &Position,
    version: Version,
    node: &mut Node,
) -> Result<(), Problem> {
    let devices = || object.named("object").filter(|child| child.attribute("type") == Some("OSDev"));
    let mut interfaces = Vec::new();
    for device in devices() {
        if kind(device, version)? == Kind::Interface {
            let name = device.required("name")?.to_owned();
            // Nothing but its name is told.
            node.netdevs.insert(name.clone(), Netdev { operstate: "unknown".into(), ..Netdev::default() });
            interfaces.push(Interface {
                name,
                port: info(device, "Port").and_then(|port| port.parse().ok()),
                address: info(device, "Address").unwrap_or_default(),
            });
        }
    }
    for device in devices() {
        if kind(device, version)? == Kind::Rdma {
            rdma_device(device, &interfaces, here, node)?;
        }
    }
    Ok(())
}

/// Puts everything into the order that [`Node`] promises.
pub(super) fn finish(node: &mut Node) {
    node.gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
    rdma::sort(&mut node.ports);
    node.rdma_class_exists = !node.ports.is_empty();
}

#[derive(PartialEq, Eq)]
enum Kind {
    Interface,
    Rdma,
    Other,
}

/// Version 2 numbers the kinds; version 3 has a bit for each, and an RDMA device may have that of
/// the network too.
fn kind(device: &Element, version: Version) -> Result<Kind, Problem> {
    let text = device.required("osdev_type")?;
    let number: u32 =
        text.parse().map_err(|_| Problem::new(device, format!("osdev_type: {text:?} is not a number")))?;
    Ok(match (version, number) {
        (Version::Two, 3) => Kind::Rdma,
        (Version::Two, 2) => Kind::Interface,
        (Version::Three, bits) if bits & 32 != 0 => Kind::Rdma,
        (Version::Three, bits) if bits & 16 != 0 => Kind::Interface,
        _ => Kind::Other,
    })
}

/// A network interface of the same PCI function.
struct Interface<'a> {
    name: String,
    /// From 1.
    port: Option<u8>,
    /// Six bytes on Ethernet, twenty on InfiniBand.
    address: &'a str,
}

fn info<'a>(device: &'a Element, name: &str) -> Option<&'a str> {
    device.named("info").find(|info| info.attribute("name") == Some(name))?.attribute("value")
}

fn rdma_device(
    device: &Element,
    interfaces: &[Interface<'_>],
    here: &Position,
    node: &mut Node,
) -> Result<(), Problem> {
    let name = device.required("name")?;
    let mut ports: Vec<u8> = Vec::new();
    for info in device.named("info") {
        let number = info
            .attribute("name")
            .and_then(|key| key.strip_prefix("Port")?.strip_suffix("State")?.parse::<u8>().ok());
        ports.extend(number.filter(|number| *number > 0 && !ports.contains(number)));
    }
    ports.sort_unstable();
    if ports.is_empty() {
        node.problems.push(format!("RDMA device {name} is left out: it tells the state of no port"));
    }
    for port in ports {
        let parsed = format!("{name}:{port}").parse::<DevicePort>();
        let name = parsed.map_err(|error| Problem::new(device, error.to_string()))?;
        if node.ports.iter().any(|known| known.name == name) {
            return Err(Problem::new(device, format!("RDMA port {name} twice")));
        }
        node.ports.push(rdma_port(device, name, interfaces, here, node)?);
    }
    Ok(())
}

fn rdma_port(
    device: &Element,
    name: DevicePort,
    interfaces: &[Interface<'_>],
    here: &Position,
    node: &Node,
) -> Result<RdmaPort, Problem> {
    let told = |what: &str| info(device, &format!("Port{}{what}", name.port));
    let interface = match interfaces {
        [one] => Some(one),
        several => several.iter().find(|interface| interface.port == Some(name.port)),
    };
    let asic = info(device, "SysImageGUID").map(str::to_owned);
    Ok(RdmaPort {
        link_layer: link_layer(here, told("LID"), interface),
        state: state(told("State").unwrap_or_default()),
        rate_mbit: None,
        pci: here.function.as_ref().map(|function| function.place.clone()),
        numa_node: here.numa_node(node),
        asic: asic.filter(|guid| guid.chars().any(|digit| !matches!(digit, '0' | ':'))),
        physical_function: None,
        qos: None,
        forced_traffic_class: None,
        netdev: interface.map(|interface| interface.name.clone()),
        gids: gids(device, name.port)?,
        name,
    })
}

/// hwloc doesn't tell what a port speaks. The class of the PCI function does, but for old cards
/// that speak either ("other network controller"): there an address of InfiniBand's length or a
/// local identifier (LID) means InfiniBand, an address of Ethernet's length Ethernet.
fn link_layer(here: &Position, lid: Option<&str>, interface: Option<&Interface<'_>>) -> LinkLayer {
    let lid = lid.and_then(|lid| u16::from_str_radix(lid.strip_prefix("0x")?, 16).ok());
    let bytes = interface.map_or(0, |interface| interface.address.split(':').count());
    match (here.function.as_ref().map(|function| function.class), bytes, lid) {
        (Some(0x0207), ..) | (_, 20, _) | (_, _, Some(1..)) => LinkLayer::InfiniBand,
        (Some(0x0200), ..) | (_, 6, _) => LinkLayer::Ethernet,
        _ => LinkLayer::Other("unknown".into()),
    }
}

/// The number of `enum ib_port_state`, in the kernel's words.
fn state(number: &str) -> PortState {
    let word = match number {
        "4" => return PortState::Active,
        "0" => "NOP",
        "1" => "DOWN",
        "2" => "INIT",
        "3" => "ARMED",
        "5" => "ACTIVE_DEFER",
        other => other,
    };
    PortState::Other(word.to_owned())
}

/// The rows that hwloc shows: those that are not empty. Neither their kinds nor their interfaces
/// are told, and no order of the rows is promised that they could be concluded from.
fn gids(device: &Element, port: u8) -> Result<Vec<GidRow>, Problem> {
    let prefix = format!("Port{port}GID");
    let mut rows: Vec<GidRow> = Vec::new();
    for info in device.named("info") {
        let index = info.attribute("name").and_then(|key| key.strip_prefix(&prefix)?.parse().ok());
        let Some(index) = index.filter(|&index: &u32| index < MAX_GIDS) else { continue };
        let gid: Gid =
            info.required("value")?.parse().map_err(|error| Problem::new(info, format!("{error}")))?;
        if !gid.is_zero() && rows.iter().all(|row| row.index != index) {
            rows.push(GidRow { index, gid, kind: None, netdev: None });
        }
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}
