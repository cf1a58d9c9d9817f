//! Over which rail do two ranks talk? Both ends decide for themselves, and must decide alike.

/// All pairs of NICs on a rail that both ranks have, as places in the two ranks' lists: for each NIC of the lower rank's list the first of the
/// higher one's on the same rail, each NIC once.
///
/// A NIC of no known rail matches one of no known rail: without rails there is one fabric.
fn all(lower: &[Option<u32>], higher: &[Option<u32>]) -> Vec<(usize, usize)> {
    let mut free: Vec<(usize, Option<u32>)> = higher.iter().copied().enumerate().collect();
    let mut take = |rail| {
        let found = free.iter().position(|(_, other)| *other == rail)?;
        Some(free.remove(found).0)
    };
    lower.iter().enumerate().filter_map(|(place, &rail)| Some((place, take(rail)?))).collect()
}

/// The same from one end: this rank's NICs and its peer's.
pub(crate) fn all_from(
    rank: u32,
    ours: &[Option<u32>],
    peer: u32,
    theirs: &[Option<u32>],
) -> Vec<(usize, usize)> {
    if rank < peer {
        return all(ours, theirs);
    }
    all(theirs, ours).into_iter().map(|(theirs, ours)| (ours, theirs)).collect()
}

/// The first of them.
pub(crate) fn choose_from(
    rank: u32,
    ours: &[Option<u32>],
    peer: u32,
    theirs: &[Option<u32>],
) -> Option<(usize, usize)> {
    all_from(rank, ours, peer, theirs).first().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lower_ranks_order_decides() {
        let choose = |lower, higher| choose_from(0, lower, 1, higher);
        assert_eq!(choose(&[Some(1), Some(0)], &[Some(0), Some(1)]), Some((0, 1)));
        assert_eq!(choose(&[Some(2), Some(0)], &[Some(1), Some(0)]), Some((1, 1)));
    }

    #[test]
    fn each_nic_of_a_common_rail_is_used_once() {
        assert_eq!(all(&[Some(1), Some(0), Some(2)], &[Some(0), Some(1)]), [(0, 1), (1, 0)]);
        assert_eq!(all(&[None, None], &[None, None, None]), [(0, 0), (1, 1)]);
        assert_eq!(all(&[Some(0), Some(0)], &[Some(0)]), [(0, 0)]);
    }

    #[test]
    fn without_a_common_rail_there_is_no_pair() {
        assert_eq!(all(&[Some(0)], &[Some(1)]), []);
        assert_eq!(all(&[None], &[Some(0)]), []);
        assert_eq!(all(&[None], &[None]), [(0, 0)]);
    }

    proptest! {
        #[test]
        fn both_ends_choose_the_same_pair_on_the_same_rail(
            a in proptest::collection::vec(proptest::option::of(0u32..4), 1..5),
            b in proptest::collection::vec(proptest::option::of(0u32..4), 1..5),
        ) {
            let from_a = choose_from(3, &a, 5, &b);
            let from_b = choose_from(5, &b, 3, &a);
            prop_assert_eq!(from_a, from_b.map(|(b, a)| (a, b)));
            let (all_a, all_b) = (all_from(3, &a, 5, &b), all_from(5, &b, 3, &a));
            prop_assert_eq!(all_a.first().copied(), from_a);
            prop_assert!(all_a.iter().all(|(i, j)| a[*i] == b[*j]));
            prop_assert_eq!(&all_a, &all_b.into_iter().map(|(b, a)| (a, b)).collect::<Vec<_>>());
            for pick in [|pair: &(usize, usize)| pair.0, |pair: &(usize, usize)| pair.1] {
                let once: std::collections::BTreeSet<_> = all_a.iter().map(pick).collect();
                prop_assert_eq!(once.len(), all_a.len());
            }
            match from_a {
                Some((i, j)) => prop_assert_eq!(a[i], b[j]),
                None => prop_assert!(a.iter().all(|rail| !b.contains(rail))),
            }
        }
    }
}
