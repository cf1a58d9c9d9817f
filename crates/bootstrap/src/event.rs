//! What may happen to the other ranks at any time.

use crate::core::{Fault, FaultKind};
use crate::error::Error;

/// Why the exchange is over, before all ranks have left.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A rank is gone without having left: its process ended, its connection broke, or it is silent.
    Lost {
        /// Which; `None` where it was lost before it could say.
        rank: Option<u32>,
        /// Its node.
        node: String,
        /// What was noticed.
        why: String,
    },
    /// A rank called [`abort`](crate::Bootstrap::abort).
    Aborted {
        /// Which.
        rank: Option<u32>,
        /// Its node.
        node: String,
        /// Its words.
        reason: String,
    },
    /// Ranks did not come in time, or don't do the same as the others.
    Failed {
        /// Who and what.
        reason: String,
    },
}

impl Event {
    pub(crate) fn new(fault: &Fault, node: &str) -> Self {
        let (rank, node, text) = (fault.rank, node.to_owned(), fault.text.clone());
        match fault.kind {
            FaultKind::Lost => Self::Lost { rank, node, why: text },
            FaultKind::Aborted => Self::Aborted { rank, node, reason: text },
            FaultKind::Missing | FaultKind::OutOfStep => {
                Self::Failed { reason: error(fault, &node).to_string() }
            }
        }
    }
}

/// The same for whoever waits in a collective.
pub(crate) fn error(fault: &Fault, node: &str) -> Error {
    let (rank, node, text) = (fault.rank, node.to_owned(), fault.text.clone());
    match fault.kind {
        FaultKind::Lost => Error::Lost { rank, node, why: text },
        FaultKind::Aborted => Error::Aborted { rank, node, reason: text },
        FaultKind::Missing => Error::Missing { reason: text },
        FaultKind::OutOfStep => Error::OutOfStep { rank, node, what: text },
    }
}
