//! Which message a receive takes.

use std::fmt;

/// Any source, or any tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Any;

/// Whose message a receive takes: a rank of the communicator, or [`Any`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source(pub(crate) Option<u32>);

/// Messages of which tag a receive takes: one, or [`Any`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag(pub(crate) Option<u32>);

impl From<u32> for Source {
    fn from(rank: u32) -> Self {
        Self(Some(rank))
    }
}

impl From<Any> for Source {
    fn from(_: Any) -> Self {
        Self(None)
    }
}

impl From<u32> for Tag {
    fn from(tag: u32) -> Self {
        Self(Some(tag))
    }
}

impl From<Any> for Tag {
    fn from(_: Any) -> Self {
        Self(None)
    }
}

/// `with tag 7`, `with any tag`
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(tag) => write!(f, "with tag {tag}"),
            None => f.write_str("with any tag"),
        }
    }
}

/// What came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Who sent it, as a rank of the communicator.
    pub source: u32,
    /// Its tag.
    pub tag: u32,
    /// How many elements it has.
    pub length: usize,
}
