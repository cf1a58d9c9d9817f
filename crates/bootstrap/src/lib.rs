//! Who am I, who are the others: rank discovery and authenticated address exchange. It needs no RDMA.
//!
//! [`Bootstrap::init`] tells rank, size and nodes from the environment that srun or `rocectl run` gives a task
//! ([`Identity`]), lets the ranks find each other ([`Bootstrap::join`]), and then offers
//! [`all_gather`](Bootstrap::all_gather), [`barrier`](Bootstrap::barrier), [`broadcast`](Bootstrap::broadcast), and news of
//! ranks that are gone ([`poll_event`](Bootstrap::poll_event)).
//!
//! ```
//! use roce_bootstrap::{Bootstrap, Options};
//!
//! let mut ranks = Bootstrap::init(&Options::default())?; // alone where no launcher started it
//! let everyone = ranks.all_gather(b"my address")?;
//! assert_eq!(&everyone[ranks.rank() as usize], b"my address");
//! ranks.leave()?;
//! # Ok::<(), roce_bootstrap::Error>(())
//! ```
//!
//! # How the ranks meet
//! The first rank that comes on a node leads it: it takes the name of an abstract Unix socket that only ranks of this step
//! can know, and starts one thread. The node's other ranks connect there. Leaders find each other over TCP: a node's name
//! gives its address, its port is one of 16 candidates that every rank derives from the step's secret
//! (`HMAC(secret, job, step, node, attempt)`, inside [`Options::ports`]). Leader i calls leaders i + 1, i + 2, i + 4, ..., so that
//! each has at most 2 ceil(log2 nodes) connections, and a collective takes ceil(log2 nodes) rounds. Its result is
//! written once per node, into sealed memory that all its ranks map ([`Gathered`]).
//!
//! # What keeps strangers out
//! On a node: the other process must be of the same user (`SO_PEERCRED`), and know the step's secret (32 random bytes,
//! `SLURM_ROCE_SECRET`). Between nodes both ends prove that they know it: HMAC-SHA256 over nonces of both sides, job,
//! step, size, nodes, ranks and the role of the prover, so that no proof can be replayed, reflected or used for another job. Every
//! frame after that carries an HMAC over direction and sequence number. At most 512 callers may be unproven at a time, each
//! for [`Options::handshake`]; for one more the oldest is turned away. Payloads are authenticated, not encrypted: whoever can
//! read the network can read them.
//!
//! The secret is taken out of the environment when it is read ([`Secret::take_from_environment`]), so that the
//! programs a rank starts don't have it, and overwritten in memory when it is no longer needed.
//!
//! # Waiting, and the end
//! Every wait ends: joining after [`Options::join`], a collective after [`Options::collective`]. A rank that ends without
//! leaving is noticed by its closed connection, a node that is gone or cut off by what its kernel no longer acknowledges, a
//! process that is stopped while others wait for it by [`Options::stopped`] and [`Options::silence`]. The first such fault is told
//! to everyone, with rank and node, and ends the exchange.

mod bootstrap;
mod calls;
#[doc(hidden)]
pub mod core;
mod counters;
mod discovery;
mod environment;
mod error;
mod event;
mod frame;
mod handshake;
mod hostlist;
mod leader;
mod local;
mod mapped;
mod member;
#[doc(hidden)]
pub mod message;
mod options;
mod pmi_variables;
mod process;
mod ranks;
mod resolve;
mod run;
mod secret;
#[doc(hidden)]
pub mod simulation;
mod step;
mod stream;
mod table;
mod tcp;

pub use bootstrap::{Bootstrap, Member};
pub use counters::Counters;
pub use discovery::{Identity, Launch, Node};
pub use error::{Error, Result};
pub use event::Event;
pub use hostlist::expand_hostlist;
pub use options::Options;
pub use run::{FOREIGN_VARIABLES, LOCAL_RANK_VARIABLE, LOCAL_SIZE_VARIABLE, LocalRun};
pub use secret::{SECRET_VARIABLE, Secret};
pub use table::Gathered;
