//! Windows of whole jobs in one thread, over a network of queues whose packets have room for 16 bytes.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::messages::engine::tests::{Fetches, Queues, engines};
use crate::messages::engine::{Engine, Failure};
use crate::transport::Broken;
use crate::windows::access::{Ask, Get, Place, Put, all_done};

const CONTEXT: Context = 4;
const BYTES: usize = 200;

/// Ranks with a window each.
fn ranks(count: u32, room: usize) -> Vec<Engine<Queues>> {
    let mut engines = engines(count, room, Fetches::Never);
    for engine in &mut engines {
        let memory = Rc::new(Memory::own(BYTES).unwrap());
        engine.windows().open(CONTEXT, memory, BYTES);
    }
    engines
}

fn memory(engine: &mut Engine<Queues>) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    words::read(engine.windows().open[&CONTEXT].memory.words(), 0, &mut bytes);
    bytes
}

fn place(peer: u32, at: usize) -> Place {
    Place { context: CONTEXT, peer, at }
}

/// Looks at an operation of rank 0 until it's over, while all ranks do what they can.
fn finish<T>(
    engines: &mut [Engine<Queues>],
    mut look: impl FnMut(&mut Engine<Queues>) -> Option<Result<T, Failure>>,
) -> Result<T, Failure> {
    for _ in 0..10_000 {
        if let Some(result) = look(&mut engines[0]) {
            return result;
        }
        engines.iter_mut().for_each(|engine| _ = engine.progress());
    }
    panic!("it is not over");
}

