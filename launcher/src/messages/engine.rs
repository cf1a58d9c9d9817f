//! Turns sends and receives into packets and back. It is driven by the program's own calls; nothing happens between them.
//!
//! A short message is sent at once, in one packet or several. A longer one is offered; when a receive for it is there, its rank
//! has the transport fetch the bytes from the sender's memory where it can do that, else it accepts and the sender sends them in
//! pieces. It accepts too where the sender does nothing but wait: two that copy at the same time are faster than one.

mod arrivals;
mod core;
mod departures;
mod operation;
mod short;

use std::cell::Cell;
use std::rc::Rc;

use self::core::Core;
use self::departures::send_unasked;
pub(crate) use self::operation::{Failure, Operation, Outcome, Received};
use self::operation::{Fetch, Outgoing, Progress, Reading, State, Waiting, What};
use self::short::Message;
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Label, Wanted};
use crate::messages::watch::{self, Rounds};
use crate::transport::{Broken, Fetched, Header, Kind, Look, Payload, Shown, There, Transport, Transports};
use crate::windows::Memory;
use crate::windows::remote::Windows;

/// So many packets a receive takes at most for those that were started before it.
const TURN: usize = 16;

#[derive(Debug)]
pub(crate) struct Engine<T> {
    transport: T,
    core: Core,
}

impl Engine<Transports> {
    /// The way to each rank.
    pub(crate) fn describe(&self, ranks: u32) -> Vec<String> {
        (0..ranks).map(|rank| self.transport.describe(rank)).collect()
    }

    /// How many connections of NICs there are.
    pub(crate) fn queue_pairs(&self) -> usize {
        self.transport.queue_pairs()
    }

    /// How often memory was registered for long messages over NICs.
    pub(crate) fn registrations(&self) -> u64 {
        self.transport.registrations()
    }

