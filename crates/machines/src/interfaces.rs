//! `/sys/class/net`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::pci::Place;
use crate::sysfs::Sysfs;
use crate::{Machine, MachineError, Nic};

/// An interface that is in the tree.
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// The address that every Ethernet interface that is up has.
    pub(crate) link_local: Option<Ipv6Addr>,
    folder: String,
    lower: Vec<String>,
    is_bond: bool,
}

/// What differs between interfaces.
struct Files<'a> {
    folder: &'a str,
    name: &'a str,
    mac: &'a str,
    up: bool,
    mtu: u32,
    kind: Option<&'a str>,
    dev_port: usize,
    /// ARPHRD: 1 Ethernet, 32 InfiniBand, 772 loopback.
    hardware: u32,
}

fn write(sysfs: &Sysfs<'_>, files: &Files<'_>) -> Result<(), MachineError> {
    let folder = files.folder;
    sysfs.file(&format!("{folder}/operstate"), if files.up { "up" } else { "down" })?;
    sysfs.file(&format!("{folder}/carrier"), u8::from(files.up))?;
    sysfs.file(&format!("{folder}/mtu"), files.mtu)?;
    sysfs.file(&format!("{folder}/address"), files.mac)?;
    sysfs.file(&format!("{folder}/type"), files.hardware)?;
    sysfs.file(&format!("{folder}/dev_port"), files.dev_port)?;
    let kind = files.kind.map(|kind| format!("DEVTYPE={kind}\n")).unwrap_or_default();
    sysfs.file(&format!("{folder}/uevent"), format!("{kind}INTERFACE={}\nIFINDEX=2", files.name))?;
    sysfs.link(&format!("{folder}/subsystem"), "sys/class/net")?;
    sysfs.link(&format!("sys/class/net/{}", files.name), folder)
}

pub(crate) fn loopback(sysfs: &Sysfs<'_>) -> Result<Built, MachineError> {
    let folder = "sys/devices/virtual/net/lo";
    let files = Files {
        folder,
        name: "lo",
        mac: "00:00:00:00:00:00",
        up: true,
        mtu: 65536,
        kind: None,
        dev_port: 0,
        hardware: 772,
    };
    write(sysfs, &files)?;
    // The kernel says that of an interface without a notion of links.
    sysfs.file(&format!("{folder}/operstate"), "unknown")?;
    Ok(Built {
        name: "lo".into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
        link_local: None,
        folder: folder.into(),
        lower: Vec::new(),
        is_bond: false,
    })
}

/// The interfaces of a NIC's ports.
pub(crate) fn of_nic(sysfs: &Sysfs<'_>, nic: &Nic, place: &Place) -> Result<Vec<Built>, MachineError> {
    let mut built = Vec::new();
    for (i, port) in nic.ports().enumerate() {
        let Some(name) = &port.netdev else { continue };
        let folder = format!("{}/net/{name}", place.device);
        let mac = Mac::of(place, i);
        let hardware = if nic.infiniband { 32 } else { 1 };
        let files = Files {
            folder: &folder,
            name,
            mac: &mac.text(),
            up: port.up,
            mtu: port.mtu,
            kind: None,
            dev_port: i,
            hardware,
        };
        write(sysfs, &files)?;
        sysfs.link(&format!("{folder}/device"), &place.device)?;
        built.push(Built {
            name: name.clone(),
            addresses: port.addresses.clone(),
            link_local: (!nic.infiniband && port.up).then(|| mac.link_local()),
            folder,
            lower: Vec::new(),
            is_bond: false,
        });
    }
    Ok(built)
}

/// The interfaces over others: bonds, VLANs, bridges.
pub(crate) fn stacked(
    machine: &Machine,
    sysfs: &Sysfs<'_>,
    built: &mut Vec<Built>,
) -> Result<(), MachineError> {
    let mut bonds = Vec::new();
    for (number, interface) in machine.interface.iter().enumerate() {
        let folder = format!("sys/devices/virtual/net/{}", interface.name);
        // It has the address of the first interface below it, as in Linux.
        let inherited = built
            .iter()
            .find(|below| interface.lower.contains(&below.name))
            .and_then(|below| below.link_local);
        let own = Mac([0x02, 0, 0, 0, 1, u8::try_from(number).unwrap_or(u8::MAX)]);
        let files = Files {
            folder: &folder,
            name: &interface.name,
            mac: &own.text(),
            up: interface.up,
            mtu: interface.mtu,
            kind: interface.kind.as_deref(),
            dev_port: 0,
            hardware: 1,
        };
        write(sysfs, &files)?;
        let kind = interface.kind.as_deref().unwrap_or_default();
        let is_master = matches!(kind, "bond" | "bridge");
        for lower in &interface.lower {
            let below = built.iter_mut().find(|below| below.name == *lower);
            let below = below
                .ok_or_else(|| MachineError::Nonsense(format!("{} comes before {lower}", interface.name)))?;
            sysfs.link(&format!("{folder}/lower_{lower}"), &below.folder)?;
            sysfs.link(&format!("{}/upper_{}", below.folder, interface.name), &folder)?;
            if is_master {
                sysfs.link(&format!("{}/master", below.folder), &folder)?;
                // The addresses are the master's from then on.
                below.link_local = None;
            }
        }
        if kind == "bond" {
            bonds.push(interface.name.clone());
            sysfs.file(&format!("{folder}/bonding/slaves"), interface.lower.join(" "))?;
            sysfs.file(&format!("{folder}/bonding/mode"), "802.3ad 4")?;
        }
        built.push(Built {
            name: interface.name.clone(),
            addresses: interface.addresses.clone(),
            link_local: interface.up.then(|| inherited.unwrap_or_else(|| own.link_local())),
            folder,
            lower: interface.lower.clone(),
            is_bond: kind == "bond",
        });
    }
    if bonds.is_empty() { Ok(()) } else { sysfs.file("sys/class/net/bonding_masters", bonds.join(" ")) }
}

/// The interfaces whose addresses are in the GID table of a port, given the port's own: it and all
/// that are stacked on it.
pub(crate) fn with_gids<'a>(netdev: &str, built: &'a [Built]) -> Vec<&'a Built> {
    let mut names = vec![netdev.to_owned()];
    let mut found: Vec<&Built> = built.iter().filter(|interface| interface.name == netdev).collect();
    // A stacked interface comes after what it is stacked on.
    for interface in built {
        if interface.lower.iter().any(|lower| names.contains(lower)) {
            names.push(interface.name.clone());
            found.push(interface);
        }
    }
    // The port of a bond has no rows of its own.
    if found.iter().any(|interface| interface.is_bond && interface.lower.iter().any(|lower| lower == netdev))
    {
        found.retain(|interface| interface.name != netdev);
    }
    found
}

/// An Ethernet address.
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// Made from the place of the port, so that it is the same in each build.
    pub(crate) fn of(place: &Place, port: usize) -> Self {
        let address = place.address;
        let domain = u8::try_from(address.domain & 0x7f).unwrap_or_default();
        let port = if port == 0 { 0 } else { 0x80 };
        Self([0xb8, 0xce, 0xf6, domain | port, address.bus, address.device << 3 | address.function])
    }

    pub(crate) fn text(&self) -> String {
        self.0.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// RFC 4291, appendix A.
    pub(crate) fn identifier(&self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.0;
        [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
    }

    pub(crate) fn link_local(&self) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        octets[8..].copy_from_slice(&self.identifier());
        octets.into()
    }
}
