//! What frames carry: between a rank and its node's leader, and between leaders.

use std::fmt;

use crate::core::{Fault, FaultKind};
use crate::counters::Counters;

/// The collectives of the exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Everyone gets everyone's bytes.
    AllGather,
    /// Everyone waits for everyone.
    Barrier,
    /// Everyone gets one rank's bytes.
    Broadcast {
        /// Whose.
        root: u32,
    },
    /// Among leaders only: their ranks have all left.
    Leave,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllGather => f.write_str("all_gather"),
            Self::Barrier => f.write_str("barrier"),
            Self::Broadcast { root } => write!(f, "broadcast of rank {root}"),
            Self::Leave => f.write_str("leave"),
        }
    }
}

/// From a rank to its leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromMember<B = Vec<u8>> {
    /// Its part of collective number `number`.
    Part {
        /// Which kind of collective.
        operation: Operation,
        /// Counted from 0.
        number: u64,
        /// What it gives.
        bytes: B,
    },
    /// It needs the others no more.
    Bye,
    /// It gives up, for everyone.
    Abort {
        /// Why.
        reason: String,
    },
}

/// From a leader to a local rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToMember {
    /// A collective has ended. A table's descriptor comes with it.
    Done {
        /// Its number.
        number: u64,
        /// The rank that leads this node.
        leader: u32,
        /// Is there a descriptor?
        table: bool,
        /// What the leader has done so far.
        counters: Counters,
    },
    /// The exchange has failed.
    Fault(Fault),
}

/// From leader to leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BetweenLeaders<B = Vec<u8>> {
    /// What the sender has gathered of collective number `number`.
    Gathered {
        /// Which kind of collective.
        operation: Operation,
        /// Counted from 0.
        number: u64,
        /// The parts, by node.
        bytes: B,
    },
    /// The exchange has failed.
    Fault(Fault),
    /// I am here.
    Heartbeat,
}

const PART: u8 = 1;
const BYE: u8 = 2;
const ABORT: u8 = 3;
const DONE: u8 = 4;
const FAULT: u8 = 5;
const GATHERED: u8 = 6;
const HEARTBEAT: u8 = 7;

/// What a message has before the bytes that it carries: kind, operation, root, number.
pub(crate) const HEAD: usize = 14;
/// What a message adds to the bytes that it carries, at most; also the longest text of a fault.
pub(crate) const OVERHEAD: usize = 4096;

impl FromMember {
    /// The payload that [`decode`](Self::decode) reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Part { operation, number, bytes } => {
                let mut message = part_head(*operation, *number).to_vec();
                message.extend_from_slice(bytes);
                message
            }
            Self::Bye => vec![BYE],
            Self::Abort { reason } => [&[ABORT], cut(reason).as_bytes()].concat(),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(payload: &[u8]) -> Result<Self, &'static str> {
        let (&kind, rest) = payload.split_first().ok_or("it is empty")?;
        match kind {
            PART => {
                let (operation, number, bytes) = read_head(rest)?;
                Ok(Self::Part { operation, number, bytes: bytes.to_vec() })
            }
            BYE if rest.is_empty() => Ok(Self::Bye),
            ABORT => Ok(Self::Abort { reason: text(rest) }),
            _ => Err("its kind is unknown"),
        }
    }
}

/// The bytes of a [`FromMember::Part`] before the rank's own, so that these need no copy.
pub(crate) fn part_head(operation: Operation, number: u64) -> [u8; HEAD] {
    head(PART, operation, number)
}

