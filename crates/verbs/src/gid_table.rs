//! A port's GID table, read from sysfs, and the row of a GID by its value: rows move, values stay.

use std::fs;
use std::io;
use std::path::Path;

use roce_types::{DevicePort, Gid};

use crate::error::{Error, Result};

/// What a row of the table is for (`gid_attrs/types/N`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GidType {
    /// RoCE v2: UDP port 4791, the traffic class is the IP header's.
    RoceV2,
    /// RoCE v1 or InfiniBand: no IP header, so no DSCP.
    Other,
}

/// One filled row of a port's GID table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GidRow {
    /// The row's number.
    pub index: u32,
    /// Its value.
    pub gid: Gid,
    /// What it is for.
    pub kind: GidType,
    /// The netdev it belongs to (`gid_attrs/ndevs/N`), where the kernel tells.
    pub netdev: Option<String>,
}

/// The filled rows of a port's table, ascending. `infiniband` is normally [`INFINIBAND`](crate::INFINIBAND).
///
/// # Errors
/// [`Error::Sysfs`] or [`Error::SysfsContent`] naming the file.
pub fn read_gid_table(infiniband: &Path, port: &DevicePort) -> Result<Vec<GidRow>> {
    let folder = infiniband.join(&port.device).join("ports").join(port.port.to_string());
    let gids = folder.join("gids");
    let entries = fs::read_dir(&gids).map_err(|source| Error::Sysfs { path: gids.clone(), source })?;
    let mut rows = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Sysfs { path: gids.clone(), source })?;
        let name = entry.file_name();
        let Some(index) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(text) = attribute(&entry.path())? else { continue };
        let gid: Gid = text.parse().map_err(|error: roce_types::ParseError| Error::SysfsContent {
            path: entry.path(),
            message: error.to_string(),
        })?;
        if gid.is_zero() {
            continue;
        }
        let kind = match attribute(&folder.join("gid_attrs/types").join(&name))?.as_deref() {
            Some("RoCE v2") => GidType::RoceV2,
            _ => GidType::Other,
        };
        let netdev = attribute(&folder.join("gid_attrs/ndevs").join(&name))?;
        rows.push(GidRow { index, gid, kind, netdev });
    }
    rows.sort_unstable_by_key(|row| row.index);
    Ok(rows)
}

/// An attribute's text, `None` for an empty row: the kernel answers EINVAL for one, and a row may go away
/// between listing and reading.
fn attribute(path: &Path) -> Result<Option<String>> {
    let text = fs::read_to_string(path).map_err(|source| Error::Sysfs { path: path.to_owned(), source });
    match text {
        Err(Error::Sysfs { source, .. })
            if source.raw_os_error() == Some(libc::EINVAL) || source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        text => text.map(|text| Some(text.trim_end().to_owned())),
    }
}

/// The row that holds `gid` as RoCE v2 now, in the eight bits that an address handle has for it.
///
/// # Errors
/// [`Error::GidNotFound`] lists what the table has; [`Error::GidIndexTooHigh`] for a row above 255.
///
/// # Example
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let port = "mlx5_0:1".parse()?;
/// let table = roce_verbs::read_gid_table(roce_verbs::INFINIBAND.as_ref(), &port)?;
/// let index = roce_verbs::find_roce_v2(&table, &port, "::ffff:10.0.0.1".parse()?)?;
/// # Ok(()) }
/// ```
pub fn find_roce_v2(table: &[GidRow], port: &DevicePort, gid: Gid) -> Result<u8> {
    let usable = || table.iter().filter(|row| row.kind == GidType::RoceV2);
    let Some(row) = usable().find(|row| row.gid == gid) else {
        let mut present: Vec<String> =
            usable().take(8).map(|row| format!("{} ({})", row.gid, row.index)).collect();
        if usable().count() > present.len() {
            present.push("...".to_owned());
        }
        let present = if present.is_empty() { "no RoCE v2 row".to_owned() } else { present.join(", ") };
        return Err(Error::GidNotFound { port: port.clone(), gid, present });
    };
    u8::try_from(row.index).map_err(|_| Error::GidIndexTooHigh { port: port.clone(), gid, index: row.index })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u32, gid: &str, kind: GidType) -> GidRow {
        GidRow { index, gid: gid.parse().unwrap(), kind, netdev: None }
    }

    fn port() -> DevicePort {
        "mlx5_0:1".parse().unwrap()
    }

    #[test]
    fn a_gid_is_found_in_its_roce_v2_row_not_in_the_v1_twin() {
        let table = [
            row(0, "fe80::1", GidType::RoceV2),
            row(2, "::ffff:10.0.0.1", GidType::Other),
            row(3, "::ffff:10.0.0.1", GidType::RoceV2),
        ];
        assert_eq!(find_roce_v2(&table, &port(), "::ffff:10.0.0.1".parse().unwrap()).unwrap(), 3);
    }

    #[test]
    fn a_gid_that_went_away_is_an_error_that_lists_what_is_there() {
        let table = [row(0, "fe80::1", GidType::RoceV2), row(5, "::ffff:10.0.0.9", GidType::RoceV2)];
        let error =
            find_roce_v2(&table, &port(), "::ffff:10.0.0.1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("mlx5_0:1 has no RoCE v2 GID ::ffff:10.0.0.1"), "{error}");
        assert!(error.contains("fe80::1 (0), ::ffff:10.0.0.9 (5)"), "{error}");
    }

    #[test]
    fn a_row_that_an_address_handle_cannot_name_is_an_error() {
        let table = [row(256, "::ffff:10.0.0.1", GidType::RoceV2)];
        let error = find_roce_v2(&table, &port(), "::ffff:10.0.0.1".parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::GidIndexTooHigh { index: 256, .. }), "{error}");
    }

    #[test]
    fn empty_and_vanished_rows_are_skipped() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mlx5_0/ports/1");
        for sub in ["gids", "gid_attrs/types", "gid_attrs/ndevs"] {
            fs::create_dir_all(folder.join(sub)).unwrap();
        }
        let write = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
        write("gids/0", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        write("gids/10", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        write("gid_attrs/types/10", "RoCE v2\n");
        write("gid_attrs/ndevs/10", "eth0\n");
        write("gids/9", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        write("gid_attrs/types/9", "IB/RoCE v1\n");
        let rows = read_gid_table(root.path(), &port()).unwrap();
        assert_eq!(
            rows.iter().map(|row| (row.index, row.kind)).collect::<Vec<_>>(),
            [(9, GidType::Other), (10, GidType::RoceV2)]
        );
        assert_eq!(rows[1].netdev.as_deref(), Some("eth0"));
    }
}
