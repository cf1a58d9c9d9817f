//! The safe, owned face of libibverbs, loaded at run time.
//!
//! What it does: opens an RDMA device, registers memory, creates RC queue pairs, brings them up over
//! RoCE v2 with a chosen GID, traffic class and service level, reads back what the kernel made of
//! that, and moves bytes by send/receive, RDMA write and RDMA read. It sends datagrams to peers that there is no connection to yet,
//! and packets over many connections that share their receives.
//!
//! What it does not do: find peers (roce-bootstrap does), choose a NIC or a GID (roce-plan does), or
//! speak InfiniBand's LIDs, atomics.
//!
//! # Handles
//! ```text
//! Context (an open device)
//!  +- ProtectionDomain
//!  |   +- Buffer          registered, local access only: belongs to one operation at a time
//!  |   +- Window          registered, peers may read and write it: copied in and out, never borrowed
//!  |   +- QueuePair ----+ uses one
//!  |   +- Datagrams ----+ uses one
//!  |   +- PacketQueue     a completion queue, a shared receive queue and packet buffers, for any number of
//!  |   |   +- PacketPair  connections, which other threads may make
//!  |   +- Registration    memory of the program's, for RDMA reads
//!  |   +- RegistrationCache  keeps registrations for the next use of the same memory
//!  +- CompletionQueue <-+ owns the buffer of every operation that is not reaped yet
//! ```
//! Every handle owns its parents, so they can be dropped in any order. Dropping never panics and
//! cannot report; `close` does.
//!
//! # Soundness
//! Memory that the device may write is never reachable as a slice at the same time:
//! - a [`Buffer`] is registered without remote access, so the device touches it only while an operation
//!   that names it is outstanding. Posting takes the buffer away, the completion brings it back;
//! - a [`Window`] is registered with remote access, so it may change at any moment: its bytes are only
//!   copied in and out with volatile accesses;
//! - a [`PacketQueue`] shows a packet only between its completion and its being posted again;
//! - a [`Registration`] is of memory that its maker promises to keep and leave alone (`unsafe`), until it is dropped;
//! - what a [`RegistrationCache`] keeps is of memory that is the program's again: no operation names it, and it is found again only
//!   where the kernel has told of nothing that became of that memory (userfaultfd);
//! - memory is freed after `ibv_dereg_mr`, and the buffers of a queue pair after `ibv_destroy_qp`. Where
//!   one of these fails, the memory is leaked rather than freed under the device.
//!
//! # fork
//! `ibv_fork_init(3)` is called once, before the first device is opened, and the memory of buffers and windows always
//! fills whole pages of its own, so a child made with `fork` (as `system` and `popen` do) cannot break the
//! parent's registrations. Kernels from 5.12 copy pinned pages at fork and need nothing more; only there registrations of a
//! program's own memory are kept. The child itself must not use any handle.

mod completion;
mod completion_queue;
mod connection;
mod context;
mod datagram;
mod entries;
mod error;
mod gid_table;
mod library;
mod memory;
mod mtu;
mod notice;
mod packet_queue;
mod packets;
mod pair;
mod queue_pair;
mod readback;
mod registration;
mod registration_cache;
mod userfault;
mod watcher;

pub use completion::{Completion, CompletionError, Operation, WorkId};
pub use completion_queue::CompletionQueue;
pub use connection::{Connection, MIN_RNR_TIMER, Path, RETRY_COUNT, RNR_RETRY, TIMEOUT};
pub use context::{Context, Limits, PortState, ProtectionDomain};
pub use datagram::{Address, DATAGRAM_OFFSET, Datagrams};
pub use error::{Error, Result};
pub use gid_table::{GidRow, GidType, find_roce_v2, read_gid_table};
pub use library::{ForkSafety, device_names, fork_safety};
pub use memory::{Buffer, RemoteWindow, Window};
pub use mtu::Mtu;
pub use notice::Event;
pub use packet_queue::{Came, EntryPlace, Found, Kept, Movement, PacketQueue, Told};
pub use packets::{PacketPair, PacketRoom, Packets};
pub use queue_pair::{Depth, QueuePair, Rejected};
pub use readback::Readback;
pub use registration::{Access, Registration};
pub use registration_cache::{Held, Keep, RegistrationCache};

/// Where the kernel lists RDMA devices.
pub const INFINIBAND: &str = "/sys/class/infiniband";
