//! Copies payload into memory that another core reads next, in the way that is faster here and now.
//!
//! An ordinary copy first takes each cache line from the reader's core, which has read it a lap ago. Where cores share a cache that
//! is the fastest way. Between cores that share none (other chiplets, other sockets) each line costs a round trip through the
//! interconnect, and stores that go around the caches are more than twice as fast, though the reader then finds the data in main
//! memory. Which cores the ranks are on is not known here, and can change. So both ways are measured again and again, a few copies of each,
//! at both ends: the writer says which copies are measured, and the reader tells what they cost it.
#![expect(unsafe_code, reason = "memory that another process reads")]

#[cfg(all(target_arch = "x86_64", not(miri)))]
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::transport::payload;

/// Whether there is a choice: a second way, and a clock that costs little to look at.
const CHOICE: bool = cfg!(all(target_arch = "x86_64", not(miri)));
/// Payload for which there is one.
const LONG: usize = 2 << 10;
/// After so many copies the other way is tried again, so many times in a row.
const TRY: u32 = 512;
const TRIAL: u32 = 4;
/// So many copies after a trial the reader has told what it found.
const SETTLED: u32 = 64;
/// The first copies meet memory that nobody has touched, which says nothing.
const FIRST: u32 = 160;
/// So many copies count.
const LAST: f32 = 4.0;
/// A copy that takes so many times as long as those before was interrupted, and counts as so much.
const MOST: f32 = 4.0;

/// What a reader's copies cost, by [`Way`]: ticks per KiB.
pub(super) type Costs = [AtomicU32; 2];

/// How payload was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Through = 0,
    Around = 1,
}

/// How a packet's payload was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Copied {
    pub(super) way: Way,
    pub(super) is_measured: bool,
}

/// Ticks per byte of the last copies in a row that went one way.
#[derive(Clone, Copy, Default, Debug)]
struct Mean {
    ticks: f32,
    /// Up to [`LAST`].
    count: f32,
}

impl Mean {
    fn add(&mut self, ticks: f32) {
        if self.count == 0.0 || self.ticks > MOST * ticks {
            // What was before was an interruption.
            *self = Self { ticks, count: 0.0 };
        }
        let ticks = ticks.min(MOST * self.ticks);
        self.count = (self.count + 1.0).min(LAST);
        self.ticks += (ticks - self.ticks) / self.count;
    }
}

/// Of both ways.
#[derive(Default, Debug)]
struct Means {
    of: [Mean; 2],
    last: Option<Way>,
}

impl Means {
    /// What was measured before a change of ways is old when this way comes again.
    fn add(&mut self, way: Way, ticks: f32) {
        let mean = &mut self.of[way as usize];
        if self.last.replace(way) != Some(way) {
            *mean = Mean::default();
        }
        mean.add(ticks);
    }
}

/// Which way is faster to one reader.
#[derive(Debug)]
pub(super) struct Copier {
    way: Way,
    means: Means,
    /// Copies until the other way has been tried.
    left: u32,
}

/// What a reader's copies cost, by way.
#[derive(Default, Debug)]
pub(super) struct Measured {
    means: Means,
}

impl Measured {
    /// Has `act` copy so many bytes that came this way, if it wants them; whether it did. `is_measured` says the writer.
    #[inline]
    pub(super) fn measure(
        &mut self,
        Copied { way, is_measured }: Copied,
        length: usize,
        act: impl FnOnce() -> bool,
    ) -> bool {
        if !CHOICE || !is_measured || length < LONG {
            return act();
        }
        let start = clock();
        let taken = act();
        if taken {
            self.means.add(way, since(start, length));
        }
        taken
    }

    /// Tells the writer.
    pub(super) fn tell(&self, costs: &Costs) {
        for (mean, cost) in self.means.of.iter().zip(costs) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "too much is the most"
            )]
            cost.store((mean.ticks * 1024.0) as u32, Ordering::Relaxed);
        }
    }
}

impl Copier {
    pub(super) fn new() -> Self {
        Self { way: Way::Through, means: Means::default(), left: FIRST }
    }

    /// Is it the way around the caches? Then long pieces are better, for the end of each waits for the memory.
    pub(super) fn is_around(&self) -> bool {
        self.way == Way::Around
    }

    /// Copies to a reader that tells what its copies cost.
    ///
    /// # Safety
    /// `to` must be aligned to 16 bytes and have room for all; nobody else may use that memory.
    pub(super) unsafe fn copy(&mut self, from: &[u8], to: *mut u8, theirs: &Costs) -> Copied {
        if from.len() < LONG || !CHOICE {
            // SAFETY: by the caller's promise.
            unsafe { payload::copy(from.as_ptr(), to, from.len()) };
            return Copied { way: Way::Through, is_measured: false };
        }
        let (way, is_measured) = (self.next(), self.is_measured());
        let start = is_measured.then(clock);
        // SAFETY: by the caller's promise.
        unsafe {
            match way {
                Way::Around => copy_around(from, to),
                Way::Through => payload::copy(from.as_ptr(), to, from.len()),
            }
        }
        self.note(way, start.map(|start| since(start, from.len())), || {
            theirs.each_ref().map(|cost| cost.load(Ordering::Relaxed))
        });
        Copied { way, is_measured }
    }

