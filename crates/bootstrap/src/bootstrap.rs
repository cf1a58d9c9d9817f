//! The ranks of a step, met: collectives over small byte strings, and what happens to the others.

use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::core::{Fault, GRACE};
use crate::counters::Counters;
use crate::discovery::{Discovery, Identity, Launch};
use crate::error::{Error, Result};
use crate::event::{self, Event};
use crate::leader;
use crate::local::{self, Met};
use crate::member::Member as Connection;
use crate::message::{FromMember, Operation, ToMember, part_head};
use crate::munge;
use crate::options::Options;
use crate::process::{self, State};
use crate::resolve::NodeAddresses;
use crate::secret::{Secret, authenticate};
use crate::table::Gathered;

/// The longest part of one rank in a collective.
pub(crate) const MOST_BYTES: usize = 1 << 20;
/// The longest card.
const MOST_CARD: usize = 4096;
/// A rank's place, before its card.
pub(crate) const PLACE: usize = 8;
/// A rank waits this much longer for its leader than that for the others, so that the leader's better error reaches it.
const LONGER: Duration = Duration::from_secs(3);
/// How often a waiting rank looks whether its leader is stopped.
const LOOK: Duration = Duration::from_millis(500);
/// Who wakes up so much later than planned was stopped, or his node does not keep up.
pub(crate) const LATE: Duration = Duration::from_secs(1);
/// How long a last message may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where a rank runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its node's place in [`Identity::nodes`].
    pub node_index: u32,
    /// Its number on that node.
    pub local_rank: u32,
}

/// This rank, joined with the others of its step.
///
/// Dropping it says that this rank needs the others no more, as [`leave`](Self::leave) does; while a panic unwinds it
/// [`abort`](Self::abort)s instead.
pub struct Bootstrap {
    identity: Identity,
    options: Options,
    /// The step's, for what is derived from it. A rank alone may have none.
    secret: Option<Secret>,
    /// Every rank's place and card.
    joined: Gathered,
    leader: Option<Leader>,
    /// The number of the next collective.
    number: u64,
    /// Why the exchange is over: the ranks are no longer in step.
    broken: Option<String>,
    counters: Counters,
}

/// Whom this rank talks to.
struct Leader {
    connection: Connection,
    /// Its process, 0 for this one.
    process: i32,
    /// Its rank, once it has said so.
    rank: Option<u32>,
    /// When its process was looked at, and since when it is stopped.
    looked: Instant,
    stopped_since: Option<Instant>,
    /// If it is this process.
    thread: Option<JoinHandle<Option<Fault>>>,
}

