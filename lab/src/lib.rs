//! A real Slurm + soft-RoCE cluster in QEMU guests: boot it, run on it, capture its wires.
//!
//! A machine without RDMA hardware can still show what a NIC would send: each guest has one virtio NIC per rail with
//! a soft-RoCE device on top, hung off a PCI bridge of its own NUMA node, and each rail is a wire of its own. The
//! wires run through this process, which writes every frame into a capture.
//!
//! ```no_run
//! use roce_lab::{Cluster, GuestRoot, Interrupt, Options, Software};
//! use std::{path::Path, time::Duration};
//!
//! # fn main() -> Result<(), roce_lab::Error> {
//! let interrupt = Interrupt::on_signals()?;
//! let cache = Path::new("target/lab");
//! let root = GuestRoot::ensure(cache, "trixie", Software::Rdma, &interrupt)?;
//! let options = Options::new("target/lab/run");
//! let cluster = Cluster::boot(&root, options, &interrupt)?;
//! let mark = cluster.captures().mark();
//! let output = cluster.run("vm1", "srun -N2 hostname", Duration::from_secs(30))?;
//! println!("{}{} packets", output.stdout, cluster.captures().packets_since(&mark)?.len());
//! cluster.shut_down()?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Suite`] is the small sibling: no guest, but a Debian suite's root, and with it another Slurm, on this machine's kernel.
//!
//! What it does not do: it never touches the machine's own network, and it leaves no process behind, however it ends.

mod accelerator;
mod cluster;
mod command;
mod console;
mod error;
mod guest_root;
mod interrupt;
mod mirror;
mod options;
pub mod packages;
pub mod process;
mod qemu;
pub mod roots;
pub mod scenario;
mod share;
mod suite;
mod switch;
pub mod wire;

pub use accelerator::Accelerator;
pub use cluster::Cluster;
pub use command::Output;
pub use error::{Error, GuestFault};
pub use guest_root::{GuestRoot, Software};
pub use interrupt::Interrupt;
pub use options::Options;
pub use process::Process;
pub use suite::Suite;
pub use wire::Captures;
