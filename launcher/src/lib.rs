//! Messages between ranks, and RC queue pairs over RoCE, for codes without MPI.
//!
//! ```
//! use roce_launcher::{Job, Sum};
//!
//! let job = Job::init()?; // every rank, under srun, mpirun, rocectl run, or alone
//! let world = job.world();
//! let (rank, size) = (world.rank(), world.size());
//!
//! let mut from_left = [0.0_f64; 1000];
//! let to_right = [f64::from(rank); 1000];
//! world.send_receive((rank + 1) % size, 0, &to_right, (rank + size - 1) % size, 0, &mut from_left)?;
//!
//! let mut sum = [from_left[0]];
//! world.all_reduce(&mut sum, Sum)?;
//! assert_eq!(sum[0], f64::from(size * (size - 1) / 2));
//! job.finalize()?;
//! # Ok::<(), roce_launcher::Error>(())
//! ```
//!
//! # What happens when
//! - [`Job::init`] finds out rank and size, meets the other ranks, opens the assigned NIC ports and tells the others
//!   about them. If any rank can't use what it was assigned, *every* rank gets an error that says which and why. Nothing is
//!   connected yet.
//! - [`Job::world`] is a [`Communicator`]: messages, requests, scopes, collectives and windows, among all ranks or
//!   [groups](Communicator::split) of them. [`Job::describe`] says how they go to each rank.
//! - [`Job::connect`] is collective and brings up reliable queue pairs between the pairs of ranks that name each other, for who
//!   wants verbs.
//!
//! # Messages
//! They go over shared memory within a node; a long one is read by its receiver from its sender's memory where the system allows
//! that (`process_vm_readv`), else it is sent in pieces. Between nodes they go over the NICs where both ranks have ports on one
//! rail, on queue pairs that the first message to a rank makes ([`Job::queue_pairs`]), with the assignment's traffic class; else over
//! TCP. `ROCE_TRANSPORTS`, a list of `shared`, `verbs` and `tcp`, takes others away.
//!
//! Collectives choose an algorithm by the ranks, their nodes and the length: [`Communicator::algorithm`] says which, and
//! `ROCE_ALGORITHMS` which instead.
//!
//! A rank's messages move when it calls something of a communicator. Errors name the rank and its node; when a rank is gone,
//! all that others wait for ends with [`Error::Over`].
//!
//! # Windows
//! [`Communicator::window`] opens memory of each rank that the others put to, get from and change atomically without its help:
//!
//! ```
//! # let job = roce_launcher::Job::init()?;
//! # let world = job.world();
//! let done = world.window::<u64>(1)?; // how many pieces of work were taken, kept by rank 0
//! loop {
//!     let piece = done.fetch_add(0, 0, 1)?;
//!     if piece >= 100 {
//!         break;
//!     }
//!     // work on it
//! }
//! done.close()?;
//! # Ok::<(), roce_launcher::Error>(())
//! ```
//!
//! Within a node that is shared memory and needs no call of the rank whose memory it is; between nodes that rank carries it out
//! when it calls something. See [`Window`].
//!
//! # Queue pairs
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), roce_launcher::Error> {
//! let mut job = roce_launcher::Job::init()?;
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
mod memory_file;
mod messages;
mod queue_pair;
mod rail;
mod transport;
mod windows;

/// The guide's examples, as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/launcher.md")]
struct Guide;

pub use assignment::{Assignment, Nic, Source};
pub use collectives::{Algorithm, And, Choice, Collective, Max, Min, Operator, Or, Product, Sum, Xor};
pub use error::{Error, Result};
pub use job::Job;
pub use messages::{
    Any, Communicator, Completed, Pending, Request, Scope, Source as MessageSource, Status, Tag, wait_all,
    wait_any,
};
pub use queue_pair::{Done, QueuePair};
pub use windows::{Atomic, Window};

pub use roce_bootstrap::Options;
pub use roce_types::{CpuSet, DevicePort, Dscp, Gid, Priority, TrafficClass};
pub use roce_verbs::{
    Buffer, Error as VerbsError, Mtu, Readback, RemoteWindow, Window as VerbsWindow, WorkId,
};
