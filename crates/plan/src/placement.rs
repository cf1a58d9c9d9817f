//! Which task gets which NICs. All tasks of a node are settled together.

use crate::distance::Distance;
use crate::request::Placement;

/// What placement needs to know, by index of task and NIC.
pub(crate) struct Board<'a> {
    /// `distances[task][nic]`.
    pub(crate) distances: &'a [Vec<Distance>],
    /// The rail of each NIC.
    pub(crate) rails: &'a [u32],
    /// The physical port that each NIC's packets leave by, as any number: the virtual functions of
    /// one port share its wire.
    pub(crate) ports: &'a [usize],
}

/// The NICs of each task, best first, as indexes. `wanted` is how many each gets: at least 1, at
/// most all.
pub(crate) fn assign(policy: Placement, board: &Board<'_>, wanted: usize) -> Vec<Vec<usize>> {
    let nics = board.rails.len();
    let tasks = board.distances.len();
    // The other policies say which NIC comes first; what a task gets beyond that is the nearest.
    let first = match policy {
        Placement::Nearest => None,
        Placement::RoundRobin => Some((0..tasks).map(|task| task % nics).collect::<Vec<_>>()),
        Placement::Rail => {
            let mut by_rail: Vec<usize> = (0..nics).collect();
            by_rail.sort_by_key(|&nic| (board.rails[nic], nic));
            Some((0..tasks).map(|task| by_rail[task % nics]).collect())
        }
        Placement::Block => Some((0..tasks).map(|task| task * nics / tasks).collect()),
    };
    let sets = match &first {
        None => nearest_sets(board, &vec![Vec::new(); tasks], wanted),
        Some(first) => nearest_sets(board, &first.iter().map(|&nic| vec![nic]).collect::<Vec<_>>(), wanted),
    };
    let first = first.unwrap_or_else(|| spread_first(board, &sets));
    let ordered = |(task, (mut set, first)): (usize, (Vec<usize>, usize))| {
        set.sort_by_key(|&nic| (nic != first, board.distances[task][nic], nic));
        set
    };
    sets.into_iter().zip(first).enumerate().map(ordered).collect()
}

/// The `wanted` nearest NICs of each task, beyond those it `has` already; where several are equally
/// near, so that the load of the ports becomes as even as nearness allows.
fn nearest_sets(board: &Board<'_>, has: &[Vec<usize>], wanted: usize) -> Vec<Vec<usize>> {
    let mut spread = Spread::new(board);
    let mut open = Vec::new();
    for (task, has) in has.iter().enumerate() {
        let row = &board.distances[task];
        let missing = wanted.saturating_sub(has.len());
        let mut rest: Vec<usize> = (0..row.len()).filter(|nic| !has.contains(nic)).collect();
        rest.sort_by_key(|&nic| (row[nic], nic));
        let Some(farthest) = missing.checked_sub(1).and_then(|last| rest.get(last)).map(|&nic| row[nic])
        else {
            spread.fix(task, has);
            continue;
        };
        // What is strictly nearer is the task's in any case; the rest is chosen among the equally far.
        let nearer: Vec<usize> = rest.iter().copied().filter(|&nic| row[nic] < farthest).collect();
        spread.allow(task, rest.iter().copied().filter(|&nic| row[nic] == farthest).collect());
        open.extend(std::iter::repeat_n(task, missing - nearer.len()));
        spread.fix(task, has);
        spread.fix(task, &nearer);
    }
    for task in open {
        spread.place(task);
    }
    spread.into_sets()
}

/// Which NIC of its set comes first in each task: the nearest, spread evenly.
fn spread_first(board: &Board<'_>, sets: &[Vec<usize>]) -> Vec<usize> {
    let mut spread = Spread::new(board);
    for (task, set) in sets.iter().enumerate() {
        let nearest = set.iter().map(|&nic| board.distances[task][nic]).min();
        let mut near: Vec<usize> =
            set.iter().copied().filter(|&nic| Some(board.distances[task][nic]) == nearest).collect();
        near.sort_unstable();
        spread.allow(task, near);
        spread.place(task);
    }
    spread.into_sets().into_iter().map(|set| set[0]).collect()
}

/// Tasks choosing among NICs they like equally, so that the ports' load is as even as can be.
///
/// Tasks are placed one after the other. If every port that a task could take is busier than one
/// that earlier tasks could make room on, by each moving to another of its own choices, they move:
/// the cost-reducing paths of an optimal semi-matching (Harvey, Ladner, Lovasz and Tamir, 2003).
struct Spread<'a> {
    board: &'a Board<'a>,
    load: Vec<usize>,
    choices: Vec<Vec<usize>>,
    /// The NICs that a task has by choice, which it can trade.
    chosen: Vec<Vec<usize>>,
    /// The NICs that a task has in any case.
    fixed: Vec<Vec<usize>>,
}

