//! PMIx, by libpmix: put, commit, a fence that collects the data, and a get of every rank's value.
#![expect(unsafe_code, reason = "calls libpmix")]

use std::ffi::{CStr, c_char, c_int};
use std::{ptr, slice};

use anyhow::{Context, Result, ensure};

use crate::library::{Library, check};
use crate::{Exchange, Known, LENGTH, bytes_of};

/// `PMIX_GLOBAL`: for ranks of this node and of others.
const GLOBAL: u8 = 3;
/// `PMIX_BOOL` and `PMIX_BYTE_OBJECT`, types of values.
const BOOL: u16 = 1;
const BYTE_OBJECT: u16 = 27;
/// `PMIX_RANK_WILDCARD`.
const EVERY_RANK: u32 = u32::MAX - 1;
/// What each rank puts its bytes under.
const KEY: &CStr = c"roce";
/// `PMIX_COLLECT_DATA`: without it, each get would fetch what others have put, one by one.
const COLLECT_DATA: &[u8] = b"pmix.collect";

/// `pmix_proc_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Proc {
    namespace: [u8; 256],
    rank: u32,
}

/// `pmix_byte_object_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ByteObject {
    bytes: *mut c_char,
    size: usize,
}

/// The union in `pmix_value_t`, as large as its largest member, `pmix_envar_t`.
#[repr(C)]
union Data {
    flag: bool,
    bytes: ByteObject,
    envar: [usize; 3],
}

/// `pmix_value_t`.
#[repr(C)]
struct Value {
    kind: u16,
    data: Data,
}

/// `pmix_info_t`.
#[repr(C)]
struct Info {
    key: [u8; 512],
    flags: u32,
    value: Value,
}

/// As pmix.h declares them.
pub(crate) struct Pmix {
    init: unsafe extern "C" fn(*mut Proc, *mut Info, usize) -> c_int,
    put: unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int,
    commit: unsafe extern "C" fn() -> c_int,
    fence: unsafe extern "C" fn(*const Proc, usize, *const Info, usize) -> c_int,
    get: unsafe extern "C" fn(*const Proc, *const c_char, *const Info, usize, *mut *mut Value) -> c_int,
    finalize: unsafe extern "C" fn(*const Info, usize) -> c_int,
    size: usize,
}

impl Pmix {
    pub(crate) fn load(size: usize) -> Result<Self> {
        let library = Library::load("libpmix.so.2")?;
        // SAFETY: the types of the fields are those of the header.
        unsafe {
            Ok(Self {
                init: library.get("PMIx_Init")?,
                put: library.get("PMIx_Put")?,
                commit: library.get("PMIx_Commit")?,
                fence: library.get("PMIx_Fence")?,
                get: library.get("PMIx_Get")?,
                finalize: library.get("PMIx_Finalize")?,
                size,
            })
        }
    }

    fn get(&self, own: &Proc, rank: usize) -> Result<[u8; LENGTH]> {
        let owner = Proc { rank: u32::try_from(rank)?, ..*own };
        let mut value: *mut Value = ptr::null_mut();
        // SAFETY: a process, a name that ends with NUL, no further wishes, and a pointer to write to.
        let status = unsafe { (self.get)(&owner, KEY.as_ptr(), ptr::null(), 0, &mut value) };
        check("PMIx_Get", status)?;
        // SAFETY: a successful get gives a value, which is the caller's from then on; it stays allocated, as a process that
        // ends soon may do.
        let value = unsafe { value.as_ref() }.context("PMIx_Get gave no value")?;
        ensure!(value.kind == BYTE_OBJECT, "the value of rank {rank} has type {}", value.kind);
        // SAFETY: a byte object's pointer and size describe memory of its own.
        let bytes =
            unsafe { slice::from_raw_parts(value.data.bytes.bytes.cast::<u8>(), value.data.bytes.size) };
        bytes.try_into().with_context(|| format!("the value of rank {rank} has {} bytes", bytes.len()))
    }
}

impl Exchange for Pmix {
    fn run(&mut self) -> Result<Known> {
        let mut own = Proc { namespace: [0; 256], rank: 0 };
        // SAFETY: a process to write to, and no wishes.
        check("PMIx_Init", unsafe { (self.init)(&mut own, ptr::null_mut(), 0) })?;
        let rank = own.rank as usize;
        let mut text = bytes_of(rank);
        let bytes = ByteObject { bytes: text.as_mut_ptr().cast(), size: LENGTH };
        let mut value = Value { kind: BYTE_OBJECT, data: Data { bytes } };
        // SAFETY: a name that ends with NUL, and a value, both of which the call copies.
        check("PMIx_Put", unsafe { (self.put)(GLOBAL, KEY.as_ptr(), &mut value) })?;
        // SAFETY: no argument.
        check("PMIx_Commit", unsafe { (self.commit)() })?;
        let mut key = [0; 512];
        key[..COLLECT_DATA.len()].copy_from_slice(COLLECT_DATA);
        let collect = Info { key, flags: 0, value: Value { kind: BOOL, data: Data { flag: true } } };
        let all = Proc { rank: EVERY_RANK, ..own };
        // SAFETY: one process, one wish.
        check("PMIx_Fence", unsafe { (self.fence)(&all, 1, &collect, 1) })?;
        let mut everyone = Vec::with_capacity(self.size * LENGTH);
        for other in 0..self.size {
            everyone.extend_from_slice(&self.get(&own, other)?);
        }
        Ok(Known { rank, size: self.size, bytes: Some(everyone) })
    }

    fn end(self: Box<Self>) -> Result<()> {
        // SAFETY: no wishes, and no call after it.
        check("PMIx_Finalize", unsafe { (self.finalize)(ptr::null(), 0) })
    }
}
