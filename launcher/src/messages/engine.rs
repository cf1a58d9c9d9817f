//! Turns sends and receives into packets and back. It is driven by the program's own calls; nothing happens between them.
//!
//! A short message is sent at once, in one packet or several. A longer one is offered; when a receive for it is there, its rank
//! fetches the bytes from the sender's memory where the transport can do that, else it accepts and the sender sends them in
//! pieces. It accepts too where the sender does nothing but wait: two that copy at the same time are faster than one.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use slab::Slab;

use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Label, Matching, Wanted};
use crate::messages::watch::{self, Rounds};
use crate::transport::{Broken, Fetched, Header, Kind, Look, Payload, Place, Transport, Transports};
use crate::windows::remote::{Taken, Windows};

/// No transport sends longer messages unasked.
const UNASKED: usize = 1 << 20;

/// A send or receive that was started.
pub(crate) type Operation = u32;

/// What a receive got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    pub(crate) label: Label,
    /// Bytes of the message.
    pub(crate) length: usize,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The message is longer than the receive's memory. It is gone.
    TooLong(Received),
    /// The peer can't be reached any more.
    Broken(Broken),
}

pub(crate) type Outcome = Result<Option<Received>, Failure>;

#[derive(Debug)]
struct State {
    what: What,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
enum What {
    Send {
        peer: u32,
        memory: Lent,
        /// May the peer read it where it is?
        offered: bool,
    },
    Receive {
        context: Context,
        wanted: Wanted,
        memory: LentMut,
        got: Option<Progress>,
    },
    /// A receive that was cancelled while pieces came.
    Discard {
        progress: Progress,
    },
}

/// How much of a message has come in pieces.
#[derive(Clone, Copy, Debug)]
struct Progress {
    message: Received,
    come: usize,
}

/// A message that no receive was there for.
#[derive(Debug)]
enum Waiting {
    Whole(Vec<u8>),
    /// A message in several packets, among `Core::kept`.
    Pieces(usize),
    Offered(Offer),
}

/// A message that is there to be fetched.
#[derive(Clone, Copy, Debug)]
struct Offer {
    length: usize,
    operation: Operation,
    place: Place,
    /// Its sender does nothing but wait for it.
    waiting: bool,
}

/// A message in several packets that no receive was there for; whole when it has as many bytes.
#[derive(Debug)]
struct Kept {
    length: usize,
    bytes: Vec<u8>,
}

/// Where the pieces go that a peer sends of a message unasked.
#[derive(Debug)]
enum Coming {
    /// A receive's memory.
    Operation(Operation),
    /// Among `Core::kept`.
    Kept(usize),
    /// The receive has failed.
    Nobody(Progress),
}

/// What is to be sent to a peer, in this order.
#[derive(Debug)]
enum Outgoing {
    /// A packet that nobody waits for.
    Packet(Header, Vec<u8>),
    /// A message that is sent unasked, and how much of it was.
    Message { header: Header, operation: Operation, sent: usize },
    /// A message in pieces, to the peer's receive `to`; so much was sent.
    Pieces { operation: Operation, to: u32, sent: usize },
}

/// An offered message that a receive takes.
#[derive(Debug)]
struct Fetch {
    operation: Operation,
    message: Received,
    offer: Offer,
}

/// A message that the transport is reading for a receive.
#[derive(Clone, Copy, Debug)]
struct Reading {
    message: Received,
    theirs: Operation,
}

#[derive(Debug)]
pub(crate) struct Engine<T> {
    transport: T,
    core: Core,
}

impl Engine<Transports> {
    /// The way to each rank.
    pub(crate) fn describe(&self, ranks: u32) -> Vec<String> {
        (0..ranks).map(|rank| self.transport.describe(rank).to_owned()).collect()
    }

    /// How many connections of NICs there are.
    pub(crate) fn queue_pairs(&self) -> usize {
        self.transport.queue_pairs()
    }

