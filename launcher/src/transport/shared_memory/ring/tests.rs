use std::cell::UnsafeCell;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; LINE]>);

/// A ring's memory: lines and payload, with one line more on either side of each.
struct Memory {
    lines: Box<[Line]>,
    payload: Box<[Line]>,
    told: Box<Told>,
}

// SAFETY: it's accessed through its two ends, which are made for two threads.
unsafe impl Sync for Memory {}

const EDGE: u8 = 0xA5;

/// Nothing has come the other way.
const SILENT: OtherWay = OtherWay { read: 0, heard: None };

impl Memory {
    /// With so many bytes for long payloads.
    fn new(bytes: u32) -> Self {
        let edged = |lines| {
            let line = |byte| Line(UnsafeCell::new([byte; LINE]));
            (0..lines + 2).map(|index| line(if (1..=lines).contains(&index) { 0 } else { EDGE })).collect()
        };
        Self {
            lines: edged(SLOTS * (SLOT / LINE) as u32),
            payload: edged(bytes / LINE as u32),
            told: Box::default(),
        }
    }

    fn place(&self) -> Place {
        // From the slice's pointer, not a line's, so that it may go on behind the line.
        let inner = |lines: &[Line]| lines.as_ptr().wrapping_add(1).cast_mut().cast::<u8>();
        Place {
            slots: inner(&self.lines),
            payload: inner(&self.payload),
            bytes: (self.payload.len() - 2) as u32 * LINE as u32,
            told: &raw const *self.told,
        }
    }

    /// Both ends, as if so many lines and bytes had gone through the ring.
    fn ends(&self, position: u32, payload: u32) -> (Writer, Reader) {
        // SAFETY: the tests keep the memory for as long as the ends, and make them once.
        let (writer, reader) = unsafe { (Writer::new(self.place()), Reader::new(self.place())) };
        (writer.from(position, payload), reader.from(position, payload))
    }

    fn forge(&self, position: u32, length: u32) {
        self.place().stamp(position).store(stamp(position, length), Ordering::Release);
    }

    fn edges_untouched(&self) -> bool {
        let untouched = |lines: &[Line]| {
            // SAFETY: nobody else has the memory now.
            [0, lines.len() - 1].iter().all(|edge| unsafe { *lines[*edge].0.get() == [EDGE; LINE] })
        };
        untouched(&self.lines) && untouched(&self.payload)
    }
}

fn header(operation: u32, length: usize) -> Header {
    Header { kind: 1, context: 2, tag: 3, operation, length: length as u64 }
}

/// Takes the next packet, its payload into a buffer.
fn pop(reader: &mut Reader, buffer: &mut [u8]) -> Result<Option<(Header, usize)>, Garbage> {
    let mut got = None;
    reader.pop(1, &mut |header: &Header, payload: Payload<'_>| {
        payload.copy_to(&mut buffer[..payload.len()]);
        got = Some((*header, payload.len()));
        true
    })?;
    Ok(got)
}

fn payload(number: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| number.wrapping_mul(31).wrapping_add(index) as u8).collect()
}

fn buffer(memory: &Memory) -> Vec<u8> {
    vec![0; most(memory.place().bytes).max(SMALL)]
}

#[test]
fn a_ring_holds_four_of_the_longest_packets_or_64_short_ones() {
    for bytes in [512, 32 << 10] {
        let memory = Memory::new(bytes);
        let (mut writer, mut reader) = memory.ends(u32::MAX - 70, 0_u32.wrapping_sub(2 * bytes));
        let mut buffer = buffer(&memory);
        for lap in 0..10 {
            for (count, length) in [(4, most(bytes)), (64, 96)] {
                let sent = payload(lap, length);
                let fits = (0..100)
                    .take_while(|_| writer.try_push(SILENT, &header(lap, length), &sent).unwrap())
                    .count();
                // Later the reader has taken a little more than it has told.
                assert!(fits == count || (lap > 0 && (count - count / 4..count).contains(&fits)), "{fits}");
                for _ in 0..fits {
                    assert_eq!(pop(&mut reader, &mut buffer).unwrap(), Some((header(lap, length), length)));
                    assert_eq!(buffer[..length], sent);
                }
                assert_eq!(pop(&mut reader, &mut buffer).unwrap(), None);
            }
        }
        assert!(memory.edges_untouched());
    }
}

#[test]
fn a_length_that_leads_outside_is_refused() {
    for bytes in [512, 32 << 10] {
        for length in [most(bytes) + 1, bytes as usize, MEASURED as usize - 1] {
            for position in [0, SLOTS - 1, u32::MAX] {
                let memory = Memory::new(bytes);
                let (_, mut reader) = memory.ends(position, 0);
                memory.forge(position, length as u32);
                assert_eq!(pop(&mut reader, &mut buffer(&memory)), Err(Garbage::Length(length)));
            }
        }
    }
}

