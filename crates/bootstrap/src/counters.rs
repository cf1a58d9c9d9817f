//! What meeting and talking has cost a node's leader.

/// What a node's leader has done over the network, all collectives together.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Rounds of messages to other nodes: ceil(log2 nodes) for each collective.
    pub rounds: u64,
    /// Connections to other leaders that this one made: at most ceil(log2 nodes).
    pub connections_made: u64,
    /// Connections that it took from other leaders: at most ceil(log2 nodes).
    pub connections_accepted: u64,
    /// Messages sent to other leaders, heartbeats among them.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counters {
    pub(crate) const NUMBERS: usize = 5;

    pub(crate) fn to_numbers(self) -> [u64; Self::NUMBERS] {
        [self.rounds, self.connections_made, self.connections_accepted, self.messages, self.bytes]
    }

    pub(crate) fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [rounds, connections_made, connections_accepted, messages, bytes] = numbers;
        Self { rounds, connections_made, connections_accepted, messages, bytes }
    }
}
