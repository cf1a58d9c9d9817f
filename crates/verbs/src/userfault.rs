//! What the kernel tells of memory that is watched: userfaultfd(2), with nothing but its events.
//!
//! Memory is watched in write-protect mode, and never protected, so there is no fault to be served. While an event waits to be read, whoever
//! changed the memory waits too: somebody has to read at any time ([`crate::watcher`]).
#![expect(unsafe_code, reason = "calls userfaultfd(2), ioctl(2), mmap(2) and madvise(2)")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::unistd::{SysconfVar, sysconf};

/// Of this process's own faults alone: that needs no privilege.
const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xaa;
const MODE_WRITE_PROTECT: u64 = 1 << 1;
const DONT_WAKE: u64 = 1 << 1;

const EVENT_FAULT_WRITE_PROTECT: u64 = 1 << 0;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
const FEATURES: u64 = EVENT_FAULT_WRITE_PROTECT | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;

const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

const READABLE_AND_WRITABLE: u64 = 0x3;
const SHARED: u64 = 0x8;

const GUARD_INSTALL: libc::c_int = 102;

/// `struct uffdio_api`
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    calls: u64,
}

/// `struct uffdio_range`
#[repr(C)]
struct Pages {
    start: u64,
    length: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    pages: Pages,
    mode: u64,
    calls: u64,
}

/// `struct uffdio_writeprotect`
#[repr(C)]
struct WriteProtect {
    pages: Pages,
    mode: u64,
}

/// `struct uffd_msg`; of REMAP the numbers are from, to and length, else first and last.
#[derive(Clone, Copy)]
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    numbers: [u64; 3],
}

/// `struct procmap_query` of linux/fs.h
#[derive(Default)]
#[repr(C)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    start: u64,
    end: u64,
    flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

mod calls {
    use super::{API, Handshake, Pages, Query, Register, WriteProtect};

    nix::ioctl_readwrite!(handshake, API, 0x3f, Handshake);
    nix::ioctl_readwrite!(register, API, 0x00, Register);
    nix::ioctl_read!(unregister, API, 0x01, Pages);
    nix::ioctl_readwrite!(write_protect, API, 0x06, WriteProtect);
    nix::ioctl_readwrite!(query_mapping, b'f', 17, Query);
}

/// Something has become of watched memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Is it unmapped, and so not watched any more?
    pub(crate) gone: bool,
}

impl Change {
    /// Whatever it was, it may have been anywhere.
    pub(crate) const ANYWHERE: Self = Self { start: 0, end: usize::MAX, gone: false };

    pub(crate) fn pages(&self) -> Range<usize> {
        self.start..self.end
    }
}

#[derive(Debug)]
pub(crate) struct Userfault {
    file: OwnedFd,
    /// `/proc/self/maps`, of which single mappings can be asked for since Linux 6.11.
    mappings: File,
    /// A page of its own, watched, which nobody uses.
    probe: usize,
    page: usize,
}

impl Userfault {
    /// # Errors
    /// What this kernel does not have or allow.
    pub(crate) fn open() -> Result<Self, String> {
        let page = match sysconf(SysconfVar::PAGE_SIZE) {
            Ok(Some(bytes)) => usize::try_from(bytes).unwrap_or(4096),
            _ => 4096,
        };
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: no pointer is handed over.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let Some(number) = libc::c_int::try_from(number).ok().filter(|number| *number >= 0) else {
            return Err(format!("userfaultfd: {}", io::Error::last_os_error()));
        };
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        let mut handshake = Handshake { api: API, features: FEATURES, calls: 0 };
        // SAFETY: the struct is the kernel's, and lives during the call.
        unsafe { calls::handshake(file.as_raw_fd(), &raw mut handshake) }
            .map_err(|error| format!("userfaultfd tells nothing of unmapped memory: {error}"))?;
        let mappings = File::open("/proc/self/maps").map_err(|error| format!("/proc/self/maps: {error}"))?;
        let probe = map(page).map_err(|error| format!("no page of memory: {error}"))?;
        let userfault = Self { file, mappings, probe, page };
        userfault.mapping(probe).map_err(|error| format!("a single mapping can't be looked at: {error}"))?;
        userfault
            .register(&(probe..probe + page))
            .map_err(|error| format!("userfaultfd doesn't watch memory: {error}"))?;
        userfault.ask().map_err(|error| format!("userfaultfd can't be asked: {error}"))?;
        Ok(userfault)
    }

    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Readable when there are events.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn mapping(&self, address: usize) -> nix::Result<Query> {
        let size = size_of::<Query>() as u64;
        let mut query = Query { size, query_addr: address as u64, ..Query::default() };
        // SAFETY: the struct is the kernel's, says its size, asks for no name, and lives during the call.
        unsafe { calls::query_mapping(self.mappings.as_raw_fd(), &raw mut query) }?;
        Ok(query)
    }

