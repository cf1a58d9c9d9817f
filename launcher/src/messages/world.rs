//! What all communicators of a rank share: the engine, and the news from the exchange.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use roce_bootstrap::{Bootstrap, Event};
use roce_types::CpuSet;

use crate::error::{Error, Result};
use crate::messages::communicator::Group;
use crate::messages::engine::{Engine, Failure, Operation, Outcome, Received};
use crate::messages::lent::{Lent, LentMut};
use crate::messages::matching::{Context, Wanted};
use crate::messages::watch::Watch;
use crate::transport::{ShortWay, There, Transports};

/// A look at the engine that finds nothing, so many times, before others get the CPU: what else the node runs would keep it for a
/// time slice.
const SPINS: u32 = 1_000_000;
/// But no longer than this, with a look at the clock after so many looks: a few long messages take that long.
const SPIN: Duration = Duration::from_millis(5);
const TICK: u32 = 64;
/// The same where ranks are on other nodes too: a look at the network asks the kernel, and waits are longer.
const FEW: u32 = 200;
/// So many looks at one peer alone, before a receive gets an operation and the engine looks at all.
const MOMENT: u32 = 100;
/// So many of these between two looks at the clock and at the news.
const LOOKS: u32 = 100;
/// A rank that has waited so long looks less often, and leaves the CPU to others.
const PATIENCE: Duration = Duration::from_millis(20);
const NAP: Duration = Duration::from_micros(50);

/// Operations that wait for nobody look at the engine after so many of them, and at the news after so many. Ranks of other nodes may need this
/// one for each of their accesses to its windows, so it looks more often where there are any.
const TICKS: u64 = 64;
const TICKS_FAR: u64 = 16;
const TICKS_NEWS: u64 = 2048;

/// One rank of the job.
pub(crate) struct World {
    pub(crate) rank: u32,
    engine: RefCell<Engine<Transports>>,
    /// By rank.
    short_ways: Box<[ShortWay]>,
    exchange: RefCell<Option<Bootstrap>>,
    /// Every rank's node, for messages.
    nodes: Vec<String>,
    timeout: Cell<Option<Duration>>,
    /// Why there is no job any more.
    over: RefCell<Option<String>>,
    /// Whether there is such a reason, for a quick look.
    is_over: Cell<bool>,
    /// What programs sent without waiting for the end.
    left: RefCell<Vec<(Operation, Box<dyn Any>)>>,
    /// Looks that find nothing before others get the CPU.
    spins: u32,
    /// Looks at one peer alone.
    looks: u32,
    /// [`TICKS`] or [`TICKS_FAR`].
    ticks_between: u64,
    /// No communicator that this rank knows has this context or a higher one.
    next_context: Cell<Context>,
    /// Whose windows are open: also those that programs have dropped without closing them.
    pub(crate) windows: RefCell<BTreeMap<Context, Group>>,
    /// How much was done without waiting for anybody.
    ticks: Cell<u64>,
    /// The collective that this rank is in.
    pub(crate) watch: RefCell<Option<Watch>>,
    /// The rank that is waited for, if it is one.
    pub(crate) awaited: Cell<Option<u32>>,
}

impl World {
    pub(crate) fn new(exchange: Bootstrap, transports: Transports) -> Self {
        let rank = exchange.rank();
        // Where ranks share CPUs, what one waits for takes another one's turn.
        let spins = match exchange.local_ranks().count() {
            local if local > cpus() => 0,
            local if local < exchange.size() as usize => FEW,
            _ => SPINS,
        };
        let has_far = exchange.local_ranks().count() < exchange.size() as usize;
        let ticks_between = if has_far { TICKS_FAR } else { TICKS };
        let nodes = (0..exchange.size()).map(|rank| exchange.node_of(rank).to_owned()).collect();
        Self {
            rank,
            short_ways: transports.short_ways(),
            engine: RefCell::new(Engine::new(rank, transports)),
            exchange: RefCell::new(Some(exchange)),
            nodes,
            timeout: Cell::new(None),
            over: RefCell::new(None),
            is_over: Cell::new(false),
            left: RefCell::default(),
            spins,
            looks: if spins == 0 { 1 } else { MOMENT },
            ticks_between,
            next_context: Cell::new(2),
            windows: RefCell::default(),
            ticks: Cell::new(0),
            watch: RefCell::new(None),
            awaited: Cell::new(None),
        }
    }

    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn node_of(&self, rank: u32) -> &str {
        self.nodes.get(rank as usize).map_or("?", String::as_str)
    }