/// One task trading a NIC for another, or taking its first.
#[derive(Clone, Copy)]
struct Move {
    task: usize,
    leaves: Option<usize>,
    takes: usize,
}

impl<'a> Spread<'a> {
    fn new(board: &'a Board<'a>) -> Self {
        let tasks = board.distances.len();
        let empty = || vec![Vec::new(); tasks];
        let load = vec![0; board.ports.iter().max().map_or(0, |last| last + 1)];
        Self { board, load, choices: empty(), chosen: empty(), fixed: empty() }
    }

    fn fix(&mut self, task: usize, nics: &[usize]) {
        for &nic in nics {
            self.load[self.board.ports[nic]] += 1;
        }
        self.fixed[task].extend(nics);
    }

    fn allow(&mut self, task: usize, nics: Vec<usize>) {
        self.choices[task] = nics;
    }

    /// Gives the task one more NIC of its choices.
    fn place(&mut self, task: usize) {
        let port = |nic: usize| self.board.ports[nic];
        // Breadth first over ports. How each was reached, to walk back.
        let mut reached: Vec<Option<Move>> = vec![None; self.load.len()];
        let mut queue: Vec<usize> = Vec::new();
        let mut visit = |mover: usize, leaves: Option<usize>, queue: &mut Vec<usize>| {
            for &takes in self.choices[mover].iter().filter(|nic| !self.chosen[mover].contains(nic)) {
                if reached[port(takes)].is_none() {
                    reached[port(takes)] = Some(Move { task: mover, leaves, takes });
                    queue.push(port(takes));
                }
            }
        };
        visit(task, None, &mut queue);
        let mut next = 0;
        while let Some(&crowded) = queue.get(next) {
            next += 1;
            for other in (0..self.chosen.len()).filter(|&other| other != task) {
                for &nic in self.chosen[other].iter().filter(|&&nic| port(nic) == crowded) {
                    visit(other, Some(nic), &mut queue);
                }
            }
        }
        // The queue is ordered by the number of moves, so the first of the least loaded is best.
        let Some(mut end) = queue.into_iter().min_by_key(|&port| self.load[port]) else { return };
        self.load[end] += 1;
        while let Some(Move { task, leaves, takes }) = reached[end] {
            self.chosen[task].push(takes);
            let Some(left) = leaves else { return };
            self.chosen[task].retain(|&nic| nic != left);
            end = self.board.ports[left];
        }
    }

