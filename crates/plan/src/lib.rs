//! Pure decisions: NIC, GID, traffic class, CPU and memory binding, exports.
