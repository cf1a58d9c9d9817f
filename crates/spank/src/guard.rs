//! Between C and the plugin's code: no panic crosses, and only what Slurm can take is returned.
#![expect(unsafe_code, reason = "receives the raw arguments of a hook")]

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::abi::{Context, Host, SpankHandle};
use crate::handle::Spank;
use crate::log::{Level, log};

/// A point where Slurm calls the plugin; the name is the symbol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `slurm_spank_init`: options are registered here.
    Init,
    /// The callback of an option.
    Option,
    /// `slurm_spank_init_post_opt`: all options are known.
    InitPostOpt,
    /// `slurm_spank_user_init`: in slurmstepd, once, as the user, before the tasks are forked.
    UserInit,
    /// `slurm_spank_task_post_fork`: in slurmstepd, once per task; the tasks wait meanwhile.
    TaskPostFork,
    /// `slurm_spank_task_init`: in the task, as the user, after Slurm's own binding.
    TaskInit,
    /// `slurm_spank_exit`: the program ends.
    Exit,
}

impl Hook {
    /// On a node, may this hook fail? Slurm ends the one task for `task_init`; for any other it drains the
    /// node (sbatch) or reports success for a task that never ran (srun).
    #[must_use]
    pub const fn may_fail_on_a_node(self) -> bool {
        matches!(self, Self::TaskInit)
    }
}

/// What a hook says to Slurm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Don't launch (srun, sbatch, salloc), or end this task (on a node).
    Fail,
}

/// Where the plugin's code panicked, and with what words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panic {
    /// The hook that was running.
    pub hook: Hook,
    /// Source position and message.
    pub message: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "internal error in {:?}, please report it: {}", self.hook, self.message)
    }
}

static HAS_PANICKED: AtomicBool = AtomicBool::new(false);
static PANIC: Mutex<Option<Panic>> = Mutex::new(None);

/// The panic that has disabled the plugin in this process, if there was one.
#[must_use]
pub fn panicked() -> Option<Panic> {
    if !HAS_PANICKED.load(Ordering::Acquire) {
        return None;
    }
    PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What a hook's code looks like: the handle, and the arguments of the line in plugstack.conf.
pub type HookBody = fn(&Spank<'_>, &[&CStr]) -> Verdict;

/// What runs instead of a hook's code once the plugin has panicked in this process.
pub type DisabledBody = fn(Hook, &Spank<'_>, &Panic) -> Verdict;

/// Runs the code of one hook for Slurm and gives what to return to it: 0 or -1.
///
/// After a panic, here or in an earlier hook, `body` is not run (again) and `disabled` decides instead.
/// A failure that would drain the node is logged and turned into success: such a hook must remember its
/// error and raise it in `task_init`.
///
/// # Safety
/// `handle`, `argc` and `argv` must be what Slurm called the hook with: a handle that is valid during the
/// call, and `argc` terminated strings (or a null `argv` when there are none).
pub unsafe fn run_hook(
    hook: Hook,
    handle: *mut SpankHandle,
    argc: c_int,
    argv: *const *mut c_char,
    body: HookBody,
    disabled: DisabledBody,
) -> c_int {
    let host = match Host::get() {
        Ok(host) => host,
        Err(missing) => {
            log(Level::Error, &format!("spank plugin: {missing}"));
            return code(hook, None, if hook == Hook::TaskInit { Verdict::Fail } else { Verdict::Continue });
        }
    };
    // SAFETY: by this function's own contract.
    let (spank, arguments) = unsafe { (Spank::new(handle, host), strings(argc, argv)) };
    let context = spank.context();
    let verdict = match panicked() {
        Some(_) => None,
        None => catch(hook, || body(&spank, &arguments)),
    };
    let verdict = verdict
        .or_else(|| panicked().and_then(|panic| catch(hook, || disabled(hook, &spank, &panic))))
        // Even saying so panicked.
        .unwrap_or(Verdict::Fail);
    code(hook, Some(context), verdict)
}

/// The code for Slurm, by the table of failures.
fn code(hook: Hook, context: Option<Context>, verdict: Verdict) -> c_int {
    let submitting = matches!(context, Some(Context::Local | Context::Allocator));
    match verdict {
        Verdict::Fail if submitting || hook.may_fail_on_a_node() => -1,
        Verdict::Fail | Verdict::Continue => 0,
    }
}

/// Runs `body`; if it panics, remembers the first such panic of the process and gives nothing.
pub(crate) fn catch<T>(hook: Hook, body: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    static LAST_MESSAGE: Mutex<String> = Mutex::new(String::new());
    // This file carries its own copy of the standard library, so the hook is set for no code but its own.
    // Without it a panic would write lines of its own to the user's terminal.
    QUIET.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let words = payload.downcast_ref::<&str>().copied();
            let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let place = info.location().map_or_else(String::new, |place| format!("{place}: "));
            *LAST_MESSAGE.lock().unwrap_or_else(PoisonError::into_inner) =
                format!("{place}{}", words.unwrap_or("no message"));
        }));
    });
    // Unwind safety: after a panic no code but `disabled` runs in this process, and shared state is read
    // past a poisoned lock.
    let payload = match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => return Some(value),
        Err(payload) => payload,
    };
    // Dropping what was thrown could throw again.
    std::mem::forget(payload);
    let message = LAST_MESSAGE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    PANIC.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Panic { hook, message });
    HAS_PANICKED.store(true, Ordering::Release);
    None
}

