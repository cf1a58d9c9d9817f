//! The plugin's file and its hooks, called as Slurm's loader calls them.
#![expect(unsafe_code, reason = "loads a C plugin and calls it")]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::exports::{addresses, handle};
use crate::slurm::{Registered, slurm};

/// The hooks that the plugin may have, by Slurm's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hook {
    /// `slurm_spank_init`
    Init,
    /// `slurm_spank_init_post_opt`
    InitPostOpt,
    /// `slurm_spank_user_init`
    UserInit,
    /// `slurm_spank_task_init_privileged`
    TaskInitPrivileged,
    /// `slurm_spank_task_post_fork`
    TaskPostFork,
    /// `slurm_spank_task_init`
    TaskInit,
    /// `slurm_spank_task_exit`
    TaskExit,
    /// `slurm_spank_exit`
    Exit,
}

impl Hook {
    /// All of them, in Slurm's order.
    pub const ALL: [Self; 8] = [
        Self::Init,
        Self::InitPostOpt,
        Self::UserInit,
        Self::TaskInitPrivileged,
        Self::TaskPostFork,
        Self::TaskInit,
        Self::TaskExit,
        Self::Exit,
    ];

    fn symbol(self) -> &'static CStr {
        match self {
            Self::Init => c"slurm_spank_init",
            Self::InitPostOpt => c"slurm_spank_init_post_opt",
            Self::UserInit => c"slurm_spank_user_init",
            Self::TaskInitPrivileged => c"slurm_spank_task_init_privileged",
            Self::TaskPostFork => c"slurm_spank_task_post_fork",
            Self::TaskInit => c"slurm_spank_task_init",
            Self::TaskExit => c"slurm_spank_task_exit",
            Self::Exit => c"slurm_spank_exit",
        }
    }

    /// Does Slurm end a task, and nothing but that, for a failure here?
    #[must_use]
    pub fn may_fail_on_a_node(self) -> bool {
        matches!(self, Self::TaskInit | Self::TaskInitPrivileged)
    }
}

type Function = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;

unsafe extern "C" {
    fn host_io_arm(on: c_int);
    fn host_io_calls() -> c_long;
    fn host_io_reset(at: c_long, error: c_int);
}

/// Makes one of the C library's calls fail within the hooks, counted from 0, with this error number.
pub fn fail_io(at: Option<usize>, error: i32) {
    let at = at.map_or(-1, |at| c_long::try_from(at).unwrap_or(c_long::MAX));
    // SAFETY: sets three numbers.
    unsafe { host_io_reset(at, error) };
}

/// How many of the C library's calls were counted.
#[must_use]
pub fn io_calls() -> usize {
    // SAFETY: reads a number.
    usize::try_from(unsafe { host_io_calls() }).unwrap_or(0)
}

/// The loaded file.
#[derive(Debug)]
pub struct Plugin {
    hooks: Vec<(Hook, Function)>,
    /// The arguments of its line in plugstack.conf.
    pub arguments: Vec<CString>,
}

impl Plugin {
    /// Loads it as Slurm does, which refuses it if its tag is not of this release.
    ///
    /// # Errors
    /// What the dynamic loader says, or what is wrong with the tag.
    pub fn load(file: &Path, arguments: &[CString]) -> Result<Self> {
        // Else the linker would leave out what only the plugin calls.
        std::hint::black_box(addresses());
        let name = CString::new(file.as_os_str().as_bytes())?;
        // SAFETY: loads a plugin that is meant to be loaded; what its constructors call is in this program.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) };
        if library.is_null() {
            // SAFETY: after a failure dlerror gives a terminated text.
            bail!("{}", unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy());
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library stays loaded, and the name is terminated.
            let address = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!address.is_null()).then_some(address)
        };
        let version = symbol(c"plugin_version").context("the file has no plugin_version")?;
        // SAFETY: Slurm's loader reads a `uint32_t` there.
        let version = unsafe { version.cast::<u32>().read() };
        ensure!(version == 22 << 16 | 5 << 8, "plugin_version is {version:#x}, not that of 22.05");
        let hooks = Hook::ALL.into_iter().filter_map(|hook| {
            // SAFETY: a symbol of this name is a function of this type.
            Some((hook, unsafe { std::mem::transmute::<*mut c_void, Function>(symbol(hook.symbol())?) }))
        });
        Ok(Self { hooks: hooks.collect(), arguments: arguments.to_vec() })
    }

    /// Does it have this hook?
    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.hooks.iter().any(|(known, _)| *known == hook)
    }

    /// Calls a hook. Gives what it returned and how long that took; 0, as for Slurm, if there is no such hook.
    pub fn call(&self, hook: Hook) -> (i32, Duration) {
        let pointers: Vec<*const c_char> = self.arguments.iter().map(|argument| argument.as_ptr()).collect();
        self.call_with(hook, handle(), c_int::try_from(pointers.len()).unwrap_or(0), pointers.as_ptr())
    }

    /// Calls a hook with arguments of any kind, for what must hold even then: a null `argv`, null entries, a
    /// handle that is none.
    pub fn call_with(
        &self,
        hook: Hook,
        handle: *mut c_void,
        argc: c_int,
        argv: *const *const c_char,
    ) -> (i32, Duration) {
        let Some((_, function)) = self.hooks.iter().find(|(known, _)| *known == hook) else {
            return (0, Duration::ZERO);
        };
        slurm().registering = hook == Hook::Init;
        // SAFETY: switches counting on and off. The function is the plugin's, which must bear any handle, for
        // it only passes it back, and any `argv` that is null or has `argc` entries.
        let (code, time) = unsafe {
            host_io_arm(1);
            let start = Instant::now();
            let code = function(handle, argc, argv);
            let time = start.elapsed();
            host_io_arm(0);
            (code, time)
        };
        slurm().registering = false;
        (code, time)
    }

    /// The handle that Slurm would give.
    #[must_use]
    pub fn handle() -> *mut c_void {
        handle()
    }
}

/// Calls the callback of an option by its name. Nothing if no option of this name is registered.
#[must_use]
pub fn use_option(name: &str, value: Option<&CStr>, remote: bool) -> Option<i32> {
    let option = slurm().options.iter().find(|option| option.name == name).cloned();
    option.and_then(|option| call_back(&option, option.val, value, remote))
}

/// Calls the callback of an option with any number.
#[must_use]
pub fn call_back(option: &Registered, val: c_int, value: Option<&CStr>, remote: bool) -> Option<i32> {
    let callback = option.callback?;
    let value = value.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the callback is the plugin's, which is never unloaded; the value is null or terminated.
    Some(unsafe {
        host_io_arm(1);
        let code = callback(val, value, c_int::from(remote));
        host_io_arm(0);
        code
    })
}
