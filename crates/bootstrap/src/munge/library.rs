//! The C border of munge: `libmunge.so.2`, found at run time.
//!
//! The declarations are those of munge.h, the same in releases 0.5.11 to 0.5.16.
#![expect(unsafe_code, reason = "munge is a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nix::unistd::geteuid;
use zeroize::{Zeroize, Zeroizing};

const NAME: &str = "libmunge.so.2";

/// MUNGE_OPT_CIPHER_TYPE and the others that are set.
const CIPHER: c_int = 0;
const MAC: c_int = 1;
const SOCKET: c_int = 8;
const UID: c_int = 9;
/// MUNGE_CIPHER_AES128, MUNGE_MAC_SHA256: a daemon's own default may be to encrypt nothing.
const AES128: c_int = 4;
const SHA256: c_int = 5;
/// EMUNGE_SUCCESS, EMUNGE_CRED_REPLAYED
const SUCCESS: c_int = 0;
const REPLAYED: c_int = 17;

/// The functions that are called, by their names in `munge.h`.
struct Functions {
    encode: unsafe extern "C" fn(*mut *mut c_char, *mut c_void, *const c_void, c_int) -> c_int,
    decode: unsafe extern "C" fn(
        *const c_char,
        *mut c_void,
        *mut *mut c_void,
        *mut c_int,
        *mut libc::uid_t,
        *mut libc::gid_t,
    ) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn() -> *mut c_void,
    destroy: unsafe extern "C" fn(*mut c_void),
    set: unsafe extern "C" fn(*mut c_void, c_int, ...) -> c_int,
    context_error: unsafe extern "C" fn(*mut c_void) -> *const c_char,
}

/// What a credential held.
pub(super) struct Opened {
    pub(super) payload: Zeroizing<Vec<u8>>,
    /// Who made it.
    pub(super) uid: u32,
}

/// The munge daemon of this node.
pub(super) struct Munge {
    functions: Functions,
    /// Where it listens, if not where the library was built for.
    socket: Option<CString>,
}

impl Munge {
    pub(super) fn load(socket: Option<&str>) -> Result<Self, String> {
        let socket =
            socket.map(CString::new).transpose().map_err(|_| "its socket's path has a NUL".to_owned())?;
        // SAFETY: libmunge has no initialisers of its own, and is linked with the C library alone.
        let library = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| format!("{NAME} can't be loaded ({error})"))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in munge.h.
                *unsafe { library.get($name) }.map_err(|error| format!("{NAME}: {error}"))?
            };
        }
        let functions = Functions {
            encode: function!(b"munge_encode\0"),
            decode: function!(b"munge_decode\0"),
            error: function!(b"munge_strerror\0"),
            create: function!(b"munge_ctx_create\0"),
            destroy: function!(b"munge_ctx_destroy\0"),
            set: function!(b"munge_ctx_set\0"),
            context_error: function!(b"munge_ctx_strerror\0"),
        };
        // Its functions are called for as long as there is a `Munge`.
        std::mem::forget(library);
        Ok(Self { functions, socket })
    }

    /// A credential with this payload, encrypted, which only processes of this user can open.
    pub(super) fn seal(&self, payload: &[u8]) -> Result<String, String> {
        let context = self.context()?;
        context.set("cipher", CIPHER, AES128)?;
        context.set("MAC", MAC, SHA256)?;
        context.set("user", UID, geteuid().as_raw().cast_signed())?;
        let length = c_int::try_from(payload.len()).map_err(|_| "the payload is too long".to_owned())?;
        let mut credential = ptr::null_mut();
        // SAFETY: there is room for a pointer, the context is one, and `length` bytes are at `payload`.
        let status = unsafe {
            (self.functions.encode)(&raw mut credential, context.pointer, payload.as_ptr().cast(), length)
        };
        let credential = Allocated(credential.cast());
        context.check("munge_encode", status)?;
        if credential.0.is_null() {
            return Err("munge_encode gave nothing".to_owned());
        }
        // SAFETY: after success it is a string that ends with NUL.
        let text = unsafe { CStr::from_ptr(credential.0.cast()) };
        Ok(text.to_string_lossy().into_owned())
    }

    /// What is in a credential, and whose it is. One that was opened on this node before is no worse.
    pub(super) fn open(&self, credential: &CStr) -> Result<Opened, String> {
        let context = self.context()?;
        let (mut payload, mut length, mut uid) = (ptr::null_mut(), 0, libc::uid_t::MAX);
        // SAFETY: the credential ends with NUL, the context is one, there is room for a pointer and two numbers, and the group
        // is allowed to be null.
        let status = unsafe {
            (self.functions.decode)(
                credential.as_ptr(),
                context.pointer,
                &raw mut payload,
                &raw mut length,
                &raw mut uid,
                ptr::null_mut(),
            )
        };
        let payload = Allocated(payload);
        if status != REPLAYED {
            context.check("munge_decode", status)?;
        }
        let length = usize::try_from(length).unwrap_or(0);
        if payload.0.is_null() || length == 0 {
            return Ok(Opened { payload: Zeroizing::default(), uid });
        }
        // SAFETY: after success, and for a replayed credential, `length` bytes are there, which are ours alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(payload.0.cast::<u8>(), length) };
        let copy = Zeroizing::new(bytes.to_vec());
        bytes.zeroize();
        Ok(Opened { payload: copy, uid })
    }

    fn context(&self) -> Result<Context<'_>, String> {
        // SAFETY: it has no arguments.
        let pointer = unsafe { (self.functions.create)() };
        if pointer.is_null() {
            return Err("munge_ctx_create: out of memory".to_owned());
        }
        let context = Context { functions: &self.functions, pointer };
        if let Some(socket) = &self.socket {
            // SAFETY: the option takes a string that ends with NUL, which the library copies.
            let status = unsafe { (self.functions.set)(pointer, SOCKET, socket.as_ptr()) };
            context.check("munge_ctx_set(socket)", status)?;
        }
        Ok(context)
    }
}

/// A `munge_ctx_t`.
struct Context<'a> {
    functions: &'a Functions,
    /// Never null.
    pointer: *mut c_void,
}

impl Context<'_> {
    fn set(&self, what: &str, option: c_int, value: c_int) -> Result<(), String> {
        // SAFETY: these options take a number of an int's size and kind: int, or uid_t, which is passed alike.
        let status = unsafe { (self.functions.set)(self.pointer, option, value) };
        self.check(&format!("munge_ctx_set({what})"), status)
    }

    fn check(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the context is one, and a string of it lives as long as it does.
        let said = unsafe { (self.functions.context_error)(self.pointer) };
        // SAFETY: it takes any number, and gives a constant string.
        let said = if said.is_null() { unsafe { (self.functions.error)(status) } } else { said };
        // SAFETY: either string ends with NUL.
        let said = (!said.is_null()).then(|| unsafe { CStr::from_ptr(said) });
        let said = said.map_or_else(|| "unknown".into(), CStr::to_string_lossy);
        Err(format!("{call}: {said} ({status})"))
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: it was created by the library, and nobody else has it.
        unsafe { (self.functions.destroy)(self.pointer) };
    }
}

/// What the library allocated for us with malloc(3), or null.
struct Allocated(*mut c_void);

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: munge.h says that the caller frees it, and nobody else does; null is allowed.
        unsafe { libc::free(self.0) };
    }
}
