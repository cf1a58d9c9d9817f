//! Who am I, who are the others: rank discovery and authenticated address exchange. It needs neither RDMA nor MPI.
//!
//! A program that is started many times, by srun, mpirun, `mpiexec.hydra` or `rocectl run`, finds out with it which rank it is, where the others run, and
//! what they have to say: an address, a key, a seed. That is all that codes need who talk over sockets of their own.
//!
//! | call | does |
//! | --- | --- |
//! | [`Bootstrap::init`] | who this rank is ([`Identity`]), and meets the others |
//! | [`card_of`](Bootstrap::card_of) | what each rank told with [`Options::card`] while joining: no second exchange is needed |
//! | [`all_gather`](Bootstrap::all_gather), [`broadcast`](Bootstrap::broadcast), [`barrier`](Bootstrap::barrier) | collectives over at most 1 MiB of each rank |
//! | [`poll_event`](Bootstrap::poll_event) | who is gone, without waiting |
//! | [`abort`](Bootstrap::abort), [`leave`](Bootstrap::leave) | the end, for all or for this rank |
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
//! Ranks that speak TCP among themselves, each with a port that the kernel chose. Threads stand for the processes that a launcher
//! would have started:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//! use std::thread;
//!
//! use roce_bootstrap::{Bootstrap, Identity, Launch, Node, Options, Secret};
//!
//! /// Sends its number to the next rank, and gives what the one before sent.
//! fn ring(identity: Identity, secret: &Secret) -> Result<u8, Box<dyn std::error::Error + Send + Sync>> {
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let card = listener.local_addr()?.to_string().into_bytes();
//!     let ranks = Bootstrap::join(identity, Some(secret), &Options { card, ..Options::default() })?;
//!
//!     let next = (ranks.rank() + 1) % ranks.size();
//!     let address = std::str::from_utf8(ranks.card_of(next).unwrap_or_default())?;
//!     TcpStream::connect(address)?.write_all(&[u8::try_from(ranks.rank())?])?;
//!     let mut number = [0];
//!     listener.accept()?.0.read_exact(&mut number)?;
//!     ranks.leave()?;
//!     Ok(number[0])
//! }
//!
//! let secret = Secret::random()?;
//! // Two nodes, both this machine: the first with two ranks, the second with one.
//! let node = |tasks| Node { name: "127.0.0.1".to_owned(), tasks };
//! let nodes = vec![node(2), node(1)];
//! let place = |rank, node_index, local_rank| {
//!     Identity { rank, size: 3, node_index, local_rank, nodes: nodes.clone(), launch: Launch::Rocectl }
//! };
//! let numbers = thread::scope(|scope| {
//!     let secret = &secret;
//!     let ranks = [place(0, 0, 0), place(1, 0, 1), place(2, 1, 0)].map(|rank| scope.spawn(|| ring(rank, secret)));
//!     ranks.map(|rank| rank.join().unwrap().unwrap())
//! });
//! assert_eq!(numbers, [2, 0, 1]);
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
//! Every wait ends: joining after [`Options::join`], a collective after [`Options::collective`]. The first fault is told to
//! everyone, with rank and node, and ends the exchange:
//!
//! | what happens to a rank | what is noticed | when |
//! | --- | --- | --- |
//! | its process ends without leaving | its connection closes | at once |
//! | its node is down, or cut off | the kernel there acknowledges nothing | after 1 to 1.5 s |
//! | its process is stopped (SIGSTOP) while others wait for it | its state in /proc | after [`Options::stopped`] and at most a second |
//! | its process is stopped, and it leads its node | no heartbeats come | after [`Options::silence`] |
//! | it does not come, or it ends before it has met its node's leader | it is missing | after [`Options::join`] and at most two seconds |
//!
//! A busy node is not taken for a dead one, since there the kernel answers. Time in which a job is stopped as a whole (`scontrol
//! suspend`) does not count.
//!
//! # What it costs
//! A rank: one connection and no thread; the memory for results is shared by the ranks of a node. A node: one thread in
//! one of its ranks, which sleeps but for four heartbeats a second to each of at most 2 ceil(log2 nodes) neighbours.

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
#[doc(hidden)]
pub mod handshake;
mod hostlist;
mod inbox;
mod leader;
mod local;
mod mapped;
mod member;
#[doc(hidden)]
pub mod message;
mod munge;
mod options;
mod pmi;
mod pmix;
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
#[doc(hidden)]
pub mod tcp;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;

pub use bootstrap::{Bootstrap, Member};
pub use counters::Counters;
pub use discovery::{Identity, Launch, Node};
pub use error::{Error, Result};
pub use event::Event;
pub use hostlist::expand_hostlist;
pub use options::Options;
pub use resolve::{ADDRESSES_VARIABLE, NodeAddresses};
pub use run::{FOREIGN_VARIABLES, LOCAL_RANK_VARIABLE, LOCAL_SIZE_VARIABLE, LocalRun, Run};
pub use secret::{SECRET_VARIABLE, Secret};
pub use table::Gathered;
