//! The description of a machine.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use roce_types::CpuSet;
use serde::Deserialize;

/// A description that can't be read or built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Not TOML, or not of the form of a description.
    #[error("the description of a machine: {0}")]
    Text(#[from] toml::de::Error),
    /// The description contradicts itself.
    #[error("the description of a machine: {0}")]
    Nonsense(String),
    /// The tree can't be written.
    #[error("can't write {path}: {source}")]
    Io {
        /// The file, folder or link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A machine. An unknown key is an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// What is special about it, in a sentence.
    pub about: String,
    /// NUMA nodes, numbered in this order where they don't say otherwise.
    pub numa: Vec<Numa>,
    /// One row per NUMA node; left out, 10 within a node, 12 within a package, 21 else.
    #[serde(default)]
    pub distances: Vec<Vec<u32>>,
    /// Host bridges (`pci0000:15`).
    #[serde(default)]
    pub host: BTreeMap<String, Host>,
    /// NICs.
    #[serde(default)]
    pub nic: Vec<Nic>,
    /// GPUs.
    #[serde(default)]
    pub gpu: Vec<Gpu>,
    /// Interfaces that are no NIC's own: bonds, VLANs, bridges, plain cards.
    #[serde(default)]
    pub interface: Vec<Interface>,
    /// Software RDMA devices over interfaces.
    #[serde(default)]
    pub soft: Vec<Soft>,
    /// Rows of each GID table, empty ones included.
    #[serde(default = "gid_rows")]
    pub gid_rows: u32,
    /// Are the interfaces' addresses known, as in a capture, or not, as in a bare tree?
    #[serde(default = "yes")]
    pub addresses_known: bool,
}

/// A NUMA node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numa {
    /// Left out, its position.
    pub id: Option<u32>,
    /// A kernel list; empty for a node that only has memory. Two ranges of one length are the two
    /// threads of each core.
    #[serde(default)]
    pub cpus: String,
    /// The package (socket).
    #[serde(default)]
    pub package: u32,
}

/// A host bridge.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// The NUMA node that the devices below it report; -1 as the kernel does where it doesn't know.
    pub numa: i32,
    /// The CPUs that they report; left out, those of the NUMA node, or all.
    pub local_cpus: Option<String>,
}

/// A PCI function with an RDMA device or at least an interface.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Nic {
    /// Its path from the host bridge down: `pci0000:15/15:01.0/16:00.0`. Addresses may leave out the
    /// domain of the host bridge. What comes after the function (`virtio2`) is its child device.
    pub at: String,
    /// The RDMA device; none on a plain Ethernet card.
    pub device: Option<String>,
    /// Kernel driver.
    #[serde(default = "mlx5")]
    pub driver: String,
    /// Does it speak InfiniBand?
    #[serde(default)]
    pub infiniband: bool,
    /// Gbit/s.
    #[serde(default = "rate")]
    pub rate: u32,
    /// `sys_image_guid`; left out, one for all functions of the PCI device; empty, none.
    pub card: Option<String>,
    /// The function that this one is a virtual function of.
    pub vf_of: Option<String>,
    /// `numa_node` where it isn't that of the host bridge.
    pub numa: Option<i32>,
    /// The class that the vendor's driver forces ("Global tclass").
    pub forced_tclass: Option<u8>,
    /// Its first port.
    #[serde(flatten)]
    pub port: Port,
    /// A second port of the same device.
    pub second: Option<Port>,
}

/// A port of a NIC.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Port {
    /// Its interface.
    pub netdev: Option<String>,
    /// Is there a link?
    #[serde(default = "yes")]
    pub up: bool,
    /// Addresses of the interface; each is two rows of the GID table.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Bytes.
    #[serde(default = "mtu")]
    pub mtu: u32,
    /// Rows of the GID table in place of those that follow from the addresses.
    pub gids: Option<Vec<Gid>>,
    /// What DCB says, as in a capture.
    pub qos: Option<Qos>,
}

