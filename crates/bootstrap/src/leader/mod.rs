//! The leader of a node: one thread that owns its sockets and does what the [`Core`] says.

mod connections;
mod end;
mod members;
mod neighbours;
mod resolver;
mod sending;
mod time;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, rlim_t};
use nix::sys::signal::SigSet;

use self::resolver::Resolver;
use crate::bootstrap::LATE;
use crate::calls::Search;
use crate::core::{Core, Fault, FaultKind, Layout, Limits, Link};
use crate::counters::Counters;
use crate::discovery::Identity;
use crate::handshake::{Caller, Keys, Listener, Step};
use crate::message::BetweenLeaders;
use crate::options::Options;
use crate::resolve::NodeAddresses;
use crate::secret::Secret;
use crate::stream::Stream;

/// Strangers of one kind at the same time; for one more the oldest is turned away.
const MOST_STRANGERS: usize = 512;
/// How often neighbours hear from this node.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A neighbour's kernel that acknowledges nothing for so long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_millis(1000);
/// How often it is looked whether an awaited rank is stopped.
const LOOK: Duration = Duration::from_millis(500);
/// How long a leader stays after a fault, for neighbours that come late; unless its process ends before.
const LINGER: Duration = Duration::from_secs(1);
/// How long this process's own rank hears nothing of a fault then: the process may end as soon as it knows.
const HOLD: Duration = Duration::from_millis(250);
/// How long the end waits for what is on its way: after a fault, and after all have left.
const LAST_WORDS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Bytes per read.
const READ: usize = 64 * 1024;

const LOCAL: u64 = 0;
const NETWORK: u64 = 1;
const RESOLVED: u64 = 2;
const FIRST: u64 = 3;

/// Starts the thread. `own` is its connection to this process's rank, which joins as all others do.
pub(crate) fn start(
    identity: Identity,
    secret: Secret,
    options: Options,
    listener: UnixListener,
    own: UnixStream,
) -> std::io::Result<JoinHandle<Option<Fault>>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    listener.set_nonblocking(true)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LOCAL))?;
    thread::Builder::new().name("roce-leader".to_owned()).spawn(move || {
        // Signals are the program's business: its own threads take them.
        let _ = SigSet::all().thread_set_mask();
        Leader::new(identity, secret, options, epoll, listener).run(own)
    })
}

struct Leader {
    identity: Identity,
    secret: Secret,
    options: Options,
    addresses: NodeAddresses,
    core: Core,
    layout: Layout,
    start: Instant,
    epoll: Epoll,
    local: Option<UnixListener>,
    network: Option<TcpListener>,
    next_id: u64,
    connections: BTreeMap<u64, Connection>,
    /// How many may not have proven themselves: half of this process's descriptors at most are for them.
    most_strangers: usize,
    /// Who has not proven itself, by age, with the time of its coming; local ones and those from the network.
    strangers: [BTreeMap<u64, Duration>; 2],
    members: BTreeMap<u32, u64>,
    peers: BTreeMap<Link, u64>,
    /// For neighbours that are not connected yet, or have not said anything.
    early: BTreeMap<Link, Vec<BetweenLeaders>>,
    searches: Vec<Search>,
    resolver: Option<Resolver>,
    /// Callers that did not prove themselves.
    refused: usize,
    /// Connections of ranks.
    own: u64,
    counters: Counters,
    /// When the fault came.
    failed: Duration,
    /// Does this process's own rank know of it?
    own_told: bool,
    beat: Duration,
    look: Duration,
    stopped: BTreeMap<u32, Duration>,
}

struct Connection {
    stream: Stream,
    role: Role,
    /// Is the kernel asked to say when more can be sent?
    asks: bool,
}

enum Role {
    /// A process of this user on this node.
    Local(i32),
    Member {
        local: u32,
        process: i32,
    },
    /// Somebody from the network, and what was answered to its hello.
    Network(Option<Box<Listener>>),
    /// A call of ours.
    Calling {
        round: usize,
        caller: Box<Caller>,
    },
    Peer {
        link: Link,
        keys: Box<Keys>,
        heard: Duration,
        /// Who leads there; told to the core once that leader has said something, since it may yet turn this caller away as
        /// one of too many strangers.
        unconfirmed: Option<u32>,
        /// Since when something that was sent waits to be acknowledged.
        unacknowledged: Option<Duration>,
    },
}

