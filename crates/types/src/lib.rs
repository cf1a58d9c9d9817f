//! Small value types shared by every crate: [`Gid`], [`PciAddress`], [`CpuSet`], [`Dscp`],
//! [`Priority`], [`TrafficClass`], [`DevicePort`].
//!
//! Each is plain data: it parses strictly, prints the way the field writes it, and does no I/O.

mod cpu_set;
mod device_port;
mod dscp;
mod gid;
mod pci;

pub use cpu_set::CpuSet;
pub use device_port::DevicePort;
pub use dscp::{Dscp, Priority, TrafficClass};
pub use gid::Gid;
pub use pci::PciAddress;

/// A text that is not of the form that its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{found}\" is not {expected}")]
pub struct ParseError {
    /// What was found, as it stood (cut after 64 characters, control characters escaped).
    pub found: String,
    /// What would have been accepted, as a noun phrase: "a GID such as fe80::1".
    pub expected: &'static str,
}

impl ParseError {
    pub(crate) fn new(found: &str, expected: &'static str) -> Self {
        let found = found.chars().take(64).flat_map(char::escape_default).collect();
        Self { found, expected }
    }
}
