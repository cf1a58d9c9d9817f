//! Sources of a node besides a sysfs tree, and the capture that writes one.

mod anonymise;
pub(crate) mod archive;
mod capture;
mod error;
mod hwloc;
mod hwloc_device;
pub(crate) mod mask;
mod nccl;
mod read_any;
mod xml;

pub use capture::{Captured, capture};
pub use error::SourceError;
pub use read_any::{read_any, read_bytes};