    /// Begins to connect to a peer. Whether messages can go there now.
    pub(crate) fn open(&mut self, peer: u32) -> Result<bool, Failure> {
        if let Some(failure) = self.broken(peer) {
            return Err(failure);
        }
        self.transport.open(peer).map_err(|broken| {
            self.lose(&broken);
            Failure::Broken(broken)
        })
    }
}

/// All but the transport, so that it can listen to it.
#[derive(Debug)]
struct Core {
    rank: u32,
    matching: Matching<Operation, Waiting>,
    operations: Slab<State>,
    /// For peers whose transport has no room.
    outgoing: BTreeMap<u32, VecDeque<Outgoing>>,
    fetches: Vec<Fetch>,
    /// Receives whose message the transport is reading. Their memory is its until that is over.
    reading: BTreeMap<Operation, Reading>,
    /// Offers of operations that are over.
    withdrawn: Vec<Operation>,
    /// Peers that sent what makes no sense.
    senseless: Vec<Broken>,
    /// Messages of which not all has come, one of each peer at most.
    coming: BTreeMap<u32, Coming>,
    kept: Slab<Kept>,
    /// Peers that can't be reached any more.
    broken: BTreeMap<u32, Broken>,
    windows: Windows,
    /// The round that is on in contexts of collectives.
    rounds: HashMap<Context, Rounds>,
    /// Offers and notices that wait in such contexts: somebody has to see to them.
    left_over: usize,
    /// A packet for a window, while it is taken.
    copied: Vec<u8>,
}

impl<T: Transport> Engine<T> {
    pub(crate) fn new(rank: u32, transport: T) -> Self {
        let core = Core {
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
        };
        Self { transport, core }
    }

    /// Starts to send; `None` if it is over already. `waits` says that the caller does nothing but wait for the end.
    #[inline]
    pub(crate) fn send(
        &mut self,
        context: Context,
        peer: u32,
        tag: u32,
        memory: Lent,
        waits: bool,
    ) -> Result<Option<Operation>, Failure> {
        let core = &mut self.core;
        let bytes = memory.bytes();
        // The way of short messages, where nothing stands in it.
        if bytes.len() <= T::SHORT && peer != core.rank && core.outgoing.is_empty() && core.broken.is_empty()
        {
            let length = bytes.len() as u64;
            let header = Header { kind: Kind::Eager as u32, context, tag, operation: 0, length };
            if self.transport.send_short(peer, &header, bytes) {
                return Ok(None);
            }
        }
        self.start_send(context, peer, tag, memory, waits)
    }

    #[inline(never)]
    fn start_send(
        &mut self,
        context: Context,
        peer: u32,
        tag: u32,
        memory: Lent,
        waits: bool,
    ) -> Result<Option<Operation>, Failure> {
        let core = &mut self.core;
        if let Some(broken) = core.broken.get(&peer) {
            return Err(Failure::Broken(broken.clone()));
        }
        let bytes = memory.bytes();
        let header =
            Header { kind: Kind::Eager as u32, context, tag, operation: 0, length: bytes.len() as u64 };
        if peer == core.rank {
            core.take_message(header, Label { source: peer, tag }, bytes.into());
            return Ok(None);
        }
        // In pieces both copy at the same time, but who does not wait here may have something better to do.
        let unasked = if waits { self.transport.unasked(peer) } else { self.transport.most(peer) };
        if bytes.len() > unasked {
            let operation = core.add(What::Send { peer, memory, offered: true });
            let kind = if waits { Kind::OfferWaiting } else { Kind::Offer };
            let header = Header { kind: kind as u32, operation, ..header };
            let place = self.transport.offer(peer, operation, &memory);
            core.queue(peer, Outgoing::Packet(header, bytemuck::bytes_of(&place).to_vec()));
            self.send_outgoing();
            return Ok(Some(operation));
        }
        let mut sent = 0;
        if !core.outgoing.contains_key(&peer) {
            match send_unasked(&mut self.transport, peer, &header, bytes, &mut sent) {
                Ok(true) => return Ok(None),
                Ok(false) => {}
                Err(broken) => {
                    self.lose(&broken);
                    return Err(Failure::Broken(broken));
                }
            }
        }
        let operation = core.add(What::Send { peer, memory, offered: false });
        core.queue(peer, Outgoing::Message { header, operation, sent });
        Ok(Some(operation))
    }

    /// Looks so many times whether the message that a receive would take comes next from its source, and takes it right into memory:
    /// the way of short messages that are waited for, without an operation. `None` where it takes one.
    #[inline]
    pub(crate) fn receive_soon(
        &mut self,
        context: Context,
        wanted: Wanted,
        room: &mut [u8],
        looks: u32,
    ) -> Option<Received> {
        let peer = wanted.source?;
        let core = &self.core;
        // Others could have the first claim to it, or to this receive; and what is to be sent must not be forgotten meanwhile.
        if peer == core.rank || !core.outgoing.is_empty() || !core.matching.is_empty(context) {
            return None;
        }
        let mut received = None;
        for _ in 0..looks {
            let looked = self.transport.look_at(peer, &mut |header, payload| {
                let fits = header.kind == Kind::Eager as u32
                    && header.context == context
                    && wanted.tag.is_none_or(|tag| tag == header.tag)
                    && header.length == payload.len() as u64;
                let Some(to) = room.get_mut(..payload.len()).filter(|_| fits) else { return false };
                payload.copy_to(to);
                received =
                    Some(Received { label: Label { source: peer, tag: header.tag }, length: payload.len() });
                true
            });
            match looked {
                // Without a pause between them the looks take the line from its writer: far cores need half more time so.
                Ok(Look::Nothing) => std::hint::spin_loop(),
                Ok(Look::Taken) => return received,
                Ok(Look::Poll) => return None,
                Err(broken) => {
                    self.core.lose(&broken);
                    return None;
                }
            }
        }
        None
    }

