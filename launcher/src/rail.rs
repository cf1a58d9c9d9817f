//! Over which rail do two ranks talk? Both ends decide for themselves, and must decide alike.

/// The NICs of a pair, as places in the two ranks' lists: the first NIC of the lower rank's list whose rail the higher rank
/// has too, and the first such NIC there. `None` if they share no rail.
///
/// A NIC of no known rail matches one of no known rail: without rails there is one fabric.
pub(crate) fn choose(lower: &[Option<u32>], higher: &[Option<u32>]) -> Option<(usize, usize)> {
    let find = |rail| higher.iter().position(|other| *other == rail);
    lower.iter().enumerate().find_map(|(place, &rail)| find(rail).map(|other| (place, other)))
}

/// The same from one end: this rank's NIC and its peer's.
pub(crate) fn choose_from(
    rank: u32,
    ours: &[Option<u32>],
    peer: u32,
    theirs: &[Option<u32>],
) -> Option<(usize, usize)> {
    if rank < peer { choose(ours, theirs) } else { choose(theirs, ours).map(|(theirs, ours)| (ours, theirs)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lower_ranks_order_decides() {
        assert_eq!(choose(&[Some(1), Some(0)], &[Some(0), Some(1)]), Some((0, 1)));
        assert_eq!(choose(&[Some(2), Some(0)], &[Some(1), Some(0)]), Some((1, 1)));
    }

    #[test]
    fn without_a_common_rail_there_is_no_pair() {
        assert_eq!(choose(&[Some(0)], &[Some(1)]), None);
        assert_eq!(choose(&[None], &[Some(0)]), None);
        assert_eq!(choose(&[None], &[None]), Some((0, 0)));
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
            match from_a {
                Some((i, j)) => prop_assert_eq!(a[i], b[j]),
                None => prop_assert!(a.iter().all(|rail| !b.contains(rail))),
            }
        }
    }
}
