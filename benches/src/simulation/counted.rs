//! Parts of ranks that are counted only.

use std::ops::Range;

use roce_bootstrap::core::Parts;

/// The parts of some nodes: which, and how many bytes. Every node's are as long.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// The last of the nodes; the others lie before it, around the ring of all.
    last: u32,
    nodes: u32,
    /// How many nodes there are at all, and how many ranks on each.
    of: u32,
    ranks: u32,
    node_bytes: u32,
}

/// What one rank gives: its node, and how much the node's parts are together.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Part {
    pub(super) node: u32,
    pub(super) nodes: u32,
    pub(super) node_bytes: u32,
}

impl Span {
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.nodes) * u64::from(self.node_bytes)
    }

    /// The last node before these.
    fn next(&self) -> u32 {
        let (last, nodes, of) = (u64::from(self.last), u64::from(self.nodes), u64::from(self.of.max(1)));
        u32::try_from((last + of - nodes % of) % of).unwrap_or(u32::MAX)
    }
}

impl Parts for Span {
    type Part = Part;
    type Message = Self;
    type Table = ();

    fn hold_own(&mut self, parts: Vec<(u32, Part)>) {
        let ranks = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        if let Some((_, Part { node, nodes, node_bytes })) = parts.into_iter().next() {
            *self = Self { last: node, nodes: 1, of: nodes, ranks, node_bytes };
        }
    }

    fn hold_others(&mut self, message: Self, nodes: usize) -> Result<(), &'static str> {
        if message.nodes as usize != nodes {
            return Err("it tells of another number of nodes");
        }
        if message.last != self.next() {
            return Err("it does not tell of the nodes that are missing");
        }
        self.nodes += message.nodes;
        Ok(())
    }

    fn held(&self, nodes: usize) -> Self {
        Self { nodes: u32::try_from(nodes).unwrap_or(u32::MAX), ..*self }
    }

    fn table(&self, ranks: Range<u32>) -> Result<(), String> {
        let held = self.nodes * self.ranks;
        if self.nodes == self.of && held as usize == ranks.len() {
            Ok(())
        } else {
            Err(format!("{held} ranks' parts are here, of {}", ranks.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(node: u32, nodes: u32) -> Span {
        let mut span = Span::default();
        span.hold_own(vec![(node, Part { node, nodes, node_bytes: 10 })]);
        span
    }

    #[test]
    fn only_the_nodes_before_those_that_are_here_are_taken() {
        let mut span = own(1, 3);
        assert!(span.hold_others(own(2, 3), 1).is_err());
        assert!(span.table(0..3).is_err());
        span.hold_others(own(0, 3), 1).unwrap();
        assert!(span.hold_others(own(0, 3), 1).is_err());
        assert!(span.hold_others(own(2, 3), 2).is_err());
        span.hold_others(own(2, 3), 1).unwrap();
        assert_eq!(span.bytes(), 30);
        span.table(0..3).unwrap();
    }
}
