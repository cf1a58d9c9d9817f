//! What the programs of `src/bin` share: whom to talk to, bytes to check, and a report of how a task was placed.

pub mod pattern;
pub mod peers;
pub mod report;
