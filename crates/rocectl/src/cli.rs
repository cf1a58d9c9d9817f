//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use roce_plan::RoceOption;
use roce_types::CpuSet;

/// See, plan and apply RoCE NIC pinning on this node
///
/// What srun's --roce options do to the tasks of a step, rocectl shows beforehand (show, plan) and does without Slurm
/// (env, exec, run).
#[derive(Debug, Parser)]
#[command(name = "rocectl", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the node: RDMA ports with their GIDs, NUMA nodes, GPUs
    Show(ShowArgs),
    /// Show which task would get which NIC, GID, class and CPUs, and why
    Plan(PlanArgs),
    /// Print the environment of one task, for mpirun without Slurm
    ///
    /// For scripts: eval "$(rocectl env)". The variables are those of `rocectl exec`; nothing is pinned, ROCE_CPUS
    /// says which CPUs the plan has for the task.
    Env(EnvArgs),
    /// Pin this process and become a command: mpirun rocectl exec -- ./app
    ///
    /// Each process that the launcher starts takes its own row of one plan: CPUs, memory policy, locked-memory limit
    /// and the variables that tell the communication libraries. With Open MPI let rocectl do the pinning:
    /// mpirun --bind-to none rocectl exec -- ./app. CPUs that the launcher has bound a process to are never left.
    Exec(ExecArgs),
    /// Start ranks of a program, without Slurm and MPI: rocectl run -n 4 ./app
    ///
    /// For programs that use roce-launcher. With --hosts they run there, started by ssh, else on this machine: as even as can
    /// be, the first ranks on the first host, in the same folder and with this environment. They find each other by the
    /// ROCE_ variables and a fresh secret in their environment, which goes to the hosts inside of ssh's connection and is on
    /// no command line. Lines of their output are never mixed; their input is empty. When a rank fails or is killed, or a
    /// host is lost, the others are ended, and its exit code is that of this command (128 and the signal's number where it was
    /// killed). Whatever ends this command ends the ranks.
    Run(RunArgs),
    /// What --hosts starts on each host
    #[command(hide = true)]
    RunOnHost,
    /// Write what can be known about this node into a file for --topology
    ///
    /// No host name, serial number or MAC address is in it. Unless --raw is given, GUIDs and IP addresses are replaced,
    /// each by the same other one wherever it appears.
    Capture(CaptureArgs),
    /// Put back the traffic class that a killed step has left as the node's default
    ///
    /// Where the site file says node_wide = true, a step that has the whole node makes its class that of all
    /// rdma_cm connections there, and puts it back when it ends. If it was killed, the next step of this node puts it
    /// back, or this command. To be run as root.
    Restore(RestoreArgs),
    /// Print a completion script for a shell
    ///
    /// For example: rocectl completions bash > /etc/bash_completion.d/rocectl
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages into a folder, or the main page to stdout
    Man {
        /// Where to put rocectl.1, rocectl-show.1, ...
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// No node has more tasks, or more CPUs for one.
pub(crate) const MOST_TASKS: u32 = 65_536;

fn tasks() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MOST_TASKS))
}

/// Which node to look at.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Another machine: a `rocectl capture`, a sysfs folder or tar, hwloc's or NCCL's XML
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
    /// For tests: take the facts of this machine from the sys folder below DIR
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "topology")]
    pub(crate) sysfs: Option<PathBuf>,
}

/// srun's options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of srun")]
pub(crate) struct RoceArgs {
    #[arg(long, value_name = "CLASS", help = RoceOption::Tc.usage())]
    pub(crate) roce_tc: Option<String>,
    #[arg(long, value_name = "DSCP", help = RoceOption::Dscp.usage())]
    pub(crate) roce_dscp: Option<String>,
    #[arg(long, value_name = "BYTE", help = RoceOption::Tclass.usage())]
    pub(crate) roce_tclass: Option<String>,
    #[arg(long, value_name = "SEL", help = RoceOption::Nics.usage())]
    pub(crate) roce_nics: Option<String>,
    #[arg(long, value_name = "POLICY", help = RoceOption::Place.usage())]
    pub(crate) roce_place: Option<String>,
    #[arg(long, value_name = "SEL", help = RoceOption::Gid.usage())]
    pub(crate) roce_gid: Option<String>,
    #[arg(long, value_name = "MODE", help = RoceOption::Bind.usage())]
    pub(crate) roce_bind: Option<String>,
}

