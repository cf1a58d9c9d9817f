//! What frames carry: a rank's part of a collective, rank 0's answer, or why there is none.

/// The collectives of the exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Collective {
    AllGather,
    Barrier,
}

impl Collective {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all_gather",
            Self::Barrier => "barrier",
        }
    }
}

/// One payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// A rank's part of collective number `round`.
    Part { collective: Collective, round: u64, bytes: Vec<u8> },
    /// Every rank's part, by rank.
    Table { round: u64, parts: Vec<Vec<u8>> },
    /// There will be no answer, for this reason.
    Abort { reason: String },
}

const GATHER: u8 = 1;
const BARRIER: u8 = 2;
const TABLE: u8 = 3;
const ABORT: u8 = 4;

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Part { collective, round, bytes: part } => {
                bytes.push(if *collective == Collective::AllGather { GATHER } else { BARRIER });
                bytes.extend_from_slice(&round.to_be_bytes());
                bytes.extend_from_slice(part);
            }
            Self::Table { round, parts } => {
                bytes.push(TABLE);
                bytes.extend_from_slice(&round.to_be_bytes());
                for part in parts {
                    // A part's length was limited to MOST_BYTES before it was sent.
                    bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
                    bytes.extend_from_slice(part);
                }
            }
            Self::Abort { reason } => {
                bytes.push(ABORT);
                bytes.extend_from_slice(reason.as_bytes());
            }
        }
        bytes
    }

    /// Reads a payload, or says what is wrong with it.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, &'static str> {
        let (&kind, rest) = payload.split_first().ok_or("it is empty")?;
        if kind == ABORT {
            return Ok(Self::Abort { reason: String::from_utf8_lossy(rest).into_owned() });
        }
        let (&round, mut rest) = rest.split_first_chunk().ok_or("it has no round number")?;
        let round = u64::from_be_bytes(round);
        match kind {
            GATHER => Ok(Self::Part { collective: Collective::AllGather, round, bytes: rest.to_vec() }),
            BARRIER => Ok(Self::Part { collective: Collective::Barrier, round, bytes: rest.to_vec() }),
            TABLE => {
                let mut parts = Vec::new();
                while !rest.is_empty() {
                    let (&length, after) = rest.split_first_chunk().ok_or("a part has no length")?;
                    let length = u32::from_be_bytes(length) as usize;
                    let (part, after) = after.split_at_checked(length).ok_or("a part is cut off")?;
                    parts.push(part.to_vec());
                    rest = after;
                }
                Ok(Self::Table { round, parts })
            }
            _ => Err("its kind is unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cut_off_table_is_refused() {
        let whole = Message::Table { round: 3, parts: vec![b"ab".to_vec(), Vec::new()] }.encode();
        assert_eq!(Message::decode(&whole[..whole.len() - 1]), Err("a part has no length"));
        assert_eq!(Message::decode(&whole[..whole.len() - 5]), Err("a part is cut off"));
        assert_eq!(Message::decode(&[9; 9]), Err("its kind is unknown"));
        assert_eq!(Message::decode(&[]), Err("it is empty"));
    }

    proptest! {
        #[test]
        fn messages_survive_the_journey(
            round in any::<u64>(),
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..20),
            reason in ".{0,40}",
        ) {
            let part = Message::Part { collective: Collective::Barrier, round, bytes: parts.concat() };
            for message in [part, Message::Table { round, parts }, Message::Abort { reason }] {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
            }
        }

        #[test]
        fn no_payload_makes_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&payload);
        }
    }
}
