//! `rocectl run`: ranks of one program on this machine, without Slurm and MPI.

mod output;
mod rank;
mod tie;

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::unistd::gethostname;
use roce_bootstrap::{LocalRun, Secret};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::RunArgs;
use crate::complain;
use crate::exec::NotStarted;
use rank::{Rank, exit_code};

/// Between being asked to end and being killed.
const GRACE: Duration = Duration::from_millis(500);
/// How long the last lines may take when every rank has ended: somebody who left its group may hold a pipe open.
const LAST_LINES: Duration = Duration::from_millis(500);

/// What the run waits for.
enum Event {
    /// This rank's process ended, and is to be collected.
    Ended(u32),
    /// One of the ranks' outputs was closed.
    Closed,
    /// This process was asked to end.
    Signal(i32),
}

/// Starts the ranks and waits for them. The exit code is that of the first that failed.
pub(crate) fn run(arguments: &RunArgs) -> anyhow::Result<ExitCode> {
    let (sender, events) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't wait for signals")?;
    let signal_events = sender.clone();
    thread::Builder::new()
        .spawn(move || signals.forever().try_for_each(|signal| signal_events.send(Event::Signal(signal))))
        .context("can't wait for signals")?;

    let host = gethostname().context("can't tell this machine's name")?;
    let host = host.to_string_lossy();
    let secret = Secret::random()?;
    let run = LocalRun { host: &host, size: arguments.ranks, secret: &secret };
    let mut ranks = Vec::new();
    for rank in 0..arguments.ranks {
        match Rank::start(rank, &run, &arguments.command, arguments.label, &sender) {
            Ok(started) => ranks.push(started),
            // Those that have started end with `ranks`.
            Err(source) => {
                let command = arguments.command.first().cloned().unwrap_or_default();
                return Err(NotStarted { command, source }.into());
            }
        }
    }
    Ok(ExitCode::from(wait(&mut ranks, &events)))
}

/// Why the ranks are being ended, and until when they may end by themselves.
struct End {
    code: u8,
    kill_at: Instant,
    killed: bool,
}

impl End {
    fn begin(ranks: &[Rank], signal: Signal, code: u8) -> Self {
        ranks.iter().for_each(|rank| rank.signal(signal));
        Self { code, kill_at: Instant::now() + GRACE, killed: false }
    }
}

/// Until every rank has ended and all its output is printed.
fn wait(ranks: &mut [Rank], events: &Receiver<Event>) -> u8 {
    let (mut running, mut open) = (ranks.len(), 2 * ranks.len());
    let mut end: Option<End> = None;
    let mut all_ended: Option<Instant> = None;
    while running > 0 || open > 0 {
        let deadline = match (&end, all_ended) {
            (_, Some(ended)) => Some(ended + LAST_LINES),
            (Some(end), None) if !end.killed => Some(end.kill_at),
            _ => None,
        };
        // A rank that can't be killed (in a system call of a dead NFS server) is waited for.
        let left =
            deadline.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        match events.recv_timeout(left) {
            Ok(Event::Closed) => open -= 1,
            Ok(Event::Ended(number)) => {
                running -= 1;
                if running == 0 {
                    all_ended = Some(Instant::now());
                }
                let Some(rank) = ranks.get_mut(number as usize) else { continue };
                let code = rank.collect().map_or(1, exit_code);
                if code != 0 && end.is_none() {
                    let others = if running > 0 { "; ending the others" } else { "" };
                    complain("", &format!("rank {number} {}{others}", how(code)));
                    end = Some(End::begin(ranks, Signal::SIGTERM, code));
                }
            }
            Ok(Event::Signal(signal)) => {
                let asked = Signal::try_from(signal).unwrap_or(Signal::SIGTERM);
                match &mut end {
                    // Asked again: at once.
                    Some(end) => end.kill_at = Instant::now(),
                    None => {
                        let code = u8::try_from(128 + signal).unwrap_or(1);
                        end = Some(End::begin(ranks, asked, code));
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) if all_ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(end) = &mut end {
                    ranks.iter().for_each(|rank| rank.signal(Signal::SIGKILL));
                    end.killed = true;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    end.map_or(0, |end| end.code)
}

fn how(code: u8) -> String {
    match Signal::try_from(i32::from(code) - 128) {
        Ok(signal) => format!("was killed by {signal}"),
        Err(_) => format!("failed with exit code {code}"),
    }
}
