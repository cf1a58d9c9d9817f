//! Rank discovery, address exchange and RC queue pairs over RoCE for codes without MPI.
//!
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), roce_launcher::Error> {
//! let mut job = roce_launcher::Job::init()?; // every rank, under srun or alone
//! let peer = job.rank() ^ 1;
//! let mut pair = job.connect(&[peer])?.remove(0); // every rank: names whom it wants to talk to
//!
//! let patience = Duration::from_secs(10);
//! let incoming = pair.buffer(4096)?;
//! let receive = pair.post_receive(incoming)?;
//! let mut outgoing = pair.buffer(4096)?;
//! outgoing.as_mut_slice().fill(7);
//! pair.send(outgoing, 4096, patience)?;
//! let received = pair.wait(receive, patience)?;
//! assert_eq!(received.buffer.as_slice()[..received.bytes], [7; 4096]);
//! job.finalize()?;
//! # Ok(()) }
//! ```
//!
//! # What happens when
//! - [`Job::init`] finds out rank and size, meets the other ranks, opens the assigned NIC ports and tells the others
//!   about them. If any rank has no usable port, *every* rank gets an error that says which and why. No queue
//!   pair is made.
//! - [`Job::connect`] is collective and brings up reliable queue pairs between the pairs of ranks that name each other.
//! - Everything else concerns one queue pair, and has a deadline.
//!
//! # Which NIC
//! The spank_roce plugin assigns ports, GIDs, rails and the traffic class through `ROCE_*` variables
//! ([`Assignment`]). Without it a rank takes every active RoCE port of its node, in the order of their names, and
//! traffic class 0.

mod agree;
mod assignment;
mod card;
mod collectives;
mod connect;
mod endpoint;
mod environment;
mod error;
mod job;
mod messages;
mod queue_pair;
mod rail;
mod transport;

pub use assignment::{Assignment, Nic, Source};
pub use collectives::{And, Max, Min, Operator, Or, Product, Sum, Xor};
pub use error::{Error, Result};
pub use job::Job;
pub use messages::{
    Any, Communicator, Completed, Pending, Request, Scope, Source as MessageSource, Status, Tag, wait_all,
    wait_any,
};
pub use queue_pair::{Done, QueuePair};

pub use roce_bootstrap::Options;
pub use roce_types::{CpuSet, DevicePort, Dscp, Gid, Priority, TrafficClass};
pub use roce_verbs::{Buffer, Error as VerbsError, Mtu, Readback, RemoteWindow, Window, WorkId};
