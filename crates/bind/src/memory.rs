//! Where a thread's memory comes from (set_mempolicy(2)).
#![expect(unsafe_code, reason = "the C library has no wrapper for these system calls, nor has nix")]

use std::io;

use crate::check;

/// Words of a mask of NUMA nodes: 1,024 nodes, the most that Linux can be built for.
const WORDS: usize = 16;

/// The memory policies of `linux/mempolicy.h` that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum MemoryMode {
    /// From the node where the thread runs (`MPOL_DEFAULT`).
    Default = 0,
    /// From one node while it has room (`MPOL_PREFERRED`).
    Preferred = 1,
    /// From these nodes and no other (`MPOL_BIND`).
    Bind = 2,
}

/// Is the calling thread's memory policy the default one? If not, somebody chose it (`--mem-bind`,
/// `numactl`).
///
/// # Errors
/// When the kernel has no NUMA support (`ENOSYS`), or a container's filter forbids the question.
pub fn has_default_memory_policy() -> io::Result<bool> {
    let mut mode = -1_i32;
    let no_mask = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel writes one int, which `mode` is; with a null mask, no address and no flag
    // it reads and writes nothing else.
    check(unsafe {
        libc::syscall(libc::SYS_get_mempolicy, std::ptr::from_mut(&mut mode), no_mask, 0, 0, 0)
    })?;
    Ok(mode == MemoryMode::Default as i32)
}

/// Sets the calling thread's memory policy; [`MemoryMode::Default`] takes no nodes.
///
/// # Errors
/// When a node doesn't exist or may not be used, the kernel has no NUMA support (`ENOSYS`), or a
/// container's filter forbids the call.
pub fn set_memory_policy(mode: MemoryMode, nodes: &[u32]) -> io::Result<()> {
    let mut words = [0_u64; WORDS];
    for node in nodes {
        let word = words.get_mut(*node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
        *word |= 1 << (node % 64);
    }
    let (mask, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        // The kernel takes one bit less than it is told.
        (words.as_ptr(), words.len() * 64 + 1)
    };
    // SAFETY: the kernel reads `bits - 1` bits rounded up to whole words, which is the array's
    // size, or nothing when there is no mask. `words` lives until the end of the function.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as i32, mask, bits) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_policy_is_set_for_the_calling_thread_and_undone() {
        let on_its_own_thread = || {
            match has_default_memory_policy() {
                Ok(default) => assert!(default),
                Err(error) => {
                    assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "get_mempolicy: {error}");
                    eprintln!("skipped: this machine answers get_mempolicy with {error}");
                    return;
                }
            }
            set_memory_policy(MemoryMode::Bind, &[0]).unwrap();
            assert!(!has_default_memory_policy().unwrap());
            set_memory_policy(MemoryMode::Default, &[]).unwrap();
            assert!(has_default_memory_policy().unwrap());
            set_memory_policy(MemoryMode::Preferred, &[0]).unwrap();
            assert!(!has_default_memory_policy().unwrap());
        };
        std::thread::spawn(on_its_own_thread).join().unwrap();
    }

    #[test]
    fn nodes_that_do_not_exist_are_refused() {
        for node in [1023, 1024, u32::MAX] {
            assert!(set_memory_policy(MemoryMode::Bind, &[node]).is_err(), "{node}");
        }
    }
}