    /// Starts to receive.
    pub(crate) fn receive(&mut self, context: Context, wanted: Wanted, memory: LentMut) -> Operation {
        let operation = self.core.receive(context, wanted, memory);
        if !self.core.fetches.is_empty() {
            self.fetch();
            self.send_outgoing();
        }
        operation
    }

    /// The earliest message that a receive would take now.
    pub(crate) fn probe(&self, context: Context, wanted: Wanted) -> Option<Received> {
        let (label, message) = self.core.matching.probe(context, wanted)?;
        let length = match message {
            Waiting::Whole(bytes) => bytes.len(),
            Waiting::Pieces(key) => self.core.kept.get(*key).map_or(0, |kept| kept.length),
            Waiting::Offered(offer) => offer.length,
        };
        Some(Received { label, length })
    }

    /// What became of an operation, once it is over; then it is forgotten.
    pub(crate) fn take_outcome(&mut self, operation: Operation) -> Option<Outcome> {
        let outcome = self.core.operations.get_mut(operation as usize)?.outcome.take()?;
        self.core.operations.remove(operation as usize);
        Some(outcome)
    }

    /// Whom an operation needs.
    pub(crate) fn peer(&self, operation: Operation) -> Option<u32> {
        match &self.core.operations.get(operation as usize)?.what {
            What::Send { peer, .. } => Some(*peer),
            What::Receive { wanted, .. } => wanted.source,
            What::Discard { .. } => None,
        }
    }

    /// Is it over?
    pub(crate) fn is_over(&self, operation: Operation) -> bool {
        self.core.operations.get(operation as usize).is_none_or(|state| state.outcome.is_some())
    }

    /// Is it a send that is not over, and that the peer may fetch?
    pub(crate) fn is_offered(&self, operation: Operation) -> bool {
        let state = self.core.operations.get(operation as usize);
        matches!(state, Some(State { what: What::Send { offered: true, .. }, outcome: None }))
    }

    /// Why a peer can't be reached, if so.
    pub(crate) fn broken(&self, peer: u32) -> Option<Failure> {
        self.core.broken.get(&peer).cloned().map(Failure::Broken)
    }

    pub(crate) fn windows(&mut self) -> &mut Windows {
        &mut self.core.windows
    }

    /// The most bytes of payload in one packet to this peer.
    pub(crate) fn most(&self, peer: u32) -> usize {
        self.transport.most(peer)
    }