    fn into_sets(self) -> Vec<Vec<usize>> {
        let both = |(mut fixed, chosen): (Vec<usize>, Vec<usize>)| {
            fixed.extend(chosen);
            fixed
        };
        self.fixed.into_iter().zip(self.chosen).map(both).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::distance::CpuDistance;

    const NEAR: Distance = Distance { gpu: None, cpu: CpuDistance::SameNuma };
    const FAR: Distance =
        Distance { gpu: None, cpu: CpuDistance::OtherNuma { distance: 21, other_package: true } };
    const LOST: Distance = Distance { gpu: None, cpu: CpuDistance::Unknown };

    fn assigned(policy: Placement, distances: &[Vec<Distance>], wanted: usize) -> Vec<Vec<usize>> {
        let nics = distances[0].len();
        let rails: Vec<u32> = (0..).take(nics).collect();
        let ports: Vec<usize> = (0..nics).collect();
        assign(policy, &Board { distances, rails: &rails, ports: &ports }, wanted)
    }

    fn first(policy: Placement, distances: &[Vec<Distance>]) -> Vec<usize> {
        assigned(policy, distances, 1).into_iter().map(|nics| nics[0]).collect()
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
        let board = Board { distances: &anywhere, rails: &[5, 2], ports: &[0, 1] };
        assert_eq!(assign(Placement::Rail, &board, 1), [[1], [0], [1], [0]]);
    }

    #[test]
    fn all_nics_are_listed_nearest_first_and_tasks_begin_with_different_ones() {
        assert_eq!(assigned(Placement::Nearest, &[vec![FAR, NEAR], vec![NEAR, FAR]], 2), [[1, 0], [0, 1]]);
        assert_eq!(assigned(Placement::Nearest, &vec![vec![NEAR, NEAR]; 2], 2), [[0, 1], [1, 0]]);
        assert_eq!(assigned(Placement::RoundRobin, &vec![vec![NEAR, FAR]; 2], 2), [[0, 1], [1, 0]]);
    }

    #[test]
    fn two_virtual_functions_of_one_port_count_as_one_port() {
        let distances = vec![vec![NEAR; 3]; 2];
        let board = Board { distances: &distances, rails: &[0, 0, 1], ports: &[0, 0, 1] };
        assert_eq!(assign(Placement::Nearest, &board, 1), [[0], [2]]);
    }

    /// Loads of the ports, greatest first: a smaller list is evener.
    fn loads(sets: &[Vec<usize>], ports: &[usize]) -> Vec<usize> {
        let mut loads = vec![0; ports.len()];
        for &nic in sets.iter().flatten() {
            loads[ports[nic]] += 1;
        }
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    /// What a placement is judged by: the worst distance, then the distances of all (each as its
    /// rank, summed), then the loads.
    fn judge(
        sets: &[Vec<usize>],
        distances: &[Vec<Distance>],
        ports: &[usize],
    ) -> (Distance, usize, Vec<usize>) {
        let used = || {
            sets.iter().enumerate().flat_map(|(task, set)| set.iter().map(move |&nic| distances[task][nic]))
        };
        let rank = |distance| [NEAR, FAR, LOST].iter().position(|&other| other == distance).unwrap();
        (used().max().unwrap(), used().map(rank).sum(), loads(sets, ports))
    }

    /// Every way of giving each task `wanted` different NICs.
    fn every_placement(tasks: usize, nics: usize, wanted: usize) -> Vec<Vec<Vec<usize>>> {
        let sets: Vec<Vec<usize>> = (0_u32..1 << nics)
            .map(|mask| (0..nics).filter(|nic| mask >> nic & 1 == 1).collect::<Vec<_>>())
            .filter(|set| set.len() == wanted)
            .collect();
        (0..tasks).fold(vec![Vec::new()], |placements, _| {
            placements
                .iter()
                .flat_map(|placement| {
                    sets.iter().map(|set| [placement.as_slice(), std::slice::from_ref(set)].concat())
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Up to 4 NICs and 6 tasks, one or two NICs per task, some NICs sharing a port.
        #[test]
        fn nearest_is_as_good_as_the_best_of_all_placements(
            rows in proptest::collection::vec(proptest::collection::vec(0_usize..3, 4), 1..=6),
            ports in proptest::collection::vec(0_usize..4, 4),
            nics in 1_usize..=4,
            two in any::<bool>(),
        ) {
            let wanted = if two && nics > 1 && rows.len() < 5 { 2 } else { 1 };
            let distances: Vec<Vec<Distance>> = rows
                .iter()
                .map(|row| row[..nics].iter().map(|&rank| [NEAR, FAR, LOST][rank]).collect())
                .collect();
            let ports = &ports[..nics];
            let rails: Vec<u32> = (0..).take(nics).collect();
            let ours = assign(Placement::Nearest, &Board { distances: &distances, rails: &rails, ports }, wanted);
            for set in &ours {
                let distinct: std::collections::BTreeSet<_> = set.iter().collect();
                prop_assert_eq!(distinct.len(), wanted);
            }
            let all_ports = [ports, &[3, 3, 3, 3]].concat();
            let best = every_placement(rows.len(), nics, wanted)
                .iter()
                .map(|sets| judge(sets, &distances, &all_ports))
                .min()
                .unwrap();
            prop_assert_eq!(judge(&ours, &distances, &all_ports), best);
        }

        /// 8 tasks, one NIC each, any distances, some NICs sharing a port: too many placements to list, but
        /// few outcomes, so every task is added to every outcome of the tasks before it.
        #[test]
        fn eight_tasks_on_four_nics_are_placed_as_well_as_the_best_of_all_placements(
            rows in proptest::collection::vec(proptest::collection::vec(0_usize..3, 4), 8),
            ports in proptest::collection::vec(0_usize..4, 4),
        ) {
            let distances: Vec<Vec<Distance>> =
                rows.iter().map(|row| row.iter().map(|&rank| [NEAR, FAR, LOST][rank]).collect()).collect();
            let board = Board { distances: &distances, rails: &[0, 1, 2, 3], ports: &ports };
            let ours = judge(&assign(Placement::Nearest, &board, 1), &distances, &ports);
            let mut outcomes = std::collections::BTreeSet::from([(NEAR, 0, [0_usize; 4])]);
            for row in &rows {
                outcomes = outcomes
                    .iter()
                    .flat_map(|&(worst, total, loads)| {
                        (0..4).map(move |nic| (nic, worst, total, loads))
                    })
                    .map(|(nic, worst, total, mut loads)| {
                        loads[ports[nic]] += 1;
                        (worst.max([NEAR, FAR, LOST][row[nic]]), total + row[nic], loads)
                    })
                    .collect();
            }
            let sorted = |(worst, total, mut loads): (Distance, usize, [usize; 4])| {
                loads.sort_unstable_by(|a, b| b.cmp(a));
                (worst, total, loads.to_vec())
            };
            prop_assert_eq!(ours, outcomes.into_iter().map(sorted).min().unwrap());
        }
    }
}
