//! Whole jobs in one thread: engines over a network that is a few queues, in any order that it allows.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::transport::{Payload, Place, Take};

/// What is on its way, by sender and receiver.
type Wires = Rc<RefCell<BTreeMap<(u32, u32), VecDeque<(Header, Vec<u8>)>>>>;

pub(crate) struct Queues {
    rank: u32,
    wires: Wires,
    /// Packets that fit between two ranks.
    room: usize,
    /// Whether a rank may read another's memory. All are in one process here.
    fetches: Fetches,
    /// Reads that were started: operation, from where, to where, how many bytes.
    reads: VecDeque<(u32, u64, *mut u8, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fetches {
    Never,
    Now,
    /// At the next poll.
    Later,
}

#[expect(unsafe_code, reason = "what process_vm_readv does between processes, and an RDMA read")]
fn copy(address: u64, to: *mut u8, length: usize) {
    let from = std::ptr::with_exposed_provenance::<u8>(usize::try_from(address).unwrap());
    // SAFETY: the tests keep what they send and receive until it is over, and a fetch that was started owns the memory it writes to.
    unsafe { std::ptr::copy_nonoverlapping(from, to, length) };
}

pub(crate) const MOST: usize = 16;
/// Messages up to so many bytes go in pieces unasked, if their sender waits.
const UNASKED: usize = 60;

impl Transport for Queues {
    const SHORT: usize = MOST / 2;

    fn most(&self, _: u32) -> usize {
        MOST
    }

    fn unasked(&self, _: u32, waits: bool) -> usize {
        if waits { UNASKED } else { MOST }
    }

    fn try_send(&mut self, peer: u32, header: &Header, payload: &[u8]) -> Result<bool, Broken> {
        assert!(payload.len() <= MOST);
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry((self.rank, peer)).or_default();
        if wire.len() >= self.room {
            return Ok(false);
        }
        wire.push_back((*header, payload.to_vec()));
        Ok(true)
    }

    fn poll(&mut self, deliver: &mut impl FnMut(u32, &Header, Payload<'_>)) -> Result<bool, Broken> {
        let mut came = false;
        let mut wires = self.wires.borrow_mut();
        for ((from, to), wire) in wires.iter_mut() {
            if *to == self.rank
                && let Some((header, payload)) = wire.pop_front()
            {
                deliver(*from, &header, payload.as_slice().into());
                came = true;
            }
        }
        Ok(came)
    }

    fn look_for(&mut self, peer: u32, _: u32, take: &mut impl Take) -> Result<Look, Broken> {
        let mut wires = self.wires.borrow_mut();
        let wire = wires.entry((peer, self.rank)).or_default();
        let Some((header, payload)) = wire.front() else { return Ok(Look::Nothing) };
        if !take.take(header, payload.as_slice().into()) {
            return Ok(Look::Poll);
        }
        wire.pop_front();
        Ok(Look::Taken)
    }

    fn fetch(
        &mut self,
        _: u32,
        (_, place): (u32, Place),
        memory: &mut LentMut,
        length: usize,
        operation: u32,
    ) -> Result<Fetched, Broken> {
        let to = memory.bytes()[..length].as_mut_ptr();
        Ok(match self.fetches {
            Fetches::Never => Fetched::Impossible,
            Fetches::Now => {
                copy(place.address, to, length);
                Fetched::Done
            }
            Fetches::Later => {
                self.reads.push_back((operation, place.address, to, length));
                Fetched::Started
            }
        })
    }

    fn take_fetched(&mut self) -> Option<u32> {
        let (operation, from, to, length) = self.reads.pop_front()?;
        copy(from, to, length);
        Some(operation)
    }

    fn abandon(&mut self, operation: u32) {
        self.reads.retain(|read| read.0 != operation);
    }
}

pub(crate) fn engines(count: u32, room: usize, fetches: Fetches) -> Vec<Engine<Queues>> {
    let wires = Wires::default();
    (0..count)
        .map(|rank| {
            Engine::new(
                rank,
                Queues { rank, wires: Rc::clone(&wires), room, fetches, reads: VecDeque::new() },
            )
        })
        .collect()
}

#[expect(unsafe_code, reason = "the tests keep their memory as long as the engines")]
fn lend(bytes: &[u8]) -> Lent {
    let _ = bytes.as_ptr().expose_provenance();
    // SAFETY: as the reason says.
    unsafe { Lent::new(bytes) }
}

#[expect(unsafe_code, reason = "the tests keep their memory as long as the engines")]
fn lend_mut(bytes: &mut [u8]) -> LentMut {
    // SAFETY: as the reason says.
    unsafe { LentMut::new(bytes) }
}

/// A message's bytes say who sent it and as which.
fn bytes(source: u32, number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|place| (source as usize * 31 + number * 7 + place) as u8).collect()
}

#[derive(Clone, Debug)]
struct Message {
    source: u32,
    to: u32,
    tag: u32,
    length: usize,
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let message = (0u32..3, 0u32..3, 0u32..2, prop_oneof![0usize..20, 15usize..18, 30usize..200])
        .prop_map(|(source, to, tag, length)| Message { source, to, tag, length });
    proptest::collection::vec(message, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 600 }))]

    /// Each rank has a receive for every message to it, with its source and tag or with a wildcard; all arrive whole, each
    /// receive's in the order of its source. What has come already may be taken without an operation.
    #[test]
    fn every_message_arrives_whole_and_in_order(
        messages in messages(),
        room in 1usize..4,
        fetches in prop_oneof![Just(Fetches::Never), Just(Fetches::Now), Just(Fetches::Later)],
        wild: bool,
        soon: bool,
        order in proptest::collection::vec(0u8..9, 0..200),
    ) {
        let mut engines = engines(3, room, fetches);
        let sent: Vec<Vec<u8>> = messages.iter().enumerate().map(|(number, message)| bytes(message.source, number, message.length)).collect();
        let mut memory: Vec<Vec<u8>> = messages.iter().map(|message| vec![0; if wild { 200 } else { message.length }]).collect();
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        let (mut next_send, mut next_receive) = (0, 0);
        let mut steps = order.into_iter();
        loop {
            match steps.next() {
                Some(0..=2) if next_send < messages.len() => {
                    let message = &messages[next_send];
                    let engine = &mut engines[message.source as usize];
                    let operation = engine.send(0, message.to, message.tag, lend(&sent[next_send]), message.length % 2 == 0).unwrap();
                    sends.extend(operation.map(|operation| (message.source, operation)));
                    next_send += 1;
                }
                Some(3..=5) if next_receive < messages.len() => {
                    let message = &messages[next_receive];
                    let wanted = if wild { Wanted { source: None, tag: None } }
                        else { Wanted { source: Some(message.source), tag: Some(message.tag) } };
                    let (engine, memory) = (&mut engines[message.to as usize], &mut memory[next_receive]);
                    let received = if soon { engine.receive_soon(0, wanted, memory, 1) } else { None };
                    receives.push((message.to, received.ok_or_else(|| engine.receive(0, wanted, lend_mut(memory)))));
                    next_receive += 1;
                }
                Some(rank) => { engines[rank as usize % 3].progress(); }
                None if next_send < messages.len() || next_receive < messages.len() => {
                    steps = vec![0, 3].into_iter();
                }
                None => break,
            }
        }
        for _ in 0..10_000 {
            let did: Vec<bool> = engines.iter_mut().map(Engine::progress).collect();
            if !did.contains(&true) { break; }
        }
        for (rank, operation) in sends {
            prop_assert_eq!(engines[rank as usize].take_outcome(operation), Some(Ok(None)));
        }
        // Which message each receive got: of a source and tag, or to a rank, in the order of sending.
        let mut taken = vec![false; messages.len()];
        for ((rank, received), memory) in receives.iter().zip(&memory) {
            let Received { label, length } = match received {
                Ok(received) => *received,
                Err(operation) => engines[*rank as usize].take_outcome(*operation).unwrap().unwrap().unwrap(),
            };
            let found = messages.iter().enumerate().position(|(number, message)| {
                !taken[number] && message.to == *rank && message.source == label.source
                    && (wild || message.tag == label.tag)
            });
            let number = found.unwrap();
            taken[number] = true;
            prop_assert_eq!((messages[number].tag, messages[number].length), (label.tag, length));
            prop_assert!(memory[..length] == sent[number][..]);
        }
        for engine in &engines {
            prop_assert!(engine.core.operations.is_empty() && engine.core.outgoing.is_empty());
        }
    }
}

