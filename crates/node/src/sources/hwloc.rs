//! hwloc's XML, versions 2 and 3 (`lstopo --of xml`).

use std::collections::BTreeMap;

use roce_types::{CpuSet, PciAddress};

use super::hwloc_device;
use super::mask;
use super::xml::{Element, Problem};
use crate::{Node, NumaNode, Package, PciPlace};

/// More NUMA nodes than Linux can be built for.
const MAX_NUMA_NODES: usize = 1024;

/// Which numbers the file uses for the kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// `osdev_type` is one number.
    Two,
    /// `osdev_type` is a set of bits.
    Three,
}

/// Where the walk through the tree of objects is.
#[derive(Debug, Clone)]
pub(super) struct Position {
    /// The CPUs of the nearest object that has CPUs: what the devices below it are near to.
    pub(super) cpus: CpuSet,
    /// Empty until a host bridge is passed.
    host_bridge: String,
    bridges: Vec<PciAddress>,
    /// The PCI function that a device is of.
    pub(super) function: Option<Function>,
}

impl Position {
    /// The NUMA node of a device here: that of the CPUs it is near to, if they are of one node.
    pub(super) fn numa_node(&self, node: &Node) -> Option<u32> {
        match node.numa_nodes_of(&self.cpus)[..] {
            [one] => Some(one),
            _ => None,
        }
    }
}

/// A PCI function.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) place: PciPlace,
    /// Base class and subclass, as in 0x0207.
    pub(super) class: u32,
    pub(super) vendor: u32,
}

/// The node that a `<topology>` describes.
pub(super) fn read(topology: &Element) -> Result<Node, Problem> {
    let version = version(topology)?;
    let machine = topology.named("object").next();
    let machine = machine.ok_or_else(|| Problem::new(topology, "no <object> in the topology"))?;
    let mut node = Node { cpus: cpus_of(machine)?, ..Node::default() };
    let mut claims = Vec::new();
    collect(machine, &mut node.packages, &mut claims)?;
    node.packages.sort_by_key(|package| package.id);
    node.numa_nodes = numa_nodes(claims, &node.cpus);
    distances(topology, &mut node.numa_nodes)?;
    let start =
        Position { cpus: node.cpus.clone(), host_bridge: String::new(), bridges: Vec::new(), function: None };
    let mut any_pci = false;
    devices(machine, &start, version, &mut any_pci, &mut node)?;
    if !any_pci {
        node.problems.push("no PCI device in it: export it again with lstopo --whole-io".into());
    }
    hwloc_device::finish(&mut node);
    Ok(node)
}

fn version(topology: &Element) -> Result<Version, Problem> {
    let version = topology.attribute("version").unwrap_or("1");
    match version.split('.').next() {
        Some("2") => Ok(Version::Two),
        Some("3") => Ok(Version::Three),
        _ => Err(Problem::new(topology, format!("hwloc XML of version {version:?}, only 2 and 3 are known"))),
    }
}

fn cpus_of(object: &Element) -> Result<CpuSet, Problem> {
    let text = object.required("cpuset")?;
    mask::cpus(text).ok_or_else(|| Problem::new(object, format!("{text:?} is not a set of CPUs")))
}

fn number(object: &Element, name: &str) -> Result<u32, Problem> {
    let text = object.required(name)?;
    text.parse().map_err(|_| Problem::new(object, format!("{name}: {text:?} is not a number")))
}

/// The packages, and each NUMA node with the CPUs that hwloc says are near to it.
fn collect(
    object: &Element,
    packages: &mut Vec<Package>,
    claims: &mut Vec<(u32, CpuSet)>,
) -> Result<(), Problem> {
    match object.attribute("type") {
        // Some virtual machines number no packages.
        Some("Package") if object.attribute("os_index").is_some() => {
            packages.push(Package { id: number(object, "os_index")?, cpus: cpus_of(object)? });
        }
        Some("NUMANode") => {
            if claims.len() == MAX_NUMA_NODES {
                return Err(Problem::new(object, format!("more than {MAX_NUMA_NODES} NUMA nodes")));
            }
            let id = number(object, "os_index")?;
            if claims.iter().any(|(known, _)| *known == id) {
                return Err(Problem::new(object, format!("NUMA node {id} twice")));
            }
            claims.push((id, cpus_of(object)?));
        }
        _ => {}
    }
    object.named("object").try_for_each(|child| collect(child, packages, claims))
}