    /// Whether the next copy is measured: those with the other way, and as many before.
    fn is_measured(&self) -> bool {
        self.left < 2 * TRIAL
    }

    /// How the next copy goes: mostly the better way, now and then the other.
    fn next(&self) -> Way {
        match (self.way, self.left < TRIAL) {
            (Way::Through, false) | (Way::Around, true) => Way::Through,
            _ => Way::Around,
        }
    }

    /// One copy took so many ticks per byte, if it was measured.
    fn note(&mut self, way: Way, took: Option<f32>, theirs: impl FnOnce() -> [u32; 2]) {
        if let Some(took) = took {
            self.means.add(way, took);
        }
        self.left = self.left.checked_sub(1).unwrap_or(TRY);
        if self.left == TRY - SETTLED {
            let theirs = theirs();
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let cost = |way: Way| self.means.of[way as usize].ticks + theirs[way as usize] as f32 / 1024.0;
            self.way = if cost(Way::Around) < cost(Way::Through) { Way::Around } else { Way::Through };
        }
    }
}

/// Ticks per byte since then.
#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn since(start: u64, length: usize) -> f32 {
    clock().wrapping_sub(start) as f32 / length as f32
}

/// The processor's clock, where there is a choice.
#[inline]
fn clock() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every such processor has that instruction.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    0
}

/// Copies with stores that go around the caches.
///
/// # Safety
/// As [`Copier::copy`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_around(from: &[u8], to: *mut u8) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    const WORD: usize = size_of::<__m128i>();
    let whole = from.len() / LINE * LINE;
    // SAFETY: every such processor has these instructions. All is within both memories, and `to` is aligned, by the caller's
    // promise. The fence orders the stores before whatever store tells of them.
    unsafe {
        for line in (0..whole).step_by(LINE) {
            let (from, to) = (from.as_ptr().add(line), to.add(line));
            let words: [__m128i; LINE / WORD] =
                std::array::from_fn(|word| _mm_loadu_si128(from.add(word * WORD).cast()));
            for (word, value) in words.into_iter().enumerate() {
                _mm_stream_si128(to.add(word * WORD).cast(), value);
            }
        }
        ptr::copy_nonoverlapping(from.as_ptr().add(whole), to.add(whole), from.len() - whole);
        _mm_sfence();
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn copy_around(from: &[u8], to: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { payload::copy(from.as_ptr(), to, from.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Aligned([u8; 16 << 10]);

    #[test]
    fn both_ways_copy_all_and_nothing_else() {
        let from: Vec<u8> = (0..16 << 10).map(|place| place as u8).collect();
        for length in [0, 1, 63, 64, 2047, 2048, 2049, 5000, 16 << 10] {
            for way in [Way::Through, Way::Around] {
                let mut to = Box::new(Aligned([0xA5; 16 << 10]));
                let mut copier = Copier { way, ..Copier::new() };
                // SAFETY: there is room for all in aligned memory of this test.
                unsafe { copier.copy(&from[..length], to.0.as_mut_ptr(), &Costs::default()) };
                assert!(to.0[..length] == from[..length] && to.0[length..].iter().all(|byte| *byte == 0xA5));
            }
        }
    }

    #[test]
    fn the_faster_way_is_found_and_left_again() {
        let mut copier = Copier::new();
        // Ticks of the writer and the reader, through the caches and around them.
        let mut run = |writer: [f32; 2], reader: [f32; 2]| {
            let mut around = 0;
            for _ in 0..4 * TRY {
                let way = copier.next();
                around += way as u32;
                let took = copier.is_measured().then_some(writer[way as usize]);
                copier.note(way, took, || reader.map(|ticks| (ticks * 1024.0) as u32));
            }
            (copier.is_around(), around)
        };
        let (is_around, times) = run([1.0, 2.0], [1.0, 1.0]);
        assert!(!is_around && times <= 6 * TRIAL, "{times}");
        assert!(run([1.0, 2.0], [5.0, 1.0]).0, "the reader counts as much");
        assert!(run([4.0, 2.0], [1.0, 1.0]).0);
        let (is_around, times) = run([4.0, 2.0], [1.0, 1.0]);
        assert!(is_around && times >= 4 * TRY - 6 * TRIAL, "{times}");
        assert!(!run([1.0, 2.0], [1.0, 1.0]).0);
    }

    #[test]
    fn an_interruption_does_not_decide() {
        let mut copier = Copier::new();
        for number in 0..4 * TRY {
            let way = copier.next();
            let ticks = if number % 5 == 0 { 1e9 } else { [1.0, 5.0][way as usize] };
            let took = copier.is_measured().then_some(ticks);
            copier.note(way, took, Default::default);
            assert!(!copier.is_around(), "{number}");
        }
    }
}
