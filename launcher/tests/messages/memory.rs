//! Long messages from memory, and to memory, that a program gives back to the system and gets anew at the same address: a NIC must never
//! go on with the old pages.
#![expect(unsafe_code, reason = "maps memory where it was before")]

use std::sync::atomic::{AtomicUsize, Ordering};

use roce_launcher::{Communicator, Job};

const PAGE: usize = 4096;
const PAGES: usize = 40;
/// Messages begin and end within pages.
const BEGIN: usize = 100;
const LENGTH: usize = PAGES * PAGE - 2 * BEGIN;

/// Pages at an address that stays.
struct Memory {
    start: *mut u8,
}

impl Memory {
    /// Far from where the kernel maps what may be anywhere: a place that is left for a moment is not another thread's then.
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0x20_0000_0000);
        let at = NEXT.fetch_add(1 << 30, Ordering::Relaxed);
        let memory = Self { start: std::ptr::with_exposed_provenance_mut(at) };
        memory.map(0, PAGES, libc::MAP_FIXED_NOREPLACE);
        memory
    }

    fn map(&self, from: usize, pages: usize, flags: libc::c_int) {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at: *mut libc::c_void = self.start.wrapping_add(from * PAGE).cast();
        // SAFETY: new memory, or instead of this memory's own, to which there is no reference now.
        let start = unsafe { libc::mmap(at, pages * PAGE, protection, flags, -1, 0) };
        assert_eq!(start, at);
    }

    fn unmap(&self, from: usize, pages: usize) {
        // SAFETY: this memory's own, to which there is no reference now.
        assert_eq!(unsafe { libc::munmap(self.start.add(from * PAGE).cast(), pages * PAGE) }, 0);
    }

    fn map_fixed(&self, from: usize, pages: usize) {
        self.map(from, pages, libc::MAP_FIXED);
    }

    fn advise(&self, from: usize, pages: usize, advice: libc::c_int) {
        // SAFETY: this memory's own; its content is not needed.
        assert_eq!(unsafe { libc::madvise(self.start.add(from * PAGE).cast(), pages * PAGE, advice) }, 0);
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(BEGIN), LENGTH) }
    }

    fn fill(&mut self, rank: u32, round: usize) {
        for (place, byte) in self.bytes().iter_mut().enumerate() {
            *byte = expected(rank, round, place);
        }
    }

    fn check(&mut self, rank: u32, round: usize, what: &str) {
        let wrong = |(place, byte): (usize, &u8)| *byte != expected(rank, round, place);
        let bytes = self.bytes();
        let count = bytes.iter().enumerate().filter(|one| wrong(*one)).count();
        let first = bytes.iter().enumerate().position(wrong);
        assert_eq!(first, None, "round {round}, {what}: {count} of {LENGTH} bytes are wrong");
    }

    /// Does to it what programs do between messages.
    fn change(&mut self, round: usize) -> &'static str {
        match round % 11 {
            0 => "nothing",
            1 => {
                self.unmap(0, PAGES);
                self.map_fixed(0, PAGES);
                "unmapped and mapped"
            }
            2 => {
                self.map_fixed(0, PAGES);
                "mapped over"
            }
            3 => {
                self.advise(0, PAGES, libc::MADV_DONTNEED);
                "MADV_DONTNEED"
            }
            4 => {
                // SAFETY: this memory's own, to which there is no reference now.
                let moved = unsafe {
                    libc::mremap(self.start.cast(), PAGES * PAGE, PAGES * PAGE * 2, libc::MREMAP_MAYMOVE)
                };
                assert_ne!(moved, libc::MAP_FAILED);
                // SAFETY: as it was returned. What lay behind this memory must not be there twice.
                unsafe { libc::munmap(moved, PAGES * PAGE * 2) };
                self.map_fixed(0, PAGES);
                "moved away"
            }
            5 => {
                self.unmap(PAGES / 2, 1);
                self.map_fixed(PAGES / 2, 1);
                "one page in the middle"
            }
            6 => {
                self.advise(PAGES - 1, 1, libc::MADV_DONTNEED);
                "MADV_DONTNEED of the last page"
            }
            7 => {
                let start = self.start.expose_provenance();
                std::thread::spawn(move || {
                    let memory = Self { start: std::ptr::with_exposed_provenance_mut(start) };
                    memory.unmap(0, PAGES);
                    memory.map_fixed(0, PAGES);
                })
                .join()
                .unwrap();
                "unmapped by another thread"
            }
            8 => {
                // SAFETY: the child writes to its own copy, and ends.
                match unsafe { libc::fork() } {
                    0 => {
                        self.bytes().fill(0xee);
                        // SAFETY: without what a process does at its end.
                        unsafe { libc::_exit(0) };
                    }
                    // SAFETY: the child's, whose status nobody wants.
                    child => unsafe {
                        self.bytes().fill(0xdd);
                        assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
                    },
                }
                "a fork"
            }
            9 => {
                for protection in [libc::PROT_NONE, libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
                    // SAFETY: this memory's own, to which there is no reference now.
                    let code = unsafe { libc::mprotect(self.start.cast(), PAGES * PAGE, protection) };
                    assert_eq!(code, 0);
                }
                "mprotect"
            }
            _ => {
                self.advise(0, PAGES, libc::MADV_FREE);
                "MADV_FREE"
            }
        }
    }
}