/// To the kernel a CPU belongs to one node, and a node that only has memory has none. hwloc gives
/// such a node the CPUs near to it; so of nodes with one CPU the smallest has it, then the first.
fn numa_nodes(mut claims: Vec<(u32, CpuSet)>, all: &CpuSet) -> Vec<NumaNode> {
    claims.sort_by_key(|(id, cpus)| (cpus.len(), *id));
    let mut left = all.clone();
    let mut nodes = Vec::new();
    for (id, near) in claims {
        let cpus = near.intersection(&left);
        left = left.iter().filter(|&cpu| !cpus.contains(cpu)).collect();
        nodes.push(NumaNode { id, cpus, distances: BTreeMap::from([(id, 10)]) });
    }
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// The matrix of latencies, where the file has one: rows and columns in the order of `indexes`.
fn distances(topology: &Element, nodes: &mut [NumaNode]) -> Result<(), Problem> {
    // Bit 2 of `kind` says that the values are latencies; older exports don't name them.
    let is_latency = |matrix: &&Element| {
        let kind = matrix.attribute("kind").and_then(|kind| kind.parse::<u32>().ok()).unwrap_or_default();
        matrix.attribute("type") == Some("NUMANode")
            && matrix.attribute("indexing") == Some("os")
            && matrix.attribute("name").map_or(kind & 4 != 0, |name| name == "NUMALatency")
    };
    let Some(matrix) = topology.named("distances2").find(is_latency) else { return Ok(()) };
    let ids = numbers(matrix, "indexes")?;
    let values = numbers(matrix, "u64values")?;
    if ids.len() > MAX_NUMA_NODES || ids.len() * ids.len() != values.len() {
        let problem = format!("{} distances between {} NUMA nodes", values.len(), ids.len());
        return Err(Problem::new(matrix, problem));
    }
    for (id, row) in ids.iter().zip(values.chunks(ids.len().max(1))) {
        if let Some(node) = nodes.iter_mut().find(|node| node.id == *id) {
            node.distances = ids.iter().copied().zip(row.iter().copied()).collect();
        }
    }
    Ok(())
}

/// The numbers in all children of this name, which hwloc cuts into lines of ten.
fn numbers(matrix: &Element, name: &str) -> Result<Vec<u32>, Problem> {
    let mut numbers = Vec::new();
    for piece in matrix.named(name) {
        for word in piece.text.split_whitespace() {
            let number = word.parse();
            numbers
                .push(number.map_err(|_| Problem::new(piece, format!("{name}: {word:?} is not a number")))?);
        }
    }
    Ok(numbers)
}

/// Walks to the devices. An I/O object has no CPUs of its own, it is near to those above it.
fn devices(
    object: &Element,
    above: &Position,
    version: Version,
    any_pci: &mut bool,
    node: &mut Node,
) -> Result<(), Problem> {
    let mut here = above.clone();
    match object.attribute("type") {
        Some("Bridge") => enter_bridge(object, &mut here)?,
        Some("PCIDev") => {
            *any_pci = true;
            let function = function(object, &here)?;
            hwloc_device::gpu(&function, here.numa_node(node), node);
            here.function = Some(function);
        }
        _ if object.attribute("cpuset").is_some() => here.cpus = cpus_of(object)?,
        _ => {}
    }
    hwloc_device::read(object, &here, version, node)?;
    object.named("object").try_for_each(|child| devices(child, &here, version, any_pci, node))
}

/// `0-1` leads from the host to PCI, `1-1` from PCI to PCI.
fn enter_bridge(object: &Element, here: &mut Position) -> Result<(), Problem> {
    match object.attribute("bridge_type") {
        Some("0-1") => {
            // `0000:[20-25]`: the domain, the first bus and the last.
            let text = object.required("bridge_pci")?;
            let parsed = text.split_once(":[").and_then(|(domain, buses)| {
                let first = buses.split_once('-')?.0;
                let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
                (hex(domain) && hex(first)).then(|| format!("pci{domain}:{first}"))
            });
            here.host_bridge = parsed
                .ok_or_else(|| Problem::new(object, format!("bridge_pci: {text:?} is no range of buses")))?;
            here.bridges.clear();
        }
        _ => here.bridges.push(pci_address(object)?),
    }
    Ok(())
}

fn pci_address(object: &Element) -> Result<PciAddress, Problem> {
    object.required("pci_busid")?.parse().map_err(|error| Problem::new(object, format!("pci_busid: {error}")))
}

fn function(object: &Element, here: &Position) -> Result<Function, Problem> {
    // `0207 [15b3:1017] [15b3:0025] 00`: class, vendor and device, subsystem, revision.
    let text = object.required("pci_type")?;
    let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
    let parsed =
        text.split_once(" [").and_then(|(class, rest)| Some((hex(class)?, hex(rest.split_once(':')?.0)?)));
    let (class, vendor) = parsed.ok_or_else(|| {
        Problem::new(object, format!("pci_type: {text:?} is not as in \"0207 [15b3:1017]\""))
    })?;
    let place = PciPlace {
        address: pci_address(object)?,
        host_bridge: here.host_bridge.clone(),
        bridges: here.bridges.clone(),
    };
    Ok(Function { place, class, vendor })
}
