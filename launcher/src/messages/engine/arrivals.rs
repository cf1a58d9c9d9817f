//! What comes from peers.

use super::core::Core;
use super::operation::{
    Coming, Failure, Fetch, Kept, Offer, Operation, Outgoing, Progress, Received, State, Waiting, What,
};
use crate::messages::matching::{Context, Label};
use crate::messages::watch;
use crate::transport::{Broken, Header, Kind, Payload, Place};
use crate::windows::remote::Taken;

/// No transport sends longer messages unasked.
const UNASKED: usize = 1 << 20;

impl Core {
    pub(super) fn take(&mut self, peer: u32, header: &Header, payload: Payload<'_>) {
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
                let place = Place::from_bytes(payload);
                if let Some(place) = place {
                    let waiting = kind == Kind::OfferWaiting;
                    let offer = Offer { length, operation: header.operation, place, waiting };
                    self.take_offer(header.context, label, offer);
                }
                place.is_some()
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
    pub(super) fn take_for_window(
        &mut self,
        kind: Kind,
        peer: u32,
        header: &Header,
        payload: Payload<'_>,
    ) -> bool {
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

    pub(super) fn take_message(&mut self, header: Header, label: Label, bytes: Payload<'_>) {
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
    pub(super) fn is_past(&self, context: Context, tag: u32) -> bool {
        self.rounds.get(&context).is_some_and(|live| watch::is_past(tag, live.get()))
    }

    /// Lets go of the messages of rounds that are over. Who offered one is told that it may go on.
    pub(super) fn clear_past(&mut self, context: Context) {
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
    pub(super) fn refuse(&mut self, peer: u32, operation: Operation) {
        let header = Header { kind: Kind::Fetched as u32, context: 0, tag: 0, operation, length: 0 };
        self.queue(peer, Outgoing::Packet(header, Vec::new()));
    }

    /// A receive gets all of its message at once.
    pub(super) fn take_whole(&mut self, operation: Operation, label: Label, bytes: Payload<'_>) {
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
    pub(super) fn take_first(&mut self, context: Context, message: Received, piece: Payload<'_>) -> bool {
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
    pub(super) fn expect(&mut self, operation: Operation, message: Received, come: Payload<'_>) -> Coming {
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
    pub(super) fn take_kept(&mut self, operation: Operation, label: Label, key: usize) {
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
    pub(super) fn forget_kept(&mut self, label: Label, key: usize) {
        let Some(Kept { length, bytes }) = self.kept.try_remove(key) else { return };
        if let Some(coming) = self.coming.get_mut(&label.source)
            && matches!(coming, Coming::Kept(other) if *other == key)
        {
            *coming = Coming::Nobody(Progress { message: Received { label, length }, come: bytes.len() });
        }
    }

    /// A further piece of what the peer sends unasked. Whether it makes sense.
    pub(super) fn take_more(&mut self, peer: u32, at: usize, piece: Payload<'_>) -> bool {
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

    pub(super) fn take_offer(&mut self, context: Context, label: Label, offer: Offer) {
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
    pub(super) fn take_piece(
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
}

fn nonsense(peer: u32) -> Broken {
    let why = "it sent something that makes no sense; do all ranks run the same build?".to_owned();
    Broken { peer, why }
}
