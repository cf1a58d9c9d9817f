//! What a process is bound to: the CPUs it may run on ([`affinity`], [`set_affinity`]), where its
//! memory comes from ([`set_memory_policy`]) and how much of it may be locked ([`set_memlock`]).
//!
//! All three are inherited by children and survive `execve`, so whoever starts a task can bind it.
//! CPU affinity and memory policy belong to the calling *thread*; the limit to the process.
//!
//! Nothing is decided here; which CPUs and which memory is `roce-plan`'s business. The two system
//! calls for which no safe crate exists (`set_mempolicy`, and affinity masks of more than 1024
//! CPUs) are in `affinity.rs` and `memory.rs`, each `unsafe` block with its argument.

mod affinity;
mod memlock;
mod memory;

pub use affinity::{affinity, permitted_cpus, set_affinity};
pub use memlock::{raise_memlock, set_memlock};
pub use memory::{MemoryMode, has_default_memory_policy, set_memory_policy};

/// The result of a system call that gives -1 and errno when it fails.
fn check(result: impl Into<i64>) -> std::io::Result<()> {
    if result.into() == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
