//! What this machine's kernel tells of memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// What this machine has, unless it says that it has none.
pub(crate) fn open() -> Option<Userfault> {
    match Userfault::open() {
        Ok(userfault) => Some(userfault),
        Err(why) => {
            let required = std::env::var("ROCE_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|tier| tier == "userfaultfd"), "{why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

pub(crate) const PAGE: usize = 4096;

/// Memory of a test.
pub(crate) struct Memory(pub(crate) usize, pub(crate) usize);

impl Memory {
    /// Far from where the kernel maps what may be anywhere: a place that is left for a moment is not another thread's then.
    pub(crate) fn new(pages: usize) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0x20_0000_0000);
        let memory = Self(NEXT.fetch_add(1 << 24, Ordering::Relaxed), pages * PAGE);
        assert!(memory.map_if_free());
        memory.fill(1);
        memory
    }

    /// Maps pages here, unless there are some.
    pub(crate) fn map_if_free(&self) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let at = std::ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: it takes no place that is taken.
        let start = unsafe { libc::mmap(at, self.1, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        start.expose_provenance() == self.0
    }

    pub(crate) fn pages(&self) -> Range<usize> {
        self.0..self.0 + self.1
    }

    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: mapped by `new`, or anew by a test; used by it alone.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(self.0).write_bytes(byte, self.1) };
    }

    pub(crate) fn unmap(start: usize, length: usize) {
        // SAFETY: memory of a test's own, which it does not use any more.
        assert_eq!(unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), length) }, 0);
    }

    pub(crate) fn advise(start: usize, length: usize, advice: libc::c_int) -> libc::c_int {
        // SAFETY: memory of a test's own, in which there is nothing that it needs.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, advice) }
    }

    /// Other pages at the same place.
    pub(crate) fn map_anew(&self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: over a test's own memory, to which there is no reference.
        let start = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(self.0),
                self.1,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        assert_eq!(start.expose_provenance(), self.0);
    }

    /// To another place, and its number of pages there.
    pub(crate) fn relocate(start: usize, length: usize, new_length: usize) -> usize {
        let to = map(new_length).unwrap();
        // SAFETY: a test's own memory, to which there is no reference, over another that it owns.
        let moved = unsafe {
            libc::mremap(
                std::ptr::with_exposed_provenance_mut(start),
                length,
                new_length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                std::ptr::with_exposed_provenance_mut::<libc::c_void>(to),
            )
        };
        assert_eq!(moved.expose_provenance(), to);
        to
    }
}

/// Does something in another thread while nobody reads, and says what was told. It must not be quiet until that has been read.
fn told(userfault: &Userfault, change: impl FnOnce() + Send) -> Vec<Change> {
    let mut told = Vec::new();
    std::thread::scope(|scope| {
        assert!(userfault.is_quiet());
        let changing = scope.spawn(change);
        while told.is_empty() {
            if !userfault.is_quiet() {
                userfault.read(&mut |change| told.push(change));
            }
            assert!(!changing.is_finished() || !told.is_empty(), "it did not wait until it was heard");
        }
        while !changing.is_finished() {
            userfault.read(&mut |change| told.push(change));
        }
    });
    assert!(userfault.is_quiet());
    told
}

#[test]
fn the_kernel_tells_of_whatever_takes_pages_away_and_lets_who_does_it_wait() {
    let Some(userfault) = open() else { return };
    type Case = (&'static str, fn(usize), Range<usize>, bool);
    let cases: [Case; 5] = [
        ("munmap", |at| Memory::unmap(at, 4 * PAGE), 0..4, true),
        ("munmap of a part", |at| Memory::unmap(at + PAGE, PAGE), 1..2, true),
        ("MADV_DONTNEED", |at| _ = Memory::advise(at, 2 * PAGE, libc::MADV_DONTNEED), 0..2, false),
        ("MADV_FREE", |at| _ = Memory::advise(at, 2 * PAGE, libc::MADV_FREE), 0..2, false),
        ("mremap", |at| _ = Memory::relocate(at, 4 * PAGE, 8 * PAGE), 0..4, true),
    ];
    for (what, change, pages, gone) in cases {
        let memory = Memory::new(4);
        assert!(userfault.can_watch(&memory.pages()), "{what}");
        userfault.register(&memory.pages()).unwrap();
        let told = told(&userfault, || change(memory.0));
        let (start, end) = (memory.0 + pages.start * PAGE, memory.0 + pages.end * PAGE);
        assert!(told.contains(&Change { start, end, gone }), "{what}: {told:x?}");
    }
    let memory = Memory::new(4);
    userfault.register(&memory.pages()).unwrap();
    let told = told(&userfault, || memory.map_anew());
    assert!(told.iter().any(|change| change.pages() == memory.pages() && change.gone), "{told:x?}");
}

#[test]
fn only_memory_of_which_all_is_told_is_watched() {
    let Some(userfault) = open() else { return };
    let page_of = |address: usize| address / PAGE * PAGE..address / PAGE * PAGE + PAGE;
    let memory = Memory::new(4);
    assert!(userfault.can_watch(&memory.pages()));
    Memory::unmap(memory.0 + PAGE, PAGE);
    assert!(!userfault.can_watch(&memory.pages()), "a hole");
    let on_stack = [0_u8; 8];
    assert!(!userfault.can_watch(&page_of(on_stack.as_ptr().addr())), "the stack");
    static READ_ONLY: [u8; 8] = [1; 8];
    assert!(!userfault.can_watch(&page_of(READ_ONLY.as_ptr().addr())), "of a file");
    // SAFETY: new memory where the kernel likes.
    let shared = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert!(!userfault.can_watch(&page_of(shared.addr())), "shared");
    let start = std::ptr::with_exposed_provenance_mut(memory.0);
    // SAFETY: the test's own memory.
    assert_eq!(unsafe { libc::mprotect(start, PAGE, libc::PROT_READ) }, 0);
    assert!(!userfault.can_watch(&page_of(memory.0)), "read-only");
}

#[test]
fn a_child_is_not_watched_and_changes_nothing_here() {
    let Some(userfault) = open() else { return };
    let memory = Memory::new(4);
    userfault.register(&memory.pages()).unwrap();
    // SAFETY: the child calls nothing but munmap and _exit.
    match unsafe { libc::fork() } {
        0 => {
            Memory::unmap(memory.0, memory.1);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` lives during the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    assert!(userfault.is_quiet() && !userfault.read(&mut |change| panic!("{change:?}")));
}
