//! Which ports does this node have? Read from `/sys/class/infiniband`, so it needs no libibverbs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use roce_types::DevicePort;

use crate::error::{Error, Result};

/// Where the kernel lists RDMA devices.
pub const INFINIBAND: &str = "/sys/class/infiniband";

/// One port as sysfs shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SysfsPort {
    /// Device and port number.
    pub port: DevicePort,
    /// The state's name, as in `ACTIVE` (file `state`, which holds `4: ACTIVE`).
    pub state: String,
    /// `Ethernet` or `InfiniBand` (file `link_layer`).
    pub link_layer: String,
}

impl SysfsPort {
    /// Is it a RoCE port that can carry traffic now?
    #[must_use]
    pub fn is_active_roce(&self) -> bool {
        self.state == "ACTIVE" && self.link_layer == "Ethernet"
    }
}

/// Every port of every device under `infiniband` (normally [`INFINIBAND`]), by name and number. A folder
/// that does not exist is a kernel without RDMA: no port.
///
/// # Errors
/// [`Error::Sysfs`] naming the file.
pub fn read_ports(infiniband: &Path) -> Result<Vec<SysfsPort>> {
    let mut ports = Vec::new();
    for device in names(infiniband)? {
        let folder = infiniband.join(&device).join("ports");
        let mut numbers: Vec<u8> = names(&folder)?.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        for port in numbers {
            let folder = folder.join(port.to_string());
            let state = read(&folder.join("state"))?;
            let state = state.split_once(": ").map_or(state.as_str(), |(_, name)| name).to_owned();
            let link_layer = read(&folder.join("link_layer"))?;
            ports.push(SysfsPort { port: DevicePort { device: device.clone(), port }, state, link_layer });
        }
    }
    Ok(ports)
}

/// The sorted names in a folder; none where it does not exist.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| Error::Sysfs { path: folder.to_owned(), source })?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Sysfs { path: folder.to_owned(), source })?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A sysfs attribute without its line end.
pub(crate) fn read(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::Sysfs { path: PathBuf::from(path), source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_listed_by_device_and_number() {
        let root = tempfile::tempdir().unwrap();
        for (device, port, state, layer) in [
            ("rxe1", 1, "1: DOWN", "Ethernet"),
            ("mlx5_0", 2, "4: ACTIVE", "Ethernet"),
            ("mlx5_0", 1, "4: ACTIVE", "InfiniBand"),
        ] {
            let folder = root.path().join(device).join("ports").join(port.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("state"), format!("{state}\n")).unwrap();
            fs::write(folder.join("link_layer"), format!("{layer}\n")).unwrap();
        }
        let ports = read_ports(root.path()).unwrap();
        let told: Vec<_> = ports.iter().map(|port| (port.port.to_string(), port.is_active_roce())).collect();
        assert_eq!(told, [("mlx5_0:1".into(), false), ("mlx5_0:2".into(), true), ("rxe1:1".into(), false)]);
    }

    #[test]
    fn a_kernel_without_rdma_has_no_port() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_ports(&root.path().join("infiniband")).unwrap(), []);
    }
}