#[derive(Clone, Debug)]
enum Action {
    Put(u32, usize, Vec<u8>),
    Get(u32, usize, usize),
    Add(u32, usize, Vec<u64>),
    Change(u32, usize, u64, u8),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        (1u32..3, 0usize..100, proptest::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(peer, at, bytes)| Action::Put(peer, at, bytes)),
        (1u32..3, 0usize..100, 0usize..100).prop_map(|(peer, at, length)| Action::Get(peer, at, length)),
        (1u32..3, 0usize..12, proptest::collection::vec(any::<u64>(), 0..12))
            .prop_map(|(peer, word, numbers)| Action::Add(peer, word * 8, numbers)),
        (1u32..3, 0usize..25, 0u64..3, 0u8..3).prop_map(|(peer, word, number, which)| Action::Change(
            peer,
            word * 8,
            number,
            which
        )),
    ];
    proptest::collection::vec(action, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 400 }))]

    /// One rank changes the others' memory as it would change arrays of its own.
    #[test]
    fn memory_of_others_is_like_an_array(actions in actions(), room in 1usize..4) {
        let mut engines = ranks(3, room);
        let mut model = [[0_u8; BYTES]; 3];
        for action in actions {
            match action {
                Action::Put(peer, at, bytes) => {
                    let mut put = Put { place: place(peer, at), kind: Kind::Put, bytes: &bytes, sent: 0 };
                    finish(&mut engines, |engine| put.look(engine)).unwrap();
                    model[peer as usize][at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Action::Add(peer, at, numbers) => {
                    let bytes = bytemuck::cast_slice(&numbers);
                    let mut put = Put { place: place(peer, at), kind: Kind::Add, bytes, sent: 0 };
                    finish(&mut engines, |engine| put.look(engine)).unwrap();
                    for (number, word) in numbers.iter().zip(model[peer as usize][at..].chunks_exact_mut(8)) {
                        let sum = u64::from_ne_bytes((&*word).try_into().unwrap()).wrapping_add(*number);
                        word.copy_from_slice(&sum.to_ne_bytes());
                    }
                }
                Action::Get(peer, at, length) => {
                    finish(&mut engines, |engine| all_done(engine, peer)).unwrap();
                    let mut got = vec![0; length];
                    let mut get = Get::new(place(peer, at), None, &mut got);
                    finish(&mut engines, |engine| get.look(engine)).unwrap();
                    prop_assert_eq!(&got, &model[peer as usize][at..at + length]);
                }
                Action::Change(peer, at, number, which) => {
                    finish(&mut engines, |engine| all_done(engine, peer)).unwrap();
                    let word = &mut model[peer as usize][at..at + 8];
                    let before = u64::from_ne_bytes((&*word).try_into().unwrap());
                    let (change, after) = match which {
                        0 => (Change::Add(number), before.wrapping_add(number)),
                        1 => (Change::Swap(number), number),
                        _ => (Change::CompareSwap { expected: number, new: 7 }, if before == number { 7 } else { before }),
                    };
                    word.copy_from_slice(&after.to_ne_bytes());
                    let mut ask = Ask::new(place(peer, at), change);
                    prop_assert_eq!(finish(&mut engines, |engine| ask.look(engine)).unwrap(), before);
                }
            }
        }
        for peer in 1..3 {
            finish(&mut engines, |engine| all_done(engine, peer)).unwrap();
            prop_assert_eq!(memory(&mut engines[peer as usize]), model[peer as usize]);
        }
        prop_assert!(engines.iter_mut().all(|engine| engine.windows().questions.is_empty()));
    }
}

#[test]
fn a_put_is_done_when_its_rank_has_looked_and_not_before() {
    let mut engines = ranks(2, 100);
    let mut put = Put { place: place(1, 0), kind: Kind::Put, bytes: &[7; 40], sent: 0 };
    assert!(put.look(&mut engines[0]).is_some(), "there is room for all of it");
    engines[0].progress();
    assert_eq!(all_done(&mut engines[0], 1), None);
    (0..3).for_each(|_| _ = engines[1].progress());
    assert_eq!(memory(&mut engines[1])[..41], [[7; 40].as_slice(), &[0]].concat());
    (0..3).for_each(|_| _ = engines[0].progress());
    assert_eq!(all_done(&mut engines[0], 1), Some(Ok(())));
}

#[test]
fn the_answer_to_a_question_that_was_given_up_is_for_nobody() {
    let mut engines = ranks(2, 4);
    engines[1].windows().open[&CONTEXT].memory.words()[0].store(5, Ordering::Relaxed);
    let mut first = Ask::new(place(1, 0), Change::Add(1));
    assert_eq!(first.look(&mut engines[0]), None);
    first.forget(&mut engines[0]);
    let mut second = Ask::new(place(1, 0), Change::Add(1));
    assert_eq!(finish(&mut engines, |engine| second.look(engine)), Ok(6));
    assert_eq!(memory(&mut engines[1])[0], 7);
    assert!(engines[0].windows().questions.is_empty() && engines[0].broken(1).is_none());
}

#[test]
fn a_peer_that_is_lost_ends_what_waits_for_it() {
    let mut engines = ranks(2, 1);
    let (bytes, mut got) = ([1; 100], [0; 100]);
    let mut put = Put { place: place(1, 0), kind: Kind::Put, bytes: &bytes, sent: 0 };
    assert_eq!(put.look(&mut engines[0]), None, "one packet is on its way");
    let mut get = Get::new(place(1, 0), None, &mut got);
    assert_eq!(get.look(&mut engines[0]), None);
    // Something that makes no sense, by which rank 0 loses rank 1.
    let header = Header { kind: 9, context: 0, tag: 0, operation: 0, length: 0 };
    assert!(engines[1].send_now(0, &header, &[]).unwrap());
    engines[0].progress();
    let is_broken = |result: Option<Result<(), Failure>>| {
        matches!(result, Some(Err(Failure::Broken(Broken { peer: 1, .. }))))
    };
    assert!(is_broken(put.look(&mut engines[0])));
    assert!(is_broken(get.look(&mut engines[0])));
    assert!(is_broken(all_done(&mut engines[0], 1)));
    get.forget(&mut engines[0]);
    assert!(engines[0].windows().questions.is_empty());
}

/// Whatever a peer sends, it costs nobody more than the peer.
#[test]
fn packets_that_no_rank_sends_touch_nothing() {
    let (put, add, get, atomic) = (Kind::Put as u32, Kind::Add as u32, Kind::Get as u32, Kind::Atomic as u32);
    let (answer, done) = (Kind::Answer as u32, Kind::Done as u32);
    let bytes = BYTES as u64;
    for (kind, context, tag, length, payload) in [
        (put, CONTEXT, 0, bytes, 1),
        (put, CONTEXT, 0, u64::MAX, 8),
        (put, CONTEXT + 2, 0, 0, 8),
        (add, CONTEXT, 0, 4, 8),
        (add, CONTEXT, 0, 0, 7),
        (add, CONTEXT, 0, bytes - 8, 16),
        (get, CONTEXT, 8, bytes - 7, 0),
        (get, CONTEXT, u32::MAX, 0, 0),
        (atomic, CONTEXT, 0, bytes - 4, 16),
        (atomic, CONTEXT, 0, 4, 16),
        (atomic, CONTEXT, 3, 0, 16),
        (atomic, CONTEXT, 0, 0, 8),
        (answer, 0, 0, 0, 9),
        (answer, 0, 0, 1, 7),
        (done, 0, 0, 1, 0),
    ] {
        let mut engines = ranks(2, 4);
        let question = engines[0].windows().ask(1, 8);
        let header = Header { kind, context, tag, operation: question, length };
        assert!(engines[1].send_now(0, &header, &[1; 16][..payload]).unwrap());
        engines[0].progress();
        assert!(engines[0].broken(1).is_some(), "{header:?} with {payload} bytes");
        assert_eq!(memory(&mut engines[0]), [0; BYTES], "{header:?}");
        assert!(engines[0].windows().answer(question).is_none());
    }
}

/// A peer may have another way to here than here to it, with longer packets.
#[test]
fn a_long_answer_comes_in_pieces() {
    let mut engines = ranks(2, 1);
    words::write(engines[1].windows().open[&CONTEXT].memory.words(), 0, &[9; 50]);
    let question = engines[0].windows().ask(1, 60);
    let header = Header { kind: Kind::Get as u32, context: CONTEXT, tag: 60, operation: question, length: 0 };
    assert!(engines[0].send_now(1, &header, &[]).unwrap());
    let answer = finish(&mut engines, |engine| engine.windows().answer(question).map(Ok)).unwrap();
    assert_eq!(answer, [[9; 50].as_slice(), &[0; 10]].concat());
}

/// While there is no room to say what is done, it's counted, for each peer.
#[test]
fn what_is_done_is_said_when_there_is_room() {
    let mut windows = Windows::default();
    let memory = Rc::new(Memory::own(BYTES).unwrap());
    windows.open(CONTEXT, memory, BYTES);
    let put = Header { kind: Kind::Put as u32, context: CONTEXT, tag: 0, operation: 0, length: 0 };
    for peer in [1, 2, 1, 1] {
        assert_eq!(windows.take(Kind::Put, peer, &put, &[1]), Taken::Done);
    }
    let mut said = Vec::new();
    for has_room in [false, true, false, true] {
        let (peer, header) = windows.next_done().unwrap();
        said.push((peer, header.length, has_room));
        windows.said(has_room);
    }
    assert_eq!(said, [(2, 1, false), (1, 3, true), (2, 1, false), (2, 1, true)]);
    assert_eq!(windows.next_done(), None);
}