#[test]
fn a_reader_that_took_what_was_not_written_is_refused() {
    let memory = Memory::new(512);
    let (mut writer, _) = memory.ends(0, 0);
    while writer.try_push(SILENT, &header(0, 0), &[]).unwrap() {}
    for taken in [65, 1 << 30] {
        memory.told.taken.store(taken, Ordering::Release);
        assert_eq!(writer.try_push(SILENT, &header(0, 0), &[]), Err(Garbage::Taken { taken, written: 64 }));
    }
    // Older than what was heard, perhaps.
    memory.told.taken.store(u32::MAX, Ordering::Release);
    assert_eq!(writer.try_push(SILENT, &header(0, 0), &[]), Ok(false));
}

/// The whole memory of a ring is what another process may have made of it.
#[test]
fn garbage_never_leads_outside() {
    for seed in 0..if cfg!(miri) { 20 } else { 2000_u32 } {
        let memory = Memory::new(1024);
        let position = [0, u32::MAX - 3][seed as usize % 2];
        let (mut writer, mut reader) = memory.ends(position, position & !63);
        let mut buffer = buffer(&memory);
        let mut state = u64::from(seed);
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        for _ in 0..50 {
            let at = if random() % 2 == 0 { reader.position } else { position.wrapping_add(random() % 32) };
            memory.forge(at, random() % 300);
            if random() % 4 == 0 {
                memory.told.taken.store(position.wrapping_add(random() % 64), Ordering::Relaxed);
            }
            let _ = writer.try_push(SILENT, &header(0, 0), &vec![0xFF; random() as usize % 257]);
            let _ = pop(&mut reader, &mut buffer);
        }
        assert!(memory.edges_untouched());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 10 } else { 2000 }))]
    /// Against a queue: packets (some) and takes (none) in any order, and how far the reader has come is heard now and then.
    #[test]
    fn what_goes_in_comes_out_in_order(
        bytes in prop::sample::select(vec![512_u32, 1024, 4096]),
        begin in prop::sample::select(vec![ERA - 40, 1000, u32::MAX - 20]),
        steps in prop::collection::vec(
            (prop::option::weighted(0.6, (0.0..1.0_f64, any::<bool>())), prop::bool::weighted(0.3)),
            0..200,
        ),
    ) {
        let memory = Memory::new(bytes);
        let (mut writer, mut reader) = memory.ends(begin, 0_u32.wrapping_sub(begin % 64 * 64));
        let mut buffer = buffer(&memory);
        let mut model = std::collections::VecDeque::new();
        let mut way = OtherWay { read: 0, heard: None };
        for (number, (step, hears)) in (0..).zip(&steps) {
            if *hears {
                way.heard = Some(reader.position);
            }
            if let Some((fraction, short)) = step {
                let length = (fraction * (if *short { SMALL + 8 } else { most(bytes) } + 1) as f64) as usize;
                let bytes = payload(number, length);
                if writer.try_push(way, &header(number, length), &bytes).unwrap() {
                    model.push_back((header(number, length), bytes));
                } else {
                    prop_assert!(!model.is_empty(), "an empty ring has room");
                }
            } else {
                let taken = pop(&mut reader, &mut buffer).unwrap();
                let taken = taken.map(|(header, length)| (header, buffer[..length].to_vec()));
                prop_assert_eq!(taken, model.pop_front());
            }
        }
        prop_assert!(memory.edges_untouched());
    }
}

/// Ranks that answer each other: each packet is in the first slot, whatever the ring has seen before; and once in an era all slots are used.
#[test]
fn who_has_heard_that_all_is_read_starts_at_the_first_slot() {
    let memory = Memory::new(1024);
    let (mut writer, mut reader) = memory.ends(ERA - 100, 0);
    let mut buffer = buffer(&memory);
    let mut used = std::collections::BTreeSet::new();
    for number in 0..400 {
        // A short one, and one that has its payload beside.
        let sent = payload(number, [8, 200][number as usize % 2]);
        let way = OtherWay { read: number, heard: Some(reader.position) };
        assert!(writer.try_push(way, &header(number, sent.len()), &sent).unwrap());
        let slot = writer.slot.wrapping_sub(1) % SLOTS;
        match number {
            0..100 | 228.. => assert_eq!(slot, 0, "{number}"),
            _ => _ = used.insert(slot),
        }
        assert_eq!(pop(&mut reader, &mut buffer).unwrap(), Some((header(number, sent.len()), sent.len())));
        assert_eq!(buffer[..sent.len()], sent);
        // It is news once: the position could come again.
        for heard in [Some(number), None] {
            assert_eq!(reader.other_way(), OtherWay { read: writer.position, heard });
        }
    }
    assert_eq!(used.len(), SLOTS as usize);
    assert!(memory.edges_untouched());
}

