//! What the pretend Slurm knows and remembers. One per process, as there is one Slurm in a process.

use std::ffi::{CString, c_char, c_int};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `enum spank_context` of `spank.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Context {
    /// srun.
    Local = 1,
    /// slurmstepd.
    Remote = 2,
    /// sbatch or salloc.
    Allocator = 3,
    /// slurmd.
    Slurmd = 4,
    /// A prolog's or epilog's slurmstepd.
    JobScript = 5,
}

/// The callback of an option, as the plugin registers it.
pub type Callback = unsafe extern "C" fn(val: c_int, optarg: *const c_char, remote: c_int) -> c_int;

/// An option that the plugin has registered.
#[derive(Debug, Clone)]
pub struct Registered {
    /// Its name without dashes.
    pub name: String,
    /// What the callback is to be given back.
    pub val: c_int,
    /// The callback.
    pub callback: Option<Callback>,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// 0 error, 1 info, 2 verbose, 3 debug.
    pub level: c_int,
    /// What was said.
    pub text: String,
}

/// The facts of a step; `None` where Slurm would not know them yet.
#[derive(Debug, Clone, Default)]
pub struct Items {
    /// Step number; the special ones are counted down from the top.
    pub step_id: Option<u32>,
    /// Tasks of the step on this node.
    pub local_tasks: Option<u32>,
    /// CPUs that each task was promised.
    pub cpus_per_task: Option<u32>,
    /// The task's number on this node.
    pub task_id: Option<c_int>,
    /// The task's rank.
    pub global_id: Option<u32>,
    /// The task's process.
    pub task_pid: Option<libc::pid_t>,
}

/// The state.
#[derive(Debug)]
pub struct Slurm {
    /// Which program is played.
    pub context: Context,
    /// What is known of the step.
    pub items: Items,
    /// The step's environment, as `NAME=value`.
    pub environment: Vec<CString>,
    /// The array that the plugin is given for it.
    pub(crate) pointers: Vec<*const c_char>,
    /// Options in the order of their registration.
    pub options: Vec<Registered>,
    /// May options be registered now? Only within `slurm_spank_init`.
    pub registering: bool,
    /// What was logged.
    pub lines: Vec<Line>,
    /// Variables that were taken out of what a job inherits.
    pub disinherited: Vec<String>,
    /// Calls of functions that can fail.
    pub calls: usize,
    /// The call, counted from 0, that fails.
    pub fail_at: Option<usize>,
}

// SAFETY: the pointers lead into `environment`, which moves along with them.
#[expect(unsafe_code, reason = "holds pointers to its own strings")]
unsafe impl Send for Slurm {}

static SLURM: Mutex<Slurm> = Mutex::new(Slurm {
    context: Context::Remote,
    items: Items {
        step_id: None,
        local_tasks: None,
        cpus_per_task: None,
        task_id: None,
        global_id: None,
        task_pid: None,
    },
    environment: Vec::new(),
    pointers: Vec::new(),
    options: Vec::new(),
    registering: false,
    lines: Vec::new(),
    disinherited: Vec::new(),
    calls: 0,
    fail_at: None,
});

/// The state; never held while a hook runs, for the hook's calls need it.
pub fn slurm() -> MutexGuard<'static, Slurm> {
    SLURM.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slurm {
    /// Back to nothing known; the registered options stay, as they do in Slurm.
    pub fn reset(&mut self, context: Context) {
        self.context = context;
        self.items = Items::default();
        self.environment = Vec::new();
        self.pointers = Vec::new();
        self.lines = Vec::new();
        self.disinherited = Vec::new();
        self.calls = 0;
        self.fail_at = None;
    }

    /// Counts a call. Does this one fail?
    pub(crate) fn fails(&mut self) -> bool {
        self.calls += 1;
        self.fail_at == Some(self.calls - 1)
    }

    /// The environment as text.
    #[must_use]
    pub fn environment_text(&self) -> Vec<String> {
        self.environment.iter().map(|entry| entry.to_string_lossy().into_owned()).collect()
    }
}
