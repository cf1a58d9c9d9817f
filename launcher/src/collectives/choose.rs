//! Which algorithm a collective uses: by its kind, the ranks and their nodes, and the length; or what `ROCE_ALGORITHMS` says.
//! No I/O.

use std::fmt;

use crate::error::{Error, Result};

/// Names algorithms, as in `all_reduce=ring,broadcast=shared_memory+chain`.
pub(crate) const ALGORITHMS: &str = "ROCE_ALGORITHMS";

/// A collective operation that has more than one algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Collective {
    /// [`Communicator::barrier`](crate::Communicator::barrier)
    Barrier,
    /// [`Communicator::broadcast`](crate::Communicator::broadcast)
    Broadcast,
    /// [`Communicator::reduce`](crate::Communicator::reduce)
    Reduce,
    /// [`Communicator::all_reduce`](crate::Communicator::all_reduce)
    AllReduce,
    /// [`Communicator::all_gather`](crate::Communicator::all_gather)
    AllGather,
    /// [`Communicator::all_to_all`](crate::Communicator::all_to_all)
    AllToAll,
}

/// How ranks of different nodes, or all ranks without regard to nodes, work together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Algorithm {
    /// Barrier: in round k everyone tells the rank 2^k further.
    Dissemination,
    /// Broadcast, reduce: a tree in which everyone who has the data gives it to one more in each round.
    Binomial,
    /// Broadcast: from rank to rank, in pieces.
    Chain,
    /// All-reduce: everything with ranks 1, 2, 4, ... away.
    RecursiveDoubling,
    /// All-reduce: halves, quarters, ... with ranks far away first, each reduces one part; back by doubling (Rabenseifner).
    Halving,
    /// All-reduce, all-gather: parts go around.
    Ring,
    /// All-gather, all-to-all: what was got goes on with the own, in rounds of doubled distance (Bruck).
    Bruck,
    /// All-to-all: in step k to the rank k further.
    Pairwise,
}

/// What a collective does: [`Communicator::algorithm`](crate::Communicator::algorithm).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Whether ranks of a node work through memory that they share first, and only one of each node takes part in the rest.
    pub shared_memory: bool,
    /// How ranks send each other messages then; `None` if that is not needed, as all are on one node.
    pub messages: Option<Algorithm>,
}

/// Where the ranks of a communicator are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) ranks: u32,
    pub(crate) nodes: u32,
    /// Of the node with the most.
    pub(crate) on_one_node: u32,
}

/// What `ROCE_ALGORITHMS` says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Overrides(Vec<(Collective, Override)>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Override {
    shared_memory: bool,
    /// By length where none is named.
    messages: Option<Algorithm>,
}

const SHARED_MEMORY: &str = "shared_memory";

const COLLECTIVES: [(&str, Collective, &[Algorithm]); 6] = [
    ("barrier", Collective::Barrier, &[Algorithm::Dissemination]),
    ("broadcast", Collective::Broadcast, &[Algorithm::Binomial, Algorithm::Chain]),
    ("reduce", Collective::Reduce, &[Algorithm::Binomial]),
    (
        "all_reduce",
        Collective::AllReduce,
        &[Algorithm::RecursiveDoubling, Algorithm::Halving, Algorithm::Ring],
    ),
    ("all_gather", Collective::AllGather, &[Algorithm::Bruck, Algorithm::Ring]),
    ("all_to_all", Collective::AllToAll, &[Algorithm::Bruck, Algorithm::Pairwise]),
];

impl Collective {
    /// `all_reduce`
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    fn entry(self) -> &'static (&'static str, Self, &'static [Algorithm]) {
        // All are there, by number.
        &COLLECTIVES[self as usize]
    }

    fn by_shared_memory(self) -> bool {
        self != Self::AllToAll
    }
}

impl Algorithm {
    /// `recursive_doubling`
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dissemination => "dissemination",
            Self::Binomial => "binomial",
            Self::Chain => "chain",
            Self::RecursiveDoubling => "recursive_doubling",
            Self::Halving => "rabenseifner",
            Self::Ring => "ring",
            Self::Bruck => "bruck",
            Self::Pairwise => "pairwise",
        }
    }
}

