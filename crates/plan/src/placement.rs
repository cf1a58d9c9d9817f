//! Which task gets which NIC. All tasks of a node are settled together.

use crate::nics::Distance;
use crate::request::Placement;

/// The NICs of each task, best first, as indexes into the pool.
///
/// `distances[task][nic]` says how far they are apart; `rails[nic]` is the rail of each NIC;
/// `wanted` is how many NICs each task gets, at least 1 and at most all.
pub(crate) fn assign(
    policy: Placement,
    distances: &[Vec<Distance>],
    rails: &[u32],
    wanted: usize,
) -> Vec<Vec<usize>> {
    let nics = rails.len();
    let tasks = distances.len();
    let first: Vec<usize> = match policy {
        Placement::Nearest => nearest(distances, nics),
        Placement::RoundRobin => (0..tasks).map(|task| task % nics).collect(),
        Placement::Rail => {
            let mut by_rail: Vec<usize> = (0..nics).collect();
            by_rail.sort_by_key(|&nic| (rails[nic], nic));
            (0..tasks).map(|task| by_rail[task % nics]).collect()
        }
        Placement::Block => (0..tasks).map(|task| task * nics / tasks).collect(),
    };
    with_further_nics(&first, distances, nics, wanted)
}

/// Each task on a nearest NIC, and the load as even as that allows.
///
/// Tasks are taken in order. A task whose near NICs are all busier than one that could be freed by
/// moving earlier tasks, each to another of its own nearest, gets that one: the augmenting paths
/// of an optimal semi-matching (Harvey, Ladner, Lovasz and Tamir, 2003).
fn nearest(distances: &[Vec<Distance>], nics: usize) -> Vec<usize> {
    let near: Vec<Vec<usize>> = distances
        .iter()
        .map(|row| {
            let best = row.iter().min();
            (0..nics).filter(|&nic| row.get(nic) == best).collect()
        })
        .collect();
    let mut chosen: Vec<usize> = Vec::with_capacity(distances.len());
    let mut load = vec![0_usize; nics];
    for task in 0..distances.len() {
        // Breadth first over NICs; `reached_by[nic]` is the task that would move there.
        let mut reached_by: Vec<Option<usize>> = vec![None; nics];
        let mut queue: Vec<usize> = Vec::new();
        let mut visit = |from: usize, queue: &mut Vec<usize>| {
            for &nic in &near[from] {
                if reached_by[nic].is_none() {
                    reached_by[nic] = Some(from);
                    queue.push(nic);
                }
            }
        };
        visit(task, &mut queue);
        let mut next = 0;
        while let Some(&nic) = queue.get(next) {
            next += 1;
            for other in (0..chosen.len()).filter(|&other| chosen[other] == nic) {
                visit(other, &mut queue);
            }
        }
        // The queue is ordered by the number of moves, so the first of the least loaded is best.
        let mut nic = queue.iter().copied().min_by_key(|&nic| load[nic]).unwrap_or(0);
        load[nic] += 1;
        chosen.push(nic);
        // Walk back: whoever reached the NIC takes it and leaves its old one to the one before.
        while let Some(mover) = reached_by[nic] {
            let left = chosen[mover];
            chosen[mover] = nic;
            if mover == task {
                break;
            }
            nic = left;
        }
    }
    chosen
}

/// Adds each task's further NICs: by distance, then the least used, then the pool's order.
fn with_further_nics(
    first: &[usize],
    distances: &[Vec<Distance>],
    nics: usize,
    wanted: usize,
) -> Vec<Vec<usize>> {
    let mut load = vec![0_usize; nics];
    for &nic in first {
        load[nic] += 1;
    }
    let further = |(&first, row): (&usize, &Vec<Distance>)| {
        let mut others: Vec<usize> = (0..nics).filter(|&nic| nic != first).collect();
        others.sort_by_key(|&nic| (row[nic], load[nic], nic));
        others.truncate(wanted.saturating_sub(1));
        for &nic in &others {
            load[nic] += 1;
        }
        others.insert(0, first);
        others
    };
    first.iter().zip(distances).map(further).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEAR: Distance = Distance::SameNuma;
    const FAR: Distance = Distance::OtherNuma(21);

    fn first(policy: Placement, distances: &[Vec<Distance>]) -> Vec<usize> {
        let rails: Vec<u32> = (0..).take(distances[0].len()).collect();
        assign(policy, distances, &rails, 1).into_iter().map(|nics| nics[0]).collect()
    }

    #[test]
    fn each_task_gets_the_nic_of_its_own_numa_node() {
        assert_eq!(first(Placement::Nearest, &[vec![FAR, NEAR], vec![NEAR, FAR]]), [1, 0]);
    }

    #[test]
    fn tasks_equally_near_to_all_spread_over_all() {
        assert_eq!(first(Placement::Nearest, &vec![vec![NEAR, NEAR]; 4]), [0, 1, 0, 1]);
    }

    #[test]
    fn an_earlier_task_moves_when_that_evens_the_load() {
        // Task 0 could use either, task 1 only NIC 0.
        assert_eq!(first(Placement::Nearest, &[vec![NEAR, NEAR], vec![NEAR, FAR]]), [1, 0]);
    }

    #[test]
    fn nearness_comes_before_an_even_load() {
        assert_eq!(first(Placement::Nearest, &vec![vec![NEAR, FAR]; 3]), [0, 0, 0]);
    }

    #[test]
    fn the_other_policies() {
        let anywhere = vec![vec![NEAR, FAR]; 4];
        assert_eq!(first(Placement::RoundRobin, &anywhere), [0, 1, 0, 1]);
        assert_eq!(first(Placement::Block, &anywhere), [0, 0, 1, 1]);
        let by_rail = assign(Placement::Rail, &anywhere, &[5, 2], 1);
        assert_eq!(by_rail, [[1], [0], [1], [0]]);
    }

    #[test]
    fn all_nics_are_listed_nearest_first() {
        let both = assign(Placement::Nearest, &[vec![FAR, NEAR], vec![NEAR, FAR]], &[0, 1], 2);
        assert_eq!(both, [[1, 0], [0, 1]]);
    }

    /// The greatest load, then the next, ...: smaller is evener.
    fn loads(chosen: &[usize], nics: usize) -> Vec<usize> {
        let mut loads: Vec<usize> =
            (0..nics).map(|nic| chosen.iter().filter(|&&other| other == nic).count()).collect();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    proptest! {
        #[test]
        fn nearest_is_nearest_for_every_task_and_as_even_as_brute_force_finds(
            near in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 3), 1..6),
        ) {
            let distances: Vec<Vec<Distance>> = near
                .iter()
                .map(|row| row.iter().map(|&near| if near { NEAR } else { FAR }).collect())
                .collect();
            let chosen = first(Placement::Nearest, &distances);
            for (row, &nic) in distances.iter().zip(&chosen) {
                prop_assert_eq!(Some(&row[nic]), row.iter().min());
            }
            let tasks = u32::try_from(distances.len()).unwrap();
            let all_nearest = (0..3_usize.pow(tasks)).map(|code| {
                (0..tasks).map(|task| code / 3_usize.pow(task) % 3).collect::<Vec<_>>()
            }).filter(|chosen| distances.iter().zip(chosen).all(|(row, &nic)| Some(&row[nic]) == row.iter().min()));
            let best = all_nearest.map(|chosen| loads(&chosen, 3)).min().unwrap();
            prop_assert_eq!(loads(&chosen, 3), best);
        }
    }
}
