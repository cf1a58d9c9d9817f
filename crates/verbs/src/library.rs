//! Is libibverbs there, which devices does it know, and is fork safe?
#![expect(unsafe_code, reason = "calls the dynamic loader and libibverbs")]

use std::ffi::CStr;
use std::io;
use std::sync::OnceLock;

use rdma_mummy_sys as ffi;

use crate::error::{Error, Result};

/// Does registered memory survive a `fork` of this process?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForkSafety {
    /// Yes: `ibv_fork_init(3)` succeeded, or the kernel copies pinned pages.
    Safe,
    /// No: `ibv_fork_init(3)` failed. A process that never forks is not affected.
    Unsafe {
        /// Why it failed.
        reason: String,
    },
}

/// Loads the library and prepares it for fork, once per process.
pub(crate) fn load() -> Result<&'static ForkSafety> {
    static LOADED: OnceLock<std::result::Result<ForkSafety, String>> = OnceLock::new();
    LOADED.get_or_init(first_load).as_ref().map_err(|reason| Error::LibraryMissing { reason: reason.clone() })
}

/// Whether registered memory survives a `fork`.
///
/// # Errors
/// [`Error::LibraryMissing`].
pub fn fork_safety() -> Result<ForkSafety> {
    load().cloned()
}

fn first_load() -> std::result::Result<ForkSafety, String> {
    // The bindings dlopen the same name before main; where that failed, every function of theirs answers
    // EOPNOTSUPP, which hides the reason. Opening it here again costs a reference count and gives the reason.
    //
    // SAFETY: the name is a NUL-terminated string; libibverbs' constructors have no precondition. The handle
    // is never closed, so no pointer into the library dangles.
    let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: dlerror returns NULL or a NUL-terminated string that is valid until this thread's next
        // dl call; it is copied at once.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() {
                "no reason given".into()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        return Err(reason);
    }
    // SAFETY: no argument; it must come before the first registration, and every registration of this
    // crate comes after `load`.
    let code = unsafe { ffi::ibv_fork_init() };
    Ok(match Error::check(code, "ibv_fork_init", "this process") {
        Ok(()) => ForkSafety::Safe,
        Err(Error::Call { source, .. }) => ForkSafety::Unsafe { reason: source.to_string() },
        Err(other) => ForkSafety::Unsafe { reason: other.to_string() },
    })
}

/// Whether a `fork` changes nothing for memory that is registered, for the kernel copies pinned pages for the child. Else libibverbs takes
/// registered memory from the child (MADV_DONTFORK), which must not be for long with memory of the program's.
pub(crate) fn fork_is_the_kernels() -> bool {
    /// `IBV_FORK_UNNEEDED`
    const UNNEEDED: libc::c_int = 2;
    if load().is_err() {
        return false;
    }
    // SAFETY: as in `first_load`; it is loaded.
    let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return false;
    }
    // SAFETY: an open handle, and a NUL-terminated string. Not every version has it.
    let symbol = unsafe { libc::dlsym(handle, c"ibv_is_fork_initialized".as_ptr()) };
    if symbol.is_null() {
        return false;
    }
    // SAFETY: `enum ibv_fork_status ibv_is_fork_initialized(void)`, since version 35 of rdma-core.
    let ask = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> libc::c_int>(symbol) };
    ask() == UNNEEDED
}

/// The names of the devices that libibverbs can open, as under `/sys/class/infiniband`.
///
/// # Errors
/// [`Error::LibraryMissing`], or [`Error::DeviceList`] on a kernel without RDMA.
pub fn device_names() -> Result<Vec<String>> {
    let list = DeviceList::read()?;
    Ok(list.names().map(|(name, _)| name).collect())
}

/// The array that `ibv_get_device_list(3)` returns; its devices are valid as long as it lives.
pub(crate) struct DeviceList {
    first: *mut *mut ffi::ibv_device,
    length: usize,
}

impl DeviceList {
    pub(crate) fn read() -> Result<Self> {
        load()?;
        let mut length = 0;
        // SAFETY: `length` is a valid place for an int during the call.
        let first = unsafe { ffi::ibv_get_device_list(&raw mut length) };
        if first.is_null() {
            return Err(Error::DeviceList { source: io::Error::last_os_error() });
        }
        Ok(Self { first, length: usize::try_from(length).unwrap_or(0) })
    }

    /// Each device's name and its pointer, which lives as long as `self`.
    pub(crate) fn names(&self) -> impl Iterator<Item = (String, *mut ffi::ibv_device)> + '_ {
        (0..self.length).map(|i| {
            // SAFETY: `first` points to `length` device pointers until ibv_free_device_list, which only
            // `drop` calls; each device's name is a NUL-terminated string inside the device.
            unsafe {
                let device = *self.first.add(i);
                (CStr::from_ptr(ffi::ibv_get_device_name(device)).to_string_lossy().into_owned(), device)
            }
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: `first` came from ibv_get_device_list and is freed once, here. Opened devices stay valid:
        // ibv_open_device takes its own reference (ibv_get_device_list(3)).
        unsafe { ffi::ibv_free_device_list(self.first) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_rdma_gets_an_error_or_an_empty_list_but_no_crash() {
        match device_names() {
            Ok(names) => assert!(names.iter().all(|name| !name.is_empty())),
            Err(error) => {
                assert!(matches!(error, Error::LibraryMissing { .. } | Error::DeviceList { .. }), "{error}");
            }
        }
    }
}
