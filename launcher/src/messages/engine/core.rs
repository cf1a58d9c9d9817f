//! All that the engine knows.

use std::collections::{BTreeMap, HashMap, VecDeque};

use slab::Slab;

use super::departures::withdraw;
use super::operation::{
    Coming, Failure, Fetch, Kept, Operation, Outcome, Outgoing, Reading, Received, State, Waiting, What,
};
use crate::messages::lent::LentMut;
use crate::messages::matching::{Context, Matching, Wanted};
use crate::messages::watch::{self, Rounds};
use crate::transport::{Broken, Header, Kind, Transport};
use crate::windows::remote::Windows;

/// All but the transport, so that it can listen to it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) rank: u32,
    pub(super) matching: Matching<Operation, Waiting>,
    pub(super) operations: Slab<State>,
    /// For peers whose transport has no room.
    pub(super) outgoing: BTreeMap<u32, VecDeque<Outgoing>>,
    pub(super) fetches: Vec<Fetch>,
    /// Receives whose message the transport is reading. Their memory is its until that is over.
    pub(super) reading: BTreeMap<Operation, Reading>,
    /// Offers of operations that are over, and whether the peer is done with them.
    pub(super) withdrawn: Vec<(Operation, bool)>,
    /// Peers that sent what makes no sense.
    pub(super) senseless: Vec<Broken>,
    /// Messages of which not all has come, one of each peer at most.
    pub(super) coming: BTreeMap<u32, Coming>,
    pub(super) kept: Slab<Kept>,
    /// Peers that can't be reached any more.
    pub(super) broken: BTreeMap<u32, Broken>,
    pub(super) windows: Windows,
    /// The round that is on in contexts of collectives.
    pub(super) rounds: HashMap<Context, Rounds>,
    /// Offers and notices that wait in such contexts: somebody has to see to them.
    pub(super) left_over: usize,
    /// A packet for a window, while it is taken.
    pub(super) copied: Vec<u8>,
}

impl Core {
    pub(super) fn new(rank: u32) -> Self {
        Self {
            rank,
            matching: Matching::default(),
            operations: Slab::new(),
            outgoing: BTreeMap::new(),
            fetches: Vec::new(),
            reading: BTreeMap::new(),
            withdrawn: Vec::new(),
            senseless: Vec::new(),
            broken: BTreeMap::new(),
            windows: Windows::default(),
            rounds: HashMap::new(),
            left_over: 0,
            coming: BTreeMap::new(),
            kept: Slab::new(),
            copied: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, what: What) -> Operation {
        let key = self.operations.insert(State { what, outcome: None });
        // Four thousand million operations don't fit into memory.
        u32::try_from(key).unwrap_or(u32::MAX)
    }

    pub(super) fn finish(&mut self, operation: Operation, outcome: Outcome) {
        let Some(state) = self.operations.get_mut(operation as usize) else { return };
        if matches!(state.what, What::Send { offered: true, .. }) {
            self.withdrawn.push((operation, outcome.is_ok()));
        }
        if matches!(state.what, What::Discard { .. }) {
            self.operations.remove(operation as usize);
        } else {
            state.outcome = Some(outcome);
        }
    }

    /// The sender of a message need not keep it any more.
    pub(super) fn tell_fetched(&mut self, reading: &Reading) {
        let (kind, operation) = (Kind::Fetched as u32, reading.theirs);
        let header = Header { kind, context: 0, tag: 0, operation, length: 0 };
        self.queue(reading.message.label.source, Outgoing::Packet(header, Vec::new()));
    }

    pub(super) fn queue(&mut self, peer: u32, outgoing: Outgoing) {
        if !self.broken.contains_key(&peer) {
            self.outgoing.entry(peer).or_default().push_back(outgoing);
        }
    }

    pub(super) fn receive(&mut self, context: Context, wanted: Wanted, memory: LentMut) -> Operation {
        let operation = self.add(What::Receive { context, wanted, memory, got: None });
        if let Some((_, label, message)) = self.matching.receive(context, wanted, operation) {
            match message {
                Waiting::Whole(bytes) => self.take_whole(operation, label, bytes.as_slice().into()),
                Waiting::Pieces(key) => self.take_kept(operation, label, key),
                Waiting::Offered(offer) => {
                    let message = Received { label, length: offer.length };
                    if watch::has_rounds(context) {
                        self.left_over -= 1;
                    }
                    self.fetches.push(Fetch { operation, message, offer });
                }
            }
        } else if let Some(broken) = wanted.source.and_then(|source| self.broken.get(&source)) {
            let failure = Failure::Broken(broken.clone());
            self.matching.cancel(context, |other| *other == operation);
            self.finish(operation, Err(failure));
        }
        operation
    }

    pub(super) fn cancel(&mut self, operation: Operation, transport: &impl Transport) {
        let Some(state) = self.operations.get_mut(operation as usize) else { return };
        match &mut state.what {
            What::Receive { got: Some(progress), .. } if state.outcome.is_none() => {
                // The pieces that still come belong to nobody, and must not be taken for another operation's.
                state.what = What::Discard { progress: *progress };
                return;
            }
            What::Receive { context, .. } => {
                self.matching.cancel(*context, |other| *other == operation);
                self.fetches.retain(|fetch| fetch.operation != operation);
            }
            What::Send { peer, memory, offered } => {
                if *offered {
                    self.withdrawn.push((operation, false));
                }
                if let Some(queue) = self.outgoing.get_mut(peer) {
                    withdraw(queue, operation, memory.bytes(), transport.most(*peer));
                }
            }
            What::Move { .. } => {}
            What::Discard { .. } => return,
        }
        self.operations.remove(operation as usize);
    }

    /// Nothing will come from a peer any more, or go there.
    pub(super) fn lose(&mut self, broken: &Broken) {
        self.broken.entry(broken.peer).or_insert_with(|| broken.clone());
        self.outgoing.remove(&broken.peer);
        self.reading.retain(|_, reading| reading.message.label.source != broken.peer);
        self.coming.remove(&broken.peer);
        self.windows.lose(broken.peer);
        self.fetches.retain(|fetch| fetch.message.label.source != broken.peer);
        let concerns = |state: &State| match &state.what {
            What::Send { peer, .. } | What::Move { peer } => *peer == broken.peer,
            What::Receive { got: Some(got), .. } | What::Discard { progress: got } => {
                got.message.label.source == broken.peer
            }
            What::Receive { wanted, .. } => wanted.source == Some(broken.peer),
        };
        let concerned =
            self.operations.iter().filter(|(_, state)| state.outcome.is_none() && concerns(state));
        let concerned: Vec<Operation> = concerned.filter_map(|(key, _)| u32::try_from(key).ok()).collect();
        for operation in concerned {
            if let Some(State { what: What::Receive { context, .. }, .. }) =
                self.operations.get(operation as usize)
            {
                self.matching.cancel(*context, |other| *other == operation);
            }
            self.finish(operation, Err(Failure::Broken(broken.clone())));
        }
    }
}
