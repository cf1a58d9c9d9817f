//! What Slurm finds in this file: the tag and the hooks in use, nothing else.
#![expect(unsafe_code, reason = "exports C functions by name")]

use std::ffi::{CStr, c_char, c_int};

use roce_spank::abi::SpankHandle;
use roce_spank::{Hook, Spank, Verdict, run_hook};

use crate::disabled::disabled;
use crate::state::state;
use crate::{node_wide, step, submit};

/// The name under which Slurm knows the plugin; part of the variables that carry its options.
pub(crate) const PLUGIN_NAME: &str = "spank_roce";

roce_spank::plugin_tag!("spank_roce");

/// Exports a hook under Slurm's name for it.
macro_rules! hook {
    ($symbol:ident, $hook:expr, $body:path) => {
        /// Called by Slurm.
        ///
        /// # Safety
        /// As Slurm calls it: a valid handle, and `argc` strings in `argv`.
        // SAFETY: no other symbol of this name is in the file, and it has the signature of `spank_f`.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol(
            spank: *mut SpankHandle,
            argc: c_int,
            argv: *const *mut c_char,
        ) -> c_int {
            fn body(spank: &Spank<'_>, arguments: &[&CStr]) -> Verdict {
                #[cfg(feature = "fault-injection")]
                crate::fault::inject($hook, arguments);
                $body(spank, arguments)
            }
            // SAFETY: the arguments are Slurm's own, passed on as they came.
            unsafe { run_hook($hook, spank, argc, argv, body, disabled) }
        }
    };
}

hook!(slurm_spank_init, Hook::Init, submit::init);
hook!(slurm_spank_init_post_opt, Hook::InitPostOpt, submit::init_post_opt);
hook!(slurm_spank_user_init, Hook::UserInit, step::user_init);
hook!(slurm_spank_task_post_fork, Hook::TaskPostFork, step::task_post_fork);
hook!(slurm_spank_task_init, Hook::TaskInit, step::task_init);
hook!(slurm_spank_exit, Hook::Exit, exit);

/// Nothing but what a step has to put back.
fn exit(_: &Spank<'_>, _: &[&CStr]) -> Verdict {
    node_wide::end(&mut state());
    Verdict::Continue
}
