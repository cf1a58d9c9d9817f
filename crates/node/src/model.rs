use std::collections::BTreeMap;
use std::net::IpAddr;

use roce_types::{CpuSet, DevicePort, Dscp, Gid, PciAddress, Priority, TrafficClass};

use crate::PciPlace;

/// The facts of one node, a snapshot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Online CPUs (`/sys/devices/system/cpu/online`).
    pub cpus: CpuSet,
    /// NUMA nodes, ascending by id. One node 0 with every CPU where the kernel has no NUMA support.
    pub numa_nodes: Vec<NumaNode>,
    /// Packages (sockets), ascending by id; empty where the source doesn't tell.
    pub packages: Vec<Package>,
    /// GPUs, ordered by PCI address; the position is the index that `nvidia-smi` counts by.
    pub gpus: Vec<Gpu>,
    /// RDMA ports of every kind and state, ordered by PCI address, device and port.
    pub ports: Vec<RdmaPort>,
    /// Network interfaces by name.
    pub netdevs: BTreeMap<String, Netdev>,
    /// Does `/sys/class/infiniband` exist, i.e. is an RDMA driver loaded at all? Of a source without
    /// a sysfs: does it name an RDMA port?
    pub rdma_class_exists: bool,
    /// What could not be read, one sentence each with the path.
    pub problems: Vec<String>,
}

impl Node {
    /// The NUMA node of this id.
    #[must_use]
    pub fn numa_node(&self, id: u32) -> Option<&NumaNode> {
        self.numa_nodes.iter().find(|node| node.id == id)
    }

    /// The packages that these CPUs belong to, ascending.
    #[must_use]
    pub fn packages_of(&self, cpus: &CpuSet) -> Vec<u32> {
        let touched = self.packages.iter().filter(|package| !package.cpus.intersection(cpus).is_empty());
        touched.map(|package| package.id).collect()
    }

    /// The ids of the NUMA nodes that these CPUs belong to, ascending.
    #[must_use]
    pub fn numa_nodes_of(&self, cpus: &CpuSet) -> Vec<u32> {
        let touched = self.numa_nodes.iter().filter(|node| !node.cpus.intersection(cpus).is_empty());
        touched.map(|node| node.id).collect()
    }
}

/// One NUMA node (`/sys/devices/system/node/nodeN`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumaNode {
    /// N of `nodeN`.
    pub id: u32,
    /// Its CPUs; empty for a node that only has memory.
    pub cpus: CpuSet,
    /// Distance to each node by id, in the ACPI SLIT's unit: 10 is local.
    pub distances: BTreeMap<u32, u32>,
}

/// A processor package (`physical_package_id` and `core_siblings_list` below
/// `/sys/devices/system/cpu/cpu*/topology`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// As the kernel numbers it; some firmware skips numbers.
    pub id: u32,
    /// Its online CPUs.
    pub cpus: CpuSet,
}

/// A GPU: a PCI display or 3D controller or processing accelerator (class 0x0300, 0x0302, 0x0380,
/// 0x1200) of a vendor whose driver is bound to it, so that the service processor's VGA is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Where it sits.
    pub pci: PciPlace,
    /// Whose it is.
    pub vendor: GpuVendor,
    /// NUMA node, `None` is unknown.
    pub numa_node: Option<u32>,
}

/// Who made a GPU, by PCI vendor id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuVendor {
    /// 0x10de
    Nvidia,
    /// 0x1002
    Amd,
    /// 0x8086
    Intel,
}