    /// Sends a packet at once, before those that wait, if there is room.
    pub(crate) fn send_now(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Failure> {
        if let Some(broken) = self.broken(peer) {
            return Err(broken);
        }
        self.transport.try_send(peer, header, payload).map_err(|broken| {
            self.lose(&broken);
            Failure::Broken(broken)
        })
    }

    /// Tells peers which of their puts have been carried out. Whether there was anything to tell.
    fn tell_done(&mut self) -> bool {
        let mut told = false;
        while let Some((peer, header)) = self.core.windows.next_done() {
            match self.transport.try_send(peer, &header, &[]) {
                Ok(sent) => {
                    self.core.windows.said(sent);
                    told |= sent;
                    if !sent {
                        break;
                    }
                }
                Err(broken) => self.lose(&broken),
            }
        }
        told
    }

    /// Forgets an operation: its memory is not touched any more by this rank. The message is lost.
    pub(crate) fn cancel(&mut self, operation: Operation) {
        if let Some(reading) = self.core.reading.remove(&operation) {
            self.transport.abandon(operation);
            // Its sender need not wait.
            self.core.tell_fetched(&reading);
            if let Some(State { what: What::Receive { got, .. }, .. }) =
                self.core.operations.get_mut(operation as usize)
            {
                *got = None;
            }
        }
        self.core.cancel(operation, &self.transport);
        self.withdraw();
    }

    /// Nothing will come from a peer any more, or go there.
    fn lose(&mut self, broken: &Broken) {
        self.transport.forget(broken.peer, &broken.why);
        self.core.lose(broken);
        self.withdraw();
    }

    /// Ends offers that nobody needs any more.
    fn withdraw(&mut self) {
        for operation in std::mem::take(&mut self.core.withdrawn) {
            self.transport.withdraw(operation);
        }
    }

    /// Messages of this context belong to rounds, which are counted from 1; those of rounds that are over belong to nobody. They are
    /// counted on where the communicator is gone: its last messages may still come.
    pub(crate) fn rounds(&mut self, context: Context) -> Rounds {
        Rc::clone(self.core.rounds.entry(context).or_insert_with(|| Rounds::new(Cell::new(1))))
    }

    /// A message of the round of `tag` from a rank that wants something else than this one, and its bytes if they are here. That a
    /// rank has left the round, counts only of the one that is awaited.
    pub(crate) fn odd(
        &self,
        context: Context,
        tag: u32,
        awaited: Option<u32>,
    ) -> Option<(Label, Option<Vec<u8>>)> {
        let bytes = |message: &Waiting| match message {
            Waiting::Whole(bytes) => Some(bytes.clone()),
            Waiting::Pieces(_) | Waiting::Offered(_) => None,
        };
        let is_odd = |label: Label, message: &Waiting| {
            label.tag != tag && {
                let bytes = bytes(message);
                let of_another =
                    bytes.as_deref().is_some_and(watch::is_left) && Some(label.source) != awaited;
                watch::is_odd(label.tag, bytes.as_deref(), tag)
                    && !(watch::is_notice(label.tag) && of_another)
            }
        };
        let (label, message) = self.core.matching.find(context, is_odd)?;
        Some((label, bytes(message)))
    }

    /// Sends a short message that nobody waits for.
    pub(crate) fn notify(&mut self, context: Context, peer: u32, tag: u32, bytes: &[u8]) {
        let header =
            Header { kind: Kind::Eager as u32, context, tag, operation: 0, length: bytes.len() as u64 };
        self.core.queue(peer, Outgoing::Packet(header, bytes.to_vec()));
        self.send_outgoing();
    }

    /// A round of this context is over. What came for it and was not wanted is done with, if there can be any.
    #[inline]
    pub(crate) fn leave(&mut self, context: Context, has_failed: bool) {
        if has_failed || self.core.left_over > 0 {
            self.core.clear_past(context);
            self.send_outgoing();
        }
    }

    /// Does what can be done now. Whether there was anything.
    pub(crate) fn progress(&mut self) -> bool {
        let core = &mut self.core;
        let came = match self.transport.poll(&mut |peer, header, payload| core.take(peer, header, payload)) {
            Ok(came) => came,
            Err(broken) => {
                self.lose(&broken);
                true
            }
        };
        for broken in std::mem::take(&mut self.core.senseless) {
            self.lose(&broken);
        }
        let fetched = self.take_fetched();
        self.fetch();
        let told = self.tell_done();
        let sent = self.send_outgoing();
        self.withdraw();
        came || told || sent || fetched
    }

    /// Receives whose message the transport has read since it was started. Whether there was any.
    fn take_fetched(&mut self) -> bool {
        let mut any = false;
        while !self.core.reading.is_empty()
            && let Some(operation) = self.transport.take_fetched()
        {
            if let Some(reading) = self.core.reading.remove(&operation) {
                self.core.finish(operation, Ok(Some(reading.message)));
                self.core.tell_fetched(&reading);
                any = true;
            }
        }
        any
    }

    /// Fetches what receives take of offered messages.
    fn fetch(&mut self) {
        for fetch in std::mem::take(&mut self.core.fetches) {
            let Fetch { operation, message, offer } = fetch;
            let source = message.label.source;
            let Some(State { what: What::Receive { memory, got, .. }, outcome: None }) =
                self.core.operations.get_mut(operation as usize)
            else {
                continue;
            };
            let reading = Reading { message, theirs: offer.operation };
            if memory.bytes().len() < message.length {
                self.core.finish(operation, Err(Failure::TooLong(message)));
                self.core.tell_fetched(&reading);
                continue;
            }
            // Who waits can copy at the same time as this rank, but a NIC needs neither.
            let fetched = if offer.waiting && offer.place.is_plain() {
                Ok(Fetched::Impossible)
            } else {
                self.transport.fetch(source, offer.place, memory, message.length, operation)
            };
            match fetched {
                Ok(Fetched::Done) => {
                    self.core.finish(operation, Ok(Some(message)));
                    self.core.tell_fetched(&reading);
                }
                Ok(Fetched::Started) => {
                    *got = Some(Progress { message, come: 0 });
                    self.core.reading.insert(operation, reading);
                }
                Ok(Fetched::Impossible) => {
                    *got = Some(Progress { message, come: 0 });
                    let (kind, length) = (Kind::Accept as u32, u64::from(operation));
                    let header = Header { kind, context: 0, tag: 0, operation: offer.operation, length };
                    self.core.queue(source, Outgoing::Packet(header, Vec::new()));
                }
                Err(broken) => self.lose(&broken),
            }
        }
    }

    /// Sends what there is room for. Whether there was anything.
    fn send_outgoing(&mut self) -> bool {
        if self.core.outgoing.is_empty() {
            return false;
        }
        let mut sent = false;
        let peers: Vec<u32> = self.core.outgoing.keys().copied().collect();
        for peer in peers {
            loop {
                match self.core.send_next(peer, &mut self.transport) {
                    Ok(true) => sent = true,
                    Ok(false) => break,
                    Err(broken) => {
                        self.lose(&broken);
                        break;
                    }
                }
            }
        }
        sent
    }
}

impl Core {
    fn add(&mut self, what: What) -> Operation {
        let key = self.operations.insert(State { what, outcome: None });
        // Four thousand million operations don't fit into memory.
        u32::try_from(key).unwrap_or(u32::MAX)
    }

