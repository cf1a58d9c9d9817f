//! The CPUs that a thread may run on (sched_setaffinity(2)).
#![expect(unsafe_code, reason = "nix and the C library's cpu_set_t stop at 1024 CPUs")]

use std::io;

use roce_types::CpuSet;

use crate::check;

/// Words of a CPU mask: 8,192 CPUs, the most that Linux can be built for. The kernel refuses a
/// mask that is too short for the machine.
const WORDS: usize = 128;

/// The CPUs that a process or thread may run on; 0 is the calling thread. Anybody may ask.
///
/// # Errors
/// When there is no such process.
pub fn affinity(pid: i32) -> io::Result<CpuSet> {
    let mut words = [0_u64; WORDS];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are, which is the
    // array's size, and any bits are a valid u64.
    check(unsafe {
        libc::sched_getaffinity(pid, size_of_val(&words), words.as_mut_ptr().cast::<libc::cpu_set_t>())
    })?;
    Ok(CpuSet::from_words(&words))
}

/// Lets the calling thread run on these CPUs only. Those that its cgroup doesn't allow are left
/// out by the kernel.
///
/// # Errors
/// When none remains.
pub fn set_affinity(cpus: &CpuSet) -> io::Result<()> {
    let mut words = [0_u64; WORDS];
    for (slot, word) in words.iter_mut().zip(cpus.words()) {
        *slot = *word;
    }
    // SAFETY: the kernel reads as many bytes as it is told that there are, which is the array's
    // size.
    check(unsafe {
        libc::sched_setaffinity(0, size_of_val(&words), words.as_ptr().cast::<libc::cpu_set_t>())
    })
}

/// The CPUs that this process could run on if nobody had bound it: those of its cgroup.
///
/// Asked of the kernel by widening the mask of a thread made for that, so it holds for every kind
/// and nesting of cgroups and the caller's own mask stays as it is.
///
/// # Errors
/// When no thread can be made or the kernel refuses.
pub fn permitted_cpus() -> io::Result<CpuSet> {
    let asking = std::thread::Builder::new().spawn(|| {
        set_affinity(&CpuSet::from_words(&[u64::MAX; WORDS]))?;
        affinity(0)
    })?;
    asking.join().map_err(|_| io::Error::other("the thread that asks for the permitted CPUs panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, so that no other test is bound by accident.
    fn elsewhere<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(test).join().unwrap()
    }

    #[test]
    fn affinity_is_set_and_read_back() {
        elsewhere(|| {
            let one: CpuSet = affinity(0).unwrap().iter().take(1).collect();
            set_affinity(&one).unwrap();
            assert_eq!(affinity(0).unwrap(), one);
        });
    }

    #[test]
    fn no_cpu_at_all_is_refused() {
        assert!(set_affinity(&CpuSet::new()).is_err());
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        assert_eq!(affinity(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_bound_thread_is_told_what_it_could_have_and_stays_bound() {
        elsewhere(|| {
            let all = permitted_cpus().unwrap();
            let one: CpuSet = all.iter().take(1).collect();
            set_affinity(&one).unwrap();
            assert_eq!(permitted_cpus().unwrap(), all);
            assert_eq!(affinity(0).unwrap(), one);
        });
    }
}