/// One port of an RDMA device (`/sys/class/infiniband/DEVICE/ports/PORT`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaPort {
    /// `mlx5_0:1`.
    pub name: DevicePort,
    /// What the port speaks.
    pub link_layer: LinkLayer,
    /// Logical state of the port.
    pub state: PortState,
    /// Signalling rate in Mbit/s (`rate`), `None` where the driver doesn't tell.
    pub rate_mbit: Option<u64>,
    /// The PCI function of the device, or of the netdev under a software device.
    pub pci: Option<PciPlace>,
    /// NUMA node of that function. `None` is unknown, not 0.
    pub numa_node: Option<u32>,
    /// Image GUID of the chip (`sys_image_guid`): the functions of one card share it. `None` where
    /// the driver gives none.
    pub asic: Option<String>,
    /// The physical function of a virtual function (SR-IOV, `device/physfn`).
    pub physical_function: Option<PciAddress>,
    /// What the port does with packets of each class; `None` where nothing was read.
    pub qos: Option<Qos>,
    /// The class that the vendor's driver forces on every queue pair of the device
    /// (`tc/PORT/traffic_class`, "Global tclass=N"), where one is set.
    pub forced_traffic_class: Option<TrafficClass>,
    /// The network interface of the port itself, on InfiniBand that of IPoIB; `None` where there is
    /// none or it is unknown.
    pub netdev: Option<String>,
    /// The rows of the GID table that are not empty, ascending by index.
    pub gids: Vec<GidRow>,
}

/// The port's quality of service as IEEE 802.1Q DCB reports it. Each fact is `None` where the
/// driver can't tell, as soft-RoCE and virtual functions can't.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qos {
    /// What the port trusts in incoming packets.
    pub trust: Option<Trust>,
    /// The DSCP-to-priority table.
    pub dscp_to_priority: Option<BTreeMap<Dscp, Priority>>,
    /// The priorities that priority flow control pauses.
    pub pfc: Option<Vec<Priority>>,
}

/// What a port takes a packet's priority from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The VLAN tag's priority bits.
    Pcp,
    /// The DSCP.
    Dscp,
}

/// What an RDMA port speaks (`link_layer`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkLayer {
    /// RoCE or iWARP.
    Ethernet,
    /// InfiniBand proper.
    InfiniBand,
    /// A word that this crate doesn't know; `unknown` where the source doesn't tell.
    Other(String),
}

/// Logical state of an RDMA port (`state`, as in `4: ACTIVE`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Ready for traffic.
    Active,
    /// Any other state, in the kernel's word: `DOWN`, `INIT`, `ARMED`, `ACTIVE_DEFER`.
    Other(String),
}

/// A row of a port's GID table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GidRow {
    /// Row number, from 0. Rows move when addresses change, so keep the value, not the index.
    pub index: u32,
    /// The value.
    pub gid: Gid,
    /// RoCE version of the row (`gid_attrs/types/INDEX`), `None` where the kernel doesn't tell.
    pub kind: Option<GidKind>,
    /// The network interface of the row (`gid_attrs/ndevs/INDEX`); a VLAN's is not the port's.
    pub netdev: Option<String>,
}

/// The kind of a GID row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GidKind {
    /// `RoCE v2`: UDP port 4791, routable, has a DSCP.
    RoceV2,
    /// `IB/RoCE v1`: an Ethertype of its own, or InfiniBand.
    RoceV1,
    /// A word that this crate doesn't know.
    Other(String),
}

/// A network interface (`/sys/class/net/NAME`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Netdev {
    /// RFC 2863 state (`operstate`): `up`, `down`, `lowerlayerdown`, ...; `unknown` also where the
    /// source doesn't tell.
    pub operstate: String,
    /// Is there a carrier? `None` while the interface is down: the kernel can't say then.
    pub carrier: Option<bool>,
    /// Bytes, `None` where unreadable.
    pub mtu: Option<u32>,
    /// Kind of a stacked or virtual device (`DEVTYPE` of `uevent`: `vlan`, `bond`, `bridge`,
    /// `vxlan`, ...), `None` for a plain interface.
    pub kind: Option<String>,
    /// The interfaces below this one: a bond's or bridge's members, a VLAN's parent (`lower_*`).
    pub lower: Vec<String>,
    /// Its IP addresses; `None` is unknown (sysfs doesn't have them, `rocectl capture` adds them).
    pub addresses: Option<Vec<IpAddr>>,
}
