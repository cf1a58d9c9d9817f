//! Listens to what becomes of memory that is watched, for all of the process.
//!
//! A thread reads what the kernel tells, from the first use until the process ends: were nobody there to read, a thread that unmaps watched memory
//! would wait for ever. So it must wait for nobody who may unmap or free memory, and neither do so itself: it only writes numbers down, in a
//! place that is there already, under a lock under which nobody does anything else.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::userfault::{Change, Userfault};

/// So many changes are remembered; who looks less often takes all for changed.
const REMEMBERED: usize = 256;
/// How often a change that is under way is waited for before memory is taken for changing.
const PATIENCE: u32 = 3;

#[derive(Debug)]
pub(crate) struct Watcher {
    userfault: Userfault,
    notes: Mutex<Notes>,
    /// How many changes there were.
    count: AtomicU64,
    /// What is watched, once for each who wants that.
    watched: Mutex<Vec<Range<usize>>>,
    hears_guards: OnceLock<bool>,
}

/// The last changes, at their number modulo the length.
#[derive(Debug)]
struct Notes {
    changes: [Change; REMEMBERED],
    count: u64,
}

impl Watcher {
    /// The one of this process.
    ///
    /// # Errors
    /// Why there can't be one.
    pub(crate) fn get() -> Result<&'static Self, &'static str> {
        static WATCHER: OnceLock<Result<&'static Watcher, String>> = OnceLock::new();
        let watcher = WATCHER.get_or_init(|| {
            let watcher: &Self = Box::leak(Box::new(Self::new(Userfault::open()?)));
            watcher.start().map_err(|error| format!("no thread: {error}"))?;
            Ok(watcher)
        });
        watcher.as_ref().copied().map_err(String::as_str)
    }

    fn new(userfault: Userfault) -> Self {
        let notes = Notes { changes: [Change::ANYWHERE; REMEMBERED], count: 0 };
        Self {
            userfault,
            notes: Mutex::new(notes),
            count: AtomicU64::new(0),
            watched: Mutex::default(),
            hears_guards: OnceLock::new(),
        }
    }

    fn start(&'static self) -> std::io::Result<()> {
        // Signals are for the program's threads: the new thread inherits that none comes to it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let started = std::thread::Builder::new().name("roce-memory".to_owned()).spawn(move || {
            loop {
                // An error here is an interruption: looking again is right.
                let _ = poll(
                    &mut [PollFd::new(self.userfault.descriptor(), PollFlags::POLLIN)],
                    PollTimeout::NONE,
                );
                self.listen();
            }
        });
        before.thread_set_mask()?;
        started.map(drop)
    }

    /// Reads and writes down what is told. Nothing is allocated, freed or unmapped here. What was read is written down before another can look,
    /// for the thread that told it goes on when it is read.
    fn listen(&self) {
        let mut notes = lock(&self.notes);
        let Notes { changes, count } = &mut *notes;
        self.userfault.read(&mut |change| {
            if let Some(note) = changes.get_mut((*count % REMEMBERED as u64) as usize) {
                *note = change;
            }
            *count += 1;
        });
        self.count.store(*count, Ordering::Release);
    }

    pub(crate) fn page(&self) -> usize {
        self.userfault.page()
    }

    /// How many changes were told so far.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Gives the changes since the first `seen`, and counts them there. Whether those are all: that no thread is just about to change something,
    /// or has done so and not told it yet.
    pub(crate) fn look(&self, seen: &mut u64, changes: &mut Vec<Change>) -> bool {
        let mut is_quiet = self.userfault.is_quiet();
        for _ in 0..PATIENCE {
            if is_quiet {
                break;
            }
            self.listen();
            std::thread::yield_now();
            is_quiet = self.userfault.is_quiet();
        }
        // What was read and is not written down yet is waited for. Under the lock nothing may be allocated.
        let (copied, count) = {
            let notes = lock(&self.notes);
            if notes.count == *seen {
                return is_quiet;
            }
            (notes.changes, notes.count)
        };
        if count - *seen > REMEMBERED as u64 {
            changes.push(Change::ANYWHERE);
        } else {
            let places = (*seen..count).map(|number| (number % REMEMBERED as u64) as usize);
            changes.extend(places.filter_map(|place| copied.get(place)));
        }
        *seen = count;
        is_quiet
    }

    /// Watches whole pages, if that is memory of which all is told.
    pub(crate) fn watch(&self, pages: &Range<usize>) -> bool {
        let mut watched = lock(&self.watched);
        let can = self.userfault.can_watch(pages) && self.userfault.register(pages).is_ok();
        if can {
            watched.push(pages.clone());
        }
        can
    }

    /// Ends one watch of these pages: those that others watch stay watched, and those that are gone are somebody else's now.
    pub(crate) fn unwatch(&self, pages: &Range<usize>, changes: &[Change]) {
        let mut watched = lock(&self.watched);
        let Some(place) = watched.iter().position(|other| other == pages) else { return };
        watched.swap_remove(place);
        let gone = changes.iter().filter(|change| change.gone).map(Change::pages);
        for rest in without(pages, watched.iter().cloned().chain(gone)) {
            self.userfault.unregister(&rest);
        }
    }

    /// Whether guard regions are told too, where this kernel has them: they take pages away as MADV_DONTNEED does.
    pub(crate) fn hears_guards(&self) -> bool {
        *self.hears_guards.get_or_init(|| {
            let before = self.count();
            !self.userfault.install_guard() || self.count() > before
        })
    }
}

