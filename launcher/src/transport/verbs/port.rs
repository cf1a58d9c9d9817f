//! A port of this rank with what the service thread needs of it: datagrams, their buffers, and an eye on its state.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roce_types::TrafficClass;
use roce_verbs::{
    Address, Buffer, CompletionQueue, DATAGRAM_OFFSET, Datagrams, Depth, Event, Operation, Packets, Path,
};

use super::service::Route;
use super::words;
use crate::endpoint::{Endpoint, Now};
use crate::error::chain;

/// Datagrams that may come before the thread has looked; what is beyond is lost, and said again.
const RECEIVES: u32 = 32;
/// Datagrams that may be on their way out.
const SENDS: u32 = 8;
/// How long a port may be down, or without its GID, before its connections count as lost. RC bridges that: what it sends again comes
/// for about 9 s.
const GRACE: Duration = Duration::from_secs(3);
/// How often a port that is down is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The class of all that a rank sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Class {
    pub(crate) traffic_class: TrafficClass,
    pub(crate) service_level: u8,
}

pub(super) struct Port {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) packets: Arc<Packets>,
    datagrams: Datagrams,
    completions: Arc<CompletionQueue>,
    /// For datagrams to send.
    free: Vec<Buffer>,
    class: Class,
    /// As it was when it was looked at last; nothing has happened since.
    now: Option<Now>,
    /// Since when it can't be used, and when it is looked at again.
    down: Option<(Instant, Instant)>,
    is_lost: bool,
}

impl Port {
    /// # Errors
    /// If the device refuses.
    pub(super) fn open(
        endpoint: &Arc<Endpoint>,
        packets: &Arc<Packets>,
        class: Class,
        key: u32,
    ) -> roce_verbs::Result<Self> {
        let context = endpoint.domain.context();
        let completions = CompletionQueue::create_with_descriptor(context, (RECEIVES + SENDS) as usize)?;
        let depth = Depth { send: SENDS, receive: RECEIVES };
        let number = endpoint.nic.port.port;
        let datagrams = Datagrams::create(&endpoint.domain, &completions, depth, number, key)?;
        for _ in 0..RECEIVES {
            datagrams.post_receive(Buffer::register(&endpoint.domain, DATAGRAM_OFFSET + words::MOST)?)?;
        }
        let free = (0..SENDS).map(|_| Buffer::register(&endpoint.domain, words::MOST));
        let free = free.collect::<roce_verbs::Result<_>>()?;
        let (endpoint, packets) = (Arc::clone(endpoint), Arc::clone(packets));
        let _ = context_events(&endpoint)?;
        let (now, down) = (None, None);
        Ok(Self { endpoint, packets, datagrams, completions, free, class, now, down, is_lost: false })
    }

    pub(super) fn number(&self) -> u32 {
        self.datagrams.number()
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// What to wait for: datagrams, and the device's events.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.completions.descriptor().into_iter().chain(context_events(&self.endpoint))
    }

    /// What the port is like.
    ///
    /// # Errors
    /// Why it can't be used, in words.
    pub(super) fn now(&mut self) -> Result<Now, String> {
        if self.now.is_none() {
            self.now = Some(self.endpoint.now().map_err(|error| chain(&error))?);
        }
        self.now.ok_or_else(String::new)
    }

    pub(super) fn address(&mut self, route: &Route) -> Result<Address, String> {
        let path = Path {
            port: self.endpoint.nic.port.port,
            local_gid_index: self.now()?.gid_index,
            remote_gid: route.gid,
            traffic_class: self.class.traffic_class,
            service_level: self.class.service_level,
        };
        Address::create(&self.endpoint.domain, path).map_err(|error| chain(&error))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) fn send(&mut self, address: &Address, route: &Route, bytes: &[u8]) -> Result<(), String> {
        let all_on_their_way = || "all of the last are still on their way".to_owned();
        let mut buffer = self.free.pop().ok_or_else(all_on_their_way)?;
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let posted = self.datagrams.post_send(buffer, bytes.len(), address, route.number, route.key);
        posted.map(drop).map_err(|rejected| {
            self.free.push(rejected.buffer);
            chain(&*rejected.error)
        })
    }

    /// The datagrams that have come since; asks to be told of the next.
    pub(super) fn hear(&mut self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        // What comes after this is told.
        let _ = self.completions.arm();
        while let Ok(Some(completion)) = self.completions.poll() {
            match (completion.operation, completion.result) {
                (Operation::Receive, result) => {
                    let bytes =
                        result.ok().and_then(|end| completion.buffer.as_slice().get(DATAGRAM_OFFSET..end));
                    heard.extend(bytes.map(<[u8]>::to_vec));
                    // A queue pair that failed hears nothing more; its peers will notice.
                    let _ = self.datagrams.post_receive(completion.buffer);
                }
                _ => self.free.push(completion.buffer),
            }
        }
        heard
    }

    /// Looks at what the device told. Queue pairs that failed, and how.
    pub(super) fn look(&mut self, now: Instant) -> (Vec<(u32, &'static str)>, Option<String>) {
        let mut failed = Vec::new();
        while let Some(event) = self.endpoint.domain.context().next_event() {
            match event {
                Event::QueuePair(number, how) => failed.push((number, how)),
                Event::DeviceFailed => {
                    self.is_lost = true;
                    return (
                        failed,
                        Some(format!("{} failed: see the kernel's log", self.endpoint.nic.port.device)),
                    );
                }
                Event::Port(port) if port == self.endpoint.nic.port.port => {
                    self.now = None;
                    self.down.get_or_insert((now, now));
                }
                _ => {}
            }
        }
        (failed, self.watch(now))
    }

    /// Looks at a port of which something was told. Why it counts as lost, if so.
    fn watch(&mut self, now: Instant) -> Option<String> {
        let (since, next) = self.down.filter(|(_, next)| now >= *next && !self.is_lost)?;
        self.now = None;
        let Err(why) = self.now() else {
            self.down = None;
            return None;
        };
        if now.saturating_duration_since(since) < GRACE {
            self.down = Some((since, next.max(now) + LOOK));
            return None;
        }
        self.is_lost = true;
        Some(why)
    }

    /// When to look again, if nothing is told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.down.filter(|_| !self.is_lost).map(|(_, next)| next)
    }
}

fn context_events(endpoint: &Endpoint) -> roce_verbs::Result<BorrowedFd<'_>> {
    endpoint.domain.context().events()
}
