//! The handle that Slurm calls a hook with.
#![expect(unsafe_code, reason = "calls Slurm's functions")]

use std::ffi::{CStr, CString, OsString, c_char, c_int};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStringExt;

use crate::abi::{Context, Host, Item, SpankError, SpankHandle};

/// Step ids from here on are not steps of the user's: the batch script, the extern step, an interactive
/// shell. Slurm has numbered them down from the top since 20.11.
const FIRST_SPECIAL_STEP: u32 = 0xffff_fff0;

/// The variable in which Slurm carries an option within a job.
fn option_variable(plugin: &str, option: &str) -> String {
    format!("_SLURM_SPANK_OPTION_{plugin}_{option}").replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// The variable in which the sruns of a job find the job's value of an option.
///
/// ```
/// assert_eq!(
///     roce_spank::inherited_option_variable("spank_roce", "roce-tc"),
///     "SLURM_SPANK__SLURM_SPANK_OPTION_spank_roce_roce_tc"
/// );
/// ```
#[must_use]
pub fn inherited_option_variable(plugin: &str, option: &str) -> String {
    format!("SLURM_SPANK_{}", option_variable(plugin, option))
}

/// Slurm did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Slurm's {function}({about}) failed: {reason}")]
pub struct Failure {
    /// The function of `spank.h`.
    pub function: &'static str,
    /// The item, variable or option.
    pub about: String,
    /// Slurm's words for the error number.
    pub reason: String,
}

/// The handle of the running hook: what is known about the step, its environment, its options.
#[derive(Debug)]
pub struct Spank<'hook> {
    handle: *mut SpankHandle,
    host: &'static Host,
    hook: PhantomData<&'hook SpankHandle>,
}

impl<'hook> Spank<'hook> {
    /// Wraps the handle of a hook.
    ///
    /// # Safety
    /// The handle must be the one that Slurm called the running hook with, and `'hook` must end before the
    /// hook returns: Slurm keeps it on its stack.
    #[must_use]
    pub unsafe fn new(handle: *mut SpankHandle, host: &'static Host) -> Self {
        Self { handle, host, hook: PhantomData }
    }

    /// Which program has loaded the plugin.
    #[must_use]
    pub fn context(&self) -> Context {
        // SAFETY: the function has no argument and only reads Slurm's own state.
        match unsafe { (self.host.spank_context)() } {
            1 => Context::Local,
            2 => Context::Remote,
            3 => Context::Allocator,
            4 => Context::Slurmd,
            5 => Context::JobScript,
            _ => Context::Error,
        }
    }

