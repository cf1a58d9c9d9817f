//! What a leader holds of the collective that goes on.

use std::ops::Range;
use std::time::Duration;

use crate::message::Operation;
use crate::table;

/// The parts of nodes i, i-1, i-2, ..., each as `length (4 bytes) | (rank, length, bytes)*`: in every round the first so many
/// of them are sent.
#[derive(Clone, Default, Debug)]
pub(super) struct Gather {
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
    bytes: Vec<u8>,
    /// Where each node's parts end.
    ends: Vec<usize>,
}

impl Gather {
    pub(super) fn begin(&mut self, now: Duration) {
        self.since = self.since.or(Some(now));
    }

    /// Takes the local ranks' parts.
    pub(super) fn hold_own(&mut self, parts: &[(u32, Vec<u8>)]) {
        let length: usize = parts.iter().map(|(_, part)| 8 + part.len()).sum();
        self.bytes.reserve(4 + length);
        self.bytes.extend_from_slice(&number(length));
        for (rank, part) in parts {
            self.bytes.extend_from_slice(&rank.to_be_bytes());
            self.bytes.extend_from_slice(&number(part.len()));
            self.bytes.extend_from_slice(part);
        }
        self.ends.push(self.bytes.len());
        self.complete = true;
    }

    /// Takes a neighbour's message, which must tell of so many nodes.
    pub(super) fn hold_others(&mut self, bytes: &[u8], nodes: usize) -> Result<(), &'static str> {
        let mut rest = bytes;
        for _ in 0..nodes {
            let (_, after) = split_part(rest).ok_or("its message is cut off")?;
            rest = after;
            self.ends.push(self.bytes.len() + bytes.len() - rest.len());
        }
        if !rest.is_empty() {
            return Err("its message is too long");
        }
        self.bytes.extend_from_slice(bytes);
        self.round += 1;
        Ok(())
    }

    /// The parts of the first so many nodes.
    pub(super) fn held(&self, nodes: usize) -> &[u8] {
        let end = nodes.checked_sub(1).and_then(|last| self.ends.get(last));
        &self.bytes[..end.copied().unwrap_or(0)]
    }

    /// The parts of `ranks`, in order; an error unless each is there exactly once and no other is.
    pub(super) fn table(&self, ranks: Range<u32>) -> Result<Vec<u8>, String> {
        let mut parts: Vec<Option<&[u8]>> = vec![None; ranks.len()];
        let mut nodes = &self.bytes[..];
        while let Some((mut node, after)) = split_part(nodes) {
            nodes = after;
            while !node.is_empty() {
                let cut = || "a node's parts are cut off".to_owned();
                let (&rank, rest) = node.split_first_chunk().ok_or_else(cut)?;
                let (part, rest) = split_part(rest).ok_or_else(cut)?;
                node = rest;
                let rank = u32::from_be_bytes(rank);
                let place = rank.checked_sub(ranks.start).and_then(|place| parts.get_mut(place as usize));
                let place =
                    place.ok_or_else(|| format!("there is a part of rank {rank}, who has none to give"))?;
                if place.replace(part).is_some() {
                    return Err(format!("two processes say that they are rank {rank}"));
                }
            }
        }
        let parts: Option<Vec<&[u8]>> = parts.into_iter().collect();
        Ok(table::encode(&parts.ok_or("a rank's part is not there: do two processes have its place?")?))
    }
}

/// A part was limited to 1 MiB when it was taken, and a node's ranks fit into its memory.
fn number(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(length) as usize)
}
