//! Turns sends and receives into packets and back. It is driven by the program's own calls; nothing happens between them.
//!
//! A short message is sent at once, in one packet or several. A longer one is offered; when a receive for it is there, its rank
//! fetches the bytes from the sender's memory where the transport can do that, else it accepts and the sender sends them in
//! pieces. It accepts too where the sender does nothing but wait: two that copy at the same time are faster than one.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;

use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Label, Matching, Wanted};
use crate::transport::{Broken, Header, Kind, Look, Payload, Transport, Transports};
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
        /// The peer may fetch it.
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
    address: u64,
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
    /// Messages of which not all has come, one of each peer at most.
    coming: BTreeMap<u32, Coming>,
    kept: Slab<Kept>,
    /// Peers that can't be reached any more.
    broken: BTreeMap<u32, Broken>,
    windows: Windows,
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
            coming: BTreeMap::new(),
            kept: Slab::new(),
            broken: BTreeMap::new(),
            windows: Windows::default(),
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
            core.queue(peer, Outgoing::Packet(header, memory.address().to_ne_bytes().to_vec()));
            self.send_outgoing();
            return Ok(Some(operation));
        }
        let mut sent = 0;
        if !core.outgoing.contains_key(&peer) {
            match send_unasked(&mut self.transport, peer, &header, bytes, &mut sent) {
                Ok(true) => return Ok(None),
                Ok(false) => {}
                Err(broken) => {
                    core.lose(&broken);
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
            self.core.lose(&broken);
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
                Err(broken) => self.core.lose(&broken),
            }
        }
        told
    }

    /// Forgets an operation: its memory is not touched any more by this rank. The message is lost.
    pub(crate) fn cancel(&mut self, operation: Operation) {
        self.core.cancel(operation, &self.transport);
    }

    /// Does what can be done now. Whether there was anything.
    pub(crate) fn progress(&mut self) -> bool {
        let core = &mut self.core;
        let came = match self.transport.poll(&mut |peer, header, payload| core.take(peer, header, payload)) {
            Ok(came) => came,
            Err(broken) => {
                core.lose(&broken);
                true
            }
        };
        self.fetch();
        let told = self.tell_done();
        let sent = self.send_outgoing();
        came || told || sent
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
            let header = Header {
                kind: Kind::Fetched as u32,
                context: 0,
                tag: 0,
                operation: offer.operation,
                length: 0,
            };
            let fetched = match memory.bytes().get_mut(..message.length) {
                None => {
                    self.core.finish(operation, Err(Failure::TooLong(message)));
                    self.core.queue(source, Outgoing::Packet(header, Vec::new()));
                    continue;
                }
                Some(_) if offer.waiting => Ok(false),
                Some(room) => self.transport.fetch(source, offer.address, room),
            };
            match fetched {
                Ok(true) => {
                    self.core.finish(operation, Ok(Some(message)));
                    self.core.queue(source, Outgoing::Packet(header, Vec::new()));
                }
                Ok(false) => {
                    *got = Some(Progress { message, come: 0 });
                    let header = Header { kind: Kind::Accept as u32, length: u64::from(operation), ..header };
                    self.core.queue(source, Outgoing::Packet(header, Vec::new()));
                }
                Err(broken) => self.core.lose(&broken),
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
                        self.core.lose(&broken);
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
        if matches!(state.what, What::Discard { .. }) {
            self.operations.remove(operation as usize);
        } else {
            state.outcome = Some(outcome);
        }
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
            What::Send { peer, memory, .. } => {
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
                let mut address = [0; 8];
                let is_address = payload.len() == address.len();
                if is_address {
                    payload.copy_to(&mut address);
                    let (operation, address) = (header.operation, u64::from_ne_bytes(address));
                    let waiting = kind == Kind::OfferWaiting;
                    self.take_offer(header.context, label, Offer { length, operation, address, waiting });
                }
                is_address
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
            self.lose(&nonsense(peer));
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
            None => self.matching.keep(header.context, label, Waiting::Whole(bytes.to_vec())),
        }
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
            None => self.matching.keep(context, label, Waiting::Offered(offer)),
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
                if payload.len() > transport.most(peer) {
                    // An answer; nobody asks for so much at once.
                    return Err(nonsense(peer));
                }
                if !transport.try_send(peer, header, payload)? {
                    return Ok(false);
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
