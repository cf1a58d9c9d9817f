use std::cell::UnsafeCell;

use proptest::prelude::*;

use super::*;

#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; LINE]>);

/// A ring's memory, one line more on either side.
struct Memory {
    lines: Box<[Line]>,
    taken: Box<AtomicU32>,
}

// SAFETY: it's accessed through its two ends, which are made for two threads.
unsafe impl Sync for Memory {}

const EDGE: u8 = 0xA5;

impl Memory {
    fn new(count: u32) -> Self {
        let line = |byte| Line(UnsafeCell::new([byte; LINE]));
        let lines =
            (0..count + 2).map(|index| line(if (1..=count).contains(&index) { 0 } else { EDGE })).collect();
        Self { lines, taken: Box::default() }
    }

    fn place(&self) -> Place {
        // From the slice's pointer, not the line's, so that it may go on behind the line.
        let lines = self.lines.as_ptr().wrapping_add(1).cast_mut().cast::<u8>();
        Place { lines, count: self.lines.len() as u32 - 2, taken: &raw const *self.taken }
    }

    /// Both ends, as if so many lines had gone through the ring.
    fn ends(&self, position: u32) -> (Writer, Reader) {
        // SAFETY: the tests keep the memory for as long as the ends, and make them once.
        unsafe { (Writer::new(self.place()).from(position), Reader::new(self.place()).from(position)) }
    }

    fn stamp(&self, position: u32) -> &AtomicU64 {
        let place = self.place();
        // SAFETY: the offset is within the lines.
        unsafe { &*place.lines.add(place.offset(position)).cast() }
    }

    fn edges_untouched(&self) -> bool {
        // SAFETY: nobody else has the memory now.
        [0, self.lines.len() - 1].iter().all(|edge| unsafe { *self.lines[*edge].0.get() == [EDGE; LINE] })
    }
}

fn header(operation: u32, length: usize) -> Header {
    Header { kind: 1, context: 2, tag: 3, operation, length: length as u64 }
}

fn payload(number: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| number.wrapping_mul(31).wrapping_add(index) as u8).collect()
}

fn buffer(memory: &Memory) -> Vec<u8> {
    vec![0; most(memory.place().count)]
}

#[test]
fn a_ring_holds_four_of_the_longest_packets() {
    for count in [64, 512] {
        let memory = Memory::new(count);
        let (mut writer, mut reader) = memory.ends(0);
        let mut buffer = buffer(&memory);
        let long = payload(0, most(count));
        for lap in 0..10 {
            for number in 0..4 {
                let header = header(number, long.len());
                // Later the reader has taken more than it has told.
                assert!(writer.try_push(&header, &long).unwrap() || (lap > 0 && number > 2));
            }
            assert!(!writer.try_push(&header(0, 0), &long).unwrap());
            while let Some((_, length)) = reader.pop(&mut buffer).unwrap() {
                assert_eq!(buffer[..length], long);
            }
        }
        assert!(memory.edges_untouched());
    }
}

#[test]
fn thirty_two_bytes_take_one_line_and_one_more_takes_two() {
    assert_eq!((lines(0), lines(32), lines(33), lines(96), lines(97)), (1, 1, 2, 2, 3));
    let memory = Memory::new(8);
    let (mut writer, _) = memory.ends(0);
    let fits = (0..20).take_while(|_| writer.try_push(&header(0, 32), &[1; 32]).unwrap()).count();
    assert_eq!(fits, 7);
}

/// Payload that looks as the stamp for which the reader will wait, wherever it is.
#[test]
fn payload_is_never_taken_for_a_packet() {
    for count in [16, 64] {
        let memory = Memory::new(count);
        let (mut writer, mut reader) = memory.ends(0);
        let mut buffer = buffer(&memory);
        for number in 0..20 * count {
            let length = (number as usize * 37) % most(count);
            // Every later position comes in some line of this payload, one lap on.
            let position = writer.position;
            let mut forged = vec![0; 32];
            for line in 1..count {
                forged.extend(stamp(position.wrapping_add(line).wrapping_add(count), 1).to_ne_bytes());
                forged.resize(32 + line as usize * LINE, 0);
            }
            forged.truncate(length);
            assert!(writer.try_push(&header(number, length), &forged).unwrap());
            let (header, length) = reader.pop(&mut buffer).unwrap().unwrap();
            assert_eq!((header.operation, &buffer[..length]), (number, forged.as_slice()));
            assert_eq!(reader.pop(&mut buffer).unwrap(), None);
        }
    }
}

#[test]
fn a_length_that_leads_outside_is_refused() {
    for count in [8, 512] {
        for length in [most(count) + 1, count as usize * LINE, VALID as usize - 1] {
            for position in [0, count - 1, u32::MAX] {
                let memory = Memory::new(count);
                let (_, mut reader) = memory.ends(position);
                memory.stamp(position).store(stamp(position, length as u32), Ordering::Release);
                assert_eq!(reader.pop(&mut buffer(&memory)), Err(Garbage::Length(length)));
            }
        }
    }
}

