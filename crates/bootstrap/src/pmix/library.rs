//! The C border of PMIx: `libpmix.so.2`, found at run time.
//!
//! The declarations are those of the PMIx standard, versions 2 to 5, whose layouts OpenPMIx has kept from release 2 to
//! release 5 (compared with the headers of 4.2.2 and 5.0.7): a `pmix_value_t` is a 16-bit type and a union from byte 8
//! on, a `pmix_info_t` a key of 512 bytes, 32-bit flags and a value, a `pmix_proc_t` a name of 256 bytes and a rank. Where
//! we hand the library a value, it has room behind it, should the union grow; where it hands us one, we read no
//! further than its first word.
#![expect(unsafe_code, reason = "PMIx is a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use zeroize::{Zeroize, Zeroizing};

/// Every release from 2 on has this name.
const NAME: &str = "libpmix.so.2";

/// PMIX_SUCCESS
const SUCCESS: c_int = 0;
/// PMIX_RANK_WILDCARD: the job as a whole.
const WHOLE_JOB: u32 = u32::MAX - 1;
/// PMIX_GLOBAL: for ranks on every node.
const GLOBAL: u8 = 3;
/// PMIX_BOOL, PMIX_STRING, PMIX_UINT32
const BOOL: u16 = 1;
const STRING: u16 = 3;
const UINT32: u16 = 14;
/// PMIX_JOB_SIZE, PMIX_COLLECT_DATA
const JOB_SIZE: &CStr = c"pmix.job.size";
const COLLECT_DATA: &CStr = c"pmix.collect";
/// PMIX_MAX_NSLEN and PMIX_MAX_KEYLEN, and the NUL.
const NAMESPACE_BYTES: usize = 256;
const KEY_BYTES: usize = 512;

/// `pmix_proc_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct Process {
    namespace: [c_char; NAMESPACE_BYTES],
    rank: u32,
}

/// `pmix_value_t`, as we make one.
#[repr(C)]
struct Value {
    kind: u16,
    data: Data,
}

#[repr(C)]
union Data {
    string: *mut c_char,
    flag: bool,
    /// More than any release has.
    room: [u64; 16],
}

/// `pmix_value_t`, as we are given one: no more of it than is read.
#[repr(C)]
struct Given {
    kind: u16,
    data: GivenData,
}

#[repr(C)]
union GivenData {
    string: *mut c_char,
    number: u32,
}

/// `pmix_info_t`
#[repr(C)]
struct Info {
    key: [c_char; KEY_BYTES],
    flags: u32,
    value: Value,
}

/// The functions that are called, by their names in `pmix.h`.
struct Functions {
    init: unsafe extern "C" fn(*mut Process, *mut Info, usize) -> c_int,
    finalize: unsafe extern "C" fn(*const Info, usize) -> c_int,
    put: unsafe extern "C" fn(u8, *const c_char, *mut Value) -> c_int,
    commit: unsafe extern "C" fn() -> c_int,
    fence: unsafe extern "C" fn(*const Process, usize, *const Info, usize) -> c_int,
    get: unsafe extern "C" fn(*const Process, *const c_char, *const Info, usize, *mut *mut Given) -> c_int,
    resolve_nodes: unsafe extern "C" fn(*const c_char, *mut *mut c_char) -> c_int,
    resolve_peers: unsafe extern "C" fn(*const c_char, *const c_char, *mut *mut Process, *mut usize) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Functions {
    fn load() -> Result<Self, String> {
        // An MPI library in this process shares it, and its plugins look for its symbols among the global ones.
        // SAFETY: loading runs the initialisers of libpmix and of what it is linked with (hwloc, libevent), as it would
        // for a program that is linked with it. They need nothing of ours.
        let library = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| {
            format!("{NAME} can't be loaded ({error}): install it (libpmix2, pmix), or add its folder to LD_LIBRARY_PATH")
        })?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in the PMIx standard, see the head of this file.
                *unsafe { library.get($name) }.map_err(|error| format!("{NAME} is too old: {error}"))?
            };
        }
        let functions = Self {
            init: function!(b"PMIx_Init\0"),
            finalize: function!(b"PMIx_Finalize\0"),
            put: function!(b"PMIx_Put\0"),
            commit: function!(b"PMIx_Commit\0"),
            fence: function!(b"PMIx_Fence\0"),
            get: function!(b"PMIx_Get\0"),
            resolve_nodes: function!(b"PMIx_Resolve_nodes\0"),
            resolve_peers: function!(b"PMIx_Resolve_peers\0"),
            error_string: function!(b"PMIx_Error_string\0"),
        };
        // It has threads and an exit handler, so it stays for as long as the process.
        std::mem::forget(library);
        Ok(functions)
    }
}

