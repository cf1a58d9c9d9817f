//! Takes a secret out of the environment, so that neither a child nor `/proc/PID/environ` has it afterwards.
#![expect(
    unsafe_code,
    reason = "the environment is the C library's, and its strings are overwritten in place"
)]

use std::ffi::CString;
use std::fs;
use std::sync::atomic::{AtomicU8, Ordering};

use zeroize::Zeroizing;

/// The value of a variable, which is empty or gone from here on. `None` where it was not set, or empty.
///
/// The bytes are overwritten where they are: unsetting a variable alone leaves them on the process's first stack page,
/// for `/proc/PID/environ` and core files to show. The variable itself is unset only while this process has one thread:
/// unsetting moves entries that another thread, in C, may be reading without a lock. With more threads it stays,
/// empty, and children inherit that.
pub(crate) fn take(name: &str) -> Option<Zeroizing<Vec<u8>>> {
    let value = Zeroizing::new(std::env::var_os(name)?.into_encoded_bytes());
    overwrite(name);
    if has_one_thread() {
        // SAFETY: this thread is the only one, so nobody else reads or writes the environment, and nobody else is there
        // to start a second thread meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    (!value.is_empty()).then_some(value)
}

/// Turns the value into zeros, from its first byte on, so that who reads meanwhile sees a shorter value.
fn overwrite(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: `name` ends with NUL.
    let mut place = unsafe { libc::getenv(name.as_ptr()) }.cast::<u8>();
    if place.is_null() {
        return;
    }
    loop {
        // SAFETY: `place` is inside a string of the environment, not beyond its NUL: the loop ends there. Such strings
        // are writable and stay where they are: execve(2) put them on the stack, or setenv(3) on the heap, and glibc frees
        // none of them. (A program that passes putenv(3) a constant of its own for this name would be the exception; a
        // secret is no constant.) The write is atomic, and touches this one variable's value alone.
        let byte = unsafe { AtomicU8::from_ptr(place) };
        if byte.swap(0, Ordering::Relaxed) == 0 {
            return;
        }
        // SAFETY: `place` was not the NUL, so the next byte belongs to the string.
        place = unsafe { place.add(1) };
    }
}

/// Where /proc can't be read the answer is no.
fn has_one_thread() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}
