//! The datagrams of a [handshake](super::handshake): who says what to whom, and proof that a rank of this step said it.
//!
//! The proof is HMAC-SHA256 with a secret derived from the step's over all that is before it, both ranks included: it holds for this step,
//! in this direction, between these two. One that is said again by a stranger changes nothing: a rank has one end for each peer.

use roce_bootstrap::Secret;

use super::handshake::{End, Word};

const MAGIC: &[u8; 8] = b"roce-rc4";
/// Bytes before the reason of a refusal, or the packet of a hello.
const FIXED: usize = 48;
const PROOF: usize = 32;
/// The longest reason that is told.
const MOST_WORDS: usize = 300;
/// The longest packet that a hello may carry.
pub(super) const MOST_EARLY: usize = MOST_WORDS;
/// The longest datagram, within any MTU with its headers.
pub(super) const MOST: usize = FIXED + MOST_WORDS + PROOF;

/// Who speaks, and to whom, and of which of their connections: over which of their rails, and the how manieth there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) lane: u8,
    pub(super) era: u32,
}

/// As it travels.
pub(super) fn write(secret: &Secret, way: Way, word: &Word) -> Vec<u8> {
    let none = End::none();
    let (kind, end, rest): (u32, End, &[u8]) = match word {
        Word::Request(end) => (1, *end, &[]),
        Word::Reply(end) => (2, *end, &[]),
        Word::Acknowledgement => (3, none, &[]),
        Word::Refusal(reason) => (4, none, cut(reason)),
        Word::Later => (5, none, &[]),
        // What is longer goes over the connection.
        Word::Hello(early) => (6, none, if early.len() > MOST_EARLY { &[] } else { early }),
    };
    let mut bytes = MAGIC.to_vec();
    for number in [way.from, way.to, way.era, kind, end.qp_number, end.psn, end.mtu] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(end.received.to_be_bytes());
    bytes.extend([end.initiator_depth, end.responder_depth, way.lane, 0]);
    bytes.extend(rest);
    let proof = secret.tag(&[&bytes]);
    bytes.extend(proof);
    bytes
}

/// As much of a reason as is told.
fn cut(reason: &str) -> &[u8] {
    let cut = (0..=reason.len().min(MOST_WORDS)).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    &reason.as_bytes()[..cut]
}

/// What was said, if a rank of this step did; anything else is nobody's.
pub(super) fn read(secret: &Secret, bytes: &[u8]) -> Option<(Way, Word)> {
    let (said, proof) = bytes.split_at_checked(bytes.len().checked_sub(PROOF)?)?;
    if said.len() < FIXED || bytes.len() > MOST || !said.starts_with(MAGIC) || !secret.is_tag(&[said], proof)
    {
        return None;
    }
    let number =
        |at: usize| said[8 + 4 * at..].first_chunk().map_or(0, |bytes: &[u8; 4]| u32::from_be_bytes(*bytes));
    let end = End {
        qp_number: number(4),
        psn: number(5),
        mtu: number(6),
        received: u64::from(number(7)) << 32 | u64::from(number(8)),
        initiator_depth: said[44],
        responder_depth: said[45],
    };
    let word = match number(3) {
        1 => Word::Request(end),
        2 => Word::Reply(end),
        3 => Word::Acknowledgement,
        4 => Word::Refusal(String::from_utf8_lossy(&said[FIXED..]).into_owned()),
        5 => Word::Later,
        6 => Word::Hello(said[FIXED..].to_vec()),
        _ => return None,
    };
    Some((Way { from: number(0), to: number(1), lane: said[46], era: number(2) }, word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> Vec<Word> {
        let end = End {
            qp_number: 0x12_3456,
            psn: 0xab_cdef,
            mtu: 4096,
            initiator_depth: 3,
            responder_depth: 16,
            received: 0x12_3456_789a,
        };
        let refusal = Word::Refusal("ibv_create_qp failed on rxe0: no memory".to_owned());
        let hellos = [Word::Hello(Vec::new()), Word::Hello(vec![0xff; MOST_EARLY])];
        let others = [Word::Request(end), Word::Reply(end), Word::Acknowledgement, refusal, Word::Later];
        others.into_iter().chain(hellos).collect()
    }

    #[test]
    fn words_survive_the_journey() {
        let (secret, way) = (Secret::new([3; 32]), Way { from: 5, to: 70_000, lane: 2, era: 3 });
        for word in words() {
            let bytes = write(&secret, way, &word);
            assert!(bytes.len() <= MOST);
            assert_eq!(read(&secret, &bytes), Some((way, word)));
        }
        let long = write(&secret, way, &Word::Refusal("ä".repeat(1000)));
        let Some((_, Word::Refusal(reason))) = read(&secret, &long) else { panic!() };
        assert_eq!((long.len() <= MOST, reason), (true, "ä".repeat(150)));
    }

    proptest! {
        #[test]
        fn what_another_wrote_or_someone_changed_is_nobodys(which in 0usize..7, place: usize, change in 1u8..) {
            let (secret, way) = (Secret::new([3; 32]), Way { from: 5, to: 6, lane: 0, era: 0 });
            let mut bytes = write(&secret, way, &words()[which]);
            prop_assert_eq!(read(&Secret::new([4; 32]), &bytes), None);
            let place = place % bytes.len();
            bytes[place] ^= change;
            prop_assert_eq!(read(&secret, &bytes), None);
            prop_assert_eq!(read(&secret, &bytes[..place]), None);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(read(&Secret::new([3; 32]), &bytes), None);
        }
    }
}
