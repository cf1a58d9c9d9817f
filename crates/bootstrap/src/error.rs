use std::io;

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
    /// No secret in the environment, and munge brought none.
    #[error(
        "SLURM_ROCE_SECRET is not set, and munge brought {node} no secret in its place: {reason}. Load the spank_roce plugin and \
         pass srun a --roce option, or say srun --mpi=pmi2 or --mpi=pmix, or set it before srun: \
         export SLURM_ROCE_SECRET=$(openssl rand -hex 32)"
    )]
    Munge {
        /// This rank's node.
        node: String,
        /// What happened.
        reason: String,
    },
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
    /// The ranks of one node could not meet.
    #[error("the ranks on {node} can't meet over a Unix socket")]
    Local {
        /// This node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// Ranks that did not come in time, or could not be reached.
    #[error("{reason}")]
    Missing {
        /// Who did not come, what was tried, and what to look at.
        reason: String,
    },
    /// A rank is gone without having left.
    #[error("{} is lost: {why}", who(*.rank, .node))]
    Lost {
        /// Which; `None` where it was lost before it could say.
        rank: Option<u32>,
        /// Its node.
        node: String,
        /// What was noticed.
        why: String,
    },
    /// A rank called [`abort`](crate::Bootstrap::abort).
    #[error("{} gave up: {reason}", who(*.rank, .node))]
    Aborted {
        /// Which.
        rank: Option<u32>,
        /// Its node.
        node: String,
        /// Its words.
        reason: String,
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
    #[error("{} {what}: every rank must call the same collectives in the same order", who(*.rank, .node))]
    OutOfStep {
        /// One that does something else than the others.
        rank: Option<u32>,
        /// Its node.
        node: String,
        /// What it does, and what the others do.
        what: String,
    },
    /// A rank that is none.
    #[error("there is no rank {rank} among {size}")]
    NoSuchRank {
        /// The number.
        rank: u32,
        /// How many ranks there are.
        size: u32,
    },
    /// An earlier collective failed, so the ranks are no longer in step.
    #[error("an earlier exchange failed ({reason}), so no other can follow")]
    Broken {
        /// What that one said.
        reason: String,
    },
}

/// `rank 3 (vm2)`, or `a rank on vm2`.
fn who(rank: Option<u32>, node: &str) -> String {
    rank.map_or_else(|| format!("a rank on {node}"), |rank| format!("rank {rank} ({node})"))
}
