//! Reading another rank's memory at once, without a copy in between: process_vm_readv.
//!
//! The kernel allows it to whoever may trace the process: the same user, unless Yama or a container's rules forbid it. That is
//! tried once for each peer, with bytes that only the right process has.

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

/// Says what stands against reading a process's memory, if anything does: `proof` must be at `address` there.
pub(super) fn permitted(pid: i32, address: u64, proof: &[u8; 16]) -> Result<(), String> {
    let mut found = [0; 16];
    read(pid, address, &mut found).map_err(|errno| match errno {
        Errno::EPERM => format!(
            "the kernel forbids reading the memory of process {pid} (process_vm_readv: {}){}",
            errno.desc(),
            advice(std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok().as_deref())
        ),
        _ => format!("process_vm_readv from process {pid}: {}", errno.desc()),
    })?;
    if found != *proof {
        return Err(format!("process {pid} is another one here; does the rank run in another container?"));
    }
    Ok(())
}

/// What to do where Yama is the reason.
fn advice(scope: Option<&str>) -> &'static str {
    match scope.map(str::trim) {
        Some("1" | "2") => "; `sysctl kernel.yama.ptrace_scope=0` on the nodes allows it",
        Some("3") => "; kernel.yama.ptrace_scope is 3, which only a restart of the node changes",
        _ => "",
    }
}

/// Fills `to` with what is at `address` in a process.
pub(super) fn read(pid: i32, mut address: u64, mut to: &mut [u8]) -> Result<(), Errno> {
    while !to.is_empty() {
        let from = [RemoteIoVec { base: address as usize, len: to.len() }];
        match process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(to)], &from)? {
            0 => return Err(Errno::EFAULT),
            // One call copies at most 2 GiB.
            copied => {
                address = address.wrapping_add(copied as u64);
                to = &mut to[copied..];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> i32 {
        Pid::this().as_raw()
    }

    #[test]
    fn the_right_bytes_prove_the_right_process() {
        let (proof, other) = (Box::new([7; 16]), [8; 16]);
        let address = proof.as_ptr() as u64;
        permitted(me(), address, &proof).unwrap();
        assert!(permitted(me(), address, &other).unwrap_err().contains("another one here"));
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let reason = permitted(me(), 8, &[0; 16]).unwrap_err();
        assert!(reason.contains(Errno::EFAULT.desc()), "{reason}");
        let reason = permitted(i32::MAX, 8, &[0; 16]).unwrap_err();
        assert!(reason.contains(Errno::ESRCH.desc()), "{reason}");
    }

    /// Pages that end in the middle: the start is copied, then comes the error.
    #[test]
    fn half_of_it_is_an_error_too() {
        let map = memmap2::MmapOptions::new().len(4096).map_anon().unwrap();
        let mut to = vec![0; 64 << 20];
        assert_eq!(read(me(), map.as_ptr() as u64, &mut to), Err(Errno::EFAULT));
    }

    #[test]
    fn yama_is_named_where_it_is_the_reason() {
        assert!(advice(Some("1\n")).contains("ptrace_scope=0"));
        assert!(advice(Some("3\n")).contains("restart"));
        assert_eq!(advice(Some("0\n")), "");
        assert_eq!(advice(None), "");
    }
}
