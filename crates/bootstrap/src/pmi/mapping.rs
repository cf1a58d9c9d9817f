//! Where ranks run, as PMI launchers write it: `(vector,(0,2,4),(2,1,3))` is four ranks on each of the two nodes from 0
//! on, then three on node 2. Where ranks are left over the list begins anew.

/// The node of every rank, nodes counted in the order in which ranks come to them.
pub(super) struct Layout(Vec<u32>);

/// No launch has more.
const MOST: u32 = 1 << 24;

impl Layout {
    /// `None` if the text says no such thing for so many ranks.
    pub(super) fn read(text: &str, size: u32) -> Option<Self> {
        let blocks = text.trim().strip_prefix("(vector,(")?.strip_suffix("))")?;
        let block = |block: &str| {
            let mut numbers = block.split(',').map(|number| number.trim().parse::<u32>().ok());
            let (first, nodes, ranks) = (numbers.next()??, numbers.next()??, numbers.next()??);
            let well_formed =
                numbers.next().is_none() && nodes > 0 && ranks > 0 && first.checked_add(nodes)? <= MOST;
            well_formed.then_some((first, nodes, ranks))
        };
        let blocks: Vec<_> = blocks.split("),(").map(block).collect::<Option<_>>()?;
        if size == 0 || size > MOST {
            return None;
        }
        let nodes = blocks.iter().cycle().flat_map(|&(first, nodes, ranks)| {
            (first..first + nodes).flat_map(move |node| (0..ranks).map(move |_| node))
        });
        let mut known = std::collections::HashMap::new();
        let mut count = 0;
        let index = |node| {
            *known.entry(node).or_insert_with(|| {
                count += 1;
                count - 1
            })
        };
        Some(Self(nodes.take(size as usize).map(index).collect()))
    }

    /// A rank's node, and how many lower ranks are there. The rank is one of those that the layout was read for.
    pub(super) fn place_of(&self, rank: u32) -> (u32, u32) {
        let (before, from) = self.0.split_at((rank as usize).min(self.0.len()));
        let node = from.first().copied().unwrap_or_default();
        let lower = before.iter().filter(|&&other| other == node).count();
        (node, u32::try_from(lower).unwrap_or(MOST))
    }

    /// How many ranks each node has.
    pub(super) fn tasks(&self) -> Vec<u32> {
        let nodes = self.0.iter().max().map_or(0, |last| *last as usize + 1);
        let mut tasks = vec![0; nodes];
        for &node in &self.0 {
            tasks[node as usize] += 1;
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_are_filled_in_order_and_begin_anew() {
        let nodes = |text, size| Layout::read(text, size).unwrap().0;
        assert_eq!(nodes("(vector,(0,1,3))", 3), [0, 0, 0]);
        assert_eq!(nodes("(vector,(0,2,2),(2,1,1))", 5), [0, 0, 1, 1, 2]);
        assert_eq!(nodes("(vector,(0,2,1))", 5), [0, 1, 0, 1, 0]);
        // Counted in the order of appearance.
        assert_eq!(nodes("(vector,(7,1,1),(3,1,2))", 3), [0, 1, 1]);
        let layout = Layout::read("(vector,(0,2,1))", 5).unwrap();
        assert_eq!((layout.place_of(4), layout.place_of(3)), ((0, 2), (1, 1)));
        assert_eq!(layout.tasks(), [3, 2]);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "(vector)",
            "(vector,())",
            "(vector,(0,1))",
            "(vector,(0,0,1))",
            "(vector,(0,1,1)",
            "(x,(0,1,1))",
            "(vector,(4294967295,2,1))",
        ] {
            assert!(Layout::read(text, 2).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_rank_has_a_place(text in "\\(vector,\\([0-9]{1,2},[0-9]{1,2},[0-9]\\)(,\\([0-9],[0-9],[0-9]\\)){0,3}\\)", size in 1u32..200) {
            let Some(layout) = Layout::read(&text, size) else { return Ok(()) };
            prop_assert_eq!(layout.tasks().iter().sum::<u32>(), size);
            for rank in 0..size {
                let (node, local) = layout.place_of(rank);
                prop_assert!(local < layout.tasks()[node as usize]);
            }
            prop_assert_eq!(layout.place_of(0), (0, 0));
        }
    }
}
