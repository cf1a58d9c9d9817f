//! What a packet begins with: 16 bytes before a whole message, which is what most packets are, and 32 before all else.

use bytemuck::{Pod, Zeroable};

use crate::transport::Header;

/// What every packet begins with.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Short {
    /// How many packets went before it, modulo 2^32.
    number: u32,
    /// Places that are empty again: [`super::credits`].
    given: u16,
    /// What follows: one of the three below.
    what: u16,
    context: u32,
    tag: u32,
}

/// Nothing.
const ONLY_PLACES: u16 = 0;
/// A whole message.
const WHOLE: u16 = 1;
/// The rest of a long head.
const LONG: u16 = 2;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Long {
    short: Short,
    kind: u32,
    operation: u32,
    length: u64,
}

pub(super) const SHORT_BYTES: usize = size_of::<Short>();
pub(super) const LONG_BYTES: usize = size_of::<Long>();

const _: () = assert!(SHORT_BYTES == 16 && LONG_BYTES == 32);

/// A packet's, for who sends it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packed {
    Short(Short),
    Long(Long),
}

/// A packet's that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) number: u32,
    pub(super) given: u16,
    /// Of what follows, if anything does.
    pub(super) header: Option<Header>,
}

impl Packed {
    /// Of a packet with a header and so much payload, or of one that only gives places back.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn new(number: u32, given: u16, header: Option<&Header>, payload: usize) -> Self {
        let short = |what, context, tag| Short { number, given, what, context, tag };
        match header {
            None => Self::Short(short(ONLY_PLACES, 0, 0)),
            Some(header) if *header == Header::eager(header.context, header.tag, payload) => {
                Self::Short(short(WHOLE, header.context, header.tag))
            }
            Some(&Header { kind, context, tag, operation, length }) => {
                Self::Long(Long { short: short(LONG, context, tag), kind, operation, length })
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(short) => bytemuck::bytes_of(short),
            Self::Long(long) => bytemuck::bytes_of(long),
        }
    }
}

impl Head {
    /// What a packet begins with, and the rest; `None` for what no rank of this build sends.
    #[inline]
    pub(super) fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (short, rest) = bytes.split_at_checked(SHORT_BYTES)?;
        let Short { number, given, what, context, tag } = bytemuck::pod_read_unaligned(short);
        let head = |header| Self { number, given, header };
        match what {
            WHOLE => Some((head(Some(Header::eager(context, tag, rest.len()))), rest)),
            ONLY_PLACES => Some((head(None), rest)),
            LONG => {
                let (long, rest) = bytes.split_at_checked(LONG_BYTES)?;
                let Long { kind, operation, length, .. } = bytemuck::pod_read_unaligned(long);
                Some((head(Some(Header { kind, context, tag, operation, length })), rest))
            }
            _ => None,
        }
    }

    /// The same of a whole message alone, with its context and tag.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the way of a short message")]
    pub(super) fn of_whole(bytes: &[u8]) -> Option<(Self, Header, &[u8])> {
        let (short, rest) = bytes.split_at_checked(SHORT_BYTES)?;
        let Short { number, given, what, context, tag } = bytemuck::pod_read_unaligned(short);
        let header = Header::eager(context, tag, rest.len());
        (what == WHOLE).then_some((Self { number, given, header: Some(header) }, header, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Kind;

    #[test]
    fn every_head_survives_the_journey() {
        let whole = Header::eager(3, 5, 7);
        let first = Header { length: 8, ..whole };
        let other = Header { kind: Kind::Data as u32, operation: 9, ..whole };
        for (header, length) in [(None, 16), (Some(whole), 16), (Some(first), 32), (Some(other), 32)] {
            let packed = Packed::new(1 << 31, 2, header.as_ref(), 7);
            assert_eq!(packed.bytes().len(), length);
            let packet = [packed.bytes(), b"payload"].concat();
            let head = Head { number: 1 << 31, given: 2, header };
            assert_eq!(Head::split(&packet), Some((head, &b"payload"[..])));
            let is_whole = header == Some(whole);
            assert_eq!(Head::of_whole(&packet), is_whole.then_some((head, whole, &b"payload"[..])));
            assert_eq!(Head::split(&packet[..length - 1]), None);
        }
        let no_rank_sends = Short { number: 0, given: 0, what: 3, context: 0, tag: 0 };
        assert_eq!(Head::split(bytemuck::bytes_of(&no_rank_sends)), None);
    }
}