impl ToMember {
    /// The payload that [`decode`](Self::decode) reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Done { number, leader, table, counters } => {
                let mut message = vec![DONE];
                message.extend_from_slice(&number.to_be_bytes());
                message.extend_from_slice(&leader.to_be_bytes());
                message.push(u8::from(*table));
                message.extend(counters.to_numbers().into_iter().flat_map(u64::to_be_bytes));
                message
            }
            Self::Fault(fault) => encode_fault(fault),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(payload: &[u8]) -> Result<Self, &'static str> {
        let (&kind, rest) = payload.split_first().ok_or("it is empty")?;
        match kind {
            DONE => {
                let (&number, rest) = rest.split_first_chunk().ok_or("it has no number")?;
                let (&leader, rest) = rest.split_first_chunk().ok_or("it has no leader")?;
                let (&table, mut rest) = rest.split_first().ok_or("it does not say what comes with it")?;
                let table = match table {
                    0 => false,
                    1 => true,
                    _ => return Err("it does not say what comes with it"),
                };
                let mut numbers = [0; Counters::NUMBERS];
                for number in &mut numbers {
                    let (&bytes, after) = rest.split_first_chunk().ok_or("its counters are cut off")?;
                    (*number, rest) = (u64::from_be_bytes(bytes), after);
                }
                if !rest.is_empty() {
                    return Err("it is too long");
                }
                let counters = Counters::from_numbers(numbers);
                let (number, leader) = (u64::from_be_bytes(number), u32::from_be_bytes(leader));
                Ok(Self::Done { number, leader, table, counters })
            }
            FAULT => decode_fault(rest).map(Self::Fault),
            _ => Err("its kind is unknown"),
        }
    }
}

impl BetweenLeaders {
    /// The payload that [`decode`](Self::decode) reads.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Gathered { operation, number, bytes } => {
                let mut message = Vec::with_capacity(HEAD + bytes.len());
                message.extend_from_slice(&head(GATHERED, *operation, *number));
                message.extend_from_slice(bytes);
                message
            }
            Self::Fault(fault) => encode_fault(fault),
            Self::Heartbeat => vec![HEARTBEAT],
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(payload: &[u8]) -> Result<Self, &'static str> {
        let (&kind, rest) = payload.split_first().ok_or("it is empty")?;
        match kind {
            GATHERED => {
                let (operation, number, bytes) = read_head(rest)?;
                Ok(Self::Gathered { operation, number, bytes: bytes.to_vec() })
            }
            FAULT => decode_fault(rest).map(Self::Fault),
            HEARTBEAT if rest.is_empty() => Ok(Self::Heartbeat),
            _ => Err("its kind is unknown"),
        }
    }
}

fn head(kind: u8, operation: Operation, number: u64) -> [u8; HEAD] {
    let (code, root) = match operation {
        Operation::AllGather => (0, 0),
        Operation::Barrier => (1, 0),
        Operation::Broadcast { root } => (2, root),
        Operation::Leave => (3, 0),
    };
    let mut head = [kind; HEAD];
    head[1] = code;
    head[2..6].copy_from_slice(&root.to_be_bytes());
    head[6..].copy_from_slice(&number.to_be_bytes());
    head
}

fn read_head(rest: &[u8]) -> Result<(Operation, u64, &[u8]), &'static str> {
    let (&code, rest) = rest.split_first().ok_or("it has no operation")?;
    let (&root, rest) = rest.split_first_chunk().ok_or("it has no root")?;
    let (&number, rest) = rest.split_first_chunk().ok_or("it has no number")?;
    let operation = match (code, u32::from_be_bytes(root)) {
        (0, 0) => Operation::AllGather,
        (1, 0) => Operation::Barrier,
        (2, root) => Operation::Broadcast { root },
        (3, 0) => Operation::Leave,
        _ => return Err("its operation is unknown"),
    };
    Ok((operation, u64::from_be_bytes(number), rest))
}

/// `kind | which fault | has rank | rank | node | text`.
fn encode_fault(fault: &Fault) -> Vec<u8> {
    let kind = match fault.kind {
        FaultKind::Lost => 0,
        FaultKind::Aborted => 1,
        FaultKind::Missing => 2,
        FaultKind::OutOfStep => 3,
    };
    let mut message = vec![FAULT, kind, u8::from(fault.rank.is_some())];
    message.extend_from_slice(&fault.rank.unwrap_or(0).to_be_bytes());
    message.extend_from_slice(&fault.node.to_be_bytes());
    message.extend_from_slice(cut(&fault.text).as_bytes());
    message
}

