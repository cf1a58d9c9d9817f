//! What every packet begins with.

use bytemuck::{Pod, Zeroable};

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Kind {
    /// A whole message.
    Eager = 1,
    /// A message is there to be fetched.
    Offer = 2,
    /// The receiver has a place for an offered message.
    Accept = 3,
    /// A piece of an accepted message.
    Data = 4,
    /// The receiver has fetched an offered message itself.
    Fetched = 5,
    // Those of windows: `context` says which, `length` where in its memory, in bytes.
    /// Bytes to be written.
    Put = 16,
    /// Numbers of eight bytes to be added.
    Add = 17,
    /// `tag` bytes are asked for.
    Get = 18,
    /// A change of eight bytes is asked for, and what was there before.
    Atomic = 19,
    /// What was asked for.
    Answer = 20,
    /// So many puts and adds, as `length` says, have been carried out.
    Done = 21,
}

const KINDS: [Kind; 11] = [
    Kind::Eager,
    Kind::Offer,
    Kind::Accept,
    Kind::Data,
    Kind::Fetched,
    Kind::Put,
    Kind::Add,
    Kind::Get,
    Kind::Atomic,
    Kind::Answer,
    Kind::Done,
];

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
    pub(crate) fn kind(&self) -> Option<Kind> {
        KINDS.into_iter().find(|kind| *kind as u32 == self.kind)
    }
}
