//! What a leader knows of the collective that goes on.

use std::time::Duration;

use super::parts::Parts;
use crate::message::Operation;

#[derive(Clone, Default, Debug)]
pub(super) struct Gather<P> {
    /// Since when anybody waits.
    pub(super) since: Option<Duration>,
    /// What it is, once a local rank has said it.
    pub(super) operation: Option<Operation>,
    /// How many local parts are here.
    pub(super) came: usize,
    /// All of them are.
    pub(super) complete: bool,
    /// The round whose message is awaited.
    pub(super) round: usize,
    /// Of this node and of all that it has heard of.
    pub(super) parts: P,
}

impl<P: Parts> Gather<P> {
    pub(super) fn begin(&mut self, now: Duration) {
        self.since = self.since.or(Some(now));
    }

    /// Takes the local ranks' parts.
    pub(super) fn hold_own(&mut self, parts: Vec<(u32, P::Part)>) {
        self.parts.hold_own(parts);
        self.complete = true;
    }

    /// Takes a neighbour's message, which must tell of so many nodes.
    pub(super) fn hold_others(&mut self, message: P::Message, nodes: usize) -> Result<(), &'static str> {
        self.parts.hold_others(message, nodes)?;
        self.round += 1;
        Ok(())
    }
}
