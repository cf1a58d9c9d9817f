use std::path::PathBuf;

use roce_types::PciAddress;

/// Where a PCI function sits in the tree of bridges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciPlace {
    /// The function itself. First, so that places sort by address.
    pub address: PciAddress,
    /// The host bridge (root complex) that all begins at, as the kernel names it: `pci0000:20`;
    /// empty where the source doesn't tell.
    pub host_bridge: String,
    /// The bridges between the two, from the top down: root port, then a switch's upstream port
    /// and its downstream port, ...
    pub bridges: Vec<PciAddress>,
}

/// How two PCI functions reach each other, nearest first. The names are those of the field's
/// topology tools (`nvidia-smi topo -m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PciRelation {
    /// Functions of one device.
    SameDevice,
    /// Through one switch (PIX).
    OneSwitch,
    /// Through several switches, below one host bridge's port (PXB).
    SeveralSwitches,
    /// Through the host bridge (PHB).
    HostBridge,
    /// Below different host bridges.
    Apart,
}

impl PciPlace {
    /// Reads a device's ancestry: its folder and those above it, nearest first, as
    /// `pci0000:20/0000:20:01.0/0000:21:00.0`. Folders that are no PCI function (`virtio3`) are
    /// passed over.
    pub(crate) fn from_ancestry(ancestry: &[PathBuf]) -> Option<Self> {
        let names = || ancestry.iter().filter_map(|folder| folder.file_name()?.to_str());
        let mut functions = names().filter_map(|name| name.parse::<PciAddress>().ok());
        let address = functions.next()?;
        let mut bridges: Vec<PciAddress> = functions.collect();
        bridges.reverse();
        // The topmost host bridge; a VMD controller makes further domains below a function.
        let host_bridge = names().rfind(|name| name.starts_with("pci")).unwrap_or_default();
        Some(Self { address, host_bridge: host_bridge.to_owned(), bridges })
    }

    /// Are these functions of one device (the two ports of a card, say)?
    #[must_use]
    pub fn is_same_device(&self, other: &Self) -> bool {
        let device = |place: &Self| (place.address.domain, place.address.bus, place.address.device);
        device(self) == device(other)
    }

    /// How this function reaches the other.
    #[must_use]
    pub fn relation(&self, other: &Self) -> PciRelation {
        if self.is_same_device(other) {
            return PciRelation::SameDevice;
        }
        if self.host_bridge != other.host_bridge || self.host_bridge.is_empty() {
            return PciRelation::Apart;
        }
        let common = self.bridges.iter().zip(&other.bridges).take_while(|(a, b)| a == b).count();
        // Below the last common bridge, a switch has one downstream port on the way to each.
        let below = |place: &Self| place.bridges.len() - common;
        match common {
            0 => PciRelation::HostBridge,
            _ if below(self) <= 1 && below(other) <= 1 => PciRelation::OneSwitch,
            _ => PciRelation::SeveralSwitches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place from a path below `sys/devices`.
    fn place(path: &str) -> PciPlace {
        let full = PathBuf::from(path);
        let ancestry: Vec<PathBuf> = full.ancestors().map(PathBuf::from).collect();
        PciPlace::from_ancestry(&ancestry).unwrap()
    }

    #[test]
    fn a_path_is_read_from_the_host_bridge_down() {
        let nic = place("pci0000:20/0000:20:01.0/0000:21:00.0/0000:22:04.0/0000:23:00.0/virtio3");
        assert_eq!(nic.address.to_string(), "0000:23:00.0");
        assert_eq!(nic.host_bridge, "pci0000:20");
        let bridges: Vec<String> = nic.bridges.iter().map(ToString::to_string).collect();
        assert_eq!(bridges, ["0000:20:01.0", "0000:21:00.0", "0000:22:04.0"]);
        assert_eq!(PciPlace::from_ancestry(&[PathBuf::from("/sys/devices/virtual/net/lo")]), None);
    }

    #[test]
    fn relations_are_told_apart() {
        let gpu = place("pci0000:20/0000:20:01.0/0000:21:00.0/0000:22:00.0/0000:23:00.0");
        let relation = |path| gpu.relation(&place(path));
        assert_eq!(
            relation("pci0000:20/0000:20:01.0/0000:21:00.0/0000:22:00.0/0000:23:00.1"),
            PciRelation::SameDevice
        );
        assert_eq!(
            relation("pci0000:20/0000:20:01.0/0000:21:00.0/0000:22:04.0/0000:24:00.0"),
            PciRelation::OneSwitch
        );
        assert_eq!(
            relation(
                "pci0000:20/0000:20:01.0/0000:21:00.0/0000:22:08.0/0000:25:00.0/0000:26:00.0/0000:27:00.0"
            ),
            PciRelation::SeveralSwitches
        );
        assert_eq!(relation("pci0000:20/0000:20:02.0/0000:30:00.0"), PciRelation::HostBridge);
        assert_eq!(relation("pci0000:40/0000:40:01.0/0000:41:00.0"), PciRelation::Apart);
    }
}
