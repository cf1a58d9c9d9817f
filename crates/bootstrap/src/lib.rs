//! Who am I, who are the others: rank discovery and authenticated address exchange. It needs no RDMA.
//!
//! [`Bootstrap::init`] tells rank, size and nodes from the environment that srun or `rocectl run` gives a task
//! ([`Identity`]), lets the ranks find each other over TCP ([`Bootstrap::join`]), and then offers
//! [`all_gather`](Bootstrap::all_gather) and [`barrier`](Bootstrap::barrier).
//!
//! ```
//! # fn main() -> Result<(), roce_bootstrap::Error> {
//! use roce_bootstrap::{Bootstrap, Options};
//!
//! let mut exchange = Bootstrap::init(&Options::default())?; // alone where no launcher started it
//! let everyone = exchange.all_gather(b"my address")?;
//! assert_eq!(everyone[exchange.identity().rank as usize], b"my address");
//! # Ok(()) }
//! ```
//!
//! # How the ranks meet
//! Rank 0 listens; its address is the step's first node, its port one of 16 candidates that every rank derives
//! from the step's secret (`HMAC(secret, job, step, attempt)`, inside [`Options::ports`]). Rank 0 takes the first
//! candidate that is free; the others try them in order, and again, until the deadline.
//!
//! # What keeps strangers out
//! Both ends prove that they know the secret (32 random bytes, `SLURM_ROCE_SECRET`): HMAC-SHA256 over nonces
//! of both sides, job, step, size, rank and the role of the prover, so that no proof can be replayed, reflected or
//! used for another job. Every frame after that carries an HMAC over direction and sequence number. A stranger
//! who connects and stays silent costs one thread for [`Options::handshake`]. Payloads are authenticated, not
//! encrypted: whoever can read the network can read them.
//!
//! The secret is taken out of the environment when it is read ([`Secret::take_from_environment`]), so that the
//! programs a rank starts don't have it, and overwritten in memory when the ranks have met.
//!
//! # Waiting
//! Every wait ends: joining after [`Options::join`], a collective after [`Options::collective`]. A rank whose
//! process ends is noticed at once by its closed connection, and rank 0 tells the others.

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