/// A row of a GID table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gid {
    /// From 0.
    pub index: u32,
    /// As an IPv6 address.
    pub gid: std::net::Ipv6Addr,
    /// As in sysfs; left out, there is no such file.
    pub kind: Option<String>,
    /// As in sysfs; left out, there is no such file.
    pub netdev: Option<String>,
}

/// What DCB netlink says of a port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// `dscp` or `pcp`.
    pub trust: Option<String>,
    /// Priorities that are paused.
    pub pfc: Option<Vec<u8>>,
    /// DSCP to priority.
    pub dscp: Option<BTreeMap<String, u8>>,
}

/// A display controller or accelerator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// As [`Nic::at`].
    pub at: String,
    /// `nvidia`, `amd`, `intel` or `aspeed` (the service processor's VGA, which is no GPU).
    pub vendor: String,
    /// Left out, the vendor's; empty, none is bound.
    pub driver: Option<String>,
    /// `numa_node` where it isn't that of the host bridge.
    pub numa: Option<i32>,
}

/// An interface that is no NIC's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `DEVTYPE`: `vlan`, `bond`, `bridge`, `vxlan`, ...
    pub kind: Option<String>,
    /// The interfaces below it.
    #[serde(default)]
    pub lower: Vec<String>,
    /// Addresses; they are in the GID tables of the RDMA devices below it.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Is there a link?
    #[serde(default = "yes")]
    pub up: bool,
    /// Bytes.
    #[serde(default = "mtu")]
    pub mtu: u32,
}

/// A software RDMA device (rxe).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Soft {
    /// Its name.
    pub device: String,
    /// The interface it runs over.
    pub over: String,
    /// Gbit/s.
    #[serde(default = "soft_rate")]
    pub rate: u32,
}

impl Machine {
    /// Reads a description.
    ///
    /// # Errors
    /// When the text is no description, with the line; or when it names what doesn't exist.
    pub fn parse(text: &str) -> Result<Self, MachineError> {
        let machine: Self = toml::from_str(text)?;
        machine.check()?;
        Ok(machine)
    }

    fn check(&self) -> Result<(), MachineError> {
        let nonsense = |problem: String| Err(MachineError::Nonsense(problem));
        let mut known: Vec<&str> = Vec::new();
        let own = self.nic.iter().flat_map(|nic| nic.ports().filter_map(|port| port.netdev.as_deref()));
        for name in own.chain(self.interface.iter().map(|interface| interface.name.as_str())) {
            if known.contains(&name) {
                return nonsense(format!("interface {name} twice"));
            }
            known.push(name);
        }
        let below = self.interface.iter().flat_map(|interface| &interface.lower);
        for name in below.chain(self.soft.iter().map(|soft| &soft.over)) {
            if !known.contains(&name.as_str()) {
                return nonsense(format!("no interface {name}"));
            }
        }
        for numa in &self.numa {
            numa.cpu_set()?;
        }
        if !self.distances.is_empty()
            && (self.distances.len() != self.numa.len()
                || self.distances.iter().any(|row| row.len() != self.numa.len()))
        {
            return nonsense(format!("the distances are no {0} rows of {0}", self.numa.len()));
        }
        Ok(())
    }

    /// The NUMA nodes with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &Numa)> {
        self.numa.iter().zip(0..).map(|(numa, position)| (numa.id.unwrap_or(position), numa))
    }
}

impl Numa {
    pub(crate) fn cpu_set(&self) -> Result<CpuSet, MachineError> {
        self.cpus.parse().map_err(|error| MachineError::Nonsense(format!("{error}")))
    }
}

impl Nic {
    /// Its ports, the first first.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        std::iter::once(&self.port).chain(&self.second)
    }
}

fn gid_rows() -> u32 {
    16
}

fn yes() -> bool {
    true
}

fn mlx5() -> String {
    "mlx5_core".into()
}

fn rate() -> u32 {
    100
}

fn soft_rate() -> u32 {
    10
}

fn mtu() -> u32 {
    9000
}
