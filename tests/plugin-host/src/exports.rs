//! Slurm's functions, as the plugin finds them in the program that loaded it. The variadic ones are in shim.c.
#![expect(unsafe_code, reason = "plays Slurm's C interface")]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};

use crate::slurm::{Callback, Context, Line, Registered, slurm};

const SUCCESS: c_uint = 0;
/// `ESPANK_ERROR` and `ESPANK_BAD_ARG` of 21.08 and later.
const ERROR: c_uint = 3000;
const BAD_ARGUMENT: c_uint = 3001;
const NOT_AVAILABLE: c_uint = 3003;

/// What a handle points to; the plugin only carries its address.
static HANDLE: u8 = 0;

/// The handle that hooks are called with.
pub(crate) fn handle() -> *mut c_void {
    (&raw const HANDLE).cast_mut().cast()
}

/// `struct spank_option` of `spank.h`.
#[repr(C)]
struct SpankOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    callback: Option<Callback>,
}

/// The addresses of all of them: named here, they are linked, and kept.
pub(crate) fn addresses() -> [*const (); 9] {
    [
        spank_context as *const (),
        spank_getenv as *const (),
        spank_setenv as *const (),
        spank_unsetenv as *const (),
        spank_job_control_unsetenv as *const (),
        spank_option_register as *const (),
        spank_strerror as *const (),
        slurm_api_version as *const (),
        host_get_item as *const (),
    ]
}

/// The release whose functions these are: 22.05.
// SAFETY: the name is Slurm's, and no Slurm is in this program.
#[unsafe(no_mangle)]
extern "C" fn slurm_api_version() -> c_long {
    38 << 16
}

// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn spank_context() -> c_uint {
    slurm().context as c_uint
}

/// Refuses as Slurm does: another handle, a call that is to fail.
fn refused(spank: *const c_void) -> Option<c_uint> {
    if spank != handle().cast_const() {
        return Some(BAD_ARGUMENT);
    }
    slurm().fails().then_some(ERROR)
}

// SAFETY: as above; called by shim.c.
#[unsafe(no_mangle)]
extern "C" fn host_get_item(spank: *const c_void, item: c_uint, value: *mut c_void) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let mut slurm = slurm();
    if slurm.context != Context::Remote {
        return NOT_AVAILABLE;
    }
    // Numbers and types are those of `spank_item_t`.
    let items = &slurm.items;
    // SAFETY: the caller's pointer is to what spank.h says the item is stored in.
    unsafe {
        match item {
            0 | 1 => value.cast::<u32>().write(0),
            2 => value.cast::<u32>().write(7),
            3 => return put(value, items.step_id),
            6 => return put(value, items.local_tasks),
            10 => {
                slurm.pointers = slurm.environment.iter().map(|entry| entry.as_ptr()).collect();
                slurm.pointers.push(std::ptr::null());
                value.cast::<*const *const c_char>().write(slurm.pointers.as_ptr());
            }
            11 => return put(value, items.task_id),
            12 => return put(value, items.global_id),
            14 => return put(value, items.task_pid),
            24 => return put(value, items.cpus_per_task),
            _ => return BAD_ARGUMENT,
        }
    }
    SUCCESS
}

/// # Safety
/// `value` must be writable as a `T`.
unsafe fn put<T>(value: *mut c_void, item: Option<T>) -> c_uint {
    let Some(item) = item else { return NOT_AVAILABLE };
    // SAFETY: by this function's own contract.
    unsafe { value.cast::<T>().write(item) };
    SUCCESS
}

/// The place of a variable in the environment.
fn find(environment: &[CString], name: &[u8]) -> Option<usize> {
    environment
        .iter()
        .position(|entry| entry.to_bytes().strip_prefix(name).is_some_and(|rest| rest.starts_with(b"=")))
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spank_getenv(
    spank: *const c_void,
    name: *const c_char,
    buffer: *mut c_char,
    size: c_int,
) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let slurm = slurm();
    // SAFETY: the name is terminated, and the buffer has the size that is said.
    unsafe {
        let name = CStr::from_ptr(name).to_bytes();
        let Some(at) = find(&slurm.environment, name) else { return ERROR };
        let value = &slurm.environment[at].as_bytes_with_nul()[name.len() + 1..];
        if usize::try_from(size).unwrap_or(0) < value.len() {
            return ERROR;
        }
        std::ptr::copy_nonoverlapping(value.as_ptr().cast(), buffer, value.len());
    }
    SUCCESS
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spank_setenv(
    spank: *const c_void,
    name: *const c_char,
    value: *const c_char,
    overwrite: c_int,
) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let mut slurm = slurm();
    if slurm.context != Context::Remote {
        return NOT_AVAILABLE;
    }
    // SAFETY: both texts are terminated.
    let (name, value) = unsafe { (CStr::from_ptr(name).to_bytes(), CStr::from_ptr(value).to_bytes()) };
    if name.is_empty() || name.contains(&b'=') {
        return BAD_ARGUMENT;
    }
    let entry = CString::new([name, b"=", value].concat()).unwrap_or_default();
    match find(&slurm.environment, name) {
        Some(at) if overwrite != 0 => slurm.environment[at] = entry,
        Some(_) => return ERROR,
        None => slurm.environment.push(entry),
    }
    SUCCESS
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spank_unsetenv(spank: *const c_void, name: *const c_char) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let mut slurm = slurm();
    if slurm.context != Context::Remote {
        return NOT_AVAILABLE;
    }
    // SAFETY: the name is terminated.
    let name = unsafe { CStr::from_ptr(name) };
    if let Some(at) = find(&slurm.environment, name.to_bytes()) {
        slurm.environment.remove(at);
    }
    SUCCESS
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spank_job_control_unsetenv(spank: *const c_void, name: *const c_char) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let mut slurm = slurm();
    if !matches!(slurm.context, Context::Local | Context::Allocator) {
        return NOT_AVAILABLE;
    }
    // SAFETY: the name is terminated.
    let name = unsafe { CStr::from_ptr(name) };
    slurm.disinherited.push(name.to_string_lossy().into_owned());
    SUCCESS
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spank_option_register(spank: *const c_void, option: *const SpankOption) -> c_uint {
    if let Some(error) = refused(spank) {
        return error;
    }
    let mut slurm = slurm();
    if !slurm.registering || option.is_null() {
        return BAD_ARGUMENT;
    }
    // SAFETY: the struct and its texts live until the return; Slurm copies them too.
    let (option, name) = unsafe { (&*option, (*option).name) };
    if name.is_null() || option.usage.is_null() || option.callback.is_none() {
        return BAD_ARGUMENT;
    }
    // SAFETY: the name is terminated.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // Slurm ignores an option that is known already.
    if slurm.options.iter().all(|known| known.name != name) {
        slurm.options.push(Registered { name, val: option.val, callback: option.callback });
    }
    SUCCESS
}

// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn spank_strerror(error: c_uint) -> *const c_char {
    let text = match error {
        SUCCESS => c"Success",
        ERROR => c"Generic error",
        BAD_ARGUMENT => c"Bad argument",
        // Slurm knows a text for every number; a stranger may give none.
        _ => return std::ptr::null(),
    };
    text.as_ptr()
}

// SAFETY: as above; called by shim.c with a terminated text.
#[unsafe(no_mangle)]
unsafe extern "C" fn host_log(level: c_int, text: *const c_char) {
    // SAFETY: as above.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    slurm().lines.push(Line { level, text });
}
