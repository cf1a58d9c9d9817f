//! Waits for the members of a run, and ends them all when one fails.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::member::{Member, exit_code};
use super::{Event, HEARTBEAT, LAST_LINES};
use crate::complain;

/// Between being asked to end and being killed.
const GRACE: Duration = Duration::from_millis(500);
/// A host does so for its own ranks, and this much longer it may take to say that it did.
const GRACE_OF_HOST: Duration = Duration::from_millis(2500);
/// ssh's exit code where it failed itself.
const SSH_FAILED: u8 = 255;

/// Why the members are being ended, and until when they may end by themselves.
struct End {
    code: u8,
    kill_at: Instant,
    killed: bool,
}

impl End {
    fn begin(members: &[Member], signal: Signal, code: u8) -> Self {
        let grace = if members.iter().any(Member::is_host) { GRACE_OF_HOST } else { GRACE };
        members.iter().for_each(|member| member.signal(signal));
        Self { code, kill_at: Instant::now() + grace, killed: false }
    }
}

/// Until every member has ended and all its output is printed. Gives the exit code of the first that failed.
///
/// `silence`: this process is a host's end of a connection, and ends its ranks after so long without a word.
pub(super) fn wait(members: &mut [Member], events: &Receiver<Event>, silence: Option<Duration>) -> u8 {
    let (mut running, mut open) = (members.len(), 2 * members.len());
    let mut end: Option<End> = None;
    let mut all_ended: Option<Instant> = None;
    let (mut heard, mut said) = (Instant::now(), Instant::now());
    while running > 0 || open > 0 {
        let deadline = match (&end, all_ended) {
            (_, Some(ended)) => Some(ended + LAST_LINES),
            (Some(end), None) if !end.killed => Some(end.kill_at),
            _ => None,
        };
        // A rank that can't be killed (in a system call of a dead NFS server) is waited for.
        let now = Instant::now();
        let alone_at = silence.filter(|_| end.is_none()).map(|silence| heard + silence);
        let wake_at = [deadline, alone_at].into_iter().flatten().fold(said + HEARTBEAT, Instant::min);
        let left = wake_at.saturating_duration_since(now);
        match events.recv_timeout(left) {
            Ok(Event::Closed) => open -= 1,
            Ok(Event::Ended { number, in_order }) => {
                running -= 1;
                if running == 0 {
                    all_ended = Some(Instant::now());
                }
                let Some(member) = members.get_mut(number as usize) else { continue };
                let code = member.collect().map_or(1, exit_code);
                // ssh may end well although the other end did not: it was killed, and somebody else holds its output.
                let code = if in_order { code } else { code.max(1) };
                if code != 0 && end.is_none() {
                    let others = if running > 0 { "; ending the others" } else { "" };
                    let why = match (member.is_host(), in_order) {
                        (false, _) => Some(how(code)),
                        // It has said it of its rank.
                        (true, true) => None,
                        (true, false) => Some(how_lost(code)),
                    };
                    if let Some(why) = why {
                        complain("", &format!("{} {why}{others}", member.name));
                    }
                    end = Some(End::begin(members, Signal::SIGTERM, code));
                }
            }
            Ok(Event::Signal(signal)) => {
                let asked = Signal::try_from(signal).unwrap_or(Signal::SIGTERM);
                match &mut end {
                    // Asked again: at once.
                    Some(end) => end.kill_at = Instant::now(),
                    None => {
                        let code = u8::try_from(128 + signal).unwrap_or(1);
                        end = Some(End::begin(members, asked, code));
                    }
                }
            }
            Ok(Event::Heard) => heard = Instant::now(),
            Ok(Event::Lost) => {
                end.get_or_insert_with(|| End::begin(members, Signal::SIGTERM, 1));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = Instant::now();
        if all_ended.is_some_and(|ended| now >= ended + LAST_LINES) {
            break;
        }
        if let Some(end) = &mut end
            && !end.killed
            && now >= end.kill_at
        {
            members.iter().for_each(|member| member.signal(Signal::SIGKILL));
            end.killed = true;
        }
        if now >= said + HEARTBEAT {
            said = now;
            // Who can't be told has ended, which is heard otherwise.
            members.iter().for_each(|member| {
                member.say(super::HERE);
            });
        }
        if let Some(silence) = silence
            && end.is_none()
            && now >= heard + silence
        {
            complain("", &format!("nothing heard from the other end for {silence:?}; ending the ranks"));
            end = Some(End::begin(members, Signal::SIGTERM, 1));
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

/// What became of a host whose end did not say that it ends.
fn how_lost(code: u8) -> String {
    match code {
        SSH_FAILED => format!("can't be reached, or the connection to it broke (ssh's exit code {code})"),
        126 | 127 => {
            format!(
                "has no rocectl that can be run (exit code {code}): install it there, or say --rocectl FILE"
            )
        }
        code => {
            format!("is lost: rocectl ended there without a word, or was never started (exit code {code})")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_host_that_hears_nothing_ends_its_ranks() {
        let (sender, events) = mpsc::channel();
        let mut sleep = Command::new("sleep");
        sleep.arg("600").stdin(Stdio::null());
        let rank = Member::start(0, "rank 0".to_owned(), sleep, String::new(), &sender).unwrap();
        let start = Instant::now();
        let silence = Duration::from_millis(300);
        assert_eq!(wait(&mut [rank], &events, Some(silence)), 1);
        assert!(start.elapsed() >= silence && start.elapsed() < Duration::from_secs(5), "{start:?}");
    }
}
