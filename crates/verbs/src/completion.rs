//! What became of an operation, in words that say what to do.

use std::fmt;

use rdma_mummy_sys::ibv_wc_status as status;

use crate::memory::Buffer;

/// The kinds of operation that this crate posts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Send, which needs a posted receive at the peer.
    Send,
    /// Receive.
    Receive,
    /// RDMA write into a peer's window.
    Write,
    /// RDMA read from a peer's window.
    Read,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Write => "RDMA write",
            Self::Read => "RDMA read",
        })
    }
}

/// Names one posted operation among those of its completion queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WorkId(pub(crate) u64);

/// A finished operation and the buffer that it gives back.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub id: WorkId,
    /// What it was.
    pub operation: Operation,
    /// The queue pair it was posted to.
    pub qp_number: u32,
    /// Its buffer, free again.
    pub buffer: Buffer,
    /// How many bytes it moved, or why it failed. After a failure the queue pair is in the error state: all
    /// that is outstanding fails too, as [`CompletionError::is_flush`].
    pub result: Result<usize, Box<CompletionError>>,
}

/// An operation that completed with an error status (`ibv_poll_cq(3)`).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{operation} failed on {device}: {} (status {status}, vendor code {vendor_code:#x}): {}", name(*status), cause(*status))]
pub struct CompletionError {
    /// What it was.
    pub operation: Operation,
    /// The RDMA device.
    pub device: String,
    /// `enum ibv_wc_status`.
    pub status: u32,
    /// What the vendor's manual may explain.
    pub vendor_code: u32,
}

impl CompletionError {
    /// Did it fail only because the queue pair had failed or was closed before?
    #[must_use]
    pub fn is_flush(&self) -> bool {
        self.status == status::IBV_WC_WR_FLUSH_ERR
    }

    /// Did the connection fail, and not what was asked of it? Then the same may go well over another one.
    #[must_use]
    pub fn is_of_the_connection(&self) -> bool {
        // rxe calls it a local operation error where a packet can't leave.
        matches!(
            self.status,
            status::IBV_WC_LOC_QP_OP_ERR
                | status::IBV_WC_WR_FLUSH_ERR
                | status::IBV_WC_RETRY_EXC_ERR
                | status::IBV_WC_RESP_TIMEOUT_ERR
        )
    }
}

fn name(value: status::Type) -> &'static str {
    match value {
        status::IBV_WC_SUCCESS => "success",
        status::IBV_WC_LOC_LEN_ERR => "local length error",
        status::IBV_WC_LOC_QP_OP_ERR => "local queue pair operation error",
        status::IBV_WC_LOC_PROT_ERR => "local protection error",
        status::IBV_WC_WR_FLUSH_ERR => "flushed",
        status::IBV_WC_BAD_RESP_ERR => "bad response",
        status::IBV_WC_LOC_ACCESS_ERR => "local access error",
        status::IBV_WC_REM_INV_REQ_ERR => "remote invalid request",
        status::IBV_WC_REM_ACCESS_ERR => "remote access error",
        status::IBV_WC_REM_OP_ERR => "remote operation error",
        status::IBV_WC_RETRY_EXC_ERR => "transport retries exceeded",
        status::IBV_WC_RNR_RETRY_EXC_ERR => "receiver-not-ready retries exceeded",
        status::IBV_WC_REM_ABORT_ERR => "remote abort",
        status::IBV_WC_FATAL_ERR => "fatal error",
        status::IBV_WC_RESP_TIMEOUT_ERR => "response timeout",
        status::IBV_WC_GENERAL_ERR => "general error",
        _ => "unnamed status",
    }
}

/// What usually causes it, and what to look at.
fn cause(value: status::Type) -> &'static str {
    match value {
        status::IBV_WC_LOC_LEN_ERR => "the message is longer than the receive buffer it arrived in",
        status::IBV_WC_LOC_PROT_ERR => "the local buffer is not registered for this",
        status::IBV_WC_WR_FLUSH_ERR => {
            "the queue pair had failed or was closed before. If none of its operations failed by itself, the peer stopped \
             answering or this port changed"
        }
        status::IBV_WC_REM_INV_REQ_ERR => {
            "the peer refused the request: the message may be longer than its receive buffer, or of a kind that its \
             queue pair does not allow"
        }
        status::IBV_WC_REM_ACCESS_ERR => "the peer's window is closed, or does not cover the bytes asked for",
        status::IBV_WC_REM_OP_ERR => "the peer's device could not carry it out; see the peer's own error",
        status::IBV_WC_RETRY_EXC_ERR => {
            "the peer did not answer: it is down, its queue pair is gone, it is unreachable on this rail, or traffic \
             of this class is dropped on the way"
        }
        status::IBV_WC_RNR_RETRY_EXC_ERR => "the peer had no receive posted for too long",
        status::IBV_WC_REM_ABORT_ERR => "the peer aborted the operation",
        status::IBV_WC_FATAL_ERR => "the device or its driver failed; see the kernel's log",
        _ => "see ibv_poll_cq(3) and the device vendor's manual",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u32) -> CompletionError {
        CompletionError { operation: Operation::Send, device: "rxe0".to_owned(), status, vendor_code: 0x81 }
    }

    #[test]
    fn exceeded_retries_are_told_as_a_peer_that_does_not_answer() {
        let text = error(12).to_string();
        assert!(
            text.starts_with("send failed on rxe0: transport retries exceeded (status 12, vendor code 0x81)"),
            "{text}"
        );
        assert!(text.contains("unreachable on this rail"), "{text}");
    }

    #[test]
    fn a_flush_is_told_apart_from_the_first_error() {
        assert!(error(5).is_flush());
        assert!(!error(12).is_flush());
    }

    #[test]
    fn a_connection_that_failed_is_told_apart_from_a_request_that_was_wrong() {
        assert!([2, 5, 12].into_iter().all(|status| error(status).is_of_the_connection()));
        assert!([1, 4, 9, 10].into_iter().all(|status| !error(status).is_of_the_connection()));
    }

    #[test]
    fn a_status_that_verbs_may_add_later_is_still_a_sentence() {
        assert!(error(999).to_string().contains("unnamed status (status 999"));
    }
}
