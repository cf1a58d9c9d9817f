//! A Slurm on this machine: munged, slurmctld and slurmd of the distribution, started in a temporary folder with keys, ports and
//! configuration of their own. Nothing under /etc is read or written.
//!
//! [`Cluster::start`] gives one node with the plugin in it, which the tests with real Slurm, the soak and the benchmark of
//! the plugin share; [`Cluster::start_many`] several nodes without it, for what happens between nodes.

pub mod cluster;
mod many;
pub mod prerequisites;
pub mod processes;
pub mod run;
pub mod sysfs;

pub use cluster::Cluster;
