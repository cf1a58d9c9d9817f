use roce_types::DevicePort;

/// What this crate's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a job could not start, connect or transfer: peer, node, device, cause, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ranks could not find each other, or a collective failed.
    #[error(transparent)]
    Exchange(#[from] roce_bootstrap::Error),
    /// A variable of the plugin does not have the form that it should.
    #[error(
        "{variable}={value:?}: {problem}; the spank_roce plugin sets it, so unset it rather than change it"
    )]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value, cut after 200 characters.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `ROCE_TRANSPORTS` has something that is no transport.
    #[error(
        "ROCE_TRANSPORTS={value:?}: there is no transport {name:?}; it is a list of shared, verbs and tcp, as in shared,verbs"
    )]
    Transports {
        /// Its value, cut after 200 characters.
        value: String,
        /// What is none.
        name: String,
    },
    /// There is no NIC to use.
    #[error(
        "this node ({node}) has no RoCE port: {reason}; run on nodes that have one, or load its driver (soft-RoCE: `rdma link add \
         rxe0 type rxe netdev <netdev>`) and see `rdma link`"
    )]
    NoPort {
        /// This node.
        node: String,
        /// What was looked at, and what was found there.
        reason: String,
    },
    /// A NIC port that was assigned cannot be used.
    #[error("{port} on this node ({node}) cannot be used")]
    Port {
        /// The port.
        port: DevicePort,
        /// This node.
        node: String,
        /// Why.
        source: Box<roce_verbs::Error>,
    },
    /// A NIC port that was assigned is not an active RoCE port.
    #[error("{port} on this node ({node}) cannot be used: {problem}; see `rdma link` and `ip link`")]
    PortState {
        /// The port.
        port: DevicePort,
        /// This node.
        node: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// What other ranks failed with, while this one did not.
    #[error("{reports}")]
    Others {
        /// Their words, as in `rank 3 (vm2) failed: ...`.
        reports: String,
    },
    /// A list of peers that cannot be connected to.
    #[error("rank {rank} cannot connect to rank {peer}: {problem}")]
    BadPeer {
        /// This rank.
        rank: u32,
        /// The peer named.
        peer: u32,
        /// Why not.
        problem: String,
    },
    /// Two ranks whose NICs cannot reach each other.
    #[error(
        "rank {rank} ({ours}) and rank {peer} ({theirs}) share no rail, and a NIC reaches only its own: give each rank a NIC on \
         every rail (--roce-nics=all), or let ranks of the same rail talk"
    )]
    NoSharedRail {
        /// This rank.
        rank: u32,
        /// The peer.
        peer: u32,
        /// This rank's node and NICs, as in `vm1: rxe0:1 rail 0 GID ::ffff:10.0.0.1`.
        ours: String,
        /// The peer's.
        theirs: String,
    },
    /// Two ranks that would mark their packets differently.
    #[error(
        "rank {rank} has {ours} and rank {peer} ({node}) has {theirs}: data and acknowledgements of one connection would travel in \
         different classes; start all ranks of a step with the same --roce-tc"
    )]
    ClassesDiffer {
        /// This rank.
        rank: u32,
        /// As in `traffic class 106 and service level 3`.
        ours: String,
        /// The peer.
        peer: u32,
        /// Its node.
        node: String,
        /// The peer's class.
        theirs: String,
    },
    /// A queue pair could not be brought up.
    #[error("no queue pair from {from} to {to}")]
    Connect {
        /// This end, as in `rank 0 (vm1 rxe0:1 rail 0 GID ::ffff:10.0.0.1)`.
        from: String,
        /// The peer.
        to: String,
        /// Why.
        source: Box<roce_verbs::Error>,
    },
    /// An operation on a connected queue pair failed.
    #[error("{operation} between {from} and {to} failed")]
    Transfer {
        /// What it was.
        operation: &'static str,
        /// This end, as in `rank 0 (vm1 rxe0:1 rail 0 GID ::ffff:10.0.0.1)`.
        from: String,
        /// The peer.
        to: String,
        /// Why.
        source: Box<roce_verbs::Error>,
    },
    /// This end's port failed under a connected queue pair.
    #[error("the queue pair between {from} and {to} failed with its port")]
    PortLost {
        /// This end, as in `rank 0 (vm1 rxe0:1 rail 0 GID ::ffff:10.0.0.1)`.
        from: String,
        /// The peer.
        to: String,
        /// What the port is like now.
        source: Box<Error>,
    },
    /// What another rank told could not be read.
    #[error(
        "what rank {rank} ({node}) told about itself could not be read: {problem}; do all ranks run the same build?"
    )]
    Unreadable {
        /// The rank.
        rank: u32,
        /// Its node.
        node: String,
        /// The parser's words.
        problem: String,
    },
    /// What this rank wants to tell could not be written.
    #[error("what this rank tells the others could not be written")]
    Unwritable {
        /// Why.
        source: serde_json::Error,
    },
    /// A rank could not prepare to exchange messages.
    #[error("this node ({node}) can't exchange messages: {why}")]
    Messages {
        /// This node.
        node: String,
        /// Why.
        why: String,
    },
    /// A message is longer than the memory for it. It is lost; nothing was written.
    #[error(
        "rank {source_rank} ({node}) sent {length} bytes with tag {tag}, and there is room for {room}: give the receive a longer slice, \
         or probe for the length first"
    )]
    TooLong {
        /// Who sent it, as a rank of the job.
        source_rank: u32,
        /// Its node.
        node: String,
        /// Its tag.
        tag: u32,
        /// Its length in bytes.
        length: usize,
        /// The memory's, in bytes.
        room: usize,
    },
    /// A message is no whole number of the elements that the receive asks for.
    #[error(
        "rank {source_rank} ({node}) sent {length} bytes with tag {tag}, which is no whole number of elements of {size} bytes: do both \
         sides mean the same type?"
    )]
    Uneven {
        /// Who sent it, as a rank of the job.
        source_rank: u32,
        /// Its node.
        node: String,
        /// Its tag.
        tag: u32,
        /// Its length in bytes.
        length: usize,
        /// An element's, in bytes.
        size: usize,
    },
    /// Another rank can't be reached any more, or can't be reached at all.
    #[error("no messages between rank {rank} and rank {peer} ({node}): {why}")]
    PeerLost {
        /// This rank, in the job.
        rank: u32,
        /// The peer, in the job.
        peer: u32,
        /// Its node.
        node: String,
        /// What was noticed.
        why: String,
    },
    /// The job is over: a rank is gone, or has called [`Job::abort`](crate::Job::abort).
    #[error("the job is over: {why}")]
    Over {
        /// Who, where and what.
        why: String,
    },
    /// An operation was not over in time: [`Job::set_timeout`](crate::Job::set_timeout).
    #[error("rank {rank}: {what} was not over within {waited:.1?}{under_way}")]
    TimedOut {
        /// This rank, in the job.
        rank: u32,
        /// As in `a receive from rank 3 (vm2) with tag 7`.
        what: String,
        /// How long it waited.
        waited: std::time::Duration,
        /// What connections of NICs are busy with; nothing where they are idle.
        under_way: String,
    },
    /// A rank that the communicator doesn't have.
    #[error("{what} names rank {rank}, and the communicator has ranks 0 to {last}")]
    NoSuchRank {
        /// Which call.
        what: &'static str,
        /// The rank.
        rank: u32,
        /// The highest.
        last: u32,
    },
    /// A rank has no memory for its part of a window, or can't share it.
    #[error("no memory for a window on this node ({node}): {problem}")]
    Memory {
        /// This node.
        node: String,
        /// What was asked for, and why it is not there.
        problem: String,
    },
    /// An access beyond the end of a rank's memory in a window. Nothing was touched.
    #[error(
        "{what} of {length} elements from {offset} on is beyond the window of rank {rank} ({node}), which has {window} elements"
    )]
    BeyondWindow {
        /// Which call.
        what: &'static str,
        /// Whose memory, in the window's group.
        rank: u32,
        /// Its node.
        node: String,
        /// The first element.
        offset: usize,
        /// How many.
        length: usize,
        /// How many there are.
        window: usize,
    },
    /// A collective operation whose ranks disagree about lengths, or whose slices don't fit the ranks.
    #[error("{what}: {problem}")]
    Lengths {
        /// Which call.
        what: &'static str,
        /// What was given and what was expected.
        problem: String,
    },
    /// A collective operation in which the part of another rank failed, or that another rank called differently.
    #[error("{what}: rank {rank} ({node}) {problem}")]
    InCollective {
        /// Which call.
        what: &'static str,
        /// The other rank, in the job.
        rank: u32,
        /// Its node.
        node: String,
        /// What it did.
        problem: String,
        /// Whether that rank told it to all.
        told: bool,
    },
    /// The variable that names algorithms of collectives.
    #[error("ROCE_ALGORITHMS={value:?}: {problem}")]
    Algorithms {
        /// Its value, cut after 200 characters.
        value: String,
        /// What is wrong with it, and what is allowed.
        problem: String,
    },
    /// The ranks of a node can't share the memory for their collectives.
    #[error(
        "rank {rank} can't share memory with the other ranks of its node ({node}) for collectives: {why}"
    )]
    NodeMemory {
        /// This rank, in the job.
        rank: u32,
        /// Its node.
        node: String,
        /// Why not.
        why: String,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system: {reason}")]
    Random {
        /// Why.
        reason: String,
    },
}

/// An error and all its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
