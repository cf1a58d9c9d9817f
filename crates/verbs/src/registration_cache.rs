//! Registrations that outlive their use, so that memory which is used again need not be registered again.
//!
//! What the program does with memory that is not in use is its own business: it may give it back to the system, and get other pages at the same
//! address. A device would go on with the old ones. So memory is watched as long as a registration of it is kept ([`crate::watcher`]), whatever was
//! told is taken into account before anything is found, and where that is not certain nothing is found. Where memory can't be watched, registrations
//! are not kept.
#![expect(unsafe_code, reason = "registers memory that a device reads or writes")]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::libc::RLIM_INFINITY;
use nix::sys::resource::{Resource, getrlimit};

use crate::context::ProtectionDomain;
use crate::entries::{Entries, Most, Removed};
use crate::error::{Error, Result};
use crate::library;
use crate::registration::{Access, Registration};
use crate::watcher::Watcher;

/// The most registrations that a cache keeps.
const MOST_ENTRIES: usize = 1024;
/// The most bytes of them, where no limit on locked memory is lower.
const MOST_BYTES: usize = 16 << 30;

/// Are registrations kept?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// No.
    Never,
    /// Where the kernel tells of all that may become of memory.
    WhereSafe,
    /// Also where it does not tell of guard regions (Linux 6.13 and later): the program must not install them where its messages are.
    Always,
}

/// The registrations of a protection domain, kept for the next use.
#[derive(Debug)]
pub struct RegistrationCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    domain: Arc<ProtectionDomain>,
    watcher: std::result::Result<&'static Watcher, &'static str>,
    state: Mutex<State>,
    /// Changes that were taken into account.
    seen: AtomicU64,
    made: AtomicU64,
}

#[derive(Debug)]
struct State {
    entries: Entries<Registration>,
    seen: u64,
}

/// All caches of the process: they share its limit on locked memory.
static CACHES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

impl RegistrationCache {
    /// An empty one.
    #[must_use]
    pub fn new(domain: &Arc<ProtectionDomain>, keep: Keep) -> Self {
        let watcher = watcher(keep);
        let seen = watcher.map_or(0, Watcher::count);
        let bytes = match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((RLIM_INFINITY, _)) | Err(_) => MOST_BYTES,
            // The other half is for connections, and for what is in use beside.
            Ok((limit, _)) => usize::try_from(limit / 2).unwrap_or(MOST_BYTES).min(MOST_BYTES),
        };
        let entries = Entries::new(Most { entries: MOST_ENTRIES, bytes });
        let shared = Arc::new(Shared {
            domain: Arc::clone(domain),
            watcher,
            state: Mutex::new(State { entries, seen }),
            seen: AtomicU64::new(seen),
            made: AtomicU64::new(0),
        });
        if watcher.is_ok() {
            let mut caches = lock(&CACHES);
            caches.retain(|cache| cache.strong_count() > 0);
            caches.push(Arc::downgrade(&shared));
        }
        Self { shared }
    }

    /// Why registrations are not kept, if so.
    #[must_use]
    pub fn why_not(&self) -> Option<&'static str> {
        self.shared.watcher.err()
    }

    /// How often memory was registered.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.shared.made.load(Ordering::Relaxed)
    }

    /// A registration that covers this memory, kept or new, for one operation at a time.
    ///
    /// # Errors
    /// As [`Registration::new`].
    ///
    /// # Safety
    /// As [`Registration::new`], until the registration was given back or dropped. What is kept is only read after that, with
    /// [`Access::PeersRead`], and only by peers that were told its key.
    pub unsafe fn register(&self, start: *const u8, length: usize, access: Access) -> Result<Held> {
        if let Ok(watcher) = self.shared.watcher {
            let page = watcher.page();
            let pages = start.addr() / page * page..(start.addr() + length).next_multiple_of(page);
            let (is_certain, found) = self.shared.find(watcher, &pages, access);
            if let Some((number, registration)) = found {
                return Ok(self.held(registration, Some(number), start));
            }
            // Room is made for what can be kept only.
            if is_certain && length > 0 && watcher.watch(&pages) {
                if self.shared.make_room(watcher, pages.len()) {
                    let first = start.wrapping_sub(start.addr() - pages.start);
                    let domain = &self.shared.domain;
                    // SAFETY: the first and the last page are mapped as the memory is, for they hold some of it; no operation touches
                    // more than that. What the caller promises holds until the registration is given back. After that no operation of
                    // this rank names it, and when the memory is unmapped the device still has its pages, which are nobody's then.
                    let registration = unsafe { Registration::new(domain, first, pages.len(), access) };
                    if let Ok(registration) = registration {
                        self.shared.made.fetch_add(1, Ordering::Relaxed);
                        let number = lock(&self.shared.state).entries.add(pages, access);
                        return Ok(self.held(registration, Some(number), start));
                    }
                }
                watcher.unwatch(&pages, &[]);
            }
        }
        // SAFETY: the caller's promise; it is dropped when the caller is done with it.
        let registration = unsafe { Registration::new(&self.shared.domain, start, length, access) }?;
        self.shared.made.fetch_add(1, Ordering::Relaxed);
        Ok(self.held(registration, None, start))
    }

    fn held(&self, registration: Registration, number: Option<u64>, start: *const u8) -> Held {
        let address = start.addr() as u64;
        Held { registration: Some(registration), number, address, shared: Arc::clone(&self.shared) }
    }

    /// Lets go of memory that the program has given back to the system. One load where it has not.
    #[inline]
    pub fn tidy(&self) {
        if let Ok(watcher) = self.shared.watcher
            && watcher.count() != self.shared.seen.load(Ordering::Relaxed)
        {
            drop(self.shared.look(watcher, &mut lock(&self.shared.state)));
        }
    }
}