    /// The user that the step runs as.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn uid(&self) -> Result<libc::uid_t, Failure> {
        // SAFETY: the item is a `uid_t *`.
        unsafe { self.item(Item::JobUid, 0) }
    }

    /// The user's primary group.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn gid(&self) -> Result<libc::gid_t, Failure> {
        // SAFETY: the item is a `gid_t *`.
        unsafe { self.item(Item::JobGid, 0) }
    }

    /// The job's number.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn job_id(&self) -> Result<u32, Failure> {
        // SAFETY: the item is a `uint32_t *`.
        unsafe { self.item(Item::JobId, 0) }
    }

    /// The step's number in its job.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn step_id(&self) -> Result<u32, Failure> {
        // SAFETY: the item is a `uint32_t *`.
        unsafe { self.item(Item::JobStepId, 0) }
    }

    /// Is this the batch script, the extern step or an interactive shell, not a step of srun's?
    ///
    /// # Errors
    /// If Slurm does not know the step's number in this hook.
    pub fn is_special_step(&self) -> Result<bool, Failure> {
        Ok(self.step_id()? > FIRST_SPECIAL_STEP)
    }

    /// How many tasks of the step run on this node.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn local_task_count(&self) -> Result<u32, Failure> {
        // SAFETY: the item is a `uint32_t *`.
        unsafe { self.item(Item::JobLocalTaskCount, 0) }
    }

    /// How many CPUs each task was promised (`--cpus-per-task`); 1 with `--overcommit`.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn cpus_per_task(&self) -> Result<u32, Failure> {
        // SAFETY: the item is a `uint32_t *`.
        unsafe { self.item(Item::StepCpusPerTask, 0) }
    }

    /// The CPUs (hardware threads) of the step's cores on this node, whatever its tasks use of them.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn step_cpus(&self) -> Result<u16, Failure> {
        // SAFETY: the item is a `uint16_t *`.
        unsafe { self.item(Item::JobNcpus, 0) }
    }

    /// The job's cores on this node, such as `0-3`. Slurm numbers the cores of its own configuration; where that
    /// knows no threads, these are CPUs.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn job_cores(&self) -> Result<String, Failure> {
        self.text(Item::JobAllocCores)
    }

    /// The step's cores on this node, as those of the job.
    ///
    /// # Errors
    /// If Slurm does not know it in this hook.
    pub fn step_cores(&self) -> Result<String, Failure> {
        self.text(Item::StepAllocCores)
    }

    /// The task's number on this node.
    ///
    /// # Errors
    /// If the hook is not about one task.
    pub fn task_id(&self) -> Result<u32, Failure> {
        // SAFETY: the item is an `int *`.
        let id: c_int = unsafe { self.item(Item::TaskId, -1) }?;
        u32::try_from(id).map_err(|_| self.failure("spank_get_item", format!("{:?}: {id}", Item::TaskId), 0))
    }

    /// The task's number in the whole step, its rank.
    ///
    /// # Errors
    /// If the hook is not about one task.
    pub fn task_global_id(&self) -> Result<u32, Failure> {
        // SAFETY: the item is a `uint32_t *`.
        unsafe { self.item(Item::TaskGlobalId, 0) }
    }

    /// The task's process. In `task_init` and `task_init_privileged` Slurm says -1: there the task is the
    /// running process.
    ///
    /// # Errors
    /// If the hook is not about one task.
    pub fn task_pid(&self) -> Result<libc::pid_t, Failure> {
        // SAFETY: the item is a `pid_t *`.
        unsafe { self.item(Item::TaskPid, -1) }
    }

    /// The variables of the step's environment whose name satisfies `wanted`, as (name, value).
    ///
    /// Read from the environment itself, not through `spank_getenv`, whose errors "absent" and "longer than
    /// the buffer" can be told apart only by numbers that changed between releases.
    ///
    /// # Errors
    /// If Slurm does not give the environment in this hook.
    pub fn environment(&self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<(OsString, OsString)>, Failure> {
        let mut found = Vec::new();
        self.each_variable(|name, value| {
            if wanted(name) {
                found.push((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())));
            }
        })?;
        Ok(found)
    }

    /// Writes values over those that the variables have, where these are at least as long, and gives the
    /// rest. Only in `task_init`, where the environment is the task's own.
    ///
    /// For Slurm's own `spank_setenv` allocates and clears 256 KiB for each value, which for the forty
    /// variables of each of a node's tasks is most of what a plugin costs.
    ///
    /// # Errors
    /// If Slurm does not give the environment in this hook.
    pub fn overwrite<'a>(&self, values: Vec<(&'a str, &'a str)>) -> Result<Vec<(&'a str, &'a str)>, Failure> {
        let mut left = values;
        left.sort_unstable();
        self.each_variable(|name, old| {
            let Ok(found) = left.binary_search_by(|(wanted, _)| wanted.as_bytes().cmp(name)) else { return };
            let value = left[found].1.as_bytes();
            if value.len() > old.len() || value.contains(&0) {
                return;
            }
            // What is right already is not written: after the fork, that would copy its page.
            if value != old {
                let (written, rest) = old.split_at_mut(value.len());
                written.copy_from_slice(value);
                // Where the old value was longer, the new one ends here; else Slurm's own zero follows.
                if let Some(end) = rest.first_mut() {
                    *end = 0;
                }
            }
            left.remove(found);
        })?;
        Ok(left)
    }

    /// Calls `visit` with name and value of each variable of the step's environment. The value may be
    /// written to, and be ended with a zero byte.
    fn each_variable(&self, mut visit: impl FnMut(&[u8], &mut [u8])) -> Result<(), Failure> {
        // SAFETY: the item is a `char ***`; Slurm stores the address of its own array there.
        let entries: *const *mut c_char = unsafe { self.item(Item::JobEnv, std::ptr::null()) }?;
        if entries.is_null() {
            return Ok(());
        }
        for i in 0.. {
            // SAFETY: the array belongs to Slurm, ends with a null pointer, and its entries are terminated
            // strings that Slurm has allocated, so they may be written to. No hook runs beside another one,
            // and `visit` does not call Slurm, so nobody moves, reads or writes them meanwhile.
            let entry = unsafe {
                let entry = *entries.add(i);
                if entry.is_null() {
                    break;
                }
                let len = CStr::from_ptr(entry).to_bytes().len();
                std::slice::from_raw_parts_mut(entry.cast::<u8>(), len)
            };
            let Some(equals) = entry.iter().position(|byte| *byte == b'=') else { continue };
            let (name, value) = entry.split_at_mut(equals);
            visit(name, &mut value[1..]);
        }
        Ok(())
    }

    /// One variable of the step's environment.
    ///
    /// # Errors
    /// If Slurm does not give the environment in this hook.
    pub fn getenv(&self, name: &str) -> Result<Option<OsString>, Failure> {
        let found = self.environment(|found| found == name.as_bytes())?;
        Ok(found.into_iter().next().map(|(_, value)| value))
    }

    /// Sets a variable of the step's environment, in `task_init` of the task's; replaces an older value.
    ///
    /// # Errors
    /// If Slurm refuses, as it does outside slurmstepd, or a text has a zero byte.
    pub fn setenv(&self, name: &str, value: &str) -> Result<(), Failure> {
        let name_c = self.c_string("spank_setenv", name)?;
        let value_c = self.c_string("spank_setenv", value)?;
        // SAFETY: the handle is the hook's, both texts are terminated and Slurm copies them.
        let error = unsafe { (self.host.spank_setenv)(self.handle, name_c.as_ptr(), value_c.as_ptr(), 1) };
        self.check("spank_setenv", name, error)
    }

    /// Removes a variable of the step's environment.
    ///
    /// # Errors
    /// If Slurm refuses, as it does outside slurmstepd, or the name has a zero byte.
    pub fn unsetenv(&self, name: &str) -> Result<(), Failure> {
        let name_c = self.c_string("spank_unsetenv", name)?;
        // SAFETY: the handle is the hook's and the name is terminated.
        let error = unsafe { (self.host.spank_unsetenv)(self.handle, name_c.as_ptr()) };
        self.check("spank_unsetenv", name, error)
    }

    /// Takes back an option that sbatch or salloc would hand on to the sruns of the job; only in
    /// `init_post_opt` there.
    ///
    /// # Errors
    /// If Slurm refuses, as it does on a node.
    pub fn disinherit_option(&self, plugin: &str, option: &str) -> Result<(), Failure> {
        let name = option_variable(plugin, option);
        let name_c = self.c_string("spank_job_control_unsetenv", &name)?;
        // SAFETY: the handle is the hook's and the name is terminated.
        let error = unsafe { (self.host.spank_job_control_unsetenv)(self.handle, name_c.as_ptr()) };
        self.check("spank_job_control_unsetenv", &name, error)
    }

    /// The handle and the functions, for the other modules of this crate.
    pub(crate) fn parts(&self) -> (*mut SpankHandle, &'static Host) {
        (self.handle, self.host)
    }

    /// Turns an error number into a result.
    pub(crate) fn check(
        &self,
        function: &'static str,
        about: &str,
        error: SpankError,
    ) -> Result<(), Failure> {
        if error == 0 { Ok(()) } else { Err(self.failure(function, about.to_owned(), error)) }
    }

    pub(crate) fn c_string(&self, function: &'static str, text: &str) -> Result<CString, Failure> {
        CString::new(text).map_err(|_| Failure {
            function,
            about: text.escape_default().to_string(),
            reason: "a text with a zero byte".to_owned(),
        })
    }

    /// One of the items that are texts; empty where Slurm has none.
    fn text(&self, item: Item) -> Result<String, Failure> {
        // SAFETY: the callers' items are `char **`; Slurm stores the address of its own text there.
        let text: *const c_char = unsafe { self.item(item, std::ptr::null()) }?;
        if text.is_null() {
            return Ok(String::new());
        }
        // SAFETY: a terminated text of Slurm's, copied before anything else is called.
        Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// Asks for an item that is stored in one `T`.
    ///
    /// # Safety
    /// `T` must be what `spank.h` says the item is stored in.
    unsafe fn item<T: Copy>(&self, item: Item, initial: T) -> Result<T, Failure> {
        let mut value = initial;
        // SAFETY: the handle is the hook's; the one variadic argument is a pointer to a `T` that may be
        // written, and the caller vouches for `T`.
        let error =
            unsafe { (self.host.spank_get_item)(self.handle, item as u32, std::ptr::from_mut(&mut value)) };
        self.check("spank_get_item", &format!("{item:?}"), error)?;
        Ok(value)
    }

    fn failure(&self, function: &'static str, about: String, error: SpankError) -> Failure {
        // SAFETY: takes any number; the text it gives is Slurm's and is copied before anything else is
        // called.
        let reason = unsafe {
            let text = (self.host.spank_strerror)(error);
            if text.is_null() {
                format!("error {error}")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Failure { function, about, reason }
    }
}