#[test]
fn a_message_too_long_for_its_receive_is_an_error_there_and_over_for_its_sender() {
    for (length, waits) in [(MOST, false), (3 * MOST, true), (5 * MOST, false)] {
        let mut engines = engines(2, 4, Fetches::Never);
        let (sent, mut room) = (bytes(0, 0, length), [0; 3]);
        let send = engines[0].send(0, 1, 7, lend(&sent), waits).unwrap();
        let receive = engines[1].receive(0, Wanted { source: None, tag: Some(7) }, lend_mut(&mut room));
        (0..5).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
        let message = Received { label: Label { source: 0, tag: 7 }, length };
        assert_eq!(engines[1].take_outcome(receive), Some(Err(Failure::TooLong(message))));
        assert!(send.is_none_or(|send| engines[0].is_over(send)));
        assert_eq!(room, [0; 3]);
    }
}

#[test]
fn what_a_cancelled_receive_still_gets_goes_nowhere() {
    let mut engines = engines(2, 4, Fetches::Never);
    let (sent, mut first, mut second) = (bytes(0, 0, 100), [0; 100], [0; 100]);
    let send = engines[0].send(0, 1, 0, lend(&sent), false).unwrap().unwrap();
    let receive = engines[1].receive(0, Wanted { source: Some(0), tag: None }, lend_mut(&mut first));
    while engines[1].core.operations[receive as usize].what.come() < 32 {
        engines.iter_mut().for_each(|engine| _ = engine.progress());
    }
    engines[1].cancel(receive);
    let before = first;
    let other = engines[1].receive(0, Wanted { source: Some(0), tag: None }, lend_mut(&mut second));
    assert_ne!(receive, other);
    (0..20).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
    assert!(first == before && engines[0].is_over(send) && !engines[1].is_over(other));
    assert_eq!(engines[1].core.operations.len(), 1);
}