/// Two threads; under Miri, which reports every access that the stamps don't order, with fewer packets. The writer hears how far the reader has
/// come as by packets the other way.
#[test]
fn two_threads_agree() {
    let packets = if cfg!(miri) { 300 } else { 20_000 };
    for bytes in [512, 4096] {
        let memory = Memory::new(bytes);
        let length = |number: u32| number.wrapping_mul(2_654_435_761) as usize >> 16 & 0xFFFF_FFFF;
        let length = |number: u32| match number % 3 {
            0 => length(number) % (most(bytes) + 1),
            _ => length(number) % (SMALL + 1),
        };
        let (memory, heard, gone) = (&memory, &AtomicU32::new(0), &AtomicBool::new(false));
        let (mut writer, mut reader) = {
            // SAFETY: made once each; the memory outlives the threads.
            unsafe { (Ends(Writer::new(memory.place())), Ends(Reader::new(memory.place()))) }
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let writer = writer.get();
                for number in 0..packets {
                    let bytes = payload(number, length(number));
                    // In some times the reader says nothing, and all slots are used.
                    let is_silent = number / 256 % 2 == 1;
                    let mut push = || {
                        let heard = (!is_silent).then(|| heard.load(Ordering::Acquire));
                        let way = OtherWay { read: 0, heard };
                        writer.try_push(way, &header(number, bytes.len()), &bytes).unwrap()
                    };
                    while !push() {
                        assert!(!gone.load(Ordering::Relaxed), "nobody reads any more");
                        std::thread::yield_now();
                    }
                    // Now and then, for a while, the reader is waited for.
                    while (is_silent || number % 64 > 40) && heard.load(Ordering::Relaxed) <= number {
                        let is_read = || heard.load(Ordering::Relaxed) > number;
                        assert!(!gone.load(Ordering::Acquire) || is_read(), "nobody reads any more");
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                let _gone = Gone(gone);
                let reader = reader.get();
                let mut buffer = buffer(memory);
                let mut looks = 0_u32;
                for number in 0..packets {
                    let (got, bytes) = loop {
                        match pop(reader, &mut buffer).unwrap() {
                            Some(packet) => break packet,
                            // Mostly it is there at any moment of the next look.
                            None if looks.is_multiple_of(1000) => std::thread::yield_now(),
                            None => {}
                        }
                        looks = looks.wrapping_add(1);
                    };
                    assert_eq!(got, header(number, length(number)));
                    assert_eq!(buffer[..bytes], payload(number, length(number)));
                    heard.store(reader.position, Ordering::Release);
                }
            });
        });
        assert!(memory.edges_untouched());
    }
}

/// Says that its thread has ended, whatever the reason.
struct Gone<'a>(&'a AtomicBool);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
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

/// Else the writer would never learn which way is better to its reader.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[test]
fn the_reader_tells_what_copies_of_either_way_cost_it() {
    let memory = Memory::new(64 << 10);
    let (mut writer, mut reader) = memory.ends(0, 0);
    let (sent, mut buffer) = (payload(1, 4096), buffer(&memory));
    for _ in 0..300 {
        assert!(writer.try_push(SILENT, &header(1, sent.len()), &sent).unwrap());
        assert!(pop(&mut reader, &mut buffer).unwrap().is_some());
    }
    assert!(memory.told.costs.iter().all(|cost| cost.load(Ordering::Relaxed) > 0), "{:?}", memory.told);
}

/// The way of short messages leaves what is not in a line, and what is not wanted, to the other one; both can take turns.
#[test]
fn the_short_way_takes_what_is_in_a_line_and_wanted() {
    let memory = Memory::new(1024);
    let (mut writer, mut reader) = memory.ends(u32::MAX - 10, 0);
    let mut buffer = buffer(&memory);
    for lap in 0..100 {
        let (short, long) = (payload(lap, 96), payload(lap, 97));
        assert!(writer.push_short(SILENT, &header(lap, 96), &short));
        assert!(!writer.push_short(SILENT, &header(lap, 97), &long));
        assert!(writer.try_push(SILENT, &header(lap, 97), &long).unwrap());
        let mut got = None;
        for wanted in [false, true] {
            let popped = reader.pop_short(1, &mut |header: &Header, payload: Payload<'_>| {
                got = Some((*header, payload.to_vec()));
                wanted
            });
            assert_eq!(popped, if wanted { Short::Taken } else { Short::Nothing });
            assert_eq!(got.take(), Some((header(lap, 96), short.clone())));
        }
        let mut never = |_: &Header, _: Payload<'_>| -> bool { panic!("it is not all in its line") };
        assert_eq!(reader.pop_short(1, &mut never), Short::Long);
        assert_eq!(pop(&mut reader, &mut buffer).unwrap(), Some((header(lap, 97), 97)));
        assert_eq!(reader.pop_short(1, &mut never), Short::Nothing);
    }
    // A full ring has no line.
    let written = (0..100).take_while(|_| writer.push_short(SILENT, &header(0, 0), &[])).count();
    assert!((48..=64).contains(&written), "{written}");
    assert!(memory.edges_untouched());
}