    /// What connections of NICs are busy with, in words for errors.
    pub(crate) fn under_way(&self) -> String {
        self.transport.under_way()
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

impl<T: Transport> Engine<T> {
    pub(crate) fn new(rank: u32, transport: T) -> Self {
        Self { transport, core: Core::new(rank) }
    }

    /// Starts to send, one way or the other; `None` if it is over already.
    #[cfg(test)]
    pub(crate) fn send(
        &mut self,
        context: Context,
        peer: u32,
        tag: u32,
        memory: Lent,
        waits: bool,
    ) -> Result<Option<Operation>, Failure> {
        if self.send_soon(context, peer, tag, memory.bytes()) {
            return Ok(None);
        }
        self.start_send(context, peer, tag, memory, waits)
    }

    /// The way of short messages, where nothing stands in it. Whether it is over.
    #[inline]
    pub(crate) fn send_soon(&mut self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        peer != self.core.rank
            && self.may_send(bytes.len())
            && self.transport.send_short(peer, &Header::eager(context, tag, bytes.len()), bytes)
    }

    /// Is a message short, and does nothing stand in its way?
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    fn may_send(&self, length: usize) -> bool {
        length <= T::SHORT && self.nothing_is_left()
    }

    /// Is nothing to be sent before, and nobody lost?
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    fn nothing_is_left(&self) -> bool {
        self.core.outgoing.is_empty() && self.core.broken.is_empty()
    }

    /// Has nobody but this receive a claim to what comes next from a peer? Others could have the first one to it, or to this receive; and
    /// what is to be sent must not be forgotten meanwhile.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "each call lengthens the way of a short message")]
    fn may_receive(&mut self, context: Context, peer: impl FnOnce(&mut T) -> Option<u32>) -> bool {
        (self.core.matching.nothing_waits()
            || self.core.matching.is_empty(context)
            || peer(&mut self.transport).is_some_and(|peer| self.serve_earlier(context, peer)))
            && self.core.outgoing.is_empty()
    }

    /// Starts to send what [`send_soon`](Self::send_soon) has not sent; `None` if it is over already. `waits` says that the caller does nothing
    /// but wait for the end.
    #[inline(never)]
    pub(crate) fn start_send(
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
        let header = Header::eager(context, tag, bytes.len());
        if peer == core.rank {
            core.take_message(header, Label { source: peer, tag }, bytes.into());
            return Ok(None);
        }
        let unasked = self.transport.unasked(peer, waits);
        if bytes.len() > unasked {
            let operation = core.add(What::Send { peer, memory, offered: true });
            let kind = if waits { Kind::OfferWaiting } else { Kind::Offer };
            let header = Header { kind: kind as u32, operation, ..header };
            let place = self.transport.offer(peer, operation, &memory);
            core.queue(peer, Outgoing::Packet(header, place.bytes().to_vec()));
            self.send_outgoing();
            return Ok(Some(operation));
        }
        let mut sent = 0;
        if !core.outgoing.contains_key(&peer) {
            // Who goes on at once may send more: then the receiver is never without work, and a piece costs more than it brings.
            let transport = &mut self.transport;
            let piece = if waits { transport.piece(peer, bytes.len()) } else { transport.most(peer) };
            match send_unasked(transport, peer, &header, bytes, piece, &mut sent) {
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
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "each call and each result in memory lengthens the way of a short message"
    )]
    pub(crate) fn receive_soon(
        &mut self,
        context: Context,
        wanted: Wanted,
        room: &mut [u8],
        looks: u32,
    ) -> Option<Received> {
        let peer = wanted.source?;
        if peer == self.core.rank || !self.may_receive(context, |_| Some(peer)) {
            return None;
        }
        let mut message = Message::new(context, wanted.tag, room);
        match self.transport.look_for(peer, looks, &mut message) {
            Ok(Look::Taken) => {
                let (tag, length) = message.taken;
                Some(Received { label: Label { source: peer, tag }, length })
            }
            Ok(Look::Nothing | Look::Poll) => None,
            Err(broken) => {
                self.core.lose(&broken);
                None
            }
        }
    }

    /// Lets receives that wait have what has come from a peer. Whether nothing waits in their context any more.
    #[inline(never)]
    fn serve_earlier(&mut self, context: Context, peer: u32) -> bool {
        for _ in 0..TURN {
            if !self.core.matching.only_receives_wait(context) {
                break;
            }
            let core = &mut self.core;
            let looked = self.transport.look_for(peer, 1, &mut |header: &Header, payload: Payload<'_>| {
                core.take(peer, header, payload);
                true
            });
            match looked {
                Ok(Look::Taken) => {}
                Ok(Look::Nothing | Look::Poll) => break,
                Err(broken) => {
                    self.lose(&broken);
                    break;
                }
            }
        }
        self.core.matching.is_empty(context)
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
            What::Send { peer, .. } | What::Move { peer } => Some(*peer),
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

    /// Lets peers read and write memory of a window where they can.
    pub(crate) fn show(&mut self, context: Context, memory: &Rc<Memory>) -> Option<Shown> {
        self.transport.show(context, memory)
    }

    /// Where memory is that a peer has shown, if this rank can get there.
    pub(crate) fn there(&self, peer: u32, shown: &Shown) -> Option<There> {
        self.transport.there(peer, shown)
    }

    /// From now on nobody accesses this rank's memory of a window.
    pub(crate) fn close_window(&mut self, context: Context) {
        self.transport.hide(context);
        self.core.windows.close(context);
    }

    /// Writes to memory of a peer: how many of the bytes were taken.
    pub(crate) fn try_put(&mut self, peer: u32, there: There, bytes: &[u8]) -> Result<usize, Failure> {
        if let Some(broken) = self.broken(peer) {
            return Err(broken);
        }
        self.transport.try_put(peer, there, bytes).map_err(|broken| {
            self.lose(&broken);
            Failure::Broken(broken)
        })
    }

    /// Asks for memory of a peer, which it need not help with: whether there was room for that.
    pub(crate) fn try_get(
        &mut self,
        peer: u32,
        there: There,
        length: usize,
        question: u32,
    ) -> Result<bool, Failure> {
        if let Some(broken) = self.broken(peer) {
            return Err(broken);
        }
        self.transport.try_get(peer, there, length, question).map_err(|broken| {
            self.lose(&broken);
            Failure::Broken(broken)
        })
    }

    /// Starts to write memory to that of a peer, where it is long enough for that.
    pub(crate) fn write(
        &mut self,
        peer: u32,
        there: There,
        memory: Lent,
    ) -> Result<Option<Operation>, Failure> {
        self.start_move(peer, |transport, operation| transport.write(peer, there, &memory, operation))
    }

    /// Starts to read memory of a peer to this one, where it is long enough for that.
    pub(crate) fn read(
        &mut self,
        peer: u32,
        there: There,
        mut memory: LentMut,
    ) -> Result<Option<Operation>, Failure> {
        self.start_move(peer, |transport, operation| transport.read(peer, there, &mut memory, operation))
    }

    fn start_move(
        &mut self,
        peer: u32,
        start: impl FnOnce(&mut T, Operation) -> Result<bool, Broken>,
    ) -> Result<Option<Operation>, Failure> {
        if let Some(broken) = self.broken(peer) {
            return Err(broken);
        }
        let operation = self.core.add(What::Move { peer });
        let started = start(&mut self.transport, operation);
        if started == Ok(true) {
            return Ok(Some(operation));
        }
        self.core.operations.remove(operation as usize);
        started.map(|_| None).map_err(|broken| {
            self.lose(&broken);
            Failure::Broken(broken)
        })
    }

    /// Has all arrived that was put to a peer's memory without its help?
    pub(crate) fn has_put(&self, peer: u32) -> bool {
        self.transport.has_put(peer)
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
        if matches!(
            self.core.operations.get(operation as usize),
            Some(State { what: What::Move { .. }, outcome: None })
        ) {
            self.transport.abandon(operation);
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
        for (operation, is_done) in std::mem::take(&mut self.core.withdrawn) {
            self.transport.withdraw(operation, is_done);
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
        let header = Header::eager(context, tag, bytes.len());
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
        while let Some((question, answer)) = self.transport.take_got() {
            self.core.windows.got(question, answer);
        }
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

    /// Receives whose message the transport has read since it was started, and moves that are over. Whether there was any.
    fn take_fetched(&mut self) -> bool {
        let mut any = false;
        while let Some(operation) = self.transport.take_fetched() {
            any = true;
            match self.core.reading.remove(&operation) {
                Some(reading) => {
                    self.core.finish(operation, Ok(Some(reading.message)));
                    self.core.tell_fetched(&reading);
                }
                None => self.core.finish(operation, Ok(None)),
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
                let theirs = (offer.operation, offer.place);
                self.transport.fetch(source, theirs, memory, message.length, operation)
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

#[cfg(test)]
pub(crate) mod tests;
