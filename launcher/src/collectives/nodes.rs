//! Where the ranks of a communicator are, and the memory that those of this node share.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::collectives::choose::{Choice, Collective, Layout, Overrides, choose};
use crate::collectives::local::Local;
use crate::collectives::node::{Memory, half};
use crate::collectives::round::Round;
use crate::error::{Error, Result};
use crate::memory_file::Card;

/// The nodes of a communicator.
#[derive(Debug)]
pub(crate) struct Nodes {
    layout: Layout,
    overrides: Rc<Overrides>,
    /// By rank of the communicator: its node, counted by the lowest rank on each.
    pub(super) node_of: Vec<u32>,
    /// The lowest rank of each node.
    pub(super) leaders: Rc<[u32]>,
    /// The ranks of this node, and this one's place among them.
    pub(super) here: Vec<u32>,
    pub(super) place: usize,
    memory: OnceCell<Memory>,
    /// Where it is, if another rank made it; or why there is none.
    card: std::result::Result<Card, String>,
    /// All ranks of the node have finished all rounds before this one.
    pub(super) past: Cell<u64>,
    /// The round in which this rank last wrote to its cells and halves of even and odd rounds.
    pub(super) written: [Cell<u64>; 2],
    finished: Cell<u64>,
    /// Whether the ranks of the node have to share CPUs, once that is known.
    crowded: Cell<Option<bool>>,
}

impl Nodes {
    /// `names` are the nodes of all ranks of the communicator.
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>, rank: u32, overrides: Rc<Overrides>) -> Self {
        let mut nodes: Vec<(&str, Vec<u32>)> = Vec::new();
        let mut node_of = Vec::new();
        let mut numbers = std::collections::HashMap::new();
        for (rank, name) in (0..).zip(names) {
            let number = *numbers.entry(name).or_insert_with(|| {
                nodes.push((name, Vec::new()));
                nodes.len() - 1
            });
            nodes[number].1.push(rank);
            node_of.push(number as u32);
        }
        let on_one_node = nodes.iter().map(|(_, ranks)| ranks.len()).max().unwrap_or(1);
        let layout = Layout {
            ranks: node_of.len() as u32,
            nodes: nodes.len() as u32,
            on_one_node: on_one_node as u32,
        };
        let leaders = nodes.iter().map(|(_, ranks)| ranks[0]).collect();
        let here = node_of.get(rank as usize).map(|node| std::mem::take(&mut nodes[*node as usize].1));
        let here = here.unwrap_or_default();
        let place = here.iter().position(|other| *other == rank).unwrap_or(0);
        Self {
            layout,
            overrides,
            node_of,
            leaders,
            here,
            place,
            memory: OnceCell::new(),
            card: Err("nobody made any".to_owned()),
            past: Cell::new(1),
            written: [Cell::new(0), Cell::new(0)],
            finished: Cell::new(0),
            crowded: Cell::new(None),
        }
    }

    pub(crate) fn overrides(&self) -> Rc<Overrides> {
        Rc::clone(&self.overrides)
    }

    /// The rank of the communicator that leads this node.
    pub(crate) fn leader(&self) -> u32 {
        self.here.first().copied().unwrap_or_default()
    }

    pub(crate) fn here(&self) -> &[u32] {
        &self.here
    }

    /// Whether its leader makes memory for this node.
    pub(crate) fn share(&self) -> bool {
        self.layout.on_one_node > 1
    }

    /// Makes the memory, by the leader.
    pub(crate) fn create(&mut self) -> std::result::Result<Card, String> {
        let (memory, card) = Memory::create(self.here.len()).map_err(|error| error.to_string())?;
        self.memory = OnceCell::from(memory);
        Ok(card)
    }

    /// Where the leader made it, or why it could not.
    pub(crate) fn set_card(&mut self, card: std::result::Result<Card, String>) {
        self.card = card;
    }

    /// What a collective does with so many elements.
    pub(super) fn choose<T>(&self, collective: Collective, length: usize) -> Choice {
        self.choose_sized(collective, length.saturating_mul(size_of::<T>()), size_of::<T>())
    }

    pub(super) fn choose_sized(&self, collective: Collective, bytes: usize, element: usize) -> Choice {
        let layout = match self.layout.on_one_node as usize {
            // The halves of the node with the most ranks are the smallest; a slice of them has room for one element at least.
            most if element.saturating_mul(most) > half(most) => {
                Layout { nodes: self.layout.ranks, on_one_node: 1, ..self.layout }
            }
            _ => self.layout,
        };
        choose(&self.overrides, collective, layout, bytes)
    }

    fn memory(&self, round: &Round<'_>) -> Result<&Memory> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let opened = self
            .card
            .clone()
            .and_then(|card| Memory::open(self.here.len(), &card).map_err(|error| error.to_string()));
        let world = &round.communicator.world;
        let memory = opened.map_err(|why| {
            let node = world.node_of(world.rank).to_owned();
            Error::NodeMemory { rank: world.rank, node, why }
        })?;
        Ok(self.memory.get_or_init(|| memory))
    }

    /// Enters a round with the other ranks of the node.
    pub(super) fn enter<'a>(&'a self, round: &'a Round<'a>) -> Result<Local<'a>> {
        let memory = self.memory(round)?;
        if self.finished.get() == 0 {
            memory.tell_cpus(self.place, own_cpus());
        }
        // Also of rounds that this rank was not in by memory.
        if self.finished.get() + 1 < round.number {
            self.finish(memory, round.number - 1);
        }
        Ok(Local { nodes: self, memory, round })
    }

    pub(super) fn finish(&self, memory: &Memory, round: u64) {
        self.finished.set(round);
        memory.finished(self.place).store(round, Ordering::Release);
    }

    pub(super) fn is_crowded(&self, memory: &Memory) -> bool {
        self.crowded.get().unwrap_or_else(|| {
            let known = memory.cpus().map(|cpus| cpus < self.here.len());
            self.crowded.set(known);
            // As long as it is not known, nobody is kept waiting.
            known.unwrap_or(true)
        })
    }
}

/// The CPUs that this thread may use.
fn own_cpus() -> impl Iterator<Item = usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok();
    (0..nix::sched::CpuSet::count()).filter(move |cpu| {
        // If the system doesn't say, each rank counts as one that has a CPU for itself.
        set.is_none_or(|set| set.is_set(*cpu).unwrap_or(false))
    })
}
