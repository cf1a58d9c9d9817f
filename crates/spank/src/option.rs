//! Options that the plugin adds to srun, sbatch and salloc.
#![expect(unsafe_code, reason = "registers a C callback")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use crate::abi::SpankOption;
use crate::guard::{Hook, Verdict, catch, panicked};
use crate::handle::{Failure, Spank};

/// An option, as `--help` shows it. It always takes an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Without the dashes; at most 75 characters.
    pub name: &'static str,
    /// One word for the argument.
    pub argument: &'static str,
    /// What it does, one line.
    pub usage: &'static str,
}

/// Takes one use of an option: its place in the registered list, its value as typed, and whether this is
/// the node's side.
pub type OptionHandler = fn(index: usize, value: &CStr, remote: bool) -> Verdict;

/// Slurm's callback has no pointer of ours to carry, so the handler is the process's.
static HANDLER: OnceLock<OptionHandler> = OnceLock::new();

impl Spank<'_> {
    /// Adds options; only within `slurm_spank_init`, and in every context, or sbatch and salloc would not
    /// know them. `handler` is called for each use of one of them.
    ///
    /// # Errors
    /// If Slurm refuses one.
    pub fn register_options(&self, options: &[OptionSpec], handler: OptionHandler) -> Result<(), Failure> {
        const FUNCTION: &str = "spank_option_register";
        // Slurm may initialise the plugin again in the same process, with the same handler.
        HANDLER.get_or_init(|| handler);
        let (handle, host) = self.parts();
        for (index, option) in options.iter().enumerate() {
            let name = self.c_string(FUNCTION, option.name)?;
            let arginfo = self.c_string(FUNCTION, option.argument)?;
            let usage = self.c_string(FUNCTION, option.usage)?;
            let mut declared = SpankOption {
                name: name.as_ptr().cast_mut(),
                arginfo: arginfo.as_ptr().cast_mut(),
                usage: usage.as_ptr().cast_mut(),
                has_arg: 1,
                val: c_int::try_from(index).unwrap_or(c_int::MAX),
                cb: Some(option_callback),
            };
            // SAFETY: the handle is the hook's; Slurm copies the struct and its three texts, all of which
            // live until the call returns, and writes to none of them. The callback lives as long as the
            // plugin is loaded, and Slurm forgets its options when it unloads it.
            let error = unsafe { (host.spank_option_register)(handle, std::ptr::from_mut(&mut declared)) };
            self.check(FUNCTION, option.name, error)?;
        }
        Ok(())
    }
}

/// What Slurm calls for each use of an option.
///
/// # Safety
/// `optarg` must be null or a terminated string that lives until the return.
unsafe extern "C" fn option_callback(val: c_int, optarg: *const c_char, remote: c_int) -> c_int {
    let (Some(handler), Ok(index)) = (HANDLER.get(), usize::try_from(val)) else { return -1 };
    let value = if optarg.is_null() {
        c""
    } else {
        // SAFETY: by this function's own contract.
        unsafe { CStr::from_ptr(optarg) }
    };
    let remote = remote != 0;
    let verdict = match panicked() {
        // A panic is reported by the hook that follows.
        Some(_) => Verdict::Continue,
        None => catch(Hook::Option, || handler(index, value, remote)).unwrap_or(Verdict::Continue),
    };
    // On the node Slurm only logs that a callback failed: there a bad value is raised in `task_init`.
    if verdict == Verdict::Fail && !remote { -1 } else { 0 }
}