/// `shared_memory+ring`
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shared_memory, self.messages) {
            (true, Some(messages)) => write!(f, "{SHARED_MEMORY}+{}", messages.name()),
            (true, None) => f.write_str(SHARED_MEMORY),
            (false, Some(messages)) => f.write_str(messages.name()),
            (false, None) => f.write_str("nothing"),
        }
    }
}

impl Overrides {
    /// Of the variable's value.
    ///
    /// # Errors
    /// Says what is allowed.
    pub(crate) fn parse(value: &str) -> Result<Self> {
        let wrong = |problem: String| Error::Algorithms { value: value.chars().take(200).collect(), problem };
        let mut overrides = Self::default();
        for setting in value.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            let (name, algorithm) = setting.split_once('=').ok_or_else(|| {
                wrong(format!(
                    "{setting:?} is not of the form COLLECTIVE=ALGORITHM; for COLLECTIVE there are {}",
                    names()
                ))
            })?;
            let (name, algorithm) = (name.trim(), algorithm.trim());
            let (_, collective, allowed) =
                COLLECTIVES.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
                    wrong(format!("there is no collective {name:?} to choose for; there are {}", names()))
                })?;
            let messages = match algorithm.split_once('+') {
                Some((SHARED_MEMORY, messages)) if collective.by_shared_memory() => Some(messages),
                None if algorithm == SHARED_MEMORY && collective.by_shared_memory() => None,
                _ => Some(algorithm),
            };
            let find = |name: &str| allowed.iter().copied().find(|known| known.name() == name);
            let found = messages.map(|name| find(name).ok_or(())).transpose();
            let messages = found.map_err(|()| {
                wrong(format!("{name} has no algorithm {algorithm:?}; it has {}", of_collective(*collective)))
            })?;
            let shared_memory = algorithm.starts_with(SHARED_MEMORY);
            overrides.0.retain(|(other, _)| other != collective);
            overrides.0.push((*collective, Override { shared_memory, messages }));
        }
        Ok(overrides)
    }

    fn of(&self, collective: Collective) -> Option<Override> {
        self.0.iter().find(|(other, _)| *other == collective).map(|(_, setting)| *setting)
    }
}

/// `barrier, broadcast, ...`
fn names() -> String {
    COLLECTIVES.map(|(name, ..)| name).join(", ")
}

/// `shared_memory, ring, shared_memory+ring`
fn of_collective(collective: Collective) -> String {
    let messages = collective.entry().2.iter().map(|algorithm| algorithm.name());
    let alone = messages.clone().map(str::to_owned);
    if !collective.by_shared_memory() {
        return alone.collect::<Vec<_>>().join(", ");
    }
    let after = messages.map(|name| format!("{SHARED_MEMORY}+{name}"));
    std::iter::once(SHARED_MEMORY.to_owned()).chain(alone).chain(after).collect::<Vec<_>>().join(", ")
}

/// What a collective does with so many bytes on each rank (for all-to-all: for each rank).
pub(crate) fn choose(overrides: &Overrides, collective: Collective, layout: Layout, bytes: usize) -> Choice {
    let set = overrides.of(collective);
    let shared_memory = layout.on_one_node > 1
        && collective.by_shared_memory()
        && match set {
            Some(set) => set.shared_memory,
            None => bytes <= most_shared(collective),
        };
    let ranks = if shared_memory { layout.nodes } else { layout.ranks };
    let messages = set.and_then(|set| set.messages).unwrap_or_else(|| by_messages(collective, ranks, bytes));
    Choice { shared_memory, messages: (ranks > 1).then_some(messages) }
}

/// Longer data goes better by messages, which a receiver reads from the sender's memory: no copy in between.
fn most_shared(collective: Collective) -> usize {
    match collective {
        Collective::AllGather => 32 << 10,
        _ => usize::MAX,
    }
}

