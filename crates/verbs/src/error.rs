use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use roce_types::{DevicePort, Gid};

use crate::CompletionError;

/// What this crate's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a verbs call failed: device, value, cause, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libibverbs is not installed, or its own libraries are not.
    #[error(
        "libibverbs.so.1 could not be loaded: {reason}; install rdma-core's libraries \
         (Debian: libibverbs1 ibverbs-providers; RHEL: libibverbs)"
    )]
    LibraryMissing {
        /// The dynamic loader's words.
        reason: String,
    },
    /// The kernel has no RDMA, or gave no list.
    #[error(
        "this node's RDMA devices could not be listed; are the kernel modules ib_core and ib_uverbs loaded?"
    )]
    DeviceList {
        /// The errno of `ibv_get_device_list(3)`.
        source: io::Error,
    },
    /// No device of that name.
    #[error("this node has no RDMA device {device} that libibverbs can open; it has {present}")]
    NoSuchDevice {
        /// The name asked for.
        device: String,
        /// The names there are.
        present: String,
    },
    /// A verbs call failed.
    #[error("{call} failed on {device}{hint}")]
    Call {
        /// The function of libibverbs.
        call: &'static str,
        /// The RDMA device, with the queue pair where there is one.
        device: String,
        /// Empty, or `: ` and what the errno usually means there.
        hint: String,
        /// The errno.
        source: io::Error,
    },
    /// A handle was closed while others still use it.
    #[error("{handle} of {device} is still in use by {users} other handles: close or drop them first")]
    StillInUse {
        /// Which kind of handle.
        handle: &'static str,
        /// The RDMA device.
        device: String,
        /// How many others hold it.
        users: usize,
    },
    /// A file of `/sys/class/infiniband` could not be read.
    #[error("{} could not be read", path.display())]
    Sysfs {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of `/sys/class/infiniband` holds something else than expected.
    #[error("{}: {message}", path.display())]
    SysfsContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        message: String,
    },
    /// The GID is not in the port's table, or only as RoCE v1.
    #[error(
        "{port} has no RoCE v2 GID {gid} now; its table has {present}. Addresses move when a netdev is \
         configured anew: see `ip address` and /sys/class/infiniband/{}/ports/{}/gids", port.device, port.port
    )]
    GidNotFound {
        /// The port.
        port: DevicePort,
        /// The GID asked for.
        gid: Gid,
        /// The table's RoCE v2 rows.
        present: String,
    },
    /// The GID is there, but verbs cannot name its row.
    #[error(
        "{port} has GID {gid} in row {index}, but an address handle holds rows 0-255 only: remove unused \
         addresses from its netdev"
    )]
    GidIndexTooHigh {
        /// The port.
        port: DevicePort,
        /// The GID.
        gid: Gid,
        /// Its row.
        index: u32,
    },
    /// The kernel reports another value than the one that was set.
    #[error(
        "queue pair {qp_number} of {device} was given {field} {asked}, but the kernel reports {reported}"
    )]
    NotAsAsked {
        /// The RDMA device.
        device: String,
        /// The queue pair's number.
        qp_number: u32,
        /// Which attribute.
        field: &'static str,
        /// What was set.
        asked: String,
        /// What was read back.
        reported: String,
    },
    /// More operations outstanding than the completion queue has entries.
    #[error(
        "the completion queue of {device} has {entries} entries and all belong to operations that were not \
         reaped: poll it first, or create it larger"
    )]
    QueueFull {
        /// The RDMA device.
        device: String,
        /// How many operations may be outstanding.
        entries: usize,
    },
    /// Memory of no bytes, or more than one work request can name.
    #[error("{what} of {length} bytes: it must be between 1 and {most}")]
    Length {
        /// What was asked for.
        what: &'static str,
        /// The length asked for.
        length: usize,
        /// The longest possible.
        most: usize,
    },
    /// Bytes outside the memory that they were said to lie in.
    #[error("bytes {start}..{end} are outside {what}, which has {length} bytes")]
    OutOfRange {
        /// The first byte.
        start: u64,
        /// The byte after the last.
        end: u64,
        /// Which memory.
        what: &'static str,
        /// Its length.
        length: u64,
    },
    /// Memory and queue pair belong to different devices or protection domains.
    #[error(
        "the buffer was registered on {buffer}, but the queue pair is on {queue_pair}: use one protection domain"
    )]
    OtherDomain {
        /// The device of the buffer.
        buffer: String,
        /// The device of the queue pair.
        queue_pair: String,
    },
    /// Nothing completed in time.
    #[error(
        "nothing completed on {device} within {waited:.1?}; the peer may have ended, be busy with something else, or be unreachable on this rail"
    )]
    Timeout {
        /// The RDMA device.
        device: String,
        /// How long was waited.
        waited: Duration,
    },
    /// An operation completed with an error.
    #[error(transparent)]
    Completion(#[from] CompletionError),
}