    /// Is it memory of which the kernel tells all that may become of it: writable, of this process alone, and of no file? The stack of the
    /// calling thread is taken for none: to watch a part of it changes what the C library finds to be its stack.
    pub(crate) fn can_watch(&self, pages: &Range<usize>) -> bool {
        let on_stack = 0_u8;
        let stack = (&raw const on_stack).addr() as u64;
        let mut at = pages.start as u64;
        while at < pages.end as u64 {
            let Ok(mapping) = self.mapping(usize::try_from(at).unwrap_or(usize::MAX)) else { return false };
            let is_own = mapping.flags & READABLE_AND_WRITABLE == READABLE_AND_WRITABLE
                && mapping.flags & SHARED == 0
                && (mapping.inode, mapping.device) == (0, [0, 0])
                && mapping.page_size == self.page as u64
                && !(mapping.start..mapping.end).contains(&stack);
            if !is_own || mapping.end <= at {
                return false;
            }
            at = mapping.end;
        }
        true
    }

    /// Watches whole pages.
    ///
    /// # Errors
    /// Where it is memory of another kind, or somebody else watches it.
    pub(crate) fn register(&self, pages: &Range<usize>) -> nix::Result<()> {
        let mut register = Register { pages: raw(pages), mode: MODE_WRITE_PROTECT, calls: 0 };
        // SAFETY: the struct is the kernel's, and lives during the call. Watching changes nothing in the memory.
        unsafe { calls::register(self.file.as_raw_fd(), &raw mut register) }.map(drop)
    }

    /// Watches them no more.
    pub(crate) fn unregister(&self, pages: &Range<usize>) {
        let mut pages = raw(pages);
        // SAFETY: as in `register`. Where it fails, they stay watched, and what is told of them is nobody's.
        let _ = unsafe { calls::unregister(self.file.as_raw_fd(), &raw mut pages) };
    }

    /// Whether all that has happened to watched memory has been read: no thread is about to tell of a change, or waits until it was read. The kernel
    /// counts such threads before they change anything, and refuses changes to its own tables meanwhile.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ask().is_ok()
    }

    fn ask(&self) -> nix::Result<()> {
        let pages = raw(&(self.probe..self.probe + self.page));
        let mut nothing = WriteProtect { pages, mode: DONT_WAKE };
        // SAFETY: the struct is the kernel's, and lives during the call. It ends the protection of a page that has none, and that nobody
        // uses.
        unsafe { calls::write_protect(self.file.as_raw_fd(), &raw mut nothing) }.map(drop)
    }

    /// Reads what is told now, without memory of its own. Whether there was anything.
    pub(crate) fn read(&self, tell: &mut impl FnMut(Change)) -> bool {
        const BATCH: usize = 16;
        let mut messages = [Message { event: 0, reserved: [0; 7], numbers: [0; 3] }; BATCH];
        let mut any = false;
        loop {
            // SAFETY: the array lives during the call, which writes whole messages to it, of which each value is one.
            let bytes = unsafe {
                libc::read(self.file.as_raw_fd(), messages.as_mut_ptr().cast(), size_of::<[Message; BATCH]>())
            };
            let Some(bytes) = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0) else { return any };
            any = true;
            for message in messages.iter().take(bytes / size_of::<Message>()) {
                let [first, second, third] = message.numbers.map(|number| number as usize);
                let gone = message.event != REMOVE;
                match message.event {
                    UNMAP | REMOVE => tell(Change { start: first, end: second, gone }),
                    REMAP => {
                        tell(Change { start: first, end: first.saturating_add(third), gone });
                        tell(Change { start: second, end: second.saturating_add(third), gone: false });
                    }
                    _ => tell(Change::ANYWHERE),
                }
            }
        }
    }

    /// Whether this kernel has guard regions (Linux 6.13), which take pages away: that must be told as well. Puts one into a page of its own,
    /// and gives that page back.
    pub(crate) fn install_guard(&self) -> bool {
        let Ok(start) = map(self.page) else { return true };
        let _ = self.register(&(start..start + self.page));
        // SAFETY: the page is this function's own, and is unmapped at its end. It has something in it, which a guard takes away.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u8>(start).write_volatile(1);
            let code = libc::madvise(std::ptr::with_exposed_provenance_mut(start), self.page, GUARD_INSTALL);
            let has_guards = code == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL);
            self.unregister(&(start..start + self.page));
            libc::munmap(std::ptr::with_exposed_provenance_mut(start), self.page);
            has_guards
        }
    }
}

fn raw(pages: &Range<usize>) -> Pages {
    Pages { start: pages.start as u64, length: pages.len() as u64 }
}

/// New memory of this process alone.
fn map(length: usize) -> io::Result<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new memory where the kernel likes.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.expose_provenance()) }
}

#[cfg(test)]
pub(crate) mod tests;
