//! `/sys/class/infiniband`.

use std::net::Ipv6Addr;

use crate::interfaces::{Built, Mac, with_gids};
use crate::pci::Place;
use crate::sysfs::Sysfs;
use crate::{Machine, MachineError, Nic, Soft, gids};

const BOTH_KINDS: [&str; 2] = ["IB/RoCE v1", "RoCE v2"];

pub(crate) fn of_nic(
    machine: &Machine,
    sysfs: &Sysfs<'_>,
    nic: &Nic,
    place: &Place,
    built: &[Built],
) -> Result<(), MachineError> {
    let Some(device) = &nic.device else { return Ok(()) };
    let folder = format!("{}/infiniband/{device}", place.device);
    sysfs.link(&format!("sys/class/infiniband/{device}"), &folder)?;
    sysfs.link(&format!("{folder}/device"), &place.device)?;
    sysfs.file(&format!("{folder}/node_type"), "1: CA")?;
    let guid = |identifier: [u8; 8]| -> String {
        let groups: Vec<String> = identifier
            .chunks(2)
            .map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        groups.join(":")
    };
    sysfs.file(&format!("{folder}/node_guid"), guid(Mac::of(place, 0).identifier()))?;
    // All functions of a card say the same.
    let first = Place {
        function: String::new(),
        device: String::new(),
        address: roce_types::PciAddress { function: 0, ..place.address },
    };
    match nic.card.as_deref() {
        Some("") => {}
        Some(card) => sysfs.file(&format!("{folder}/sys_image_guid"), card)?,
        None => sysfs.file(&format!("{folder}/sys_image_guid"), guid(Mac::of(&first, 0).identifier()))?,
    }
    for (i, port) in nic.ports().enumerate() {
        let number = i + 1;
        let ports = format!("{folder}/ports/{number}");
        let layer = if nic.infiniband { "InfiniBand" } else { "Ethernet" };
        write_port(sysfs, &ports, layer, port.up, &rate(nic.rate))?;
        let rows = match (&port.gids, &port.netdev) {
            (Some(rows), _) => rows.clone(),
            (None, _) if nic.infiniband => gids::infiniband(Mac::of(place, i).identifier()),
            (None, Some(netdev)) => gids::rows(&with_gids(netdev, built), &BOTH_KINDS),
            (None, None) => Vec::new(),
        };
        // The empty rows of InfiniBand have the subnet's prefix.
        let empty =
            if nic.infiniband { Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0) } else { Ipv6Addr::UNSPECIFIED };
        gids::write(sysfs, &ports, &rows, machine.gid_rows, empty)?;
        if let Some(class) = nic.forced_tclass {
            sysfs.file(&format!("{folder}/tc/{number}/traffic_class"), format!("Global tclass={class}"))?;
        }
    }
    Ok(())
}

/// rxe knows RoCE v2 alone and has no `device`.
pub(crate) fn soft(
    machine: &Machine,
    sysfs: &Sysfs<'_>,
    soft: &Soft,
    built: &[Built],
) -> Result<(), MachineError> {
    let folder = format!("sys/devices/virtual/infiniband/{}", soft.device);
    sysfs.link(&format!("sys/class/infiniband/{}", soft.device), &folder)?;
    sysfs.file(&format!("{folder}/parent"), &soft.over)?;
    sysfs.file(&format!("{folder}/node_type"), "1: CA")?;
    sysfs.file(&format!("{folder}/sys_image_guid"), "0000:0000:0000:0000")?;
    let port = format!("{folder}/ports/1");
    write_port(sysfs, &port, "Ethernet", true, &rate(soft.rate))?;
    let rows = gids::rows(&with_gids(&soft.over, built), &["RoCE v2"]);
    gids::write(sysfs, &port, &rows, machine.gid_rows, Ipv6Addr::UNSPECIFIED)
}

fn write_port(sysfs: &Sysfs<'_>, port: &str, layer: &str, up: bool, rate: &str) -> Result<(), MachineError> {
    sysfs.file(&format!("{port}/link_layer"), layer)?;
    sysfs.file(&format!("{port}/state"), if up { "4: ACTIVE" } else { "1: DOWN" })?;
    sysfs.file(&format!("{port}/phys_state"), if up { "5: LinkUp" } else { "3: Disabled" })?;
    sysfs.file(&format!("{port}/rate"), rate)
}

/// As the kernel writes a rate, with the name of lanes and speed.
fn rate(gbit: u32) -> String {
    let lanes = match gbit {
        400 => "4X NDR",
        200 => "4X HDR",
        100 => "4X EDR",
        50 => "2X EDR",
        40 => "4X QDR",
        25 => "1X EDR",
        _ => "4X SDR",
    };
    format!("{gbit} Gb/sec ({lanes})")
}