    fn finish(&mut self, operation: Operation, outcome: Outcome) {
        let Some(state) = self.operations.get_mut(operation as usize) else { return };
        if matches!(state.what, What::Send { offered: true, .. }) {
            self.withdrawn.push(operation);
        }
        if matches!(state.what, What::Discard { .. }) {
            self.operations.remove(operation as usize);
        } else {
            state.outcome = Some(outcome);
        }
    }

    /// The sender of a message need not keep it any more.
    fn tell_fetched(&mut self, reading: &Reading) {
        let (kind, operation) = (Kind::Fetched as u32, reading.theirs);
        let header = Header { kind, context: 0, tag: 0, operation, length: 0 };
        self.queue(reading.message.label.source, Outgoing::Packet(header, Vec::new()));
    }

    fn queue(&mut self, peer: u32, outgoing: Outgoing) {
        if !self.broken.contains_key(&peer) {
            self.outgoing.entry(peer).or_default().push_back(outgoing);
        }
    }

    fn receive(&mut self, context: Context, wanted: Wanted, memory: LentMut) -> Operation {
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

    fn cancel(&mut self, operation: Operation, transport: &impl Transport) {
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
                    self.withdrawn.push(operation);
                }
                if let Some(queue) = self.outgoing.get_mut(peer) {
                    withdraw(queue, operation, memory.bytes(), transport.most(*peer));
                }
            }
            What::Discard { .. } => return,
        }
        self.operations.remove(operation as usize);
    }

