//! What is due: heartbeats, looks at stopped ranks, time limits.

use std::time::Duration;

use super::{Connection, HEARTBEAT, LOOK, Leader, Role, UNACKNOWLEDGED};
use crate::calls::Search;
use crate::core::{Link, Way};
use crate::message::BetweenLeaders;
use crate::process::{self, State};
use crate::tcp;

impl Leader {
    /// When there is something to do, unless something comes before.
    pub(super) fn wake(&self) -> Option<Duration> {
        let searching = if self.core.fault().is_none() { &self.searches[..] } else { &[] };
        let searches = searching.iter().filter_map(Search::wake);
        let strangers = self.strangers.iter().filter_map(|strangers| strangers.first_key_value());
        let proofs = strangers.map(|(_, came)| *came + self.options.handshake);
        let beat = (!self.peers.is_empty()).then_some(self.beat);
        let look = self.core.awaited().next().map(|_| self.look);
        let timers = searches.chain(proofs).chain(self.core.deadline()).chain(beat);
        let linger = self.linger_end().filter(|end| *end > self.now());
        let hold = self.hold_end().filter(|end| *end > self.now());
        timers.chain(look).chain(linger).chain(hold).min()
    }

    /// Does what is due.
    pub(super) fn be_on_time(&mut self) {
        let now = self.now();
        for round in 0..self.searches.len() {
            if self.searches[round].wake().is_some_and(|wake| wake <= now) {
                self.search(now, round);
            }
        }
        for kind in 0..self.strangers.len() {
            while let Some((&id, &came)) = self.strangers[kind].first_key_value()
                && came + self.options.handshake <= now
            {
                self.turn_away(id);
            }
        }
        if now >= self.beat {
            self.beat = now + HEARTBEAT;
            self.beat(now);
        }
        if now >= self.look {
            self.look = now + LOOK;
            self.look_for_stopped(now);
        }
        let (searches, refused) = (&self.searches, self.refused);
        self.core.tick(now, |link| {
            let search = searches.get(link.round).filter(|_| link.way == Way::Behind).map(Search::summary);
            let strangers = match refused {
                0 => None,
                1 => Some("1 caller did not prove that it knows this step's secret".to_owned()),
                many => Some(format!("{many} callers did not prove that they know this step's secret")),
            };
            let notes: Vec<String> = search.into_iter().chain(strangers).collect();
            (!notes.is_empty()).then(|| notes.join("; "))
        });
    }

    /// Lets the neighbours hear from this node, and asks whether they were heard from.
    pub(super) fn beat(&mut self, now: Duration) {
        let links: Vec<(Link, u64)> = self.peers.iter().map(|(link, id)| (*link, *id)).collect();
        for (link, id) in links {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let Role::Peer { heard, unacknowledged, .. } = &mut connection.role else { continue };
            // The kernel counts from the last acknowledgement, which may have come before this was sent.
            let waits = tcp::unacknowledged(&connection.stream);
            *unacknowledged = waits.map(|_| unacknowledged.unwrap_or(now));
            let waits = waits.zip(*unacknowledged).map(|(waits, since)| waits.min(now.saturating_sub(since)));
            if waits.is_some_and(|waits| waits + HEARTBEAT / 2 > UNACKNOWLEDGED) {
                let why =
                    "its node acknowledges nothing that is sent to it: it is down, or the network is cut";
                self.core.peer_failed(link, why);
                return;
            }
            let silent = now.saturating_sub(*heard);
            if silent > self.options.silence {
                self.core.peer_failed(link, &format!("nothing was heard from it for {silent:.0?}"));
                return;
            }
            self.send_peer(link, &BetweenLeaders::Heartbeat);
        }
    }

    /// A rank that others wait for may be stopped.
    pub(super) fn look_for_stopped(&mut self, now: Duration) {
        let awaited: Vec<u32> = self.core.awaited().collect();
        self.stopped.retain(|local, _| awaited.contains(local));
        for local in awaited {
            let connection = self.members.get(&local).and_then(|id| self.connections.get(id));
            let Some(Connection { role: Role::Member { process, .. }, .. }) = connection else { continue };
            match process::state(*process) {
                State::Stopped => {}
                State::Runs => {
                    self.stopped.remove(&local);
                    continue;
                }
                State::Ended => {
                    let why = format!("its process {process} has ended; another holds its connection");
                    self.core.local_failed(local, &why);
                    return;
                }
            }
            let since = *self.stopped.entry(local).or_insert(now);
            let stopped = now.saturating_sub(since);
            if stopped >= self.options.stopped {
                let why = format!("its process {process} has been stopped for {stopped:.0?}");
                self.core.local_failed(local, &why);
                return;
            }
        }
    }
}
