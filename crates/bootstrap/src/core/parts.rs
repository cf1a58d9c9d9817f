//! The bytes that a leader gathers.

use std::fmt::Debug;
use std::ops::Range;

use crate::table;

/// What the state machine asks of what it gathers. [`Bytes`] are the real thing; the simulation counts them only, since a million
/// ranks' bytes on each of a hundred thousand nodes fit into no memory.
pub trait Parts: Clone + Default + Debug {
    /// What one rank gives.
    type Part: Clone + Default + Debug;
    /// What a message between leaders carries: the parts of some nodes.
    type Message: Clone + Default + Debug;
    /// What the ranks get.
    type Table;

    /// Takes the local ranks' parts.
    fn hold_own(&mut self, parts: Vec<(u32, Self::Part)>);

    /// Takes a neighbour's message, which must tell of so many nodes.
    ///
    /// # Errors
    /// What is wrong with it.
    fn hold_others(&mut self, message: Self::Message, nodes: usize) -> Result<(), &'static str>;

    /// The parts of the first so many nodes.
    fn held(&self, nodes: usize) -> Self::Message;

    /// The parts of `ranks`, in order.
    ///
    /// # Errors
    /// Unless each is there exactly once and no other is.
    fn table(&self, ranks: Range<u32>) -> Result<Self::Table, String>;
}

/// What a message has beside the parts, for each node and for each part.
pub const HEADS: [usize; 2] = [4, 8];

/// The parts of nodes i, i-1, i-2, ..., each as `length (4 bytes) | (rank, length, bytes)*`: in every round the first so many
/// of them are sent.
#[derive(Clone, Default, Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
    /// Where each node's parts end.
    ends: Vec<usize>,
}

impl Parts for Bytes {
    type Part = Vec<u8>;
    type Message = Vec<u8>;
    type Table = Vec<u8>;

    fn hold_own(&mut self, parts: Vec<(u32, Vec<u8>)>) {
        let [node_head, part_head] = HEADS;
        let length: usize = parts.iter().map(|(_, part)| part_head + part.len()).sum();
        self.bytes.reserve(node_head + length);
        self.bytes.extend_from_slice(&number(length));
        for (rank, part) in parts {
            self.bytes.extend_from_slice(&rank.to_be_bytes());
            self.bytes.extend_from_slice(&number(part.len()));
            self.bytes.extend_from_slice(&part);
        }
        self.ends.push(self.bytes.len());
    }

    fn hold_others(&mut self, bytes: Vec<u8>, nodes: usize) -> Result<(), &'static str> {
        let mut rest = &bytes[..];
        for _ in 0..nodes {
            let (_, after) = split_part(rest).ok_or("its message is cut off")?;
            rest = after;
            self.ends.push(self.bytes.len() + bytes.len() - rest.len());
        }
        if !rest.is_empty() {
            return Err("its message is too long");
        }
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn held(&self, nodes: usize) -> Vec<u8> {
        let end = nodes.checked_sub(1).and_then(|last| self.ends.get(last));
        self.bytes[..end.copied().unwrap_or(0)].to_vec()
    }

    fn table(&self, ranks: Range<u32>) -> Result<Vec<u8>, String> {
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