impl Bootstrap {
    /// Finds out who this process is and meets the other ranks: what a program calls at its beginning, best before it
    /// starts threads or other programs ([`Secret::take_from_environment`] says why). Once per process.
    ///
    /// Who this process is say the variables of srun or of `rocectl run`, else the PMI socket that `mpiexec.hydra` left
    /// open, or mpirun's PMIx. The secret is that of the environment, else rank 0 makes one and hands it on over PMI or
    /// PMIx (also `srun --mpi=pmi2` and `--mpi=pmix`), else in a step of Slurm the first node's first rank does so by munge. A process
    /// that no launcher started is one rank, alone; so is a batch script.
    ///
    /// ```
    /// use roce_bootstrap::{Bootstrap, Options};
    ///
    /// let ranks = Bootstrap::init(&Options::default())?; // alone where no launcher started it
    /// println!("rank {} of {}", ranks.rank(), ranks.size());
    /// # assert_eq!((ranks.rank(), ranks.size()), (0, 1));
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::HalfSet`], [`Error::Variable`] or [`Error::Contradiction`], each naming the variables and their values:
    /// two launchers that contradict each other are an error, too. [`Error::Pmi`] or [`Error::Pmix`] where the launcher doesn't
    /// answer, [`Error::Munge`] where there is no other way to a secret, and munge is none. And as
    /// [`Secret::take_from_environment`] and [`join`](Self::join).
    pub fn init(options: &Options) -> Result<Self> {
        let deadline = Instant::now() + options.join;
        let (identity, secret) = Discovery::of_this_process()?.introduce(deadline)?;
        let is_step = identity.size > 1 && matches!(identity.launch, Launch::Slurm { .. });
        let (secret, giver) = match secret {
            None if is_step => {
                munge::introduce(&identity, options, deadline).map(|(own, giver)| (Some(own), giver))?
            }
            secret => (secret, None),
        };
        let ranks = Self::join(identity, secret.as_ref(), options);
        // When this rank has joined all have, and so they have the secret.
        drop(giver);
        ranks
    }

    /// Meets the other ranks; returns when all of them are there. One rank alone needs no secret and no network, ranks on one
    /// node no network.
    ///
    /// ```
    /// use roce_bootstrap::{Bootstrap, Identity, Options, Secret};
    ///
    /// let options = Options { card: b"10.1.1.7:4711".to_vec(), ..Options::default() };
    /// let ranks = Bootstrap::join(Identity::alone("login1"), Some(&Secret::random()?), &options)?;
    /// assert_eq!(ranks.card_of(0), Some(&b"10.1.1.7:4711"[..]));
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSecret`] for several ranks without one; [`Error::Local`] where this node's ranks can't meet;
    /// [`Error::Missing`] naming ranks that did not come, or nodes that could not be reached and what was tried;
    /// [`Error::Lost`] for a rank that ended meanwhile; [`Error::TooLong`] for the card.
    pub fn join(identity: Identity, secret: Option<&Secret>, options: &Options) -> Result<Self> {
        let card = &options.card;
        if card.len() > MOST_CARD {
            return Err(Error::TooLong { what: "this rank's card", length: card.len(), most: MOST_CARD });
        }
        let place = [identity.node_index.to_be_bytes(), identity.local_rank.to_be_bytes()].concat();
        let mine = [&place, card.as_slice()].concat();
        let deadline = Instant::now() + options.join;
        let options = &Options { addresses: Some(options.addresses()?), ..options.clone() };
        let (leader, hello) = match (identity.size, secret) {
            (1, _) => (None, None),
            (_, None) => return Err(Error::NoSecret),
            (_, Some(secret)) => {
                let leader = Leader::find(&identity, secret, options, deadline)
                    .map_err(|source| Error::Local { node: identity.node_name().to_owned(), source })?;
                (Some(leader), Some(local::hello(&identity, secret)))
            }
        };
        let mut ranks = Self {
            identity,
            options: options.clone(),
            secret: secret.cloned(),
            joined: Gathered::alone(&mine),
            leader,
            number: 0,
            broken: None,
            counters: Counters::default(),
        };
        let first = hello.as_ref().map_or(&[][..], |hello| hello);
        match ranks.collective(Operation::AllGather, first, &mine, options.join) {
            Ok(Some(joined)) => ranks.joined = joined,
            Ok(None) => {}
            Err(error) => {
                // A leader stays for a while, for neighbours that come late. Its rank need not wait for that.
                ranks.leader = None;
                return Err(error);
            }
        }
        ranks.check_places()?;
        Ok(ranks)
    }

    /// Who this rank is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This rank, 0 to `size - 1`.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.identity.rank
    }

    /// How many ranks.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.identity.size
    }

    /// Where a rank runs, `None` for a rank that does not exist.
    #[must_use]
    pub fn member(&self, rank: u32) -> Option<Member> {
        let (&node, rest) = self.joined.get(rank)?.split_first_chunk()?;
        let (&local, _) = rest.split_first_chunk()?;
        Some(Member { node_index: u32::from_be_bytes(node), local_rank: u32::from_be_bytes(local) })
    }

    /// Where every rank runs, by rank.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        // Every rank's place was checked.
        (0..self.identity.size).filter_map(|rank| self.member(rank))
    }

    /// The ranks on this rank's node, in order.
    pub fn local_ranks(&self) -> impl Iterator<Item = u32> {
        let here = self.identity.node_index;
        (0..).zip(self.members()).filter(move |(_, member)| member.node_index == here).map(|(rank, _)| rank)
    }

    /// The name of a rank's node, `?` for a rank that does not exist.
    #[must_use]
    pub fn node_of(&self, rank: u32) -> &str {
        self.member(rank).map_or("?", |member| self.node_name(member.node_index))
    }

    /// Where the step's nodes are reached, for programs with connections of their own.
    #[must_use]
    pub fn node_addresses(&self) -> NodeAddresses {
        // Read when the ranks met.
        self.options.addresses.clone().unwrap_or_default()
    }

    /// A secret of this step for another purpose, the same for every rank; `None` for a rank that joined without a secret. Who knows
    /// it can find out neither the step's secret nor that of another purpose.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Identity, Options, Secret};
    /// let ranks = Bootstrap::join(Identity::alone("login1"), Some(&Secret::random()?), &Options::default())?;
    /// let (mine, other) = (ranks.derive_secret(b"my protocol").unwrap(), ranks.derive_secret(b"another").unwrap());
    /// assert_ne!(*mine.to_hex(), *other.to_hex());
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    #[must_use]
    pub fn derive_secret(&self, purpose: &[u8]) -> Option<Secret> {
        let (job, step) = self.identity.job_and_step();
        let numbers = [job, step, self.identity.size].map(u32::to_be_bytes).concat();
        let secret = self.secret.as_ref()?;
        Some(Secret::new(authenticate(secret.bytes(), &[b"derived", purpose, &numbers])))
    }

    /// What a rank told with [`Options::card`], `None` for a rank that does not exist.
    #[must_use]
    pub fn card_of(&self, rank: u32) -> Option<&[u8]> {
        self.joined.get(rank)?.get(PLACE..)
    }

    /// What this node's leader had done over the network when the last collective ended.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Every rank's bytes, by rank. Every rank must call it, with at most 1 MiB each.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Options};
    /// # let mut ranks = Bootstrap::init(&Options::default())?;
    /// let everyone = ranks.all_gather(b"my address")?;
    /// for (rank, address) in everyone.iter().enumerate() {
    ///     println!("rank {rank} is at {}", String::from_utf8_lossy(address));
    /// }
    /// assert_eq!(&everyone[0], b"my address");
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLong`]; [`Error::Missing`] where a rank does not come in time; [`Error::Lost`], [`Error::Aborted`],
    /// [`Error::OutOfStep`]. After any but the first no collective can follow.
    pub fn all_gather(&mut self, mine: &[u8]) -> Result<Gathered> {
        let gathered = self.collective(Operation::AllGather, &[], mine, self.options.collective)?;
        Ok(gathered.unwrap_or_else(|| Gathered::alone(mine)))
    }

    /// Returns when every rank has called it.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Options};
    /// # let mut ranks = Bootstrap::init(&Options::default())?;
    /// ranks.barrier()?;
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn barrier(&mut self) -> Result<()> {
        self.collective(Operation::Barrier, &[], &[], self.options.collective).map(|_| ())
    }

    /// Rank `root`'s bytes, at most 1 MiB. Every rank must call it with the same `root`; what others than that one give is
    /// not looked at.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Options};
    /// # let mut ranks = Bootstrap::init(&Options::default())?;
    /// let seed = if ranks.rank() == 0 { &b"4711"[..] } else { &[] };
    /// assert_eq!(ranks.broadcast(0, seed)?, b"4711");
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather), and [`Error::NoSuchRank`].
    pub fn broadcast(&mut self, root: u32, bytes: &[u8]) -> Result<Vec<u8>> {
        if root >= self.identity.size {
            return Err(Error::NoSuchRank { rank: root, size: self.identity.size });
        }
        let mine = if root == self.identity.rank { bytes } else { &[] };
        let gathered = self.collective(Operation::Broadcast { root }, &[], mine, self.options.collective)?;
        Ok(gathered.map_or_else(|| mine.to_vec(), |gathered| gathered[0].to_vec()))
    }

    /// What happened to the others since this rank last looked, without waiting. A fault comes once; the exchange is
    /// over then.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Event, Options};
    /// # let mut ranks = Bootstrap::init(&Options::default())?;
    /// // Between two steps of a long computation:
    /// if let Some(Event::Lost { rank, node, why }) = ranks.poll_event() {
    ///     eprintln!("rank {rank:?} on {node} is gone: {why}");
    /// }
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.broken.is_some() {
            return None;
        }
        let limit = self.options.stopped;
        let leader = self.leader.as_mut()?;
        let fault = match leader.connection.receive(Instant::now()) {
            Ok(None) => {
                let why = leader.trouble(limit)?;
                self.leader_fault(&why)
            }
            Ok(Some((ToMember::Fault(fault), _))) => fault,
            Ok(Some((ToMember::Done { .. }, _))) => self.leader_fault("it answered what nobody asked"),
            Err(error) => self.leader_fault(&describe(&error)),
        };
        let node = self.node_name(fault.node).to_owned();
        self.broken = Some(event::error(&fault, &node).to_string());
        Some(Event::new(&fault, &node))
    }

    /// Ends the exchange for every rank: whoever waits gets [`Error::Aborted`] with this rank's name and the reason, the
    /// others see an [`Event::Aborted`].
    pub fn abort(mut self, reason: &str) {
        self.say_abort(reason);
    }

    /// Says that this rank needs the others no more, so that its end is no fault. Returns at once, except on the rank
    /// that leads its node: that one carries the others' messages, and so waits until every rank of the job has left.
    ///
    /// ```
    /// # use roce_bootstrap::{Bootstrap, Options};
    /// # let ranks = Bootstrap::init(&Options::default())?;
    /// ranks.leave()?;
    /// # Ok::<(), roce_bootstrap::Error>(())
    /// ```
    ///
    /// # Errors
    /// On a node's leader, what happened to the others while it waited.
    pub fn leave(mut self) -> Result<()> {
        let fault = self.say_bye();
        match fault.filter(|_| self.broken.is_none()) {
            Some(fault) => Err(event::error(&fault, self.node_name(fault.node))),
            None => Ok(()),
        }
    }

    fn node_name(&self, node: u32) -> &str {
        self.identity.nodes.get(node as usize).map_or("?", |node| &node.name)
    }

    /// What a leader gave, `None` for a barrier and where there is no other rank.
    fn collective(
        &mut self,
        operation: Operation,
        first: &[u8],
        mine: &[u8],
        limit: Duration,
    ) -> Result<Option<Gathered>> {
        if let Some(reason) = &self.broken {
            return Err(Error::Broken { reason: reason.clone() });
        }
        if mine.len() > MOST_BYTES {
            return Err(Error::TooLong { what: "this rank's part", length: mine.len(), most: MOST_BYTES });
        }
        let number = self.number;
        self.number += 1;
        if self.leader.is_none() {
            return Ok(None);
        }
        let result = self.ask(operation, number, first, mine, limit).and_then(|file| {
            let Some(file) = file else { return Ok(None) };
            let count = if operation == Operation::AllGather { self.identity.size as usize } else { 1 };
            let mapped = Gathered::map(&file, count);
            mapped.map(Some).map_err(|error| self.leader_error(&error.to_string()))
        });
        result.inspect_err(|error| self.broken = Some(error.to_string()))
    }

    /// Sends this rank's part and waits for the answer.
    fn ask(
        &mut self,
        operation: Operation,
        number: u64,
        first: &[u8],
        mine: &[u8],
        limit: Duration,
    ) -> Result<Option<std::os::fd::OwnedFd>> {
        let start = Instant::now();
        let mut deadline = start + limit + GRACE + LONGER;
        let Some(leader) = &mut self.leader else { return Ok(None) };
        let sent = leader.connection.send(first, &part_head(operation, number), mine, deadline);
        loop {
            let until = deadline.min(Instant::now() + LOOK);
            // Where it could not be sent, the leader may have said why before it closed the connection.
            let received = leader.connection.receive(until);
            let late = Instant::now().saturating_duration_since(until);
            if late > LATE {
                // This process was stopped itself; nobody else is to blame for that time.
                deadline += late;
            }
            let answer = match (received, &sent) {
                (Ok(answer), Ok(())) => answer,
                (Ok(answer @ Some((ToMember::Fault(_), _))), Err(_)) => answer,
                (Err(error), _) => {
                    let why = describe(&error);
                    return Err(self.leader_error(&why));
                }
                (Ok(_), Err(error)) => {
                    let why = describe(error);
                    return Err(self.leader_error(&why));
                }
            };
            match answer {
                Some((ToMember::Fault(fault), _)) => {
                    return Err(event::error(&fault, self.node_name(fault.node)));
                }
                Some((ToMember::Done { number: theirs, leader: rank, counters, .. }, file)) => {
                    if theirs != number {
                        return Err(self.leader_error("it answered what nobody asked"));
                    }
                    leader.rank = Some(rank);
                    self.counters = counters;
                    return Ok(file);
                }
                None if Instant::now() >= deadline => {
                    let why = format!("it did not answer the {operation} within {:.1?}", start.elapsed());
                    return Err(self.leader_error(&why));
                }
                None => {
                    if let Some(why) = leader.trouble(self.options.stopped) {
                        return Err(self.leader_error(&why));
                    }
                }
            }
        }
    }

    /// The leader is at fault.
    fn leader_fault(&self, why: &str) -> Fault {
        let rank = self.leader.as_ref().and_then(|leader| leader.rank);
        let text = if rank.is_some() { why.to_owned() } else { format!("the rank that leads there: {why}") };
        Fault { kind: crate::core::FaultKind::Lost, rank, node: self.identity.node_index, text }
    }

    fn leader_error(&self, why: &str) -> Error {
        event::error(&self.leader_fault(why), self.identity.node_name())
    }

    /// Every rank must have told a place that exists.
    fn check_places(&self) -> Result<()> {
        let nodes = self.identity.nodes.len();
        for rank in 0..self.identity.size {
            if self.member(rank).is_none_or(|member| member.node_index as usize >= nodes) {
                let what = "told a place that does not exist; do all ranks run the same build?".to_owned();
                return Err(Error::OutOfStep { rank: Some(rank), node: "?".to_owned(), what });
            }
        }
        Ok(())
    }

    fn say_abort(&mut self, reason: &str) {
        let Some(leader) = self.leader.take() else { return };
        let message = FromMember::Abort { reason: reason.to_owned() }.encode();
        // Where it can't be said, the connection's end says nearly the same.
        let _ = leader.connection.send(&[], &message, &[], Instant::now() + LAST_WORDS);
        leader.end();
    }

    fn say_bye(&mut self) -> Option<Fault> {
        let leader = self.leader.take()?;
        let message = FromMember::Bye.encode();
        // Where it can't be said, the exchange is over already.
        let _ = leader.connection.send(&[], &message, &[], Instant::now() + LAST_WORDS);
        leader.end()
    }
}

