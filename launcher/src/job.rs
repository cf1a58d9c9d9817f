//! This rank among the others of its job.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use roce_bootstrap::{Bootstrap, Identity, Member, Options};
use roce_types::CpuSet;
use roce_verbs::Depth;

use crate::agree::agree;
use crate::assignment::Assignment;
use crate::card::Card;
use crate::collectives::{ALGORITHMS, Nodes, Overrides};
use crate::connect;
use crate::endpoint::Endpoint;
use crate::environment;
use crate::error::{Error, Result};
use crate::messages::{Communicator, World};
use crate::queue_pair::QueuePair;
use crate::transport::{self, Prepared};

/// The ranks of a step, met; this rank's NIC ports, open, if it has any; nothing connected yet.
///
/// Dropping it says that this rank needs the others no more; on the rank that leads its node that waits until all ranks have
/// come so far. [`finalize`](Self::finalize) waits for them on every rank. Queue pairs live on their own.
pub struct Job {
    world: Rc<World>,
    nodes: Rc<Nodes>,
    identity: Identity,
    members: Vec<Member>,
    nics: Nics,
    cards: Vec<Card>,
}

/// What this rank can use for RDMA.
struct Nics {
    /// `None` where nobody assigned any and the node has none.
    assignment: Option<Assignment>,
    /// Its ports, open, in the same order.
    endpoints: Vec<Arc<Endpoint>>,
    /// Why there is none.
    none: String,
}

impl Job {
    /// Starts this rank: who am I, who are the others, which NIC. Every rank of a step must call it; outside of one
    /// this rank is alone.
    ///
    /// It meets the other ranks and exchanges their NICs' addresses, so it returns when all ranks have called it.
    ///
    /// The ranks meet on the TCP ports that the site names (`ROCE_BOOTSTRAP_PORTS`, by the plugin), else on any dynamic
    /// port. The step's secret is taken out of the environment, so call it once, and before the program starts others
    /// or threads: [`roce_bootstrap::Secret::take_from_environment`].
    ///
    /// # Errors
    /// On every rank of the step, if any of them fails: [`Error::Port`](crate::Error::Port) or
    /// [`Error::PortState`](crate::Error::PortState) on the rank that was assigned a port that is not usable,
    /// [`Error::Others`](crate::Error::Others) on the rest; [`Error::Exchange`](crate::Error::Exchange) where they could not meet
    /// in time. A node without NICs is none: its ranks have messages, and no queue pairs.
    pub fn init() -> Result<Self> {
        let mut options = Options::default();
        if let Some(ports) = environment::bootstrap_ports(variable)? {
            options.ports = ports;
        }
        Self::init_with(&options)
    }