impl Error {
    /// The failure of one call, with what its errno usually means.
    pub(crate) fn call(call: &'static str, device: impl Into<String>, source: io::Error) -> Self {
        let hint = hint(call, source.raw_os_error().unwrap_or(0), &memlock_limit());
        Self::Call { call, device: device.into(), hint, source }
    }

    /// For calls that return NULL and set errno.
    pub(crate) fn last(call: &'static str, device: impl Into<String>) -> Self {
        Self::call(call, device, io::Error::last_os_error())
    }

    /// For calls that return 0 or an errno value (some providers return -1 and set errno).
    pub(crate) fn check(code: i32, call: &'static str, device: &str) -> Result<()> {
        match code {
            0 => Ok(()),
            -1 => Err(Self::last(call, device)),
            code => Err(Self::call(call, device, io::Error::from_raw_os_error(code.abs()))),
        }
    }
}

/// The soft limit of locked memory, as `ulimit -l` would say it but in bytes.
fn memlock_limit() -> String {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => "unlimited".to_owned(),
        Ok((soft, _)) => format!("{soft} bytes"),
        Err(error) => format!("unknown ({error})"),
    }
}

/// What an errno usually means for this call, as `: ...`, or nothing.
fn hint(call: &str, errno: i32, memlock: &str) -> String {
    let text = match (call, errno) {
        ("ibv_create_cq" | "ibv_create_qp" | "ibv_reg_mr", libc::ENOMEM) => format!(
            "queues and registered memory are locked, and this process may lock {memlock}; raise it with \
             `ulimit -l unlimited` before starting, LimitMEMLOCK=infinity in slurmd's unit, or load the spank_roce plugin"
        ),
        ("ibv_reg_mr", libc::EFAULT) => "the memory is not mapped writable".to_owned(),
        ("ibv_open_device", libc::EACCES | libc::EPERM) => {
            "this user may not open /dev/infiniband/uverbs*; see its mode and the step's device cgroup".to_owned()
        }
        ("ibv_open_device", libc::ENOENT | libc::ENODEV) => {
            "its /dev/infiniband/uverbs* is missing; is ib_uverbs loaded and visible in this mount namespace?".to_owned()
        }
        ("ibv_modify_qp to RTR", libc::ETIMEDOUT | libc::EHOSTUNREACH) => {
            "no answer to ARP or neighbour discovery for the peer's GID: it is down, or not on this rail".to_owned()
        }
        ("ibv_modify_qp to RTR", libc::ENETUNREACH) => {
            "no route to the peer's GID through this port's netdev: the two are on different rails".to_owned()
        }
        ("ibv_modify_qp to RTR", libc::EINVAL) => {
            "the kernel refused the path: the GID row may have changed, or the peer's GID is of another family \
             or not reachable through this port's netdev"
                .to_owned()
        }
        ("ibv_post_send" | "ibv_post_recv", libc::ENOMEM) => {
            "the queue is full: reap completions first, or create it deeper".to_owned()
        }
        ("ibv_post_send" | "ibv_post_recv", libc::EINVAL) => {
            "the queue pair is not connected or has failed before".to_owned()
        }
        _ => return String::new(),
    };
    format!(": {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_names_the_memlock_limit_and_how_to_raise_it() {
        for call in ["ibv_create_cq", "ibv_reg_mr", "ibv_create_qp"] {
            let text = hint(call, libc::ENOMEM, "65536 bytes");
            assert!(text.contains("65536 bytes") && text.contains("ulimit -l"), "{text}");
        }
    }

    #[test]
    fn an_unreachable_gid_is_told_as_a_rail_problem() {
        assert!(hint("ibv_modify_qp to RTR", libc::ENETUNREACH, "").contains("different rails"));
        assert!(hint("ibv_modify_qp to RTR", libc::ETIMEDOUT, "").contains("not on this rail"));
    }

    #[test]
    fn an_errno_without_a_usual_cause_adds_nothing() {
        assert_eq!(hint("ibv_alloc_pd", libc::EIO, ""), "");
    }

    #[test]
    fn both_ways_of_returning_errno_are_read() {
        assert!(Error::check(0, "ibv_modify_qp", "rxe0").is_ok());
        for code in [libc::EINVAL, -libc::EINVAL] {
            let Err(Error::Call { source, .. }) = Error::check(code, "ibv_modify_qp", "rxe0") else {
                panic!()
            };
            assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
