//! How many packets may be on their way to a peer, so that it has a place for each.
//!
//! A packet takes a credit; a place that has been emptied gives it back, with the next packet the other way, or by a packet of
//! its own once half of them are due. Those need places too, and take no credit: at most two of them can be on their way, since each gives back
//! half of all credits, and none is spent before it has come.

/// Places for packets that a peer takes credits for.
pub(super) const ALL: u16 = 8;
/// Places for packets that only give back.
pub(super) const SPARE: u16 = 2;

#[derive(Debug)]
pub(super) struct Credits {
    left: u16,
    due: u16,
}

impl Credits {
    pub(super) fn new() -> Self {
        Self { left: ALL, due: 0 }
    }

    /// May a packet be sent?
    pub(super) fn any(&self) -> bool {
        self.left > 0
    }

    /// One is sent.
    pub(super) fn spend(&mut self) {
        self.left -= 1;
    }

    /// The peer gave so many back. Whether it had so many.
    pub(super) fn earn(&mut self, count: u16) -> bool {
        let left = u32::from(self.left) + u32::from(count);
        if left <= u32::from(ALL) {
            self.left = left as u16;
        }
        left <= u32::from(ALL)
    }

    /// A packet of the peer has come, and its place is empty again. Whether the peer had a credit for it.
    pub(super) fn empty(&mut self) -> bool {
        self.due += 1;
        self.due <= ALL
    }

    /// Is it time to give back without a packet to do it with?
    pub(super) fn is_due(&self) -> bool {
        self.due >= ALL / 2
    }

    /// How many the next packet gives back.
    pub(super) fn due(&self) -> u16 {
        self.due
    }

    /// That packet is sent.
    pub(super) fn gave(&mut self) {
        self.due = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A packet with what it gives back, and whether it took a credit.
    type Wire = VecDeque<(u16, bool)>;

    proptest! {
        /// Two ranks that send when they like and look when they like never have more on their way than there are places, and
        /// neither is stuck once both look.
        #[test]
        fn there_is_a_place_for_every_packet(steps in proptest::collection::vec((0usize..2, any::<bool>()), 0..400)) {
            let mut sides = [Credits::new(), Credits::new()];
            let mut wires: [Wire; 2] = Default::default();
            let look = |side: usize, sides: &mut [Credits; 2], wires: &mut [Wire; 2]| {
                if let Some((given, took)) = wires[side].pop_front() {
                    assert!(sides[side].earn(given));
                    assert!(!took || sides[side].empty());
                }
                if sides[side].is_due() {
                    let given = sides[side].due();
                    sides[side].gave();
                    wires[1 - side].push_back((given, false));
                }
            };
            for (side, sends) in steps {
                if !sends {
                    look(side, &mut sides, &mut wires);
                } else if sides[side].any() {
                    sides[side].spend();
                    let given = sides[side].due();
                    sides[side].gave();
                    wires[1 - side].push_back((given, true));
                }
                for wire in &wires {
                    prop_assert!(wire.len() <= usize::from(ALL + SPARE));
                    prop_assert!(wire.iter().filter(|(_, took)| !took).count() <= usize::from(SPARE));
                }
            }
            for _ in 0..100 {
                look(0, &mut sides, &mut wires);
                look(1, &mut sides, &mut wires);
            }
            prop_assert!(sides.iter().all(Credits::any));
        }
    }

    #[test]
    fn more_than_there_are_is_noticed() {
        let mut credits = Credits::new();
        assert!(!credits.earn(1));
        (0..ALL).for_each(|_| assert!(credits.empty()));
        assert!(!credits.empty());
    }
}
