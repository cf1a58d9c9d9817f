//! What no safe crate offers: memory that forked processes share, and srun's own environment.
#![expect(unsafe_code, reason = "system calls, and memory that two processes share")]

use std::ffi::CString;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sets or removes a variable of srun's own environment.
pub(crate) fn set_own_variable(name: &str, value: Option<&str>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't set {name}: {error}");
    let name_c = CString::new(name).map_err(|error| failed(&error))?;
    let value_c = value.map(CString::new).transpose().map_err(|error| failed(&error))?;
    // SAFETY: the texts are terminated and glibc copies them. srun gets here from `init_post_opt`, on its main
    // thread and before it starts another one; Slurm sets variables in the same way just before the call.
    let result = unsafe {
        match &value_c {
            Some(value) => libc::setenv(name_c.as_ptr(), value.as_ptr(), 1),
            None => libc::unsetenv(name_c.as_ptr()),
        }
    };
    check(result).map_err(|error| failed(&error))
}

/// Does the cgroup of this process let it read and write this device? `None` if there is no such device, or
/// another reason against it. No driver is called: the kernel asks the cgroup in access(2) too.
pub(crate) fn is_permitted(device: &Path) -> Option<bool> {
    let path = CString::new(device.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path is terminated, and the kernel only reads it.
    match check(unsafe { libc::access(path.as_ptr(), libc::R_OK | libc::W_OK) }) {
        Ok(()) => Some(true),
        // File modes answer with EACCES.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Some(false),
        Err(_) => None,
    }
}

/// Gives free pages of the heap back to the kernel. A page that was once used would be copied for each task that writes to
/// it after the fork, and Slurm has each task clear 64 of them for its variables; one that was given back comes zeroed.
pub(crate) fn return_free_memory() {
    // SAFETY: glibc takes its own locks, and free memory belongs to nobody.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Words in memory that is shared with every process forked later. They start as 0.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: NonNull<AtomicU32>,
    len: usize,
}

// SAFETY: the memory is only reached through atomics, and only `drop`, which owns it, unmaps it.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps that many words.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let size =
            len.checked_mul(size_of::<AtomicU32>()).filter(|size| *size > 0 && *size <= isize::MAX as usize);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<AtomicU32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }
}

/// Waits while a shared word has this value, for at most so long; may return early (futex(2)).
pub(crate) fn wait_while(word: &AtomicU32, value: u32, at_most: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: at_most.subsec_nanos().into(),
    };
    // SAFETY: the kernel reads the word, which outlives the call, and the timeout, and writes to neither.
    // Not the private kind: the word is shared between processes. Whatever it returns, the caller looks at
    // the word again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
}

/// Wakes every process that waits for the word.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: the kernel uses the word's address only to find who waits there.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

impl Deref for SharedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, zeroed by the kernel (0 is a valid AtomicU32), `len` words
        // long, and lives as long as `self`. Other processes write to it only through atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and no reference to it outlives `self`. A failure would mean
        // that it is not mapped, and then there is nothing to free.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<AtomicU32>()) };
    }
}

/// The result of a system call that gives -1 and errno when it fails.
fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn shared_words_are_seen_by_a_forked_process() {
        let words = SharedWords::new(2).unwrap();
        // SAFETY: the child only stores to the mapping and leaves without running anything of its parent's.
        let child = unsafe { libc::fork() };
        if child == 0 {
            words[1].store(7, Ordering::Release);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        assert!(child > 0);
        // SAFETY: waits for the child made above; no status is asked for.
        assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
        assert_eq!((words[0].load(Ordering::Acquire), words[1].load(Ordering::Acquire)), (0, 7));
        assert!(SharedWords::new(0).is_err());
    }
}
