//! A one-node Slurm on this machine with the plugin in it: munged, slurmctld and slurmd of the distribution,
//! started in a temporary folder with keys, ports and configuration of their own. Nothing under /etc is read
//! or written.
//!
//! The tests with real Slurm, the soak and the benchmark of the plugin share it.

pub mod cluster;
pub mod prerequisites;
pub mod processes;
pub mod run;
pub mod sysfs;

pub use cluster::Cluster;
