//! Who is whose neighbour.

use std::sync::Arc;

/// Which of a round's two neighbours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// Node i - 2^k, which calls node i and sends to it.
    Before,
    /// Node i + 2^k, which node i calls and sends to.
    Behind,
}

/// One connection of a leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link {
    /// To which neighbour.
    pub way: Way,
    /// Of which round.
    pub round: usize,
}

/// The nodes of a job, as one of them sees it.
#[derive(Clone, Debug)]
pub struct Layout {
    node: u32,
    names: Arc<[String]>,
    local_size: u32,
    size: u32,
}

impl Layout {
    /// Node number `node` of those named, where `local_size` of all `size` ranks run.
    #[must_use]
    pub fn new(node: u32, names: Arc<[String]>, local_size: u32, size: u32) -> Self {
        Self { node, names, local_size, size }
    }

    /// This node's number.
    #[must_use]
    pub fn node(&self) -> u32 {
        self.node
    }

    /// How many nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.names.len()
    }

    /// How many ranks on all nodes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// How many ranks on this node.
    #[must_use]
    pub fn local_size(&self) -> u32 {
        self.local_size
    }

    /// A node's name.
    #[must_use]
    pub fn node_name(&self, node: u32) -> &str {
        self.names.get(node as usize).map_or("?", String::as_str)
    }

    /// ceil(log2 nodes).
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.nodes().next_power_of_two().trailing_zeros() as usize
    }

    /// Of how many nodes a round's message tells.
    #[must_use]
    pub fn nodes_in_round(&self, round: usize) -> usize {
        (1 << round).min(self.nodes() - (1 << round))
    }

    /// The node at the other end.
    #[must_use]
    pub fn neighbour(&self, link: Link) -> u32 {
        let (nodes, distance) = (self.nodes() as u64, 1 << link.round);
        let forward = if link.way == Way::Behind { distance } else { nodes - distance % nodes };
        // Below the number of nodes, which is that of a `u32`.
        u32::try_from((u64::from(self.node) + forward) % nodes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(node: u32, nodes: usize) -> Layout {
        Layout::new(node, vec![String::new(); nodes].into(), 1, 1)
    }

    #[test]
    fn rounds_are_the_logarithm_of_the_nodes() {
        let rounds = [1, 2, 3, 4, 5, 8, 9, 1000].map(|nodes| layout(0, nodes).rounds());
        assert_eq!(rounds, [0, 1, 2, 2, 3, 3, 4, 10]);
    }

    #[test]
    fn whoever_is_behind_me_has_me_before_it() {
        for nodes in 2..40 {
            for node in 0..nodes {
                let mine = layout(node, nodes as usize);
                for round in 0..mine.rounds() {
                    let behind = mine.neighbour(Link { way: Way::Behind, round });
                    let theirs = layout(behind, nodes as usize);
                    assert_eq!(theirs.neighbour(Link { way: Way::Before, round }), node);
                    assert_ne!(behind, node);
                }
                let heard: usize = (0..mine.rounds()).map(|round| mine.nodes_in_round(round)).sum();
                assert_eq!(heard + 1, nodes as usize);
            }
        }
    }
}
