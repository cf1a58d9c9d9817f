//! What every packet begins with.

use bytemuck::{Pod, Zeroable};

use super::Payload;

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Kind {
    /// A message, or the first piece of one.
    Eager = 1,
    /// A message is there to be fetched.
    Offer = 2,
    /// The receiver has a place for an offered message.
    Accept = 3,
    /// A piece of an accepted message.
    Data = 4,
    /// The receiver has fetched an offered message itself.
    Fetched = 5,
    /// The next piece of the message that the last [`Kind::Eager`] from this rank began.
    More = 6,
    /// As [`Kind::Offer`], by a rank that does nothing but wait for it.
    OfferWaiting = 7,
    // Those of windows: `context` says which, `length` where in its memory, in bytes.
    /// Bytes to be written.
    Put = 16,
    /// Numbers of eight bytes to be added.
    Add = 17,
    /// `tag` bytes are asked for.
    Get = 18,
    /// A change of eight bytes is asked for, and what was there before.
    Atomic = 19,
    /// What was asked for, from the byte on that `length` says.
    Answer = 20,
    /// So many puts and adds, as `length` says, have been carried out.
    Done = 21,
}

/// The fields' meaning depends on the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    /// A [`Kind`].
    pub(crate) kind: u32,
    pub(crate) context: u32,
    pub(crate) tag: u32,
    /// An operation of the rank that the packet goes to, or of the one that it comes from.
    pub(crate) operation: u32,
    /// Bytes of the whole message, or where in it this piece belongs.
    pub(crate) length: u64,
}

impl Header {
    /// Of a message in one packet.
    #[inline]
    pub(crate) fn eager(context: u32, tag: u32, length: usize) -> Self {
        Self { kind: Kind::Eager as u32, context, tag, operation: 0, length: length as u64 }
    }

    /// Is it of a message in one packet with so much payload, of this context and tag?
    #[inline]
    pub(crate) fn is_whole(&self, context: u32, tag: Option<u32>, payload: usize) -> bool {
        self.kind == Kind::Eager as u32
            && self.context == context
            && tag.is_none_or(|tag| tag == self.tag)
            && self.length == payload as u64
    }
}

/// The most rails that two ranks use together.
pub(crate) const LANES: usize = 8;

/// Where an offered message is, for its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Place {
    /// In the sender's process.
    pub(crate) address: u64,
    /// How it may be read: 0 not at all, 1 by who may read the process's memory, 2 with a key.
    how: u32,
    /// Over which rails of the pair it has keys, a bit for each.
    has: u32,
    /// By rail.
    keys: [u32; LANES],
}

/// Bytes of a place with no key.
const WITHOUT_KEYS: usize = size_of::<Place>() - size_of::<[u32; LANES]>();

impl Place {
    /// For who may read the process's memory.
    pub(crate) fn plain(address: u64) -> Self {
        Self { address, how: 1, has: 0, keys: [0; LANES] }
    }

    /// For who has a key, over the first rail.
    pub(crate) fn keyed(address: u64, key: u32) -> Self {
        Self { address, how: 2, has: 0, keys: [0; LANES] }.with_key(0, key)
    }

    /// Over another one too.
    #[must_use]
    pub(crate) fn with_key(mut self, lane: u8, key: u32) -> Self {
        if let Some(place) = self.keys.get_mut(usize::from(lane)) {
            *place = key;
            self.has |= 1 << lane;
        }
        self
    }

    /// For nobody: the message comes in pieces.
    pub(crate) fn unreadable() -> Self {
        Self { address: 0, how: 0, has: 0, keys: [0; LANES] }
    }

    /// As it travels: without the keys that it does not have at the end.
    pub(crate) fn bytes(&self) -> &[u8] {
        let keys = u32::BITS - self.has.leading_zeros();
        let bytes = bytemuck::bytes_of(self);
        bytes.get(..WITHOUT_KEYS + size_of::<u32>() * keys as usize).unwrap_or(bytes)
    }

    /// What a peer sent; `None` for what no rank sends.
    pub(crate) fn from_bytes(payload: Payload<'_>) -> Option<Self> {
        let mut bytes = [0; size_of::<Self>()];
        let length = payload.len();
        payload.copy_to(bytes.get_mut(..length)?);
        let place: Self = bytemuck::cast(bytes);
        (length == place.bytes().len()).then_some(place)
    }

    pub(crate) fn is_plain(self) -> bool {
        self.how == 1
    }

    /// Over one of the pair's rails.
    pub(crate) fn key(self, lane: u8) -> Option<u32> {
        let key = self.keys.get(usize::from(lane))?;
        (self.how == 2 && self.has >> lane & 1 == 1).then_some(*key)
    }
}

impl Header {
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match self.kind {
            1 => Kind::Eager,
            2 => Kind::Offer,
            3 => Kind::Accept,
            4 => Kind::Data,
            5 => Kind::Fetched,
            6 => Kind::More,
            7 => Kind::OfferWaiting,
            16 => Kind::Put,
            17 => Kind::Add,
            18 => Kind::Get,
            19 => Kind::Atomic,
            20 => Kind::Answer,
            21 => Kind::Done,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_the_journey_with_the_keys_that_it_has() {
        let keyed = Place::keyed(0x1234_5678, 7);
        let two = keyed.with_key(3, 9);
        let all = (0..LANES as u8).fold(keyed, |place, lane| place.with_key(lane, lane.into()));
        for (place, length) in
            [(Place::unreadable(), 16), (Place::plain(5), 16), (keyed, 20), (two, 32), (all, 48)]
        {
            assert_eq!(place.bytes().len(), length);
            assert_eq!(Place::from_bytes(place.bytes().into()), Some(place));
            assert_eq!(Place::from_bytes(place.bytes()[..length - 1].into()), None);
        }
        assert_eq!((two.key(0), two.key(1), two.key(3), two.key(8)), (Some(7), None, Some(9), None));
        assert_eq!((Place::plain(5).key(0), Place::plain(5).is_plain(), two.is_plain()), (None, true, false));
        assert_eq!(Place::from_bytes([][..].into()), None);
        assert_eq!(Place::from_bytes([0; 49][..].into()), None);
        // A rail that there can't be.
        assert_eq!(keyed.with_key(8, 1), keyed);
    }
}