/// The receiver takes what comes next for the rest of what was begun.
#[test]
fn a_send_that_is_given_up_in_the_middle_arrives_whole() {
    let mut engines = engines(2, 1, Fetches::Never);
    let (sent, mut first, mut second) = (bytes(0, 0, 50), [0; 50], [0; 8]);
    let send = engines[0].send(0, 1, 0, lend(&sent), true).unwrap().unwrap();
    engines[0].cancel(send);
    let next = engines[0].send(0, 1, 0, lend(&sent[..8]), true).unwrap().unwrap();
    let receive = engines[1].receive(0, Wanted { source: Some(0), tag: None }, lend_mut(&mut first));
    let other = engines[1].receive(0, Wanted { source: None, tag: None }, lend_mut(&mut second));
    (0..20).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
    assert!(engines[0].is_over(next) && engines[1].is_over(receive) && engines[1].is_over(other));
    assert!(first == sent[..] && second == sent[..8]);
}

#[test]
fn a_receive_that_is_given_up_while_it_is_read_frees_its_sender_and_stays_as_it_is() {
    let mut engines = engines(2, 4, Fetches::Later);
    let (sent, mut room) = (bytes(0, 0, 100), [0; 100]);
    let send = engines[0].send(0, 1, 0, lend(&sent), false).unwrap().unwrap();
    let receive = engines[1].receive(0, Wanted { source: Some(0), tag: None }, lend_mut(&mut room));
    engines[0].progress();
    engines[1].progress();
    assert!(!engines[1].is_over(receive) && engines[1].core.reading.len() == 1);
    engines[1].cancel(receive);
    assert!(engines[1].core.operations.is_empty() && engines[1].transport.reads.is_empty());
    (0..3).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
    assert!(engines[0].is_over(send));
    assert_eq!(room, [0; 100]);
}

#[test]
fn who_waits_for_a_lost_peer_hears_of_it_and_others_do_not() {
    let mut engines = engines(3, 1, Fetches::Never);
    let (sent, mut from_it, mut from_any) = (bytes(0, 0, 100), [0; 8], [0; 8]);
    let send = engines[0].send(0, 1, 0, lend(&sent), false).unwrap().unwrap();
    let receive = engines[0].receive(0, Wanted { source: Some(1), tag: None }, lend_mut(&mut from_it));
    let any = engines[0].receive(0, Wanted { source: None, tag: None }, lend_mut(&mut from_any));
    let broken = Broken { peer: 1, why: "gone".to_owned() };
    engines[0].core.lose(&broken);
    for operation in [send, receive] {
        assert_eq!(engines[0].take_outcome(operation), Some(Err(Failure::Broken(broken.clone()))));
    }
    assert!(!engines[0].is_over(any));
    assert_eq!(engines[0].send(0, 1, 0, lend(&sent), false).unwrap_err(), Failure::Broken(broken));
    engines[2].send(0, 0, 3, lend(&sent[..8]), false).unwrap();
    engines[0].progress();
    assert_eq!(engines[0].take_outcome(any).unwrap().unwrap().unwrap().length, 8);
    assert!(from_any == sent[..8]);
}

#[test]
fn nonsense_costs_the_peer_its_connection_and_nothing_else() {
    let kinds = [0, 1, 2, 4, 6, 9];
    for kind in kinds {
        let mut engines = engines(2, 4, Fetches::Never);
        let mut room = [0; 8];
        let receive = engines[0].receive(0, Wanted { source: Some(1), tag: None }, lend_mut(&mut room));
        let header = Header { kind, context: 9, tag: 0, operation: receive, length: 1 << 40 };
        engines[1].transport.try_send(0, &header, &[1, 2]).unwrap();
        engines[0].progress();
        assert!(matches!(engines[0].take_outcome(receive), Some(Err(Failure::Broken(_)))), "{kind}");
        assert_eq!(room, [0; 8]);
    }
}

impl What {
    fn come(&self) -> usize {
        match self {
            Self::Receive { got: Some(got), .. } => got.come,
            _ => 0,
        }
    }
}

#[test]
fn what_is_offered_before_a_communicator_is_made_is_received_after_it() {
    let mut engines = engines(2, 4, Fetches::Never);
    let (sent, mut room) = (bytes(0, 0, 5 * MOST), [0; 5 * MOST]);
    let send = engines[0].send(3, 1, 0, lend(&sent), false).unwrap().unwrap();
    (0..2).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
    let _rounds = engines[1].rounds(3);
    let receive = engines[1].receive(3, Wanted { source: Some(0), tag: Some(0) }, lend_mut(&mut room));
    (0..20).for_each(|_| engines.iter_mut().for_each(|engine| _ = engine.progress()));
    assert!(engines[0].is_over(send) && engines[1].is_over(receive));
    assert!(room == sent[..]);
}
