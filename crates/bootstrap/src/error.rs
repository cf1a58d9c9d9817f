use std::io;
use std::time::Duration;

/// What this crate's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why ranks could not find or understand each other: rank, node, cause, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Some variables of a launcher are set and others are not.
    #[error("this looks like {launcher}, since {present} is set, but {missing} is not: {advice}")]
    HalfSet {
        /// Whose variables they are, as in `a Slurm step`.
        launcher: &'static str,
        /// A variable that is set, with its value.
        present: String,
        /// The one that is missing.
        missing: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A variable does not have the form that its launcher gives it.
    #[error("{variable}={value:?} is not {expected}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value, cut after 200 characters.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// Two variables contradict each other.
    #[error(
        "{first} and {second} contradict each other: {why}; unset those that are not of the launcher that started this rank"
    )]
    Contradiction {
        /// One variable with its value.
        first: String,
        /// The other.
        second: String,
        /// What does not fit.
        why: String,
    },
    /// A step of several ranks without a secret.
    #[error(
        "SLURM_ROCE_SECRET is not set, so the ranks of this step cannot prove to each other who they are: load the spank_roce plugin \
         and pass srun a --roce option, or say srun --mpi=pmi2 or --mpi=pmix, or set it before srun: \
         export SLURM_ROCE_SECRET=$(openssl rand -hex 32)"
    )]
    NoSecret,
    /// The launcher did not tell, over its PMI socket, what was asked.
    #[error("rank {rank} could not find the others over the launcher's socket (PMI_FD={fd}): {reason}")]
    Pmi {
        /// This rank.
        rank: u32,
        /// The socket's number.
        fd: u32,
        /// What happened.
        reason: String,
    },
    /// The launcher's PMIx did not tell what was asked.
    #[error(
        "rank {rank} could not find the others over the launcher's PMIx (PMIX_NAMESPACE={namespace}): {reason}"
    )]
    Pmix {
        /// This rank.
        rank: u32,
        /// The job's name.
        namespace: String,
        /// What happened.
        reason: String,
    },
    /// The secret was taken before.
    #[error(
        "SLURM_ROCE_SECRET is gone: this process has joined its step before, and the secret is taken out of the environment then; \
         join once, and keep what that returned"
    )]
    SecretTaken,
    /// The secret is not one. Its value is not shown.
    #[error(
        "SLURM_ROCE_SECRET must be 64 hexadecimal digits; it has {length} characters: export SLURM_ROCE_SECRET=$(openssl rand -hex 32)"
    )]
    BadSecret {
        /// How many characters it has.
        length: usize,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(String),
    /// Rank 0 could not listen.
    #[error(
        "rank 0 ({node}) found no free port among {ports}: every one is in use, or the range is not allowed here"
    )]
    Listen {
        /// Rank 0's node.
        node: String,
        /// The candidates.
        ports: String,
        /// What the last one answered.
        source: io::Error,
    },
    /// A node's name has no address.
    #[error(
        "rank {rank} could not find an address of {node}, where rank 0 runs: {reason}; check DNS or /etc/hosts"
    )]
    Resolve {
        /// This rank.
        rank: u32,
        /// The name.
        node: String,
        /// The resolver's words.
        reason: String,
    },
    /// Rank 0 was not found in time.
    #[error(
        "rank {rank} could not reach rank 0 on {node} within {waited:.1?}; tried {tried}. Did rank 0 start and call init, do all \
         ranks have the same SLURM_ROCE_SECRET, and does a firewall let these ports through?"
    )]
    NoRoot {
        /// This rank.
        rank: u32,
        /// Rank 0's node.
        node: String,
        /// How long it tried.
        waited: Duration,
        /// Each candidate's last answer.
        tried: String,
    },
    /// Ranks that did not come in time.
    #[error("{ranks} did not {what} within {waited:.1?}{refused}; did they start, and did they fail before?")]
    Missing {
        /// As in `rank 3` or `ranks 3, 4 and 12 others`; with node names once these are known.
        ranks: String,
        /// What they should have done.
        what: &'static str,
        /// How long rank 0 waited.
        waited: Duration,
        /// Empty, or a note on callers that could not prove who they are.
        refused: String,
    },
    /// A connection ended or broke.
    #[error("the connection to rank {rank} ({node}) broke: it ended, or its node is gone")]
    Lost {
        /// The other rank.
        rank: u32,
        /// Its node, or `?` before it is known.
        node: String,
        /// What the socket said.
        source: io::Error,
    },
    /// Rank 0 did not answer a collective in time.
    #[error("rank 0 ({node}) did not answer {operation} within {waited:.1?}")]
    Silent {
        /// Rank 0's node.
        node: String,
        /// Which collective.
        operation: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// Rank 0 told everyone why a collective failed.
    #[error("the exchange failed: {reason}")]
    Aborted {
        /// Rank 0's words.
        reason: String,
    },
    /// The other end did not prove that it knows the secret.
    #[error(
        "whoever answered does not know this step's secret: another job's process, or other values of SLURM_ROCE_SECRET"
    )]
    NotAuthentic,
    /// A frame that was changed, repeated or made up on the way.
    #[error(
        "a frame from rank {rank} ({node}) is not authentic: it was changed, repeated or made up on the way"
    )]
    Tampered {
        /// The rank it claims to be from.
        rank: u32,
        /// Its node.
        node: String,
    },
    /// A frame or contribution longer than allowed.
    #[error("{what} of {length} bytes is longer than the {most} allowed")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The longest allowed.
        most: usize,
    },
    /// The ranks' programs disagree.
    #[error(
        "rank {rank} ({node}) is at {theirs} while this rank is at {ours}: every rank must call the same collectives in the same order"
    )]
    OutOfStep {
        /// The other rank.
        rank: u32,
        /// Its node.
        node: String,
        /// What it does.
        theirs: String,
        /// What this rank does.
        ours: String,
    },
    /// A message that no version of this crate writes.
    #[error(
        "a message from rank {rank} ({node}) could not be read: {what}; do all ranks run the same build?"
    )]
    Malformed {
        /// The sender.
        rank: u32,
        /// Its node.
        node: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An earlier collective failed, so the ranks are no longer in step.
    #[error("an earlier exchange failed ({reason}), so no other can follow")]
    Broken {
        /// What that one said.
        reason: String,
    },
    /// A socket call failed.
    #[error("{what} failed")]
    Socket {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
