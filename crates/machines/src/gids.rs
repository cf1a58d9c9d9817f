//! GID tables.

use std::net::{IpAddr, Ipv6Addr};

use crate::interfaces::Built;
use crate::sysfs::Sysfs;
use crate::{Gid, MachineError};

/// The rows that Linux makes of the addresses of some interfaces: for each address one row per kind,
/// link-local addresses first.
pub(crate) fn rows(interfaces: &[&Built], kinds: &[&str]) -> Vec<Gid> {
    let mut rows = Vec::new();
    for interface in interfaces {
        let addresses = interface.link_local.map(IpAddr::V6).into_iter().chain(interface.addresses.clone());
        for address in addresses {
            let gid = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            for kind in kinds {
                let index = u32::try_from(rows.len()).unwrap_or(u32::MAX);
                let netdev = Some(interface.name.clone());
                rows.push(Gid { index, gid, kind: Some((*kind).to_owned()), netdev });
            }
        }
    }
    rows
}

/// The only row of an InfiniBand port that isn't empty.
pub(crate) fn infiniband(identifier: [u8; 8]) -> Vec<Gid> {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&identifier);
    vec![Gid { index: 0, gid: octets.into(), kind: Some("IB/RoCE v1".into()), netdev: None }]
}

/// Writes a table; of an empty row only the value, as the other files can't be read there.
pub(crate) fn write(
    sysfs: &Sysfs<'_>,
    port: &str,
    rows: &[Gid],
    length: u32,
    empty: Ipv6Addr,
) -> Result<(), MachineError> {
    sysfs.folder(&format!("{port}/gids"))?;
    let highest = rows.iter().map(|row| row.index + 1).max().unwrap_or(0);
    for index in 0..length.max(highest) {
        let row = rows.iter().find(|row| row.index == index);
        let gid = row.map_or(empty, |row| row.gid);
        let text = gid.segments().map(|group| format!("{group:04x}")).join(":");
        sysfs.file(&format!("{port}/gids/{index}"), text)?;
        if let Some(kind) = row.and_then(|row| row.kind.as_ref()) {
            sysfs.file(&format!("{port}/gid_attrs/types/{index}"), kind)?;
        }
        if let Some(netdev) = row.and_then(|row| row.netdev.as_ref()) {
            sysfs.file(&format!("{port}/gid_attrs/ndevs/{index}"), netdev)?;
        }
    }
    Ok(())
}