/// The arguments of a hook.
///
/// # Safety
/// `argv` must be null or hold `argc` pointers, each null or to a string that outlives `'a`.
unsafe fn strings<'a>(argc: c_int, argv: *const *mut c_char) -> Vec<&'a CStr> {
    let count = if argv.is_null() { 0 } else { usize::try_from(argc).unwrap_or(0) };
    (0..count)
        // SAFETY: `i` is below `argc`, so the slot is readable, and what it points to is a terminated string.
        .filter_map(|i| unsafe {
            let text = *argv.add(i);
            (!text.is_null()).then(|| CStr::from_ptr(text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_task_or_a_submission_can_fail() {
        use {Context::*, Verdict::*};
        for context in [Error, Local, Remote, Allocator, Slurmd, JobScript] {
            assert_eq!(code(Hook::UserInit, Some(context), Continue), 0);
        }
        for hook in [Hook::Init, Hook::Option, Hook::InitPostOpt] {
            assert_eq!(code(hook, Some(Local), Fail), -1);
            assert_eq!(code(hook, Some(Allocator), Fail), -1);
            assert_eq!(code(hook, Some(Remote), Fail), 0);
            assert_eq!(code(hook, Some(Slurmd), Fail), 0);
        }
        for hook in [Hook::UserInit, Hook::TaskPostFork, Hook::Exit] {
            assert_eq!(code(hook, Some(Remote), Fail), 0);
        }
        assert_eq!(code(Hook::TaskInit, Some(Remote), Fail), -1);
    }

    #[test]
    fn a_panic_is_remembered_with_its_place_and_goes_no_further() {
        assert_eq!(catch(Hook::Init, || 7), Some(7));
        let fault = String::from("a fault");
        assert_eq!(catch(Hook::UserInit, || -> i32 { panic!("{fault} of the test") }), None);
        assert_eq!(catch(Hook::TaskInit, || -> i32 { panic!("a later one") }), None);
        drop(panic::take_hook());
        let panic = panicked().unwrap();
        assert_eq!(panic.hook, Hook::UserInit);
        assert!(panic.message.contains("guard.rs:"), "{panic}");
        assert!(panic.to_string().ends_with("a fault of the test"), "{panic}");
    }

    #[test]
    fn null_and_negative_arguments_are_no_arguments() {
        let text = c"config=/x".as_ptr().cast_mut();
        let argv = [text, std::ptr::null_mut(), text];
        // SAFETY: the array holds as many pointers as is said, and the text is a constant.
        unsafe {
            assert!(strings(3, std::ptr::null()).is_empty());
            assert!(strings(-1, argv.as_ptr()).is_empty());
            assert_eq!(strings(3, argv.as_ptr()), [c"config=/x", c"config=/x"]);
        }
    }
}
