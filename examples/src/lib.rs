//! Programs to copy from: what a user of roce-launcher writes.
