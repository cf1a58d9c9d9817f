//! spank_roce.so: pins each task of a Slurm step to its nearest RoCE NIC.
//!
//! Slurm loads this file into srun, sbatch and salloc, where options are read and judged ([`submit`]), and
//! into slurmstepd, as root, where each task is bound ([`step`]). What to bind it to is decided by
//! `roce-plan`; here is only what happens when.
//!
//! | hook | in | does |
//! | --- | --- | --- |
//! | `init` | all | reads plugstack.conf's arguments, registers the options |
//! | `init_post_opt` | srun, sbatch, salloc | judges options, variables and site file: a bad one ends it here; in srun, puts the settled request and the step's secret into the environment |
//! | `init_post_opt` | slurmstepd, root | reads the site file; raises the memlock limit, which the tasks inherit; where the site says so, makes the class node-wide ([`node_wide`]) |
//! | `user_init` | slurmstepd | reads the node, once, as the user; drafts the plan; maps the task table; makes room in the environment |
//! | `task_post_fork` | slurmstepd | notes the task's CPU mask; at the last one, assigns the NICs of all tasks, and works out what many are to do alike ([`orders`]) |
//! | `task_init` | task, user | makes its own row of the plan where it has no order, binds CPUs and memory, sets the environment |
//! | `exit` | slurmstepd, root | puts a node-wide class back |
//!
//! On a node nothing but `task_init` may fail: an error in an earlier hook would drain the node or end the
//! step with exit code 0. So it is remembered and raised there.

mod abi;
mod apply;
mod arguments;
mod components;
mod disabled;
mod environment;
#[cfg(feature = "fault-injection")]
mod fault;
mod gather;
mod gpus;
mod node_wide;
mod orders;
mod os;
mod report;
mod state;
mod step;
mod submit;
mod table;
