//! A C library, loaded by name.
#![expect(unsafe_code, reason = "calls the dynamic loader")]

use std::ffi::c_int;
use std::mem::ManuallyDrop;

use anyhow::{Context, Result, ensure};
use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW, Symbol};

/// A library that stays loaded, so that what was found in it stays valid.
pub(crate) struct Library {
    name: &'static str,
    handle: ManuallyDrop<Handle>,
}

impl Library {
    /// Loads it with everything that it needs, at once, so that no part of that happens while the clock runs.
    pub(crate) fn load(name: &'static str) -> Result<Self> {
        // SAFETY: the libraries loaded here (libpmi2, libpmix, libmpi) may be loaded by any program at any time: their
        // constructors have no precondition. Global, for Open MPI's components look for its symbols.
        let handle = unsafe { Handle::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
        Ok(Self { name, handle: ManuallyDrop::new(handle.with_context(|| name.to_owned())?) })
    }

    /// A function, or the address of an object, by name.
    ///
    /// # Safety
    /// `T` must be a pointer type that fits what the library has under that name.
    pub(crate) unsafe fn get<T: Copy>(&self, symbol: &str) -> Result<T> {
        // SAFETY: the type is the caller's promise.
        let found: Symbol<T> = unsafe { self.handle.get(symbol.as_bytes()) }
            .with_context(|| format!("{} has no {symbol}", self.name))?;
        Ok(*found)
    }
}

/// An error that names the call.
pub(crate) fn check(call: &str, status: c_int) -> Result<()> {
    ensure!(status == 0, "{call} gave {status}");
    Ok(())
}