/// What is called when this process ends: its number, since a child that was forked inherits exit handlers, and the
/// function.
static AT_EXIT: OnceLock<(u32, unsafe extern "C" fn(*const Info, usize) -> c_int)> = OnceLock::new();

extern "C" fn finalize_at_exit() {
    if let Some((process, finalize)) = AT_EXIT.get()
        && *process == std::process::id()
    {
        // SAFETY: no list of options is allowed to be null. The library was initialised once more than it was finalised,
        // by `Session::begin`, and is never unloaded.
        unsafe { finalize(std::ptr::null(), 0) };
    }
}

/// This process's session with the launcher's PMIx server, which lasts until the process ends: a launcher takes a
/// process that ends in the middle of one for a crash, and the library does not survive a second session after the
/// first, which an MPI library would begin later. Meanwhile it counts its users, so an MPI library can come and go.
pub(super) struct Session {
    functions: Functions,
    me: Process,
}

impl Session {
    /// Meets the server.
    pub(super) fn begin() -> Result<Self, String> {
        let functions = Functions::load()?;
        let mut me = Process { namespace: [0; NAMESPACE_BYTES], rank: 0 };
        // SAFETY: `me` has room for what the library writes, and no list of options is allowed to be null.
        let status = unsafe { (functions.init)(&raw mut me, std::ptr::null_mut(), 0) };
        let session = Self { functions, me };
        session.check("PMIx_Init", status)?;
        if AT_EXIT.set((std::process::id(), session.functions.finalize)).is_ok() {
            // SAFETY: the handler is a function of this program, and can't panic. Where it can't be registered the
            // launcher will complain about this process's end, and no more.
            unsafe { libc::atexit(finalize_at_exit) };
        }
        Ok(session)
    }

    pub(super) fn rank(&self) -> u32 {
        self.me.rank
    }

    /// The number of ranks.
    pub(super) fn size(&self) -> Result<u32, String> {
        self.get(WHOLE_JOB, JOB_SIZE, |value| match value.kind {
            // SAFETY: the union holds a number of 32 bits, as the type says.
            UINT32 => Ok(unsafe { value.data.number }),
            other => Err(format!("the number of ranks has type {other}, not {UINT32}")),
        })
    }

