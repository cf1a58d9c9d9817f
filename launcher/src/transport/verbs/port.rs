//! A port of this rank with what the service thread needs of it: datagrams, their buffers, and an eye on its state.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roce_types::{Gid, TrafficClass};
use roce_verbs::{Address, Buffer, CompletionQueue, DATAGRAM_OFFSET, Datagrams, Depth, Event, Packets, Path};

use super::service::Route;
use super::words;
use crate::endpoint::{Endpoint, Now};
use crate::error::chain;

/// Datagrams that may come before the thread has looked; what is beyond is lost, and said again.
const RECEIVES: u32 = 32;
/// Datagrams that may be on their way out.
const SENDS: u32 = 8;
/// How long a port may be down, or without its GID, before its connections count as lost. RC of the other side bridges that: it sends
/// again for about 9 s.
const GRACE: Duration = Duration::from_secs(8);
/// How often a port that is down is looked at, though the device tells when it changes.
const LOOK: Duration = Duration::from_secs(1);
/// When the slots of the next connection are made, after the last ones were taken.
const LATER: Duration = Duration::from_millis(30);

/// Peers' addresses that are kept.
pub(super) const ADDRESSES: usize = 64;

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
    /// Nobody is woken when a datagram has left.
    sent: Arc<CompletionQueue>,
    received: Arc<CompletionQueue>,
    /// For datagrams to send.
    free: Vec<Buffer>,
    class: Class,
    /// As it was when it was looked at last; nothing has happened since. To look is many reads where a table of GIDs has many rows.
    now: Option<Result<Now, String>>,
    /// Since when it can't be used, and when it is looked at again.
    down: Option<(Instant, Instant)>,
    is_lost: bool,
    /// Where datagrams go, at most [`ADDRESSES`]: the kernel takes as long for one as for a queue pair.
    addresses: BTreeMap<Gid, Arc<Address>>,
    /// When the next connection's slots are made.
    prepares: Option<Instant>,
    /// Why no datagrams come and go, until they begin anew.
    deaf: Option<String>,
}

/// What has happened to a port and its queue pairs.
#[derive(Default)]
pub(super) struct Happened {
    /// Queue pairs that failed, and how.
    pub(super) failed: Vec<(u32, &'static str)>,
    /// Why the port counts as lost from here on.
    pub(super) lost: Option<String>,
    /// It counts as lost, and can be used again.
    pub(super) is_back: bool,
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
        let sent = CompletionQueue::create(context, SENDS as usize)?;
        let received = CompletionQueue::create_with_descriptor(context, RECEIVES as usize)?;
        let depth = Depth { send: SENDS, receive: RECEIVES };
        let number = endpoint.nic.port.port;
        let datagrams = Datagrams::create(&endpoint.domain, [&sent, &received], depth, number, key)?;
        let free = buffers(endpoint, &datagrams)?;
        let (endpoint, packets) = (Arc::clone(endpoint), Arc::clone(packets));
        let _ = endpoint.domain.context().events()?;
        // What has happened to it since is told.
        let (now, down) = (Some(Ok(endpoint.opened)), None);
        Ok(Self {
            endpoint,
            packets,
            datagrams,
            sent,
            received,
            free,
            class,
            now,
            down,
            is_lost: false,
            addresses: BTreeMap::new(),
            prepares: None,
            deaf: None,
        })
    }