    /// The same with other deadlines or ports for the meeting.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_with(options: &Options) -> Result<Self> {
        let mut exchange = Bootstrap::init(options)?;
        let identity = exchange.identity().clone();
        let refused = |why| Error::Messages { node: identity.node_name().to_owned(), why };
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let opened = open_assigned(identity.node_name()).and_then(|(nics, mut card)| {
            let wanted = environment::transports(variable)?;
            let ports = (options.ports != Options::default().ports).then_some(&options.ports);
            let keep = environment::registration_cache(variable)?;
            let stripes = environment::striping(variable)?;
            let usable = nics.assignment.as_ref().map(|assignment| transport::Nics {
                endpoints: &nics.endpoints,
                class: assignment.class(),
                keep,
                stripes,
            });
            let prepared = Prepared::new(&exchange, wanted, ports, usable).map_err(refused)?;
            card.transports = prepared.cards();
            card.algorithms = variable(ALGORITHMS).unwrap_or_default();
            let overrides = Rc::new(Overrides::parse(&card.algorithms)?);
            let names = (0..exchange.size()).map(|rank| exchange.node_of(rank));
            let mut nodes = Nodes::new(names, exchange.rank(), overrides);
            if nodes.share() && nodes.leader() == exchange.rank() {
                card.collectives = Some(nodes.create());
            }
            Ok(((nics, prepared, nodes), card))
        });
        let ((nics, prepared, mut nodes), cards) = agree(&mut exchange, opened)?;
        same_algorithms(&exchange, &cards)?;
        if let Some(card) = cards[nodes.leader() as usize].collectives.clone() {
            nodes.set_card(card);
        }
        let transports = prepared.meet(&exchange, &cards);
        let transports = transports.map_err(|error| refused(error.to_string()))?;
        let members = exchange.members().collect();
        let world = Rc::new(World::new(exchange, transports));
        Ok(Self { world, nodes: Rc::new(nodes), identity, members, nics, cards })
    }

    /// All ranks, to send messages and for collective operations.
    #[must_use]
    pub fn world(&self) -> Communicator {
        Communicator::world(Rc::clone(&self.world), Rc::clone(&self.nodes))
    }

    /// How messages go to each rank: `ranks 0-3: shared memory; ranks 4-7: verbs (mlx5_0:1, long messages also mlx5_1:1)`. Where it is TCP although there are NICs, it
    /// says why. What collectives do,
    /// [`Communicator::algorithm`] says.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// println!("rank {}: {}", job.rank(), job.describe());
    /// assert_eq!(job.describe(), "rank 0: itself");
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    #[must_use]
    pub fn describe(&self) -> String {
        let ways = self.world.with_engine(|engine| engine.describe(self.size()));
        let mut groups: Vec<(String, Vec<u32>)> = Vec::new();
        for (rank, way) in (0..).zip(ways) {
            match groups.iter_mut().find(|(other, _)| *other == way) {
                Some((_, ranks)) => ranks.push(rank),
                None => groups.push((way, vec![rank])),
            }
        }
        let of_group = |(way, ranks): (String, Vec<u32>)| {
            let many = if ranks.len() == 1 { "rank" } else { "ranks" };
            // Written as lists of CPUs are: 0-3,8
            let ranks: CpuSet = ranks.into_iter().map(|rank| rank as usize).collect();
            format!("{many} {ranks}: {way}")
        };
        groups.into_iter().map(of_group).collect::<Vec<_>>().join("; ")
    }

    /// How many queue pairs messages have: one for each rank that messages went to over verbs, and one more for each further rail that long ones
    /// go over; none when the job starts. One that is just being made counts.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.world.with_engine(|engine| engine.queue_pairs())
    }

    /// How often memory was registered for long messages over verbs. Memory that is used again counts once, where registrations are kept
    /// (`ROCE_REGISTRATION_CACHE`).
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.world.with_engine(|engine| engine.registrations())
    }

    /// Connects to every rank that messages go to over verbs, so that no first message has to wait for that. Other ranks need not call
    /// it.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// job.connect_all()?;
    /// assert_eq!(job.queue_pairs(), 0); // alone
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::PeerLost`](crate::Error::PeerLost) naming the first that can't be reached.
    pub fn connect_all(&self) -> Result<()> {
        self.world.connect_all()
    }

    /// How long an operation on messages may take before it is an error; without end by default. A rank that is gone is told
    /// to all others anyhow. A send that is given up may have been begun by its receiver, so the whole job is over then.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.world.set_timeout(timeout);
    }

    /// Ends the job for every rank: whoever waits gets [`Error::Over`] with this rank's name and the reason.
    pub fn abort(self, reason: &str) {
        if let Some(exchange) = self.world.take_exchange() {
            exchange.abort(reason);
        }
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

    /// This rank's number on its node.
    #[must_use]
    pub fn local_rank(&self) -> u32 {
        self.identity.local_rank
    }

    /// The name of this rank's node.
    #[must_use]
    pub fn node(&self) -> &str {
        self.identity.node_name()
    }

    /// How many nodes.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.identity.nodes.len()
    }

    /// The name of a rank's node, `?` for a rank that does not exist.
    #[must_use]
    pub fn node_of(&self, rank: u32) -> &str {
        self.world.node_of(rank)
    }

    /// A rank's node by number, from 0, and its number there.
    #[must_use]
    pub fn place_of(&self, rank: u32) -> Option<(u32, u32)> {
        self.members.get(rank as usize).map(|member| (member.node_index, member.local_rank))
    }

    /// This rank's NIC ports and class; `None` on a node without NICs where the plugin assigned none.
    #[must_use]
    pub fn assignment(&self) -> Option<&Assignment> {
        self.nics.assignment.as_ref()
    }

    /// The same for a program that can't do without.
    ///
    /// # Errors
    /// [`Error::NoPort`](crate::Error::NoPort), with what was looked at.
    pub fn require_nics(&self) -> Result<&Assignment> {
        let none = || Error::NoPort { node: self.node().to_owned(), reason: self.nics.none.clone() };
        self.nics.assignment.as_ref().ok_or_else(none)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// [`Error::Exchange`](crate::Error::Exchange) naming ranks that did not come in time or are gone. Where windows are open, those
    /// of [`Communicator::barrier`] too.
    pub fn barrier(&mut self) -> Result<()> {
        self.meet_for_windows()?;
        self.exchange(|exchange| Ok(exchange.barrier()?))
    }

    /// Every rank's bytes, by rank; every rank must call it, with at most 1 MiB each. Between nodes it goes over TCP: for set-up,
    /// not for data.
    ///
    /// # Errors
    /// [`Error::Exchange`](crate::Error::Exchange).
    pub fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(|exchange| Ok(exchange.all_gather(mine)?.iter().map(<[u8]>::to_vec).collect()))
    }

    /// Connects a queue pair to each of `peers`, in their order. Collective: every rank must call it, those who want
    /// nobody with an empty list, and two ranks must name each other.
    ///
    /// A pair talks over the first rail of the lower rank's list that the other has too. Both ends take the smaller MTU, and
    /// the traffic class and service level of the assignment; what the kernel made of it is read back and checked.
    ///
    /// # Errors
    /// On every rank, if any of them fails: [`Error::NoSharedRail`](crate::Error::NoSharedRail),
    /// [`Error::ClassesDiffer`](crate::Error::ClassesDiffer), [`Error::BadPeer`](crate::Error::BadPeer),
    /// [`Error::Port`](crate::Error::Port), [`Error::Connect`](crate::Error::Connect), or what others failed with.
    pub fn connect(&mut self, peers: &[u32]) -> Result<Vec<QueuePair>> {
        self.connect_with(peers, Depth::default())
    }

    /// The same with other queue depths.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(&mut self, peers: &[u32], depth: Depth) -> Result<Vec<QueuePair>> {
        connect::connect(self, peers, depth)
    }

    /// Waits until every rank has come this far, then ends the job on this rank. Queue pairs of this rank should be
    /// closed after it, not before: a peer may still wait for an acknowledgement. Windows that nobody has closed end here.
    ///
    /// # Errors
    /// As [`barrier`](Self::barrier), and of [`Window::close`](crate::Window::close) where one is left.
    pub fn finalize(mut self) -> Result<()> {
        for context in self.meet_for_windows()? {
            self.world.close_window(context);
        }
        self.barrier()
    }

    /// Waits for all that share a window with this rank. While it waits for the exchange it answers nobody who accesses its
    /// memory, and they would not come to it. The windows that are open.
    fn meet_for_windows(&self) -> Result<Vec<u32>> {
        let open = self.world.windows.borrow().clone();
        for group in open.values() {
            Communicator::of_group(Rc::clone(&self.world), group.clone()).barrier()?;
        }
        Ok(open.into_keys().collect())
    }

    /// Uses the exchange.
    pub(crate) fn exchange<T>(&self, act: impl FnOnce(&mut Bootstrap) -> Result<T>) -> Result<T> {
        let over = || Err(Error::Over { why: "this rank has given up".to_owned() });
        self.world.with_exchange(act).unwrap_or_else(over)
    }

    pub(crate) fn endpoint(&self, nic: usize) -> &Arc<Endpoint> {
        &self.nics.endpoints[nic]
    }

    /// What a rank told about itself.
    pub(crate) fn card(&self, rank: u32) -> &Card {
        &self.cards[rank as usize]
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Ranks that choose different algorithms would wait for each other.
fn same_algorithms(exchange: &Bootstrap, cards: &[Card]) -> Result<()> {
    let first = &cards[0].algorithms;
    let Some((rank, card)) = (0..).zip(cards).find(|(_, card)| card.algorithms != *first) else {
        return Ok(());
    };
    let problem = format!(
        "it is {:?} on rank {rank} ({}) and {first:?} on rank 0 ({}); start all ranks with the same",
        card.algorithms,
        exchange.node_of(rank),
        exchange.node_of(0)
    );
    Err(Error::Algorithms { value: cards[exchange.rank() as usize].algorithms.clone(), problem })
}

/// Opens what was assigned to this rank; the card is for the other ranks.
fn open_assigned(node: &str) -> Result<(Nics, Card)> {
    let assignment = match Assignment::find(node) {
        // Nobody promised any.
        Err(Error::NoPort { reason, .. }) => {
            let nics = Nics { assignment: None, endpoints: Vec::new(), none: reason };
            return Ok((nics, Card::default()));
        }
        found => found?,
    };
    let endpoints =
        assignment.nics.iter().map(|nic| Endpoint::open(nic, node).map(Arc::new)).collect::<Result<_>>()?;
    let card = Card::from(&assignment);
    Ok((Nics { assignment: Some(assignment), endpoints, none: String::new() }, card))
}
