//! The end: what was said last must arrive.

use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollTimeout};

use super::{LAST_WORDS, Leader, Role};
use crate::stream::Found;

impl Leader {
    /// Sends what is left, and lets the neighbours take it: closing at once could take it back.
    pub(super) fn end(&mut self, buffer: &mut [u8]) {
        self.do_outputs();
        let clean = self.core.fault().is_none();
        let deadline = Instant::now() + LAST_WORDS[usize::from(clean)];
        self.local = None;
        self.network = None;
        self.members.clear();
        self.connections.retain(|_, connection| matches!(connection.role, Role::Peer { .. }));
        let mut shut = false;
        while !self.connections.is_empty() && Instant::now() < deadline {
            if !shut && !self.connections.values().any(|connection| connection.stream.is_waiting()) {
                shut = true;
                for connection in self.connections.values() {
                    connection.stream.shut();
                }
            }
            let mut events = [EpollEvent::empty(); 16];
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let count =
                self.epoll.wait(&mut events, EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO));
            for event in &events[..count.unwrap_or(0)] {
                let Some(connection) = self.connections.get_mut(&event.data()) else { continue };
                let sent = connection.stream.flush();
                if sent.is_err() || matches!(connection.stream.read(buffer), Found::End(_)) {
                    self.connections.remove(&event.data());
                }
            }
        }
    }
}