/// Nobody panics while holding one of these locks, and what they guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts of a range that are in none of the others.
fn without(range: &Range<usize>, others: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut parts = vec![range.clone()];
    for other in others {
        parts = parts
            .into_iter()
            .flat_map(|part| [part.start..part.end.min(other.start), part.start.max(other.end)..part.end])
            .filter(|part| !part.is_empty())
            .collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;
    use crate::userfault::tests::{Memory, PAGE};

    fn watcher() -> Option<&'static Watcher> {
        crate::userfault::tests::open()?;
        Some(Watcher::get().unwrap())
    }

    /// Looks until nobody changes anything: other tests do at the same time.
    fn look(watcher: &Watcher, seen: &mut u64) -> Vec<Change> {
        let mut changes = Vec::new();
        while !watcher.look(seen, &mut changes) {}
        changes
    }

    fn concern(changes: &[Change], pages: &Range<usize>) -> bool {
        changes.iter().any(|change| change.start < pages.end && pages.start < change.end)
    }

    #[test]
    fn a_change_is_told_before_the_next_look() {
        let Some(watcher) = watcher() else { return };
        let mut seen = watcher.count();
        for turn in 0..200 {
            let memory = Memory::new(4);
            assert!(watcher.watch(&memory.pages()));
            assert!(!concern(&look(watcher, &mut seen), &memory.pages()), "{turn}: told of nothing");
            match turn % 3 {
                0 => memory.map_anew(),
                1 => {
                    // The place is somebody else's at once.
                    Memory::unmap(memory.0, memory.1);
                    memory.map_anew();
                }
                _ => assert_eq!(Memory::advise(memory.0, PAGE, libc::MADV_DONTNEED), 0),
            }
            let changes = look(watcher, &mut seen);
            assert!(concern(&changes, &memory.pages()), "{turn}: {changes:x?}");
            watcher.unwatch(&memory.pages(), &changes);
            Memory::unmap(memory.0, memory.1);
            assert!(!concern(&look(watcher, &mut seen), &memory.pages()), "{turn}: watched still");
        }
    }

    /// One thread unmaps, another maps the same place anew as soon as it is free, and looks: it must hear of it, or be told to wait.
    #[test]
    fn who_maps_memory_that_another_thread_unmaps_hears_of_it_or_has_to_wait() {
        let Some(watcher) = watcher() else { return };
        for turn in 0..300 {
            let memory = Memory::new(1);
            assert!(watcher.watch(&memory.pages()));
            let mut seen = watcher.count();
            std::thread::scope(|scope| {
                scope.spawn(|| Memory::unmap(memory.0, memory.1));
                while !memory.map_if_free() {}
                let mut changes = Vec::new();
                let is_quiet = watcher.look(&mut seen, &mut changes);
                assert!(concern(&changes, &memory.pages()) || !is_quiet, "{turn}");
            });
            watcher.unwatch(&memory.pages(), &look(watcher, &mut seen));
            Memory::unmap(memory.0, memory.1);
        }
    }

    #[test]
    fn pages_that_another_watches_stay_watched() {
        let Some(watcher) = watcher() else { return };
        let memory = Memory::new(4);
        let half = memory.0 + PAGE..memory.0 + 3 * PAGE;
        assert!(watcher.watch(&memory.pages()) && watcher.watch(&half));
        watcher.unwatch(&memory.pages(), &[]);
        let mut seen = watcher.count();
        assert_eq!(Memory::advise(memory.0, PAGE, libc::MADV_DONTNEED), 0);
        assert!(!concern(&look(watcher, &mut seen), &memory.pages()));
        assert_eq!(Memory::advise(memory.0, 4 * PAGE, libc::MADV_DONTNEED), 0);
        assert!(concern(&look(watcher, &mut seen), &half));
        watcher.unwatch(&half, &[]);
    }

    #[test]
    fn who_looks_too_seldom_takes_all_for_changed() {
        let Some(watcher) = watcher() else { return };
        let memory = Memory::new(1);
        assert!(watcher.watch(&memory.pages()));
        let mut seen = watcher.count();
        for _ in 0..=REMEMBERED {
            assert_eq!(Memory::advise(memory.0, PAGE, libc::MADV_DONTNEED), 0);
        }
        assert!(look(watcher, &mut seen).contains(&Change::ANYWHERE));
        watcher.unwatch(&memory.pages(), &[]);
    }

    /// Freeing, with the allocator's locks held, goes on whatever the thread that looks does.
    #[test]
    fn threads_that_free_watched_memory_and_one_that_looks_do_not_wait_for_each_other() {
        let Some(watcher) = watcher() else { return };
        const LENGTH: usize = 1 << 20;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let freeing = scope.spawn(|| {
                for _ in 0..300 {
                    let memory = vec![1_u8; LENGTH];
                    let start = memory.as_ptr().addr().next_multiple_of(PAGE);
                    watcher.watch(&(start..start + LENGTH / 2));
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut seen = watcher.count();
            while !done.load(Ordering::Relaxed) && !freeing.is_finished() {
                let mut changes = Vec::new();
                watcher.look(&mut seen, &mut changes);
                std::hint::black_box(vec![2_u8; LENGTH]);
            }
        });
    }

    #[test]
    fn guard_regions_are_heard_or_known_not_to_be() {
        const GUARD_INSTALL: libc::c_int = 102;
        const GUARD_REMOVE: libc::c_int = 103;
        let Some(watcher) = watcher() else { return };
        let memory = Memory::new(1);
        assert!(watcher.watch(&memory.pages()));
        let mut seen = watcher.count();
        let has_guards = Memory::advise(memory.0, PAGE, GUARD_INSTALL) == 0;
        Memory::advise(memory.0, PAGE, GUARD_REMOVE);
        let changes = look(watcher, &mut seen);
        assert_eq!(watcher.hears_guards(), !has_guards || concern(&changes, &memory.pages()), "{has_guards}");
        watcher.unwatch(&memory.pages(), &[]);
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_range_is_in_none_of_the_others(
            start in 0_usize..30, length in 0_usize..30,
            others in proptest::collection::vec((0_usize..40, 0_usize..20), 0..6),
        ) {
            let others: Vec<_> = others.into_iter().map(|(start, length)| start..start + length).collect();
            let parts = without(&(start..start + length), others.iter().cloned());
            for at in 0..80 {
                let expected = (start..start + length).contains(&at) && !others.iter().any(|other| other.contains(&at));
                prop_assert_eq!(parts.iter().filter(|part| part.contains(&at)).count(), usize::from(expected));
            }
        }
    }
}