impl Drop for RegistrationCache {
    fn drop(&mut self) {
        if let Ok(watcher) = self.shared.watcher {
            self.shared.clear(watcher);
        }
    }
}

impl Shared {
    /// Takes what has become of memory into account. Whether that is all there was, and what is kept no more.
    fn look(&self, watcher: &Watcher, state: &mut State) -> (bool, Vec<Removed<Registration>>) {
        let mut changes = Vec::new();
        let is_certain = watcher.look(&mut state.seen, &mut changes);
        self.seen.store(state.seen, Ordering::Relaxed);
        let removed: Vec<_> =
            changes.iter().flat_map(|change| state.entries.change(&change.pages())).collect();
        for (pages, _) in &removed {
            watcher.unwatch(pages, &changes);
        }
        (is_certain, removed)
    }

    /// Whether it is certain what is kept, and a registration of these pages if there is one.
    fn find(
        &self,
        watcher: &Watcher,
        pages: &Range<usize>,
        access: Access,
    ) -> (bool, Option<(u64, Registration)>) {
        let mut state = lock(&self.state);
        let (is_certain, removed) = self.look(watcher, &mut state);
        let found = if is_certain { state.entries.take(pages, access) } else { None };
        drop(state);
        // Those that are kept no more end here, without the lock.
        drop(removed);
        (is_certain, found)
    }

    /// Whether one more of so many bytes may be kept, after others made room for it.
    fn make_room(&self, watcher: &Watcher, bytes: usize) -> bool {
        let mut state = lock(&self.state);
        let (has_room, removed) = state.entries.make_room(bytes);
        for (pages, _) in &removed {
            watcher.unwatch(pages, &[]);
        }
        drop(state);
        drop(removed);
        has_room
    }

    /// Keeps nothing that is not in use. Whether there was anything.
    fn clear(&self, watcher: &Watcher) -> bool {
        let mut state = lock(&self.state);
        let (_, changed) = self.look(watcher, &mut state);
        let cleared = state.entries.clear();
        for (pages, _) in &cleared {
            watcher.unwatch(pages, &[]);
        }
        drop(state);
        changed.iter().chain(&cleared).any(|(_, registration)| registration.is_some())
    }
}

/// A registration that is in use. Dropping it ends it for good, so that no peer reads the memory any more.
#[derive(Debug)]
pub struct Held {
    /// Until it is given back.
    registration: Option<Registration>,
    /// Its place in the cache, if it may be kept.
    number: Option<u64>,
    /// Where the memory begins that is meant; the registration may begin before.
    address: u64,
    shared: Arc<Shared>,
}

impl Held {
    /// Where the memory is in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What peers name it by.
    #[must_use]
    pub fn remote_key(&self) -> u32 {
        self.registration.as_ref().map_or(0, Registration::remote_key)
    }

    /// The registration, and where in it the memory begins.
    #[must_use]
    pub fn place(&self) -> Option<(&Registration, usize)> {
        let registration = self.registration.as_ref()?;
        let offset = self.address.checked_sub(registration.address())?;
        Some((registration, usize::try_from(offset).ok()?))
    }

    /// The operation is over, and no peer will use the memory for it any more: the next one may have the registration.
    pub fn give_back(mut self) {
        let Some(number) = self.number.take() else { return };
        if let Some(registration) = self.registration.take() {
            let unwanted = lock(&self.shared.state).entries.give_back(number, registration);
            // Ended without the lock.
            drop(unwanted);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // First the registration, so that nothing can be found of it.
        self.registration = None;
        if let (Some(number), Ok(watcher)) = (self.number, self.shared.watcher) {
            let mut state = lock(&self.shared.state);
            let (_, changed) = self.shared.look(watcher, &mut state);
            if let Some((pages, _)) = state.entries.remove(number) {
                watcher.unwatch(&pages, &[]);
            }
            drop(state);
            drop(changed);
        }
    }
}

/// What listens to the kernel; else why nothing is kept.
fn watcher(keep: Keep) -> std::result::Result<&'static Watcher, &'static str> {
    if keep == Keep::Never {
        return Err("it is switched off");
    }
    if !library::fork_is_the_kernels() {
        return Err("libibverbs would keep children from memory that is registered");
    }
    let watcher = Watcher::get()?;
    if keep == Keep::WhereSafe && !watcher.hears_guards() {
        return Err("this kernel does not tell of guard regions");
    }
    Ok(watcher)
}

/// Makes something that needs locked memory. Where there is none left, all caches let go of what is not in use, and it is tried once more.
pub(crate) fn with_room<T>(make: impl Fn() -> Result<T>) -> Result<T> {
    let is_full = |error: &Error| matches!(error, Error::Call { source, .. } if source.raw_os_error() == Some(nix::libc::ENOMEM));
    match make() {
        Err(error) if is_full(&error) => {
            let caches: Vec<Arc<Shared>> = lock(&CACHES).iter().filter_map(Weak::upgrade).collect();
            let freed = caches.iter().filter(|cache| cache.watcher.is_ok_and(|watcher| cache.clear(watcher)));
            if freed.count() > 0 { make() } else { Err(error) }
        }
        made => made,
    }
}

/// Nobody panics while holding one of these locks, and what they guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