fn decode_fault(rest: &[u8]) -> Result<Fault, &'static str> {
    let (&[kind, has_rank], rest) = rest.split_first_chunk().ok_or("it has no kind of fault")?;
    let (&rank, rest) = rest.split_first_chunk().ok_or("it has no rank")?;
    let (&node, rest) = rest.split_first_chunk().ok_or("it has no node")?;
    let kind = match kind {
        0 => FaultKind::Lost,
        1 => FaultKind::Aborted,
        2 => FaultKind::Missing,
        3 => FaultKind::OutOfStep,
        _ => return Err("its kind of fault is unknown"),
    };
    let rank = match (has_rank, u32::from_be_bytes(rank)) {
        (0, 0) => None,
        (1, rank) => Some(rank),
        _ => return Err("its rank is not one"),
    };
    Ok(Fault { kind, rank, node: u32::from_be_bytes(node), text: text(rest) })
}

/// As much of a text as is sent.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(OVERHEAD / 2)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operations() -> impl Strategy<Value = Operation> {
        prop_oneof![
            Just(Operation::AllGather),
            Just(Operation::Barrier),
            any::<u32>().prop_map(|root| Operation::Broadcast { root }),
            Just(Operation::Leave),
        ]
    }

    fn faults() -> impl Strategy<Value = Fault> {
        let kinds = prop_oneof![
            Just(FaultKind::Lost),
            Just(FaultKind::Aborted),
            Just(FaultKind::Missing),
            Just(FaultKind::OutOfStep),
        ];
        (kinds, any::<Option<u32>>(), any::<u32>(), ".{0,40}").prop_map(|(kind, rank, node, text)| Fault {
            kind,
            rank,
            node,
            text,
        })
    }

    proptest! {
        #[test]
        fn messages_survive_the_journey(
            operation in operations(),
            number in any::<u64>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            fault in faults(),
            leader in any::<u32>(),
            table in any::<bool>(),
            numbers in any::<[u64; Counters::NUMBERS]>(),
        ) {
            let part = FromMember::Part { operation, number, bytes: bytes.clone() };
            for message in [part, FromMember::Bye, FromMember::Abort { reason: fault.text.clone() }] {
                prop_assert_eq!(FromMember::decode(&message.encode()), Ok(message));
            }
            let counters = Counters::from_numbers(numbers);
            for message in [ToMember::Done { number, leader, table, counters }, ToMember::Fault(fault.clone())] {
                prop_assert_eq!(ToMember::decode(&message.encode()), Ok(message));
            }
            let gathered = BetweenLeaders::Gathered { operation, number, bytes };
            for message in [gathered, BetweenLeaders::Fault(fault), BetweenLeaders::Heartbeat] {
                prop_assert_eq!(BetweenLeaders::decode(&message.encode()), Ok(message));
            }
        }

        #[test]
        fn no_payload_makes_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..60), kind in 0u8..9) {
            let payload = [&[kind][..], &payload].concat();
            // Whatever can be read is written the same.
            if let Ok(message) = FromMember::decode(&payload) && std::str::from_utf8(&payload).is_ok() {
                prop_assert_eq!(message.encode(), &payload[..]);
            }
            if let Ok(message) = ToMember::decode(&payload) && std::str::from_utf8(&payload).is_ok() {
                prop_assert_eq!(message.encode(), &payload[..]);
            }
            if let Ok(message) = BetweenLeaders::decode(&payload) && std::str::from_utf8(&payload).is_ok() {
                prop_assert_eq!(message.encode(), &payload[..]);
            }
        }
    }
}