/// What the site and the fabric say.
#[derive(Debug, Args)]
pub(crate) struct SiteArgs {
    /// The site file [default: /etc/slurm/roce.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) site: Option<PathBuf>,
    /// Which ports count: roce, or any to plan on InfiniBand ports too
    #[arg(long, value_name = "LAYER", default_value = "roce", hide_possible_values = true)]
    pub(crate) link_layer: LinkLayerArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkLayerArg {
    Roce,
    Any,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) site: SiteArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw a picture of packages, NUMA nodes, switches, GPUs and NICs
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Show every row of the GID tables, and why it may not be used
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// How many tasks are on the node
    #[arg(long, short = 'n', value_name = "N", required_unless_present = "mask", value_parser = tasks())]
    pub(crate) tasks: Option<u32>,
    /// CPUs of each task [default: the node's CPUs, divided evenly]
    #[arg(long, short, value_name = "C", value_parser = tasks())]
    pub(crate) cpus_per_task: Option<u32>,
    /// GPUs of each task, in index order
    #[arg(long, value_name = "G")]
    pub(crate) gpus_per_task: Option<u32>,
    /// Where the tasks are put
    #[arg(long, short = 'm', value_name = "HOW", default_value = "spread")]
    pub(crate) distribution: Distribution,
    /// The CPUs of one task, such as 0-3,8; once for each task, in order
    #[arg(long, value_name = "LIST", conflicts_with_all = ["cpus_per_task", "distribution"])]
    pub(crate) mask: Vec<CpuSet>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) site: SiteArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw a picture of the node with the tasks and their NICs
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) roce: RoceArgs,
}

/// How tasks get CPUs where Slurm isn't there to give them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribution {
    /// Each task begins at its even share of the node, in order
    Spread,
    /// One task right behind the other, as srun -m block:block
    Block,
    /// In turn over the packages, as srun -m block:cyclic
    Cyclic,
}

/// Which task this process is.
#[derive(Debug, Args)]
pub(crate) struct RankArgs {
    /// This task's rank on this node, from 0 [default: as the launcher's variables say]
    #[arg(long, value_name = "I", requires = "of")]
    pub(crate) rank: Option<u32>,
    /// How many tasks are on this node
    #[arg(long, value_name = "N", requires = "rank", value_parser = tasks())]
    pub(crate) of: Option<u32>,
    /// CPUs that each task needs [default: an even share of those it may use]
    #[arg(long, short, value_name = "C", value_parser = tasks())]
    pub(crate) cpus_per_task: Option<u32>,
    /// GPUs of each task, in index order [default: GPUs are not looked at]
    #[arg(long, value_name = "G")]
    pub(crate) gpus_per_task: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    #[command(flatten)]
    pub(crate) rank: RankArgs,
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value = "sh")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) site: SiteArgs,
    #[command(flatten)]
    pub(crate) roce: RoceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines of export NAME='value', for every shell of the Bourne family
    Sh,
    /// One object; null is for a variable to remove
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) rank: RankArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) site: SiteArgs,
    /// Say on stderr what this task gets
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) roce: RoceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How many ranks
    #[arg(short = 'n', long = "ranks", value_name = "N", value_parser = tasks())]
    pub(crate) ranks: u32,
    /// Begin each line with its rank
    #[arg(long, short)]
    pub(crate) label: bool,
    /// Run on these hosts: names with commas and ranges, a,b or n[1-8], which ssh and the ranks reach them by
    #[arg(long, value_name = "HOSTS")]
    pub(crate) hosts: Option<String>,
    /// How to reach a host, with options: "ssh -F file"
    #[arg(long, value_name = "CMD", default_value = "ssh", requires = "hosts")]
    pub(crate) ssh: String,
    /// Where this program is on the hosts; where it is here, if not given
    #[arg(long, value_name = "FILE", requires = "hosts")]
    pub(crate) rocectl: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    /// The file to write; compressed if its name ends in .gz
    #[arg(long, short, value_name = "FILE", default_value = "roce-capture.tar.gz")]
    pub(crate) output: PathBuf,
    /// Keep GUIDs and IP addresses as they are
    #[arg(long)]
    pub(crate) raw: bool,
    /// For tests: take the facts of this machine from the sys folder below DIR
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) sysfs: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Put it back though the step that set it is still running
    #[arg(long)]
    pub(crate) force: bool,
    /// For tests: the root below which sys and run are
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) sysfs: PathBuf,
}