fn expected(rank: u32, round: usize, place: usize) -> u8 {
    (rank as usize * 101 + round * 13 + place * 7 + place / 251) as u8
}

/// Both sides' memory changes before each message. Whatever is kept of it, what is there now goes, and comes to where it should.
pub(crate) fn changed(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let partner = (rank + size / 2) % size;
    let (mut mine, mut theirs) = (Memory::new(), Memory::new());
    // Pages that were never written to are one of the kernel's, which must not be taken for the program's.
    world.send_receive(partner, 1, mine.bytes(), partner, 1, theirs.bytes()).unwrap();
    assert!(theirs.bytes().iter().all(|byte| *byte == 0));
    for round in 0..121 {
        let what = [mine.change(round), theirs.change(round / 11)].join(", ");
        if round % 7 == 0 {
            // As little as possible is there when it is registered.
            world.send_receive(partner, 2, mine.bytes(), partner, 2, theirs.bytes()).unwrap();
        }
        mine.fill(rank, round);
        world.send_receive(partner, 1, mine.bytes(), partner, 1, theirs.bytes()).unwrap();
        theirs.check(partner, round, &what);
    }
}

/// A hundred messages from and to the same memory. It is registered as often as the caller says.
pub(crate) fn kept(job: &Job) {
    let world = job.world();
    let (rank, size) = (world.rank(), world.size());
    let partner = (rank + size / 2) % size;
    let (mut mine, mut theirs) = (Memory::new(), Memory::new());
    // What is offered before there is a connection comes in pieces.
    job.connect_all().unwrap();
    world.barrier().unwrap();
    for round in 0..100 {
        mine.fill(rank, round);
        world.send_receive(partner, 1, mine.bytes(), partner, 1, theirs.bytes()).unwrap();
        theirs.check(partner, round, "the same memory");
    }
    if let Ok(expected) = std::env::var("ROCE_TEST_REGISTRATIONS") {
        assert_eq!(job.registrations().to_string(), expected, "{}", job.describe());
    }
}

/// More memory than may be locked, and then another connection, which needs some too.
pub(crate) fn crowded(world: &Communicator) {
    let (rank, size) = (world.rank(), world.size());
    let partner = (rank + size / 2) % size;
    let filled = |rank: u32, number: usize| vec![rank as u8 + number as u8; 100_000];
    for round in 0..3 {
        let mine: Vec<_> = (0..8).map(|number| filled(rank, number + round)).collect();
        let mut theirs = vec![vec![0; 100_000]; 8];
        for (number, (mine, theirs)) in mine.iter().zip(&mut theirs).enumerate() {
            world.send_receive(partner, 1, mine, partner, 1, theirs).unwrap();
            assert!(*theirs == filled(partner, number + round), "round {round}, {number}");
        }
    }
    // Another one of the other node.
    let other = partner ^ 1;
    let mut theirs = vec![0; 100_000];
    world.send_receive(other, 2, &filled(rank, 0), other, 2, &mut theirs).unwrap();
    assert!(theirs == filled(other, 0));
    world.barrier().unwrap();
}