    pub(super) fn number(&self) -> u32 {
        self.datagrams.number()
    }

    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// What to wait for: datagrams, and the device's events.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.received.descriptor().into_iter().chain([self.endpoint.domain.context().descriptor()])
    }

    /// What the port is like.
    ///
    /// # Errors
    /// Why it can't be used, in words.
    pub(super) fn now(&mut self) -> Result<Now, String> {
        let endpoint = &self.endpoint;
        self.now.get_or_insert_with(|| endpoint.now().map_err(|error| chain(&error))).clone()
    }

    /// Makes the next connection's slots, and sends a datagram to itself. What is missing then is made, and what is wrong told, when a peer
    /// is to be spoken to.
    pub(super) fn rehearse(&mut self, port: usize, bytes: &[u8]) {
        let _ = self.packets.prepare();
        let (gid, number, key) = (self.endpoint.nic.gid, self.number(), self.datagrams.key());
        let _ = self.send(&Route { port, gid, number, key }, bytes);
    }

    /// The next connection's slots were taken. To make them anew has time until this one stands.
    pub(super) fn prepare_later(&mut self) {
        self.prepares = Some(Instant::now() + LATER);
    }

    /// Has a peer's address at hand for when it is to be spoken to.
    ///
    /// # Errors
    /// Why there is none now.
    pub(super) fn look_up(&mut self, route: &Route) -> Result<(), String> {
        self.address(route).map(drop)
    }

    /// Good until something is told of the port: the GID's row may move then, and what can't leave is the end of the queue pair (rxe).
    fn address(&mut self, route: &Route) -> Result<Arc<Address>, String> {
        let now = self.now()?;
        if let Some(address) = self.addresses.get(&route.gid) {
            return Ok(Arc::clone(address));
        }
        let path = Path {
            port: self.endpoint.nic.port.port,
            local_gid_index: now.gid_index,
            remote_gid: route.gid,
            traffic_class: self.class.traffic_class,
            service_level: self.class.service_level,
        };
        let address = Address::create(&self.endpoint.domain, path).map_err(|error| chain(&error))?;
        if self.addresses.len() == ADDRESSES {
            self.addresses.pop_first();
        }
        self.addresses.insert(route.gid, Arc::clone(&address));
        Ok(address)
    }

    fn forget(&mut self) {
        self.now = None;
        self.addresses.clear();
    }

    /// Something went wrong: what the port is like is not known any more.
    pub(super) fn suspect(&mut self, now: Instant) {
        self.forget();
        let since = self.down.map_or(now, |(since, _)| since);
        self.down = Some((since, now));
    }

    /// It can't be used: it is looked at until it can, or counts as lost.
    pub(super) fn wait_for(&mut self, now: Instant) {
        if !self.is_lost {
            self.down.get_or_insert((now, now));
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// Why it was not sent.
    pub(super) fn send(&mut self, route: &Route, bytes: &[u8]) -> Result<(), String> {
        let address = self.address(route)?;
        self.take_sent();
        self.begin_anew()?;
        let all_on_their_way = || "all of the last are still on their way".to_owned();
        let mut buffer = self.free.pop().ok_or_else(all_on_their_way)?;
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let posted = self.datagrams.post_send(buffer, bytes.len(), &address, route.number, route.key);
        posted.map(drop).map_err(|rejected| {
            self.free.push(rejected.buffer);
            chain(&*rejected.error)
        })
    }

    /// The datagrams that have come since. Asks to be told of the next where there is none, or where it `must`: to ask is a call of the kernel.
    pub(super) fn hear(&mut self, must: bool) -> Vec<Vec<u8>> {
        if !must {
            let heard = self.take_received();
            if !heard.is_empty() {
                return heard;
            }
        }
        // What comes after this is told.
        let _ = self.received.arm();
        self.take_received()
    }

    fn take_received(&mut self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        while let Ok(Some(completion)) = self.received.poll() {
            match completion.result {
                Err(error) => self.fail(error.to_string()),
                Ok(end) => {
                    let bytes = completion.buffer.as_slice().get(DATAGRAM_OFFSET..end);
                    heard.extend(bytes.map(<[u8]>::to_vec));
                    if let Err(rejected) = self.datagrams.post_receive(completion.buffer) {
                        self.fail(chain(&*rejected.error));
                    }
                }
            }
        }
        heard
    }

    /// Takes the buffers of datagrams that have left.
    fn take_sent(&mut self) {
        while let Ok(Some(completion)) = self.sent.poll() {
            match completion.result {
                Err(error) => self.fail(error.to_string()),
                Ok(_) => self.free.push(completion.buffer),
            }
        }
    }

    /// Datagrams fail by themselves only where the queue pair does, and with it all that is posted.
    fn fail(&mut self, why: String) {
        self.deaf.get_or_insert(why);
    }

    /// Has datagrams come and go again after a failure.
    fn begin_anew(&mut self) -> Result<(), String> {
        if self.deaf.is_none() {
            return Ok(());
        }
        self.free.clear();
        let free = self.datagrams.restart().and_then(|()| buffers(&self.endpoint, &self.datagrams));
        match free {
            Ok(free) => {
                (self.free, self.deaf) = (free, None);
                Ok(())
            }
            Err(error) => Err(chain(&error)),
        }
    }

    /// Looks at what the device told.
    pub(super) fn look(&mut self, now: Instant) -> Happened {
        let mut happened = Happened::default();
        while let Some(event) = self.endpoint.domain.context().next_event() {
            match event {
                Event::QueuePair(number, how) => happened.failed.push((number, how)),
                Event::DeviceFailed => {
                    self.is_lost = true;
                    let device = &self.endpoint.nic.port.device;
                    happened.lost = Some(format!("{device} failed: see the kernel's log"));
                    return happened;
                }
                Event::Port(port) if port == self.endpoint.nic.port.port => self.suspect(now),
                _ => {}
            }
        }
        self.take_sent();
        if self.deaf.is_some() {
            self.suspect(now);
        }
        self.watch(now, &mut happened);
        if self.prepares.is_some_and(|due| now >= due) {
            self.prepares = None;
            // What is missing is made, and what is wrong told, when it is needed.
            let _ = self.packets.prepare();
        }
        happened
    }

    /// Looks at a port of which something was told.
    fn watch(&mut self, now: Instant, happened: &mut Happened) {
        let Some((since, next)) = self.down.filter(|(_, next)| now >= *next) else { return };
        self.forget();
        match self.now().and_then(|_| self.begin_anew()) {
            Ok(()) => {
                self.down = None;
                happened.is_back = self.is_lost;
            }
            // The next event tells when to look again.
            Err(_) if self.is_lost => self.down = None,
            Err(_) if now.saturating_duration_since(since) < GRACE => {
                self.down = Some((since, next.max(now) + LOOK));
            }
            Err(why) => {
                (self.down, self.is_lost) = (None, true);
                happened.lost = Some(format!("{why} (for {} s)", GRACE.as_secs()));
            }
        }
    }

    /// When to look again, if nothing is told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.down.map(|(_, next)| next).into_iter().chain(self.prepares).min()
    }
}

/// Posts a buffer for each datagram that may come; those for datagrams to send.
fn buffers(endpoint: &Endpoint, datagrams: &Datagrams) -> roce_verbs::Result<Vec<Buffer>> {
    for _ in 0..RECEIVES {
        datagrams.post_receive(Buffer::register(&endpoint.domain, DATAGRAM_OFFSET + words::MOST)?)?;
    }
    (0..SENDS).map(|_| Buffer::register(&endpoint.domain, words::MOST)).collect()
}