    /// How long an operation may be waited for.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) {
        self.timeout.set(timeout);
    }

    pub(crate) fn next_context(&self) -> Context {
        self.next_context.get()
    }

    pub(crate) fn set_next_context(&self, context: Context) {
        self.next_context.set(context);
    }

    /// The exchange, as long as this rank has not left it.
    pub(crate) fn with_exchange<T>(&self, act: impl FnOnce(&mut Bootstrap) -> T) -> Option<T> {
        self.exchange.borrow_mut().as_mut().map(act)
    }

    /// Takes it out: nothing can be waited for any more.
    pub(crate) fn take_exchange(&self) -> Option<Bootstrap> {
        self.exchange.borrow_mut().take()
    }

    /// Nobody accesses this rank's memory of a window any more.
    pub(crate) fn close_window(&self, context: Context) {
        self.windows.borrow_mut().remove(&context);
        self.with_engine(|engine| engine.close_window(context));
    }

    pub(crate) fn with_engine<T>(&self, act: impl FnOnce(&mut Engine<Transports>) -> T) -> T {
        act(&mut self.engine.borrow_mut())
    }

    /// Starts to send. `waits` says that the caller will do nothing but wait for the end.
    #[inline]
    pub(crate) fn start_send(
        &self,
        context: Context,
        peer: u32,
        tag: u32,
        memory: Lent,
        waits: bool,
    ) -> Result<Option<Operation>> {
        if self.send_soon(context, peer, tag, memory.bytes()) {
            return Ok(None);
        }
        self.send_later(context, peer, tag, memory, waits)
    }

    /// Sends a short message, if that is possible at once: one call, with its result in a register.
    #[inline]
    pub(crate) fn send_soon(&self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        match self.short_way(peer) {
            ShortWay::Nic => self.send_by_nic(context, peer, tag, bytes),
            ShortWay::Node(place) => self.send_near(context, place, tag, bytes),
            ShortWay::Other => self.send_otherwise(context, peer, tag, bytes),
        }
    }

    #[inline]
    fn short_way(&self, peer: u32) -> ShortWay {
        self.short_ways.get(peer as usize).copied().unwrap_or(ShortWay::Other)
    }

    #[inline(never)]
    fn send_near(&self, context: Context, place: u32, tag: u32, bytes: &[u8]) -> bool {
        !self.is_over.get() && self.engine.borrow_mut().send_near(context, place, tag, bytes)
    }

    #[inline(never)]
    fn send_otherwise(&self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        !self.is_over.get() && self.engine.borrow_mut().send_soon(context, peer, tag, bytes)
    }

    #[inline(never)]
    fn send_by_nic(&self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        if self.is_over.get() {
            return false;
        }
        let is_sent = self.engine.borrow_mut().send_by_nic(context, peer, tag, bytes);
        is_sent || self.send_with_slot(context, peer, tag, bytes)
    }

    /// The same after a look for a slot. Not a part of it, or what is needed here would go through memory there.
    #[cold]
    #[inline(never)]
    fn send_with_slot(&self, context: Context, peer: u32, tag: u32, bytes: &[u8]) -> bool {
        self.with_engine(|engine| {
            engine.find_slot(peer, bytes.len()) && engine.send_by_nic(context, peer, tag, bytes)
        })
    }

    /// Waits a moment for a message that comes next from a peer, which takes no operation: one call, with its result in registers. Its
    /// length.
    #[inline]
    pub(crate) fn receive_short(
        &self,
        context: Context,
        peer: u32,
        tag: u32,
        room: &mut [u8],
    ) -> Option<usize> {
        match self.short_way(peer) {
            ShortWay::Nic => self.receive_by_nic(context, peer, tag, room),
            ShortWay::Node(place) => self.receive_near(context, place, tag, room),
            ShortWay::Other => None,
        }
    }

    #[inline(never)]
    fn receive_near(&self, context: Context, place: u32, tag: u32, room: &mut [u8]) -> Option<usize> {
        if self.is_over.get() {
            return None;
        }
        self.engine.borrow_mut().receive_near(context, place, tag, room, self.looks)
    }

    #[inline(never)]
    fn receive_by_nic(&self, context: Context, peer: u32, tag: u32, room: &mut [u8]) -> Option<usize> {
        if self.is_over.get() {
            return None;
        }
        self.engine.borrow_mut().receive_by_nic(context, peer, tag, room, self.looks)
    }

    /// Starts to send what [`send_soon`](Self::send_soon) has not sent.
    #[inline(never)]
    pub(crate) fn send_later(
        &self,
        context: Context,
        peer: u32,
        tag: u32,
        memory: Lent,
        waits: bool,
    ) -> Result<Option<Operation>> {
        self.check_over()?;
        let started = self.engine.borrow_mut().start_send(context, peer, tag, memory, waits);
        started.map_err(|failure| self.error(&failure, 0))
    }

    /// Waits a moment for a message that comes next from its source, which takes no operation. `None` where it takes one.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "each call and each result in memory lengthens the way of a short message"
    )]
    pub(crate) fn receive_soon(&self, context: Context, wanted: Wanted, room: &mut [u8]) -> Option<Received> {
        self.look_for(context, wanted, room, self.looks)
    }

    /// Takes a message that has come, and comes next from its source, without an operation. `None` where it takes one.
    #[inline]
    pub(crate) fn receive_now(&self, context: Context, wanted: Wanted, room: &mut [u8]) -> Option<Received> {
        self.look_for(context, wanted, room, 1)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as for its callers")]
    fn look_for(&self, context: Context, wanted: Wanted, room: &mut [u8], looks: u32) -> Option<Received> {
        if self.is_over.get() {
            return None;
        }
        self.engine.borrow_mut().receive_soon(context, wanted, room, looks)
    }

    /// Starts to receive.
    pub(crate) fn start_receive(
        &self,
        context: Context,
        wanted: Wanted,
        memory: LentMut,
    ) -> Result<Operation> {
        self.check_over()?;
        Ok(self.engine.borrow_mut().receive(context, wanted, memory))
    }

    /// Writes long memory to that of a peer, as [`Engine::write`] says, and waits until it is there. Whether it was long enough for that.
    pub(crate) fn write(
        &self,
        peer: u32,
        there: There,
        memory: Lent,
        what: &dyn fmt::Display,
    ) -> Result<bool> {
        self.moved(|engine| engine.write(peer, there, memory), what)
    }

    /// Reads memory of a peer to long memory, as [`write`](Self::write) writes it.
    pub(crate) fn read(
        &self,
        peer: u32,
        there: There,
        memory: LentMut,
        what: &dyn fmt::Display,
    ) -> Result<bool> {
        self.moved(|engine| engine.read(peer, there, memory), what)
    }

    fn moved(
        &self,
        start: impl FnOnce(&mut Engine<Transports>) -> Result<Option<Operation>, Failure>,
        what: &dyn fmt::Display,
    ) -> Result<bool> {
        self.check_over()?;
        let started = start(&mut self.engine.borrow_mut());
        match started.map_err(|failure| self.error(&failure, 0))? {
            Some(operation) => self.wait(operation, 0, what).map(|_| true),
            None => Ok(false),
        }
    }

    /// Waits for an operation; it is forgotten then, whatever became of it. `room` is its memory's length.
    pub(crate) fn wait(
        &self,
        operation: Operation,
        room: usize,
        what: &dyn fmt::Display,
    ) -> Result<Option<Received>> {
        self.unfinished(operation).wait(room, what)
    }

    /// An operation that must not go on when its caller does not wait for it.
    pub(crate) fn unfinished(&self, operation: Operation) -> Unfinished<'_> {
        Unfinished { world: self, operation }
    }

    /// The outcome of an operation that is over.
    pub(crate) fn outcome(&self, operation: Operation, room: usize) -> Option<Result<Option<Received>>> {
        let outcome: Option<Outcome> = self.engine.borrow_mut().take_outcome(operation);
        outcome.map(|outcome| outcome.map_err(|failure| self.error(&failure, room)))
    }

    /// Forgets an operation that is not over. Who was offered the bytes of a send could still fetch them, which may be others
    /// by then: the job is over. Of a collective that has failed all ranks hear, so the send is waited for.
    pub(crate) fn cancel(&self, operation: Operation) {
        let is_offered = || self.with_engine(|engine| engine.is_offered(operation));
        if self.has_failed() && is_offered() {
            let what = "a send in a collective that failed";
            // Why it is not over then, is looked at below.
            let _ = self.wait_until(&what, |engine| engine.is_over(operation).then_some(()));
        }
        let offered = is_offered();
        self.with_engine(|engine| engine.cancel(operation));
        if offered && self.over.borrow().is_none() {
            let reason = format!("rank {} gave up a send that its receiver knew of", self.rank);
            if let Some(exchange) = self.take_exchange() {
                exchange.abort(&reason);
            }
            self.end(reason);
        }
    }

    /// Keeps what an unfinished send needs until it is over.
    pub(crate) fn keep(&self, operation: Operation, memory: Box<dyn Any>) {
        self.left.borrow_mut().push((operation, memory));
    }

    /// Does what can be done now.
    pub(crate) fn progress(&self) -> bool {
        let mut engine = self.engine.borrow_mut();
        let did = engine.progress();
        let mut left = self.left.borrow_mut();
        if !left.is_empty() {
            left.retain(|(operation, _)| engine.take_outcome(*operation).is_none());
        }
        did
    }

    /// For an operation that waits for nobody, on so many bytes: who does only such ones must let the others go on too, and hear
    /// when there is no job any more.
    #[inline]
    pub(crate) fn tick(&self, bytes: usize) -> Result<()> {
        self.check_over()?;
        let before = self.ticks.get();
        let after = before.wrapping_add(1 + bytes as u64 / 1024);
        self.ticks.set(after);
        if before / self.ticks_between != after / self.ticks_between {
            self.progress();
            if before / TICKS_NEWS != after / TICKS_NEWS {
                self.hear()?;
            }
        }
        Ok(())
    }

    /// For an operation that found that it must be tried again: others have to do something first.
    pub(crate) fn let_others(&self) {
        if !self.progress() {
            thread::yield_now();
        }
    }

    /// Looks again and again until there is something.
    pub(crate) fn wait_until<T>(
        &self,
        what: &dyn fmt::Display,
        mut look: impl FnMut(&mut Engine<Transports>) -> Option<T>,
    ) -> Result<T> {
        self.wait_for(what, || look(&mut self.engine.borrow_mut()))
    }

    /// The same for something that the engine need not know.
    pub(crate) fn wait_for<T>(
        &self,
        what: &dyn fmt::Display,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let (mut started, mut spinning) = (None, None);
        let mut idle = 0_u32;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if self.progress() {
                (idle, spinning) = (0, None);
                continue;
            }
            idle = idle.saturating_add(1);
            if idle < self.spins {
                if idle.is_multiple_of(TICK) && spinning.get_or_insert_with(Instant::now).elapsed() > SPIN {
                    idle = self.spins;
                }
                std::hint::spin_loop();
                continue;
            }
            thread::yield_now();
            if !idle.is_multiple_of(LOOKS) && idle > self.spins {
                continue;
            }
            let waited = started.get_or_insert_with(Instant::now).elapsed();
            self.hear()?;
            if let Some(timeout) = self.timeout.get()
                && waited > timeout
            {
                let (what, under_way) = (what.to_string(), self.engine.borrow().under_way());
                return Err(Error::TimedOut { rank: self.rank, what, waited, under_way });
            }
            if waited > PATIENCE {
                thread::sleep(NAP);
                // The next look at the news comes soon: a nap is long against a look.
                idle = LOOKS - LOOKS / 20;
            }
        }
    }

    /// Connects to every rank that connections are made to.
    pub(crate) fn connect_all(&self) -> Result<()> {
        self.check_over()?;
        let ranks = 0..self.size();
        let opened = self.wait_until(&"connecting to all ranks", |engine| {
            let mut all = true;
            for peer in ranks.clone() {
                match engine.open(peer) {
                    Ok(is_open) => all &= is_open,
                    Err(failure) => return Some(Err(failure)),
                }
            }
            all.then_some(Ok(()))
        })?;
        opened.map_err(|failure| self.error(&failure, 0))
    }

    /// The news from the exchange.
    fn hear(&self) -> Result<()> {
        self.check_over()?;
        self.look_at_round()?;
        self.hear_of_end()
    }

    /// Those of the job's end.
    fn hear_of_end(&self) -> Result<()> {
        let Some(Some(event)) = self.with_exchange(Bootstrap::poll_event) else { return Ok(()) };
        self.end(match event {
            Event::Lost { rank, node, why } => format!("{} is gone: {why}", name(rank, &node)),
            Event::Aborted { rank, node, reason } => format!("{} called abort: {reason}", name(rank, &node)),
            Event::Failed { reason } => reason,
            other => format!("{other:?}"),
        });
        self.check_over()
    }

    fn end(&self, why: String) {
        *self.over.borrow_mut() = Some(why);
        self.is_over.set(true);
    }

    fn check_over(&self) -> Result<()> {
        match self.over.borrow().as_ref() {
            Some(why) => Err(Error::Over { why: why.clone() }),
            None => Ok(()),
        }
    }

    pub(crate) fn error(&self, failure: &Failure, room: usize) -> Error {
        match failure {
            Failure::TooLong(Received { label, length }) => Error::TooLong {
                source_rank: label.source,
                node: self.node_of(label.source).to_owned(),
                tag: label.tag,
                length: *length,
                room,
            },
            // A peer that left because another one died is not the cause. Who only sends may not have heard of that one yet.
            Failure::Broken(broken) => self.hear_of_end().err().unwrap_or_else(|| Error::PeerLost {
                rank: self.rank,
                peer: broken.peer,
                node: self.node_of(broken.peer).to_owned(),
                why: broken.why.clone(),
            }),
        }
    }
}

/// Has an operation forgotten, also where the thread unwinds: its memory may be gone soon.
pub(crate) struct Unfinished<'a> {
    world: &'a World,
    operation: Operation,
}

impl Unfinished<'_> {
    /// As [`World::wait`].
    pub(crate) fn wait(self, room: usize, what: &dyn fmt::Display) -> Result<Option<Received>> {
        let (world, operation) = (self.world, self.operation);
        world.awaited.set(world.with_engine(|engine| engine.peer(operation)));
        let outcome = world.wait_until(what, |engine| engine.take_outcome(operation));
        // Before the operation is forgotten.
        let outcome = outcome.inspect_err(|error| world.fail(error))?;
        std::mem::forget(self);
        outcome.map_err(|failure| world.error(&failure, room)).inspect_err(|error| world.fail(error))
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.world.cancel(self.operation);
    }
}

/// The node's CPUs, whatever this rank is bound to; without sysfs as many as it may run on.
fn cpus() -> usize {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let online = online.and_then(|text| text.trim().parse::<CpuSet>().ok()).map(|set| set.len());
    online.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

fn name(rank: Option<u32>, node: &str) -> String {
    rank.map_or_else(|| format!("a rank on {node}"), |rank| format!("rank {rank} ({node})"))
}
