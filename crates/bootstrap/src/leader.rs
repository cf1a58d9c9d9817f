//! The leader of a node: one thread that owns its sockets and does what the [`Core`] says.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, rlim_t};
use nix::sys::signal::SigSet;

use crate::bootstrap::{LATE, MOST_BYTES};
use crate::calls::Search;
use crate::core::{Core, Fault, FaultKind, Layout, Limits, Link, Output, Way};
use crate::counters::Counters;
use crate::discovery::Identity;
use crate::handshake::{self, Call, Caller, Keys, Listener, Step};
use crate::local;
use crate::message::{BetweenLeaders, FromMember, OVERHEAD, ToMember};
use crate::options::Options;
use crate::process::{self, State};
use crate::resolve::NodeAddresses;
use crate::secret::Secret;
use crate::stream::{Found, Stream};
use crate::table;
use crate::tcp;

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

struct Resolver {
    answers: mpsc::Receiver<(usize, Result<Vec<IpAddr>, String>)>,
    sender: mpsc::Sender<(usize, Result<Vec<IpAddr>, String>)>,
    /// A byte comes for each answer.
    bell: UnixStream,
    ring: UnixStream,
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

    /// After a fault while ranks join, neighbours that come late are told of it, rather than left to wait for this node.
    fn linger_end(&self) -> Option<Duration> {
        let fault = self.core.fault().filter(|fault| fault.kind != FaultKind::Missing);
        let unmet = self.network.is_some() && self.core.number() == 0;
        fault.filter(|_| unmet).map(|_| self.failed + LINGER)
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

    // --- connections ---

    fn add(&mut self, stream: Stream, role: Role) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let flags = EpollFlags::EPOLLIN;
        // Without it the connection would be forgotten; then the other end sees it close.
        if self.epoll.add(&stream, EpollEvent::new(flags, id)).is_ok() {
            self.connections.insert(id, Connection { stream, role, asks: false });
        }
        id
    }

    fn remove(&mut self, id: u64) -> Option<Role> {
        for strangers in &mut self.strangers {
            strangers.remove(&id);
        }
        // Closing takes it out of the epoll set.
        self.connections.remove(&id).map(|connection| connection.role)
    }

    /// A stranger comes; too many are not kept.
    fn add_stranger(&mut self, stream: Stream, role: Role, kind: usize) {
        // Of this node's own ranks many may come at the same time.
        let most = self.most_strangers + if kind == 0 { self.layout.local_size() as usize } else { 0 };
        if self.strangers[kind].len() >= most
            && let Some((&oldest, _)) = self.strangers[kind].first_key_value()
        {
            self.refused += 1;
            self.remove(oldest);
        }
        let now = self.now();
        let id = self.add(stream, role);
        self.strangers[kind].insert(id, now);
    }

    fn accept_local(&mut self) {
        for _ in 0..MOST_STRANGERS {
            match self.local.as_ref().map(UnixListener::accept) {
                None => return,
                Some(Ok((stream, _))) => {
                    if let Ok(process) = local::trust(&stream) {
                        self.add_stranger(Stream::new(stream.into()), Role::Local(process), 0);
                    }
                }
                Some(Err(error)) if self.may_accept_after(&error) => {}
                Some(Err(_)) => return,
            }
        }
    }

    fn accept_network(&mut self) {
        for _ in 0..MOST_STRANGERS {
            match self.network.as_ref().map(TcpListener::accept) {
                None => return,
                Some(Ok((stream, _))) => {
                    if stream.set_nodelay(true).is_ok() {
                        self.add_stranger(Stream::new(stream.into()), Role::Network(None), 1);
                    }
                }
                Some(Err(error)) if self.may_accept_after(&error) => {}
                Some(Err(_)) => return,
            }
        }
    }

