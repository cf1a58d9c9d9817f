//! PMI2, by Slurm's libpmi2: put, fence, and a get of every rank's value.
#![expect(unsafe_code, reason = "calls libpmi2")]

use std::ffi::{CString, c_char, c_int};
use std::ptr;

use anyhow::{Result, ensure};

use crate::library::{Library, check};
use crate::{Exchange, Known, LENGTH, bytes_of};

/// `PMI2_ID_NULL`: no idea who has put it.
const ANYONE: c_int = -1;

/// As slurm/pmi2.h declares them.
pub(crate) struct Pmi2 {
    init: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int, *mut c_int) -> c_int,
    put: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int,
    fence: unsafe extern "C" fn() -> c_int,
    get: unsafe extern "C" fn(*const c_char, c_int, *const c_char, *mut c_char, c_int, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
}

impl Pmi2 {
    pub(crate) fn load() -> Result<Self> {
        let library = Library::load("libpmi2.so.0")?;
        // SAFETY: the types of the fields are those of the header.
        unsafe {
            Ok(Self {
                init: library.get("PMI2_Init")?,
                put: library.get("PMI2_KVS_Put")?,
                fence: library.get("PMI2_KVS_Fence")?,
                get: library.get("PMI2_KVS_Get")?,
                finalize: library.get("PMI2_Finalize")?,
            })
        }
    }
}

fn key(rank: usize) -> Result<CString> {
    Ok(CString::new(format!("roce-{rank}"))?)
}

impl Exchange for Pmi2 {
    fn run(&mut self) -> Result<Known> {
        let (mut spawned, mut size, mut rank, mut number) = (0, 0, 0, 0);
        // SAFETY: four integers to write to.
        check("PMI2_Init", unsafe { (self.init)(&mut spawned, &mut size, &mut rank, &mut number) })?;
        let (rank, size) = (usize::try_from(rank)?, usize::try_from(size)?);
        let own = CString::new(bytes_of(rank))?;
        // SAFETY: two strings that end with NUL, which the call copies.
        check("PMI2_KVS_Put", unsafe { (self.put)(key(rank)?.as_ptr(), own.as_ptr()) })?;
        // SAFETY: no argument.
        check("PMI2_KVS_Fence", unsafe { (self.fence)() })?;
        let mut bytes = Vec::with_capacity(size * LENGTH);
        for other in 0..size {
            let (mut value, mut length) = ([0_u8; LENGTH + 1], 0);
            // SAFETY: the name is a string that ends with NUL; the value has room for as many bytes as is said; no job
            // means the own one.
            let status = unsafe {
                (self.get)(
                    ptr::null(),
                    ANYONE,
                    key(other)?.as_ptr(),
                    value.as_mut_ptr().cast(),
                    c_int::try_from(value.len())?,
                    &mut length,
                )
            };
            check("PMI2_KVS_Get", status)?;
            ensure!(length == c_int::try_from(LENGTH)?, "the value of rank {other} has {length} bytes");
            bytes.extend_from_slice(&value[..LENGTH]);
        }
        Ok(Known { rank, size, bytes: Some(bytes) })
    }

    fn end(self: Box<Self>) -> Result<()> {
        // SAFETY: no argument, and no call after it.
        check("PMI2_Finalize", unsafe { (self.finalize)() })
    }
}
