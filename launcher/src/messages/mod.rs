//! Messages between ranks: what a program sends and receives, whatever carries it.

pub(crate) mod engine;
pub(crate) mod lent;
pub(crate) mod matching;