    /// Whether the next caller can be taken. Where there are no more descriptors, the oldest stranger is turned away for it.
    fn may_accept_after(&mut self, error: &std::io::Error) -> bool {
        let full = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
        );
        if !full {
            // Or the caller has gone already.
            return error.kind() != ErrorKind::WouldBlock;
        }
        let oldest = self.strangers.iter().filter_map(|kind| kind.first_key_value()).min();
        if let Some((&oldest, _)) = oldest {
            self.turn_away(oldest);
            return true;
        }
        let text = format!("its leader can't take another connection: {error}; raise its limits (ulimit -n)");
        self.core.give_up(self.fault(FaultKind::Lost, text));
        // Otherwise whoever waits there keeps this thread busy.
        (self.local, self.network) = (None, None);
        false
    }

    /// Something happened on a connection.
    fn serve(&mut self, id: u64, events: EpollFlags, buffer: &mut [u8]) {
        if events.contains(EpollFlags::EPOLLOUT) && !self.flush(id) {
            return;
        }
        while self.read(id, buffer) {}
    }

    /// Reads once. Whether to read on: somebody has just proven who he is, and may have said more.
    fn read(&mut self, id: u64, buffer: &mut [u8]) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let most = match &connection.role {
            // Of a stranger no more is kept than it has to say.
            Role::Local(_) => local::HELLO,
            Role::Network(None) => handshake::HELLO,
            Role::Network(Some(_)) => handshake::LAST,
            Role::Calling { .. } => handshake::ANSWER,
            Role::Member { .. } | Role::Peer { .. } => READ,
        };
        let most = most.saturating_sub(if most < READ { connection.stream.inbox().len() } else { 0 });
        match connection.stream.read(&mut buffer[..most]) {
            Found::Nothing => return false,
            Found::End(why) => {
                self.closed(id, &why);
                return false;
            }
            Found::Bytes(_) => self.listen_to(id),
        }
        let role = self.connections.get(&id).map(|connection| &connection.role);
        most < READ && matches!(role, Some(Role::Member { .. } | Role::Peer { .. }))
    }

    /// Takes what has come whole.
    fn listen_to(&mut self, id: u64) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let went_on = match &mut connection.role {
                Role::Local(process) => match connection.stream.inbox().take() {
                    Some(hello) => {
                        let process = *process;
                        self.admit_member(id, process, &hello)
                    }
                    None => false,
                },
                Role::Network(listener @ None) => match connection.stream.inbox().take() {
                    Some(hello) => {
                        let nonce = handshake::nonce();
                        let (node, rank, step) =
                            (self.identity.node_index, self.identity.rank, step(&self.identity));
                        let new = nonce.and_then(|nonce| Listener::new(step, node, rank, nonce, &hello));
                        let answer = new.as_ref().map(|new| new.answer(&self.secret));
                        *listener = new.map(Box::new);
                        match answer {
                            Some(answer) => self.send(id, &answer),
                            None => self.turn_away(id),
                        }
                        false
                    }
                    None => false,
                },
                Role::Network(Some(listener)) => match connection.stream.inbox().take() {
                    Some(last) => {
                        let keys = listener.check(&self.secret, &last);
                        let call = listener.call();
                        self.admit_caller(id, call, keys)
                    }
                    None => false,
                },
                Role::Calling { round, caller } => match connection.stream.inbox().take() {
                    Some(answer) => {
                        let (round, checked) = (*round, caller.check(&self.secret, &answer));
                        self.found(id, round, checked)
                    }
                    None => false,
                },
                Role::Member { local, .. } => {
                    let local = *local;
                    match connection.stream.inbox().frame(MOST_BYTES + OVERHEAD, 0) {
                        Ok(None) => false,
                        Ok(Some(payload)) => self.hear_member(local, &payload),
                        Err(length) => {
                            connection.stream.deafen();
                            self.core.local_failed(local, &format!("it sent {length} bytes at once"));
                            false
                        }
                    }
                }
                Role::Peer { link, keys, heard, unconfirmed, .. } => {
                    let link = *link;
                    *heard = self.start.elapsed();
                    let most = (self.identity.size as usize + self.identity.nodes.len())
                        .saturating_mul(MOST_BYTES + 16)
                        .saturating_add(OVERHEAD);
                    match connection.stream.inbox().frame(most, crate::frame::TAG) {
                        Ok(None) => false,
                        Ok(Some(frame)) => {
                            let opened = frame
                                .split_last_chunk()
                                .filter(|(payload, tag)| keys.receive.open(payload, tag));
                            let message = opened.map(|(payload, _)| BetweenLeaders::decode(payload));
                            if message.is_none() {
                                connection.stream.deafen();
                            } else if let Some(rank) = unconfirmed.take() {
                                self.early.remove(&link);
                                // It is told but once, for whoever is found ends the search.
                                let _ = self.core.peer_joined(link, rank);
                            }
                            self.hear_peer(link, message)
                        }
                        Err(length) => {
                            connection.stream.deafen();
                            let why = format!("a frame of {length} bytes is longer than the {most} allowed");
                            self.core.peer_failed(link, &why);
                            false
                        }
                    }
                }
            };
            if !went_on {
                return;
            }
        }
    }

    fn hear_member(&mut self, local: u32, payload: &[u8]) -> bool {
        let now = self.now();
        match FromMember::decode(payload) {
            Ok(message) => self.core.local_message(now, local, message),
            Err(what) => {
                self.core
                    .local_failed(local, &format!("its message could not be read: {what}; {SAME_BUILD}"));
            }
        }
        true
    }

    fn hear_peer(&mut self, link: Link, message: Option<Result<BetweenLeaders, &'static str>>) -> bool {
        let now = self.now();
        match message {
            Some(Ok(message)) => self.core.peer_message(now, link, message),
            Some(Err(what)) => {
                self.core.peer_failed(link, &format!("its message could not be read: {what}; {SAME_BUILD}"));
            }
            None => {
                let why = "a frame is not authentic: it was changed, repeated or made up on the way";
                self.core.peer_failed(link, why);
                return false;
            }
        }
        true
    }

    /// A connection is over.
    fn closed(&mut self, id: u64, why: &str) {
        match self.remove(id) {
            None | Some(Role::Local(_)) => {}
            Some(Role::Network(_)) => self.refused += 1,
            Some(Role::Member { local, .. }) => self.core.local_closed(local, why),
            Some(Role::Peer { link, unconfirmed: Some(_), .. }) => {
                self.peers.remove(&link);
                self.counters.connections_made -= 1;
                let now = self.now();
                self.searches[link.round].again(now);
                self.search(now, link.round);
            }
            Some(Role::Peer { link, .. }) => self.core.peer_closed(link, why),
            Some(Role::Calling { round, .. }) => {
                let now = self.now();
                self.searches[round].failed(id, false, why.trim_start_matches("the connection broke: "));
                self.search(now, round);
            }
        }
    }

    fn turn_away(&mut self, id: u64) {
        self.refused += 1;
        self.remove(id);
    }

    // --- members ---

    fn admit_member(&mut self, id: u64, process: i32, hello: &[u8; local::HELLO]) -> bool {
        let Some((rank, local)) = local::check(&self.identity, &self.secret, hello) else {
            self.remove(id);
            return false;
        };
        if let Err(why) = self.core.local_joined(local, rank) {
            let node = self.identity.node_index;
            let text = format!("this process can't be rank {rank}: {why}");
            let fault = Fault { kind: FaultKind::Missing, rank: Some(rank), node, text };
            self.tell(id, &ToMember::Fault(fault), None);
            self.remove(id);
            return false;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        connection.role = Role::Member { local, process };
        self.members.insert(local, id);
        self.strangers[0].remove(&id);
        if let Some(fault) = self.core.fault().cloned() {
            self.tell(id, &ToMember::Fault(fault), None);
        }
        if self.members.len() == self.layout.local_size() as usize {
            self.local = None;
        }
        true
    }

    fn tell(&mut self, id: u64, message: &ToMember, descriptor: Option<Rc<OwnedFd>>) {
        self.queue(id, plain_frame(&message.encode()), descriptor);
        self.flush(id);
    }

    fn tell_all(&mut self, message: &ToMember, descriptor: Option<&Rc<OwnedFd>>) {
        let frame = plain_frame(&message.encode());
        let mut members: Vec<u64> = self.members.values().copied().collect();
        // This process's own rank last: the process may end as soon as it knows.
        members.sort_by_key(|id| *id == self.own);
        for id in members {
            self.queue(id, Rc::clone(&frame), descriptor.cloned());
            self.flush(id);
        }
    }

    // --- neighbours ---

    fn meet_neighbours(&mut self) {
        let (node, name) = (self.identity.node_index, self.identity.node_name().to_owned());
        let ports = self.ports(node);
        match tcp::listen(&ports) {
            Ok(listener) => {
                let added = self.epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, NETWORK));
                if added.is_ok() {
                    self.network = Some(listener);
                }
            }
            Err(error) => {
                let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                let text = format!(
                    "{name} found no free port among {ports}: every one is in use, or the range is not allowed there ({error})"
                );
                // The neighbours are not told: there is no way to.
                self.core.give_up(Fault { kind: FaultKind::Missing, rank: None, node, text });
                return;
            }
        }
        let Ok((bell, ring)) = UnixStream::pair() else { return };
        if bell.set_nonblocking(true).is_err()
            || self.epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, RESOLVED)).is_err()
        {
            return;
        }
        let (sender, answers) = mpsc::channel();
        let resolver = Resolver { answers, sender, bell, ring };
        for round in 0..self.layout.rounds() {
            let node = self.layout.neighbour(Link { way: Way::Behind, round });
            let name = self.layout.node_name(node).to_owned();
            let mut search = Search::new(self.ports(node));
            match self.addresses.known(&name) {
                Some(addresses) => search.resolved(Ok(addresses)),
                None => resolver.ask(round, name, self.addresses.clone()),
            }
            self.searches.push(search);
        }
        self.resolver = Some(resolver);
        let now = self.now();
        for round in 0..self.searches.len() {
            self.search(now, round);
        }
    }

    fn ports(&self, node: u32) -> Vec<u16> {
        let (job, step) = self.identity.job_and_step();
        self.secret.candidate_ports(job, step, node, &self.options.ports)
    }

    fn take_addresses(&mut self) {
        let Some(resolver) = &mut self.resolver else { return };
        let mut bytes = [0; 64];
        let _ = std::io::Read::read(&mut resolver.bell, &mut bytes);
        let answers: Vec<_> = resolver.answers.try_iter().collect();
        let now = self.now();
        for (round, addresses) in answers {
            self.searches[round].resolved(addresses);
            self.search(now, round);
        }
    }

    /// Calls whom the search for a round's neighbour names.
    fn search(&mut self, now: Duration, round: usize) {
        if self.core.fault().is_some() {
            return;
        }
        while let Some(target) = self.searches[round].next(now) {
            match self.call(round, target) {
                Ok(id) => {
                    self.searches[round].calling(now, id, target);
                    self.flush(id);
                }
                Err(why) => self.searches[round].note(target, false, &why),
            }
        }
    }

    fn call(&mut self, round: usize, target: SocketAddr) -> Result<u64, String> {
        let nonce = handshake::nonce().ok_or("no random bytes from the operating system")?;
        let socket = tcp::call(target).map_err(|error| describe(&error))?;
        let caller = Caller::new(
            Call {
                step: step(&self.identity),
                caller_node: self.identity.node_index,
                listener_node: self.layout.neighbour(Link { way: Way::Behind, round }),
                round: u32::try_from(round).unwrap_or(u32::MAX),
                caller_rank: self.identity.rank,
            },
            nonce,
        );
        let mut stream = Stream::new(socket);
        stream.queue(Rc::from(&caller.hello()[..]), None);
        Ok(self.add(stream, Role::Calling { round, caller: Box::new(caller) }))
    }

    /// The one called has answered.
    fn found(&mut self, id: u64, round: usize, checked: Option<(u32, [u8; handshake::LAST], Keys)>) -> bool {
        let itself =
            self.connections.get(&id).is_some_and(|found| tcp::is_connected_to_itself(&found.stream));
        let Some((rank, last, keys)) = checked.filter(|_| !itself) else {
            self.remove(id);
            let now = self.now();
            let why = "whoever answered does not know this step's secret";
            self.searches[round].failed(id, !itself, why);
            self.search(now, round);
            return false;
        };
        for other in self.searches[round].found(id) {
            self.remove(other);
        }
        self.queue(id, Rc::from(&last[..]), None);
        self.counters.connections_made += 1;
        self.join_peer(id, Link { way: Way::Behind, round }, rank, keys)
    }

    /// A caller has proven itself, or not.
    fn admit_caller(&mut self, id: u64, call: Call, keys: Option<Keys>) -> bool {
        let round = call.round as usize;
        let link = Link { way: Way::Before, round };
        let known = round < self.layout.rounds() && self.layout.neighbour(link) == call.caller_node;
        let Some(keys) = keys.filter(|_| known && !self.peers.contains_key(&link)) else {
            self.turn_away(id);
            return false;
        };
        self.counters.connections_accepted += 1;
        self.strangers[1].remove(&id);
        self.join_peer(id, link, call.caller_rank, keys)
    }

    fn join_peer(&mut self, id: u64, link: Link, rank: u32, keys: Keys) -> bool {
        let heard = self.now();
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        // The kernel's own patience would be a quarter of an hour. Heartbeats see to the rest.
        let _ = tcp::limit_silence(&connection.stream, self.options.silence);
        let unconfirmed = (link.way == Way::Behind).then_some(rank);
        connection.role = Role::Peer { link, keys: Box::new(keys), heard, unconfirmed, unacknowledged: None };
        self.peers.insert(link, id);
        if unconfirmed.is_none() {
            if self.core.peer_joined(link, rank).is_err() {
                self.remove(id);
                return false;
            }
            // So that the caller knows that it was let in.
            self.send_peer(link, &BetweenLeaders::Heartbeat);
        }
        for message in self.early.remove(&link).unwrap_or_default() {
            self.send_peer(link, &message);
        }
        if self.peers.len() == 2 * self.layout.rounds() {
            // Everybody is here.
            self.network = None;
            self.resolver = None;
            let strangers: Vec<u64> = self.strangers[1].keys().copied().collect();
            for id in strangers {
                self.remove(id);
            }
        }
        self.flush(id)
    }

    fn send_peer(&mut self, link: Link, message: &BetweenLeaders) {
        let Some(&id) = self.peers.get(&link) else {
            self.early.entry(link).or_default().push(message.clone());
            return;
        };
        let Some(Connection { role: Role::Peer { keys, unconfirmed, .. }, .. }) =
            self.connections.get_mut(&id)
        else {
            return;
        };
        if unconfirmed.is_some() && *message != BetweenLeaders::Heartbeat {
            self.early.entry(link).or_default().push(message.clone());
        }
        match keys.send.seal(&message.encode()) {
            Some(frame) => {
                self.counters.messages += 1;
                self.counters.bytes += frame.len() as u64;
                self.queue(id, frame.into(), None);
                self.flush(id);
            }
            None => self.core.peer_failed(link, "what it should get is longer than 4 GiB"),
        }
    }

    // --- sending ---

    fn send(&mut self, id: u64, bytes: &[u8]) {
        self.queue(id, Rc::from(bytes), None);
        self.flush(id);
    }

    fn queue(&mut self, id: u64, bytes: Rc<[u8]>, descriptor: Option<Rc<OwnedFd>>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stream.queue(bytes, descriptor);
        }
    }

    /// Sends what can be sent, and asks the kernel to say when there can be more. Whether the connection is still there.
    fn flush(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        if let Err(error) = connection.stream.flush() {
            // What the other end said before it closed may still be read, and says more than this error.
            if matches!(connection.role, Role::Member { .. } | Role::Peer { .. }) {
                return true;
            }
            self.closed(id, &describe(&error));
            return false;
        }
        let waits = connection.stream.is_waiting();
        if waits != connection.asks {
            connection.asks = waits;
            let flags = if waits { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            let _ = self.epoll.modify(&connection.stream, &mut EpollEvent::new(flags, id));
        }
        true
    }

    fn do_outputs(&mut self) {
        while let Some(output) = self.core.output() {
            match output {
                Output::Send { link, message } => {
                    if matches!(message, BetweenLeaders::Gathered { .. }) {
                        self.counters.rounds += 1;
                    }
                    self.send_peer(link, &message);
                }
                Output::Deliver { number, table } => {
                    let leader = self.identity.rank;
                    let sealed = table.as_ref().map(|table| table::seal(table)).transpose();
                    match sealed {
                        Ok(file) => {
                            let file = file.map(Rc::new);
                            let (table, counters) = (file.is_some(), self.counters);
                            let done = ToMember::Done { number, leader, table, counters };
                            self.tell_all(&done, file.as_ref());
                        }
                        Err(error) => {
                            let text = format!("its leader could not make the table: {}", describe(&error));
                            self.core.give_up(self.fault(FaultKind::Lost, text));
                        }
                    }
                }
                Output::Fail { fault, except } => {
                    self.failed = self.now();
                    // First the neighbours: this process may end as soon as its own rank knows.
                    let links: Vec<Link> = self.peers.keys().copied().collect();
                    for link in links.into_iter().filter(|link| Some(*link) != except) {
                        self.send_peer(link, &BetweenLeaders::Fault(fault.clone()));
                    }
                    self.tell_all(&ToMember::Fault(fault), None);
                }
                Output::Finished => {}
            }
        }
    }

    fn fault(&self, kind: FaultKind, text: String) -> Fault {
        Fault { kind, rank: Some(self.identity.rank), node: self.identity.node_index, text }
    }

    // --- time ---

    /// When there is something to do, unless something comes before.
    fn wake(&self) -> Option<Duration> {
        let searching = if self.core.fault().is_none() { &self.searches[..] } else { &[] };
        let searches = searching.iter().filter_map(Search::wake);
        let strangers = self.strangers.iter().filter_map(|strangers| strangers.first_key_value());
        let proofs = strangers.map(|(_, came)| *came + self.options.handshake);
        let beat = (!self.peers.is_empty()).then_some(self.beat);
        let look = self.core.awaited().next().map(|_| self.look);
        let timers = searches.chain(proofs).chain(self.core.deadline()).chain(beat);
        let linger = self.linger_end().filter(|end| *end > self.now());
        timers.chain(look).chain(linger).min()
    }

    /// Does what is due.
    fn be_on_time(&mut self) {
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
    fn beat(&mut self, now: Duration) {
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
    fn look_for_stopped(&mut self, now: Duration) {
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

    // --- the end ---

    /// Sends what is left, and lets the neighbours take it: closing at once could take it back.
    fn end(&mut self, buffer: &mut [u8]) {
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

const SAME_BUILD: &str = "do all ranks run the same build?";

impl Resolver {
    /// Asks for a name, as long as it takes: where the resolver hangs, it holds up one thread that has nothing but the name.
    fn ask(&self, round: usize, name: String, addresses: NodeAddresses) {
        let sender = self.sender.clone();
        let Ok(ring) = self.ring.try_clone() else { return };
        // Where there is no thread to ask in, the search says that nobody answered.
        let _ = thread::Builder::new().name("roce-resolve".to_owned()).spawn(move || {
            let _ = SigSet::all().thread_set_mask();
            let mut pause = Duration::from_millis(100);
            loop {
                let found = addresses.of(&name);
                let done = found.is_ok();
                // After the join nobody listens any more.
                if sender.send((round, found)).is_err()
                    || std::io::Write::write(&mut &ring, &[0]).is_err()
                    || done
                {
                    return;
                }
                // A name may become known while nodes boot.
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        });
    }
}

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
