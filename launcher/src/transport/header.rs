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

/// Where an offered message is, for its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Place {
    /// In the sender's process.
    pub(crate) address: u64,
    key: u32,
    /// How it may be read: 0 not at all, 1 by who may read the process's memory, 2 with the key.
    how: u32,
}

impl Place {
    /// For who may read the process's memory.
    pub(crate) fn plain(address: u64) -> Self {
        Self { address, key: 0, how: 1 }
    }

    /// For who has a key.
    pub(crate) fn keyed(address: u64, key: u32) -> Self {
        Self { address, key, how: 2 }
    }

    /// For nobody: the message comes in pieces.
    pub(crate) fn unreadable() -> Self {
        Self { address: 0, key: 0, how: 0 }
    }

    pub(crate) fn is_plain(self) -> bool {
        self.how == 1
    }

    pub(crate) fn key(self) -> Option<u32> {
        (self.how == 2).then_some(self.key)
    }
}

impl Header {
    pub(crate) fn kind(&self) -> Option<Kind> {
        KINDS.into_iter().find(|kind| *kind as u32 == self.kind)
    }
}
