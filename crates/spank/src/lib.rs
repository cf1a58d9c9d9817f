//! The SPANK ABI: declarations, the panic guard, the version tag.