impl Leader {
    fn new(identity: Identity, secret: Secret, options: Options, epoll: Epoll, local: UnixListener) -> Self {
        let names: Vec<String> = identity.nodes.iter().map(|node| node.name.clone()).collect();
        let here = identity.nodes.get(identity.node_index as usize).map_or(0, |node| node.tasks);
        let layout = Layout::new(identity.node_index, names.into(), here, identity.size);
        let limits = Limits { join: options.join, collective: options.collective };
        let core = Core::new(layout.clone(), limits);
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(rlim_t::MAX, |(soft, _)| soft);
        Self {
            identity,
            secret,
            // Whoever starts a leader has read them.
            addresses: options.addresses.clone().unwrap_or_default(),
            options,
            core,
            layout,
            start: Instant::now(),
            epoll,
            local: Some(local),
            network: None,
            next_id: FIRST,
            connections: BTreeMap::new(),
            most_strangers: usize::try_from(descriptors / 2)
                .map_or(MOST_STRANGERS, |half| half.min(MOST_STRANGERS)),
            strangers: [BTreeMap::new(), BTreeMap::new()],
            members: BTreeMap::new(),
            peers: BTreeMap::new(),
            early: BTreeMap::new(),
            searches: Vec::new(),
            resolver: None,
            refused: 0,
            own: FIRST,
            counters: Counters::default(),
            failed: Duration::ZERO,
            own_told: false,
            beat: HEARTBEAT,
            look: LOOK,
            stopped: BTreeMap::new(),
        }
    }

    fn run(mut self, own: UnixStream) -> Option<Fault> {
        let own: OwnedFd = own.into();
        let process = i32::try_from(std::process::id()).unwrap_or(0);
        self.own = self.add(Stream::new(own), Role::Local(process));
        if self.layout.nodes() > 1 {
            self.meet_neighbours();
        }
        let mut events = vec![EpollEvent::empty(); 64];
        let mut buffer = vec![0; READ];
        while self.goes_on() {
            let wake = self.wake();
            // Rounded up to milliseconds: a timeout that is too short is a spin.
            let timeout = wake.map(|wake| wake.saturating_sub(self.now()) + Duration::from_micros(999));
            let timeout = timeout
                .map_or(EpollTimeout::NONE, |left| EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX));
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => return None,
            };
            self.forgive(wake);
            for event in &events[..count] {
                match event.data() {
                    LOCAL => self.accept_local(),
                    NETWORK => self.accept_network(),
                    RESOLVED => self.take_addresses(),
                    id => self.serve(id, event.events(), &mut buffer),
                }
            }
            // It may have been stopped in between, too.
            self.forgive(wake);
            self.be_on_time();
            self.do_outputs();
        }
        self.end(&mut buffer);
        self.core.fault().cloned()
    }

    fn goes_on(&self) -> bool {
        if self.core.fault().is_none() {
            return !self.core.finished();
        }
        self.connections.contains_key(&self.own) || self.linger_end().is_some_and(|end| self.now() < end)
    }

    /// After a fault while ranks join, ranks of this node and neighbours that come late are told of it, rather than left to wait
    /// for this node.
    fn linger_end(&self) -> Option<Duration> {
        self.is_awaited().then(|| self.failed + LINGER)
    }

    /// Until when this process's own rank is not told of a fault.
    fn hold_end(&self) -> Option<Duration> {
        (self.is_awaited() && !self.own_told).then(|| self.failed + HOLD)
    }

    /// Has a fault come before everybody had?
    fn is_awaited(&self) -> bool {
        let fault = self.core.fault().is_some_and(|fault| fault.kind != FaultKind::Missing);
        fault && self.core.number() == 0 && (self.network.is_some() || self.local.is_some())
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time in which this process did not run, as while it was stopped with the whole job, is held against nobody.
    fn forgive(&mut self, planned: Option<Duration>) {
        let late = planned.map_or(Duration::ZERO, |planned| self.now().saturating_sub(planned));
        if late > LATE {
            self.start += late;
        }
    }
}

const SAME_BUILD: &str = "do all ranks run the same build?";

fn step(identity: &Identity) -> Step {
    let (job, step) = identity.job_and_step();
    Step { job, step, size: identity.size, nodes: u32::try_from(identity.nodes.len()).unwrap_or(u32::MAX) }
}

/// A frame of a connection within the node, where nobody can change it on the way.
fn plain_frame(payload: &[u8]) -> Rc<[u8]> {
    // The leader's messages to its ranks are short.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length, payload].concat().into()
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => error.to_string(),
    }
}
