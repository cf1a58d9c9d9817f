//! What a simulation of many nodes drives beside [`core`](crate::core): the search for a neighbour, and how long what is sent
//! is. Not part of the public API.

use crate::core::HEADS;
use crate::{frame, handshake, table};

pub use crate::calls::Search;

/// Bytes of a connection's first three messages: the caller's hello, the answer, the caller's proof.
pub const HANDSHAKE: [usize; 3] = [handshake::HELLO, handshake::ANSWER, handshake::LAST];

/// Bytes of a frame that carries the parts of nodes, beside them.
pub const FRAME: usize = frame::HEADER + crate::message::HEAD + frame::TAG;

/// Bytes of a node's parts in such a frame, when each rank joins with a card of `card` bytes.
#[must_use]
pub fn node_bytes(ranks: usize, card: usize) -> usize {
    let [node_head, part_head] = HEADS;
    node_head + ranks * (part_head + crate::bootstrap::PLACE + card)
}

/// Bytes of the table that all ranks of a node then share.
#[must_use]
pub fn table_bytes(ranks: usize, card: usize) -> usize {
    table::length(ranks, ranks * (crate::bootstrap::PLACE + card))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::core::{Core, Layout, Limits, Output};
    use crate::message::{BetweenLeaders, FromMember, Operation};

    /// A leader of two nodes, of three ranks each, sends as many bytes as a simulation counts.
    #[test]
    fn lengths_are_those_of_real_messages() {
        let (ranks, card) = (3, 64);
        let names: Arc<[String]> = ["a", "b"].map(str::to_owned).into();
        let limits = Limits { join: Duration::from_secs(60), collective: Duration::from_secs(60) };
        let mut core = Core::new(Layout::new(0, names, 3, 6), limits);
        for local in 0..3 {
            let bytes = vec![7; crate::bootstrap::PLACE + card];
            core.local_joined(local, local).unwrap();
            let part = FromMember::Part { operation: Operation::AllGather, number: 0, bytes };
            core.local_message(Duration::ZERO, local, part);
        }
        let Some(Output::Send { message, .. }) = core.output() else { panic!("nothing to send") };
        let frame = frame::Direction::new([0; 32]).seal(&message.encode()).unwrap();
        assert_eq!(frame.len(), FRAME + node_bytes(ranks, card));
        let BetweenLeaders::Gathered { bytes, .. } = message else { panic!("{message:?}") };
        assert_eq!(bytes.len(), node_bytes(ranks, card));
        let part = vec![7; crate::bootstrap::PLACE + card];
        assert_eq!(table::encode(&[&part[..]; 6]).len(), table_bytes(6, card));
    }
}