#[test]
fn a_reader_that_took_what_was_not_written_is_refused() {
    let memory = Memory::new(8);
    let (mut writer, _) = memory.ends(0);
    while writer.try_push(&header(0, 0), &[]).unwrap() {}
    for taken in [8, 1 << 31, u32::MAX] {
        memory.taken.store(taken, Ordering::Release);
        assert_eq!(writer.try_push(&header(0, 0), &[]), Err(Garbage::Taken { taken, written: 7 }));
    }
}

/// The whole memory of a ring is what another process may have made of it.
#[test]
fn garbage_never_leads_outside() {
    for seed in 0..if cfg!(miri) { 20 } else { 2000_u32 } {
        let memory = Memory::new(16);
        let position = [0, u32::MAX - 3][seed as usize % 2];
        let (mut writer, mut reader) = memory.ends(position);
        let mut buffer = buffer(&memory);
        let mut state = u64::from(seed);
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        for _ in 0..50 {
            let at = if random() % 2 == 0 { reader.position } else { position.wrapping_add(random() % 32) };
            memory.stamp(at).store(stamp(at, random() % 1024), Ordering::Relaxed);
            if random() % 4 == 0 {
                memory.taken.store(position.wrapping_add(random() % 64), Ordering::Relaxed);
            }
            let _ = writer.try_push(&header(0, 0), &vec![0xFF; random() as usize % most(16)]);
            let _ = reader.pop(&mut buffer);
        }
        assert!(memory.edges_untouched());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 10 } else { 2000 }))]
    /// Against a queue: packets (some) and takes (none) in any order.
    #[test]
    fn what_goes_in_comes_out_in_order(
        count in prop::sample::select(vec![8_u32, 16, 64]),
        before_wrap in 0_u32..40,
        steps in prop::collection::vec(prop::option::weighted(0.6, (0.0..1.0_f64, any::<bool>())), 0..80),
    ) {
        let memory = Memory::new(count);
        let (mut writer, mut reader) = memory.ends(u32::MAX - before_wrap);
        let mut buffer = buffer(&memory);
        let mut model = std::collections::VecDeque::new();
        for (number, step) in (0..).zip(&steps) {
            if let Some((fraction, short)) = step {
                let length = (fraction * (if *short { 70.min(most(count)) } else { most(count) } + 1) as f64) as usize;
                let bytes = payload(number, length);
                if writer.try_push(&header(number, length), &bytes).unwrap() {
                    model.push_back((header(number, length), bytes));
                } else {
                    prop_assert!(!model.is_empty(), "an empty ring has room");
                }
            } else {
                let taken = reader.pop(&mut buffer).unwrap();
                let taken = taken.map(|(header, length)| (header, buffer[..length].to_vec()));
                prop_assert_eq!(taken, model.pop_front());
            }
        }
        prop_assert!(memory.edges_untouched());
    }
}

/// Two threads; under Miri, which reports every access that the stamps don't order, with fewer packets.
#[test]
fn two_threads_agree() {
    let packets = if cfg!(miri) { 150 } else { 20_000 };
    for count in [8, 64] {
        let memory = Memory::new(count);
        let length = |number: u32| number.wrapping_mul(2_654_435_761) as usize >> 16 & 0xFFFF_FFFF;
        let length = |number: u32| match number % 3 {
            0 => length(number) % (most(count) + 1),
            _ => length(number) % 33,
        };
        let memory = &memory;
        let (mut writer, mut reader) = {
            // SAFETY: made once each; the memory outlives the threads.
            unsafe { (Ends(Writer::new(memory.place())), Ends(Reader::new(memory.place()))) }
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let writer = writer.get();
                for number in 0..packets {
                    let bytes = payload(number, length(number));
                    while !writer.try_push(&header(number, bytes.len()), &bytes).unwrap() {
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                let reader = reader.get();
                let mut buffer = buffer(memory);
                for number in 0..packets {
                    let (got, bytes) = loop {
                        match reader.pop(&mut buffer).unwrap() {
                            Some(packet) => break packet,
                            None => std::thread::yield_now(),
                        }
                    };
                    assert_eq!(got, header(number, length(number)));
                    assert_eq!(buffer[..bytes], payload(number, length(number)));
                }
            });
        });
        assert!(memory.edges_untouched());
    }
}

struct Ends<T>(T);

// SAFETY: an end's pointers lead to memory that is made for two threads and outlives them.
unsafe impl<T> Send for Ends<T> {}

impl<T> Ends<T> {
    /// As a method, so that a closure takes the whole.
    fn get(&mut self) -> &mut T {
        &mut self.0
    }
}