impl Drop for Bootstrap {
    fn drop(&mut self) {
        if thread::panicking() {
            self.say_abort("it panicked");
        } else {
            self.say_bye();
        }
    }
}

impl Leader {
    fn find(
        identity: &Identity,
        secret: &Secret,
        options: &Options,
        deadline: Instant,
    ) -> std::io::Result<Self> {
        match local::meet(identity, secret, deadline)? {
            Met::Member(stream, process) => {
                let connection = Connection::new(stream.into());
                let thread = None;
                Ok(Self {
                    connection,
                    process,
                    rank: None,
                    looked: Instant::now(),
                    stopped_since: None,
                    thread,
                })
            }
            Met::Leader(listener) => {
                let (ours, theirs) = UnixStream::pair()?;
                let (identity, secret, options) = (identity.clone(), secret.clone(), options.clone());
                let thread = leader::start(identity, secret, options, listener, theirs)?;
                let connection = Connection::new(ours.into());
                let thread = Some(thread);
                Ok(Self {
                    connection,
                    process: 0,
                    rank: None,
                    looked: Instant::now(),
                    stopped_since: None,
                    thread,
                })
            }
        }
    }

    /// What is wrong with its process, looked at from time to time.
    fn trouble(&mut self, limit: Duration) -> Option<String> {
        let now = Instant::now();
        if now.saturating_duration_since(self.looked) < LOOK {
            return None;
        }
        self.looked = now;
        match process::state(self.process) {
            State::Runs => self.stopped_since = None,
            State::Ended => return Some(format!("its process {} has ended", self.process)),
            State::Stopped => {
                let stopped = now.saturating_duration_since(*self.stopped_since.get_or_insert(now));
                if stopped >= limit {
                    return Some(format!("its process {} has been stopped for {stopped:.0?}", self.process));
                }
            }
        }
        None
    }

    /// Closes the connection; if this process leads its node, waits until it no longer has to.
    fn end(self) -> Option<Fault> {
        drop(self.connection);
        // A panic there was printed there.
        self.thread.and_then(|thread| thread.join().ok().flatten())
    }
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof
        | std::io::ErrorKind::BrokenPipe
        | std::io::ErrorKind::ConnectionReset => "its process ended without leaving".to_owned(),
        _ => error.to_string(),
    }
}
