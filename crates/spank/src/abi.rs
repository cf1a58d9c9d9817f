//! The part of `slurm/spank.h` that is in use, declared by hand, so that building needs neither Slurm's
//! headers nor libclang. `tests/header.rs` holds every line of it against the installed header.
//!
//! Functions are looked up at run time: the same file is loaded by srun, sbatch, salloc, slurmd and
//! slurmstepd of ten releases, and a symbol that one of them lacks must be a message, not a failed load.
#![expect(unsafe_code, reason = "the C ABI of Slurm's plugin interface")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// Slurm's `struct spank_handle`, of which only the address is known.
#[repr(C)]
pub struct SpankHandle {
    _opaque: [u8; 0],
}

/// `spank_err_t`. Only 0 (success) means the same in every release: the others were renumbered in 21.08.
pub type SpankError = c_uint;

/// `spank_item_t`: what `spank_get_item` can be asked for. Only the items in use, with the header's numbers.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// User id (`uid_t *`).
    JobUid = 0,
    /// Primary group id (`gid_t *`).
    JobGid = 1,
    /// Job id (`uint32_t *`).
    JobId = 2,
    /// Step id (`uint32_t *`).
    JobStepId = 3,
    /// Number of tasks on this node (`uint32_t *`).
    JobLocalTaskCount = 6,
    /// CPUs of the step on this node (`uint16_t *`).
    JobNcpus = 8,
    /// The step's environment (`char ***`); belongs to Slurm.
    JobEnv = 10,
    /// Task number on this node (`int *`).
    TaskId = 11,
    /// Task number in the step, its rank (`uint32_t *`).
    TaskGlobalId = 12,
    /// Process id of the task (`pid_t *`).
    TaskPid = 14,
    /// CPUs that each task was promised, 1 with `--overcommit` (`uint32_t *`).
    StepCpusPerTask = 24,
    /// The job's cores on this node, as a list in Slurm's own counting (`char **`); belongs to Slurm.
    JobAllocCores = 25,
    /// The step's, likewise.
    StepAllocCores = 27,
}

/// `enum spank_context`: which program has loaded the plugin.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Not in a hook of Slurm's.
    Error = 0,
    /// srun.
    Local = 1,
    /// slurmstepd.
    Remote = 2,
    /// sbatch or salloc.
    Allocator = 3,
    /// slurmd.
    Slurmd = 4,
    /// The prolog's or epilog's slurmstepd.
    JobScript = 5,
}

/// `spank_opt_cb_f`: called with an option's value.
pub type OptionCallback = unsafe extern "C" fn(val: c_int, optarg: *const c_char, remote: c_int) -> c_int;

/// `struct spank_option`. Slurm copies it and the texts that it points to.
#[repr(C)]
#[derive(Debug)]
pub struct SpankOption {
    /// The option without its dashes.
    pub name: *mut c_char,
    /// One word for the argument, as `--help` shows it.
    pub arginfo: *mut c_char,
    /// The line that `--help` shows; Slurm refuses an option without one.
    pub usage: *mut c_char,
    /// Not 0: the option takes an argument.
    pub has_arg: c_int,
    /// Handed back to the callback.
    pub val: c_int,
    /// Called once per use of the option, and again on the node.
    pub cb: Option<OptionCallback>,
}

/// One of Slurm's logging functions: a printf format and its arguments.
pub type LogFunction = unsafe extern "C" fn(format: *const c_char, ...);

/// Declares [`Host`]: a field and a symbol of the same name for each function that Slurm gives.
macro_rules! host_functions {
    ($( $(#[$doc:meta])* $name:ident : $kind:ty, )*) => {
        /// The functions that the program which loaded the plugin gives to it.
        #[derive(Debug, Clone, Copy)]
        pub struct Host {
            $( $(#[$doc])* pub $name: $kind, )*
        }

        impl Host {
            fn load() -> Result<Self, MissingSymbol> {
                Ok(Self { $( $name: {
                    let name = concat!(stringify!($name), "\0");
                    let address = symbol(CStr::from_bytes_with_nul(name.as_bytes()).unwrap_or_default())
                        .ok_or(MissingSymbol { name: stringify!($name) })?;
                    // SAFETY: the symbol is Slurm's function of that name (no other library of its
                    // programs has names starting with spank_ or slurm_), whose signature has been the
                    // one declared here in every release from 20.11 on; tests/header.rs compares it.
                    unsafe { std::mem::transmute::<*mut c_void, $kind>(address) }
                }, )* })
            }

            /// Name and declared type of every function, for the test that compares them with the header.
            #[doc(hidden)]
            #[must_use]
            pub fn declarations() -> Vec<(&'static str, &'static str)> {
                vec![ $( (stringify!($name), std::any::type_name::<$kind>()), )* ]
            }
        }
    };
}

host_functions! {
    /// Which program has loaded the plugin.
    spank_context: unsafe extern "C" fn() -> c_uint,
    /// One fact about the step or task.
    spank_get_item: unsafe extern "C" fn(spank: *mut SpankHandle, item: c_uint, ...) -> SpankError,
    /// Sets a variable of the step's environment (in `task_init`: of the task's).
    spank_setenv: unsafe extern "C" fn(
        spank: *mut SpankHandle, var: *const c_char, val: *const c_char, overwrite: c_int,
    ) -> SpankError,
    /// Removes a variable of the step's environment.
    spank_unsetenv: unsafe extern "C" fn(spank: *mut SpankHandle, var: *const c_char) -> SpankError,
    /// Takes a variable out of what a job inherits from its submission; only where it is submitted.
    spank_job_control_unsetenv: unsafe extern "C" fn(spank: *mut SpankHandle, name: *const c_char) -> SpankError,
    /// Adds an option to srun, sbatch, salloc; only within `slurm_spank_init`.
    spank_option_register: unsafe extern "C" fn(spank: *mut SpankHandle, opt: *mut SpankOption) -> SpankError,
    /// The text of an error number; belongs to Slurm.
    spank_strerror: unsafe extern "C" fn(err: SpankError) -> *const c_char,
    /// Logs an error; srun writes it to its standard error, slurmstepd to slurmd's log and to srun.
    slurm_error: LogFunction,
    /// Logs at level info.
    slurm_info: LogFunction,
    /// Logs at level verbose.
    slurm_verbose: LogFunction,
    /// Logs at level debug.
    slurm_debug: LogFunction,
}

/// The program that loaded the plugin is not the Slurm it takes it for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this program has no function {name}: it is not a Slurm from 20.11 to 26.05")]
pub struct MissingSymbol {
    /// What was looked up in vain.
    pub name: &'static str,
}

impl Host {
    /// The functions of the running program, looked up once.
    ///
    /// # Errors
    /// If the program lacks one of them.
    pub fn get() -> Result<&'static Self, MissingSymbol> {
        static HOST: OnceLock<Result<Host, MissingSymbol>> = OnceLock::new();
        HOST.get_or_init(Self::load).as_ref().map_err(|missing| *missing)
    }
}

/// The address of a function in the running program or one of its libraries.
pub(crate) fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym reads a terminated name and has no other precondition; RTLD_DEFAULT needs no handle.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}
