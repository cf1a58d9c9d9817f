//! The parsers of values, for the fuzz targets and the random tests; no part of the interface.

use std::path::Path;

use roce_types::{CpuSet, DevicePort, Dscp, Gid, PciAddress};

use crate::sources::{archive, mask};
use crate::{facts, gpu, rdma};

/// Reads a text as each value that a file of sysfs may hold, and holds what is read against what
/// must be true of it.
pub fn sysfs_values(text: &str) {
    if let Ok(cpus) = text.parse::<CpuSet>() {
        assert_eq!(cpus.to_string().parse::<CpuSet>().as_ref(), Ok(&cpus));
    }
    if let Ok(gid) = text.parse::<Gid>() {
        assert_eq!(gid.to_string().parse::<Gid>(), Ok(gid));
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse::<PciAddress>(), Ok(address));
    }
    if let Ok(port) = text.parse::<DevicePort>() {
        assert_eq!(port.to_string().parse::<DevicePort>(), Ok(port));
    }
    if let Ok(dscp) = text.parse::<Dscp>() {
        assert!(dscp.get() < 64);
    }
    rdma::read_values(text);
    gpu::read_values(text);
    mask::cpus(text);
}

/// Reads a text as the facts that a capture keeps beside its tree.
pub fn capture_facts(text: &str) {
    facts::read_values(text);
}

/// Unpacks an archive and checks that everything in it is inside of the folder it was unpacked to.
pub fn archive(bytes: &[u8]) {
    let Ok(folder) = archive::unpack(Path::new("fuzzed.tar"), bytes) else { return };
    let root = folder.path().canonicalize().expect("the folder is there");
    check_inside(&root, &root);
    // Whatever is in it, it is a node or an error.
    drop(crate::read(&root));
}

fn check_inside(root: &Path, folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("our own folder") {
        let entry = entry.expect("our own folder");
        let kind = entry.file_type().expect("our own folder");
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{:?}", entry.path());
        if let Ok(place) = entry.path().canonicalize() {
            assert!(place.starts_with(root), "{:?} is {place:?}", entry.path());
        }
        if kind.is_dir() {
            check_inside(root, &entry.path());
        }
    }
}