    /// The job's nodes, in the launcher's order.
    pub(super) fn nodes(&self) -> Result<Vec<String>, String> {
        let mut list = std::ptr::null_mut();
        // SAFETY: the namespace ends with NUL, as the library wrote it, and `list` has room for a pointer.
        let status = unsafe { (self.functions.resolve_nodes)(self.me.namespace.as_ptr(), &raw mut list) };
        let list = Allocated(list);
        self.check("PMIx_Resolve_nodes", status)?;
        let list = list.text()?;
        Ok(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// The ranks on a node.
    pub(super) fn ranks_on(&self, node: &str) -> Result<Vec<u32>, String> {
        let name = CString::new(node).map_err(|_| format!("{node:?} is no name of a node"))?;
        let (mut processes, mut count) = (std::ptr::null_mut(), 0);
        // SAFETY: both names end with NUL, and there is room for a pointer and a number.
        let status = unsafe {
            let namespace = self.me.namespace.as_ptr();
            (self.functions.resolve_peers)(name.as_ptr(), namespace, &raw mut processes, &raw mut count)
        };
        let processes = Allocated(processes);
        self.check("PMIx_Resolve_peers", status)?;
        let rank = |at: usize| {
            // SAFETY: there are `count` processes from here on.
            unsafe { (*processes.0.add(at)).rank }
        };
        Ok(if processes.0.is_null() { Vec::new() } else { (0..count).map(rank).collect() })
    }

    /// Offers a text to the other ranks, who have it after the next fence.
    pub(super) fn put(&self, key: &CStr, text: &str) -> Result<(), String> {
        let mut text = Zeroizing::new(text.as_bytes().to_vec());
        text.push(0);
        let mut value = Value { kind: STRING, data: Data { room: [0; 16] } };
        value.data.string = text.as_mut_ptr().cast();
        // SAFETY: key and text end with NUL, and the library copies both before it returns.
        let status = unsafe { (self.functions.put)(GLOBAL, key.as_ptr(), &raw mut value) };
        self.check("PMIx_Put", status)?;
        // SAFETY: it has no arguments.
        let status = unsafe { (self.functions.commit)() };
        self.check("PMIx_Commit", status)
    }

    /// Waits until every rank of the job has called it, and fetches what they have put.
    pub(super) fn fence(&self) -> Result<(), String> {
        let mut collect =
            Info { key: [0; KEY_BYTES], flags: 0, value: Value { kind: BOOL, data: Data { room: [0; 16] } } };
        for (place, &byte) in collect.key.iter_mut().zip(COLLECT_DATA.to_bytes()) {
            *place = byte.cast_signed();
        }
        collect.value.data.flag = true;
        // SAFETY: no list of processes means all of the job. There is one option, so its size does not matter; it
        // outlives the call, which waits.
        let status = unsafe { (self.functions.fence)(std::ptr::null(), 0, &raw const collect, 1) };
        self.check("PMIx_Fence", status)
    }

    /// A text that this rank has put.
    pub(super) fn text_of(&self, rank: u32, key: &CStr) -> Result<Zeroizing<String>, String> {
        self.get(rank, key, |value| {
            if value.kind != STRING {
                return Err(format!("{} has type {}, not {STRING}", key.to_string_lossy(), value.kind));
            }
            // SAFETY: the union holds a string, as the type says, which belongs to the value and so to us.
            Allocated(unsafe { value.data.string }).text()
        })
    }

    fn get<T>(&self, rank: u32, key: &CStr, read: impl Fn(&Given) -> Result<T, String>) -> Result<T, String> {
        let whose = Process { rank, ..self.me };
        let mut value = std::ptr::null_mut();
        // SAFETY: the name and the key end with NUL, no list of options is allowed to be null, and there is room for a
        // pointer.
        let status = unsafe {
            (self.functions.get)(&raw const whose, key.as_ptr(), std::ptr::null(), 0, &raw mut value)
        };
        let value = Allocated(value);
        self.check(&format!("PMIx_Get({})", key.to_string_lossy()), status)?;
        // SAFETY: after success there is a value, or null. `Given` is the beginning of it.
        let given = unsafe { value.0.as_ref() };
        read(given.ok_or_else(|| format!("{} has no value", key.to_string_lossy()))?)
    }

    fn check(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: it takes any number, and gives a constant string or null.
        let text = unsafe { (self.functions.error_string)(status) };
        // SAFETY: a constant string ends with NUL.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
        let text = text.map_or_else(|| "unknown".into(), CStr::to_string_lossy);
        Err(format!("{call}: {text} ({status})"))
    }
}

/// What the library allocated for us with malloc(3), or null.
struct Allocated<T>(*mut T);

impl Allocated<c_char> {
    /// The string that is there. The original, which may be a secret, is overwritten.
    fn text(self) -> Result<Zeroizing<String>, String> {
        if self.0.is_null() {
            return Err("a text is missing".to_owned());
        }
        // SAFETY: a string of the library ends with NUL, and nobody else has it.
        let length = unsafe { CStr::from_ptr(self.0) }.count_bytes();
        // SAFETY: so many bytes are there, before the NUL; they are ours alone to read and to write.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.0.cast::<u8>(), length) };
        let text = std::str::from_utf8(bytes).map(|text| Zeroizing::new(text.to_owned()));
        let text = text.map_err(|_| "a text is not UTF-8".to_owned());
        bytes.zeroize();
        text
    }
}

impl<T> Drop for Allocated<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated with malloc(3), as the standard's own macros for freeing have it, and nobody else frees
        // it; null is allowed.
        unsafe { libc::free(self.0.cast::<c_void>()) };
    }
}