fn by_messages(collective: Collective, ranks: u32, bytes: usize) -> Algorithm {
    match collective {
        Collective::Barrier => Algorithm::Dissemination,
        Collective::Broadcast if bytes >= 512 << 10 && (3..=16).contains(&ranks) => Algorithm::Chain,
        Collective::Broadcast | Collective::Reduce => Algorithm::Binomial,
        Collective::AllReduce if bytes < 16 << 10 => Algorithm::RecursiveDoubling,
        // The ring's steps are as many as ranks; each must be worth it.
        Collective::AllReduce if bytes / (ranks as usize).max(1) < 64 << 10 => Algorithm::Halving,
        Collective::AllReduce => Algorithm::Ring,
        Collective::AllGather if bytes < 16 << 10 => Algorithm::Bruck,
        Collective::AllGather => Algorithm::Ring,
        Collective::AllToAll if bytes <= 256 && ranks > 4 => Algorithm::Bruck,
        Collective::AllToAll => Algorithm::Pairwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_NODES: Layout = Layout { ranks: 8, nodes: 2, on_one_node: 4 };
    const SPREAD: Layout = Layout { ranks: 8, nodes: 8, on_one_node: 1 };

    fn chosen(setting: &str, collective: Collective, layout: Layout, bytes: usize) -> String {
        choose(&Overrides::parse(setting).unwrap(), collective, layout, bytes).to_string()
    }

    #[test]
    fn the_length_and_the_nodes_decide() {
        let all_reduce = |layout, bytes| chosen("", Collective::AllReduce, layout, bytes);
        assert_eq!(all_reduce(TWO_NODES, 8), "shared_memory+recursive_doubling");
        assert_eq!(all_reduce(TWO_NODES, 100_000), "shared_memory+rabenseifner");
        assert_eq!(all_reduce(SPREAD, 100_000), "rabenseifner");
        assert_eq!(all_reduce(SPREAD, 1 << 20), "ring");
        assert_eq!(all_reduce(Layout { ranks: 4, nodes: 1, on_one_node: 4 }, 8), "shared_memory");
        assert_eq!(all_reduce(Layout { ranks: 1, nodes: 1, on_one_node: 1 }, 8), "nothing");
        assert_eq!(chosen("", Collective::AllToAll, TWO_NODES, 8), "bruck");
        assert_eq!(chosen("", Collective::AllToAll, TWO_NODES, 8000), "pairwise");
    }

    #[test]
    fn what_is_set_counts() {
        let chosen = |setting, collective| chosen(setting, collective, TWO_NODES, 8);
        assert_eq!(chosen("all_reduce=ring", Collective::AllReduce), "ring");
        assert_eq!(chosen("all_reduce=shared_memory+ring", Collective::AllReduce), "shared_memory+ring");
        assert_eq!(
            chosen("all_reduce = shared_memory", Collective::AllReduce),
            "shared_memory+recursive_doubling"
        );
        assert_eq!(chosen("barrier=dissemination, broadcast=chain", Collective::Broadcast), "chain");
        assert_eq!(chosen("barrier=dissemination", Collective::Broadcast), "shared_memory+binomial");
    }

    #[test]
    fn each_collective_finds_itself() {
        assert!(COLLECTIVES.iter().all(|(name, collective, _)| collective.name() == *name));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_is_allowed() {
        let error = |value| Overrides::parse(value).unwrap_err().to_string();
        assert_eq!(
            error("all_reduce=rnig"),
            "ROCE_ALGORITHMS=\"all_reduce=rnig\": all_reduce has no algorithm \"rnig\"; it has shared_memory, recursive_doubling, \
             rabenseifner, ring, shared_memory+recursive_doubling, shared_memory+rabenseifner, shared_memory+ring"
        );
        assert!(
            error("allreduce=ring")
                .contains("there are barrier, broadcast, reduce, all_reduce, all_gather, all_to_all")
        );
        assert!(error("ring").contains("COLLECTIVE=ALGORITHM"));
        assert!(error("all_to_all=shared_memory").ends_with("it has bruck, pairwise"));
    }
}
