//! `rocectl run`: ranks of one program, without Slurm and MPI, on this machine or on several by ssh.

mod hosts;
mod member;
mod output;
mod tie;
mod wait;

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::unistd::gethostname;
use roce_bootstrap::{FOREIGN_VARIABLES, Node, Run, Secret};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::RunArgs;
use crate::exec::NotStarted;
use member::Member;

pub(crate) use hosts::on_host;

/// How often a host hears that this end is there, and after how long without that it ends its ranks: a connection that is
/// cut silently is closed by nobody.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long the last lines may take when a member has ended: somebody who left its group may hold a pipe open.
const LAST_LINES: Duration = Duration::from_millis(500);
const SILENCE: Duration = Duration::from_secs(60);
/// The word of it.
const HERE: &str = "here";

/// What a run waits for.
enum Event {
    /// This member's process ended, and is to be collected. `in_order`: the other end, if it has one, said so before.
    Ended { number: u32, in_order: bool },
    /// One of the members' outputs was closed.
    Closed,
    /// This process was asked to end, by a signal or the other end.
    Signal(i32),
    /// The other end is there.
    Heard,
    /// The other end is gone.
    Lost,
}

/// How a host is told to send its ranks a signal.
fn signal_word(signal: Signal) -> String {
    format!("signal {}", signal as i32)
}

/// Starts the ranks and waits for them. The exit code is that of the first that failed.
pub(crate) fn run(arguments: &RunArgs) -> anyhow::Result<ExitCode> {
    let (sender, events) = listen_to_signals()?;
    let secret = Secret::random()?;
    if let Some(hosts) = &arguments.hosts {
        return hosts::run(arguments, hosts, &secret, &sender, &events);
    }
    let host = gethostname().context("can't tell this machine's name")?;
    let nodes = [Node { name: host.to_string_lossy().into_owned(), tasks: arguments.ranks }];
    let run = Run { nodes: &nodes, secret: &secret };
    let mut ranks = start_ranks(&run, 0, &arguments.command, &[], arguments.label, &sender)?;
    Ok(ExitCode::from(wait::wait(&mut ranks, &events, None)))
}

fn listen_to_signals() -> anyhow::Result<(Sender<Event>, Receiver<Event>)> {
    let (sender, events) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't wait for signals")?;
    let signal_events = sender.clone();
    thread::Builder::new()
        .spawn(move || signals.forever().try_for_each(|signal| signal_events.send(Event::Signal(signal))))
        .context("can't wait for signals")?;
    Ok((sender, events))
}

/// Starts the ranks of one node, which is this one.
fn start_ranks(
    run: &Run<'_>,
    node_index: u32,
    command: &[OsString],
    variables: &[(String, String)],
    label: bool,
    events: &Sender<Event>,
) -> anyhow::Result<Vec<Member>> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    let tasks = run.nodes.get(node_index as usize).map_or(0, |node| node.tasks);
    let first = run.first_rank(node_index);
    let width = run.size().saturating_sub(1).to_string().len();
    let start = |local_rank: u32| {
        let rank = first + local_rank;
        let mut start = Command::new(program);
        start.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        for name in FOREIGN_VARIABLES {
            start.env_remove(name);
        }
        let own = run.variables(node_index, local_rank);
        start.envs(own.iter().map(|(name, value)| (name, value.as_str())));
        // A group in the background that reads from the terminal would be stopped by it.
        start.stdin(Stdio::null());
        let prefix = if label { format!("{rank:width$}: ") } else { String::new() };
        let name = match &run.nodes {
            [_] => format!("rank {rank}"),
            nodes => {
                let node = nodes.get(node_index as usize).map_or("?", |node| &node.name);
                format!("rank {rank} on {node}")
            }
        };
        // Those that have started end when they are dropped.
        Member::start(local_rank, name, start, prefix, events)
            .map_err(|source| NotStarted { command: program.clone(), source }.into())
    };
    (0..tasks).map(start).collect()
}
