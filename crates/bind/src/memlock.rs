//! How much memory a process may lock (setrlimit(2)). RDMA buffers are locked memory.

use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Sets the soft locked-memory limit to this many bytes, `None` to no limit; the hard limit only
/// rises.
///
/// Without the right to raise the hard limit (`CAP_SYS_RESOURCE`) the soft one goes up to it. Gives
/// the soft limit that holds then if it is lower than asked.
///
/// # Errors
/// When the kernel refuses even that.
pub fn set_memlock(bytes: Option<u64>) -> io::Result<Option<u64>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    // RLIM_INFINITY is the largest number, so the larger one is the higher limit.
    let wanted = bytes.unwrap_or(RLIM_INFINITY);
    match setrlimit(Resource::RLIMIT_MEMLOCK, wanted, hard.max(wanted)) {
        Err(nix::errno::Errno::EPERM) => {
            setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
            Ok(Some(hard))
        }
        result => Ok(result.map(|()| None)?),
    }
}

/// The same, but a soft limit that is higher already stays.
///
/// # Errors
/// As [`set_memlock`].
pub fn raise_memlock(bytes: Option<u64>) -> io::Result<Option<u64>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if soft >= bytes.unwrap_or(RLIM_INFINITY) { Ok(None) } else { set_memlock(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because the limit belongs to the process and tests run side by side.
    #[test]
    fn a_limit_that_is_high_enough_stays_and_a_low_one_goes_up_as_far_as_it_may() {
        let before = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert_eq!(raise_memlock(Some(0)).unwrap(), None);
        assert_eq!(getrlimit(Resource::RLIMIT_MEMLOCK).unwrap(), before);
        assert_eq!(set_memlock(Some(4096)).unwrap(), None);
        assert_eq!(
            getrlimit(Resource::RLIMIT_MEMLOCK).unwrap(),
            (4096, before.1),
            "exactly, and the hard one stays"
        );
        let reached = raise_memlock(None).unwrap();
        let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert_eq!(soft, reached.unwrap_or(RLIM_INFINITY));
    }
}