    /// Nothing will come from a peer any more, or go there.
    fn lose(&mut self, broken: &Broken) {
        self.broken.entry(broken.peer).or_insert_with(|| broken.clone());
        self.outgoing.remove(&broken.peer);
        self.reading.retain(|_, reading| reading.message.label.source != broken.peer);
        self.coming.remove(&broken.peer);
        self.windows.lose(broken.peer);
        self.fetches.retain(|fetch| fetch.message.label.source != broken.peer);
        let concerns = |state: &State| match &state.what {
            What::Send { peer, .. } => *peer == broken.peer,
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

    // --- what comes ---

    fn take(&mut self, peer: u32, header: &Header, payload: Payload<'_>) {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let sent_here = |state: Option<&State>| matches!(state, Some(State { what: What::Send { peer: to, .. }, outcome: None }) if *to == peer);
        let label = Label { source: peer, tag: header.tag };
        let ok = match header.kind() {
            Some(Kind::Eager) if payload.len() == length => {
                self.take_message(*header, label, payload);
                true
            }
            Some(Kind::Eager) => self.take_first(header.context, Received { label, length }, payload),
            Some(Kind::More) => self.take_more(peer, length, payload),
            Some(kind @ (Kind::Offer | Kind::OfferWaiting)) => {
                let mut place = [0; size_of::<Place>()];
                let is_place = payload.len() == place.len();
                if is_place {
                    payload.copy_to(&mut place);
                    let (place, waiting) = (bytemuck::cast(place), kind == Kind::OfferWaiting);
                    let offer = Offer { length, operation: header.operation, place, waiting };
                    self.take_offer(header.context, label, offer);
                }
                is_place
            }
            Some(Kind::Accept) => {
                let mine = sent_here(self.operations.get(header.operation as usize));
                if let (true, Ok(to)) = (mine, u32::try_from(header.length)) {
                    self.queue(peer, Outgoing::Pieces { operation: header.operation, to, sent: 0 });
                }
                // A send that was cancelled is no fault of the peer's.
                true
            }
            Some(Kind::Fetched) => {
                if sent_here(self.operations.get(header.operation as usize)) {
                    self.finish(header.operation, Ok(None));
                }
                true
            }
            Some(Kind::Data) => self.take_piece(peer, header.operation, length, payload).is_some(),
            Some(kind) => self.take_for_window(kind, peer, header, payload),
            None => false,
        };
        if !ok {
            self.senseless.push(nonsense(peer));
        }
    }

    /// Whether it made sense.
    fn take_for_window(&mut self, kind: Kind, peer: u32, header: &Header, payload: Payload<'_>) -> bool {
        self.copied.clear();
        payload.append_to(&mut self.copied);
        match self.windows.take(kind, peer, header, &self.copied) {
            Taken::Done => true,
            Taken::Answer(header, payload) => {
                self.queue(peer, Outgoing::Packet(header, payload));
                true
            }
            Taken::Nonsense => false,
        }
    }

    fn take_message(&mut self, header: Header, label: Label, bytes: Payload<'_>) {
        match self.matching.arrive(header.context, label) {
            Some(operation) => self.take_whole(operation, label, bytes),
            None if self.is_past(header.context, label.tag) => {
                if let Some(answer) = watch::answer(&bytes.to_vec()).filter(|_| watch::is_notice(label.tag)) {
                    let header = Header { length: answer.len() as u64, ..header };
                    self.queue(label.source, Outgoing::Packet(header, answer.to_vec()));
                }
            }
            None => {
                if watch::is_notice(label.tag) && watch::has_rounds(header.context) {
                    self.left_over += 1;
                }
                self.matching.keep(header.context, label, Waiting::Whole(bytes.to_vec()));
            }
        }
    }

    /// Whether a message is of a round that is over. It is no receive's then, and never will be.
    fn is_past(&self, context: Context, tag: u32) -> bool {
        self.rounds.get(&context).is_some_and(|live| watch::is_past(tag, live.get()))
    }

    /// Lets go of the messages of rounds that are over. Who offered one is told that it may go on.
    fn clear_past(&mut self, context: Context) {
        let Some(live) = self.rounds.get(&context).map(|live| live.get()) else { return };
        for (label, message) in self.matching.take_all(context, |label| watch::is_past(label.tag, live)) {
            match message {
                Waiting::Offered(offer) => {
                    self.left_over -= 1;
                    self.refuse(label.source, offer.operation);
                }
                Waiting::Pieces(key) => self.forget_kept(label, key),
                Waiting::Whole(_) if watch::is_notice(label.tag) => self.left_over -= 1,
                Waiting::Whole(_) => {}
            }
        }
    }

    /// Says that an offered message is not needed any more, whether it was fetched or not.
    fn refuse(&mut self, peer: u32, operation: Operation) {
        let header = Header { kind: Kind::Fetched as u32, context: 0, tag: 0, operation, length: 0 };
        self.queue(peer, Outgoing::Packet(header, Vec::new()));
    }

    /// A receive gets all of its message at once.
    fn take_whole(&mut self, operation: Operation, label: Label, bytes: Payload<'_>) {
        let message = Received { label, length: bytes.len() };
        let Some(State { what: What::Receive { memory, .. }, .. }) =
            self.operations.get_mut(operation as usize)
        else {
            return;
        };
        let outcome = match memory.bytes().get_mut(..bytes.len()) {
            Some(room) => {
                bytes.copy_to(room);
                Ok(Some(message))
            }
            None => Err(Failure::TooLong(message)),
        };
        self.finish(operation, outcome);
    }

    /// The first piece of a message; the others follow. Whether it makes sense.
    fn take_first(&mut self, context: Context, message: Received, piece: Payload<'_>) -> bool {
        let peer = message.label.source;
        if piece.len() > message.length || message.length > UNASKED || self.coming.contains_key(&peer) {
            return false;
        }
        let coming = match self.matching.arrive(context, message.label) {
            Some(operation) => self.expect(operation, message, piece),
            None if self.is_past(context, message.label.tag) => {
                Coming::Nobody(Progress { message, come: piece.len() })
            }
            None => {
                // No more memory than has come: the length is the peer's word.
                let key = self.kept.insert(Kept { length: message.length, bytes: piece.to_vec() });
                self.matching.keep(context, message.label, Waiting::Pieces(key));
                Coming::Kept(key)
            }
        };
        self.coming.insert(peer, coming);
        true
    }

    /// A receive gets what has come of its message.
    fn expect(&mut self, operation: Operation, message: Received, come: Payload<'_>) -> Coming {
        let progress = Progress { message, come: come.len() };
        let Some(State { what: What::Receive { memory, got, .. }, .. }) =
            self.operations.get_mut(operation as usize)
        else {
            return Coming::Nobody(progress);
        };
        let Some(room) = memory.bytes().get_mut(..message.length) else {
            self.finish(operation, Err(Failure::TooLong(message)));
            return Coming::Nobody(progress);
        };
        come.copy_to(&mut room[..come.len()]);
        *got = Some(progress);
        Coming::Operation(operation)
    }

    /// A receive takes a message in pieces that has come, or comes still.
    fn take_kept(&mut self, operation: Operation, label: Label, key: usize) {
        let Some(Kept { length, bytes }) = self.kept.try_remove(key) else { return };
        let bytes = Payload::from(bytes.as_slice());
        if bytes.len() == length {
            return self.take_whole(operation, label, bytes);
        }
        let coming = self.expect(operation, Received { label, length }, bytes);
        if let Some(broken) = self.broken.get(&label.source) {
            let failure = Failure::Broken(broken.clone());
            self.finish(operation, Err(failure));
        } else {
            self.coming.insert(label.source, coming);
        }
    }

    /// Nobody wants a message that has come in pieces, or comes still.
    fn forget_kept(&mut self, label: Label, key: usize) {
        let Some(Kept { length, bytes }) = self.kept.try_remove(key) else { return };
        if let Some(coming) = self.coming.get_mut(&label.source)
            && matches!(coming, Coming::Kept(other) if *other == key)
        {
            *coming = Coming::Nobody(Progress { message: Received { label, length }, come: bytes.len() });
        }
    }

    /// A further piece of what the peer sends unasked. Whether it makes sense.
    fn take_more(&mut self, peer: u32, at: usize, piece: Payload<'_>) -> bool {
        let end = at.saturating_add(piece.len());
        let (ok, is_last) = match self.coming.get_mut(&peer) {
            Some(Coming::Operation(operation)) => {
                let operation = *operation;
                match self.take_piece(peer, operation, at, piece) {
                    Some(length) => (true, end == length),
                    None => (false, false),
                }
            }
            Some(Coming::Kept(key)) => match self.kept.get_mut(*key) {
                Some(Kept { length, bytes }) if at == bytes.len() && end <= *length => {
                    piece.append_to(bytes);
                    (true, end == *length)
                }
                _ => (false, false),
            },
            Some(Coming::Nobody(progress)) if at == progress.come && end <= progress.message.length => {
                progress.come = end;
                (true, end == progress.message.length)
            }
            Some(Coming::Nobody(_)) | None => (false, false),
        };
        if is_last {
            self.coming.remove(&peer);
        }
        ok
    }

    fn take_offer(&mut self, context: Context, label: Label, offer: Offer) {
        match self.matching.arrive(context, label) {
            Some(operation) => {
                let message = Received { label, length: offer.length };
                self.fetches.push(Fetch { operation, message, offer });
            }
            None if self.is_past(context, label.tag) => self.refuse(label.source, offer.operation),
            None => {
                if watch::has_rounds(context) {
                    self.left_over += 1;
                }
                self.matching.keep(context, label, Waiting::Offered(offer));
            }
        }
    }

    /// The length of the message, if it was a piece that is awaited.
    fn take_piece(
        &mut self,
        peer: u32,
        operation: Operation,
        at: usize,
        piece: Payload<'_>,
    ) -> Option<usize> {
        if self.reading.contains_key(&operation) {
            return None;
        }
        let state = self.operations.get_mut(operation as usize)?;
        let (progress, memory) = match &mut state.what {
            What::Receive { got: Some(progress), memory, .. } => (progress, Some(memory)),
            What::Discard { progress } => (progress, None),
            _ => return None,
        };
        let end = at.saturating_add(piece.len());
        if progress.message.label.source != peer || at != progress.come || end > progress.message.length {
            return None;
        }
        if let Some(memory) = memory {
            // Its length was looked at before the message was accepted.
            piece.copy_to(&mut memory.bytes()[at..end]);
        }
        progress.come = end;
        let message = progress.message;
        if end == message.length {
            self.finish(operation, Ok(Some(message)));
        }
        Some(message.length)
    }

    // --- what goes ---

    /// Sends one packet of those for a peer. Whether that was possible.
    fn send_next(&mut self, peer: u32, transport: &mut impl Transport) -> Result<bool, Broken> {
        let Some(first) = self.outgoing.get_mut(&peer).and_then(VecDeque::front_mut) else {
            self.outgoing.remove(&peer);
            return Ok(false);
        };
        let memory = |operation: Operation| match self.operations.get(operation as usize) {
            Some(State { what: What::Send { memory, .. }, .. }) => Some(memory.bytes()),
            _ => None,
        };
        let done = match first {
            Outgoing::Packet(header, payload) => {
                // Only a window's answer can be longer, where the peer's way to here is another one than the way there.
                let most = transport.most(peer);
                let (piece, rest) = payload.split_at(payload.len().min(most));
                if !transport.try_send(peer, header, piece)? {
                    return Ok(false);
                }
                if !rest.is_empty() {
                    header.length += most as u64;
                    payload.drain(..most);
                    return Ok(true);
                }
                None
            }
            Outgoing::Message { header, operation, sent } => {
                let before = *sent;
                if !send_unasked(transport, peer, header, memory(*operation).unwrap_or_default(), sent)? {
                    return Ok(*sent > before);
                }
                Some(*operation)
            }
            Outgoing::Pieces { operation, to, sent } => {
                let bytes = memory(*operation).unwrap_or_default();
                let (before, most) = (*sent, transport.most(peer));
                while *sent < bytes.len() {
                    let end = bytes.len().min(*sent + most);
                    let header = Header {
                        kind: Kind::Data as u32,
                        context: 0,
                        tag: 0,
                        operation: *to,
                        length: *sent as u64,
                    };
                    if !transport.try_send(peer, &header, &bytes[*sent..end])? {
                        return Ok(*sent > before);
                    }
                    *sent = end;
                }
                Some(*operation)
            }
        };
        if let Some(queue) = self.outgoing.get_mut(&peer) {
            queue.pop_front();
            if queue.is_empty() {
                self.outgoing.remove(&peer);
            }
        }
        if let Some(operation) = done {
            self.finish(operation, Ok(None));
        }
        Ok(true)
    }
}

/// Sends what is left of a message, as far as there is room. Whether that was all.
#[inline]
fn send_unasked(
    transport: &mut impl Transport,
    peer: u32,
    header: &Header,
    bytes: &[u8],
    sent: &mut usize,
) -> Result<bool, Broken> {
    let piece = transport.piece(peer, bytes.len());
    if bytes.len() <= piece {
        return transport.try_send(peer, header, bytes);
    }
    while *sent < bytes.len() {
        let end = bytes.len().min(*sent + piece);
        let more = Header { kind: Kind::More as u32, length: *sent as u64, ..*header };
        if !transport.try_send(peer, if *sent == 0 { header } else { &more }, &bytes[*sent..end])? {
            return Ok(false);
        }
        *sent = end;
    }
    Ok(true)
}

/// Takes a send back that is given up. What was begun must go on, for the peer takes the next packets for the rest: from a copy.
fn withdraw(queue: &mut VecDeque<Outgoing>, operation: Operation, bytes: &[u8], most: usize) {
    let is_it = |outgoing: &Outgoing| match outgoing {
        Outgoing::Message { operation: other, .. } | Outgoing::Pieces { operation: other, .. } => {
            *other == operation
        }
        Outgoing::Packet(..) => false,
    };
    let Some(place) = queue.iter().position(is_it) else { return };
    if let Some(Outgoing::Message { header, sent, .. }) = queue.remove(place)
        && sent > 0
    {
        let pieces = bytes[sent..].chunks(most).scan(sent, |at, piece| {
            let header = Header { kind: Kind::More as u32, length: *at as u64, ..header };
            *at += piece.len();
            Some(Outgoing::Packet(header, piece.to_vec()))
        });
        for (number, packet) in pieces.enumerate() {
            queue.insert(place + number, packet);
        }
    }
}

fn nonsense(peer: u32) -> Broken {
    let why = "it sent something that makes no sense; do all ranks run the same build?".to_owned();
    Broken { peer, why }
}

#[cfg(test)]
pub(crate) mod tests;
