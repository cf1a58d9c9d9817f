//! The launcher's socket, by the number that it wrote into a variable.
#![expect(unsafe_code, reason = "a number from the environment says nothing of what is open there")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A descriptor of our own for the same socket; the original stays as it is, and open.
pub(super) fn duplicate(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: fcntl answers EBADF for a number that is not open, and changes nothing about one that is.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
