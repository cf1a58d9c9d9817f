//! The ranks of a step, met: collectives over small byte strings.

use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::discovery::{Discovery, Identity};
use crate::error::{Error, Result};
use crate::message::{Collective, Message};
use crate::resolve::NodeAddresses;
use crate::secret::Secret;
use crate::star::Star;

/// The longest part of one rank in a collective.
const MOST_BYTES: usize = 1 << 20;
/// What a message adds to the parts it carries.
const OVERHEAD: usize = 16;
/// Rank 0 waits for the others; they wait this much longer for rank 0, so that its better error reaches them.
const GRACE: Duration = Duration::from_secs(5);
/// How long rank 0 tries to tell others why it gives up.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause of rank 0 while nobody's part has come.
const PAUSE: Duration = Duration::from_micros(200);

/// How long to wait, and where to meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// How long joining may take. Default 60 s.
    pub join: Duration,
    /// How long a collective waits for its last rank. Default 300 s.
    pub collective: Duration,
    /// How long a caller may take to prove who it is. Default 5 s.
    pub handshake: Duration,
    /// The TCP ports that rank 0 may listen on, the same for every rank. Default 49152-65535 (RFC 6335's dynamic
    /// ports); a firewall between compute nodes must let them through.
    pub ports: RangeInclusive<u16>,
    /// Where nodes are reached. Default: as `ROCE_NODE_ADDRS` says, else by their names.
    pub addresses: Option<NodeAddresses>,
}

impl Options {
    /// Where nodes are reached.
    pub(crate) fn addresses(&self) -> Result<NodeAddresses> {
        self.addresses.clone().map_or_else(NodeAddresses::from_environment, Ok)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(60),
            collective: Duration::from_secs(300),
            handshake: Duration::from_secs(5),
            ports: 49_152..=65_535,
            addresses: None,
        }
    }
}

/// Where a rank runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its node's place in [`Identity::nodes`].
    pub node_index: u32,
    /// Its number on that node.
    pub local_rank: u32,
}

/// This rank, joined with the others of its step.
pub struct Bootstrap {
    identity: Identity,
    members: Vec<Member>,
    star: Option<Star>,
    options: Options,
    round: u64,
    /// Why a collective failed before: the ranks are no longer in step.
    broken: Option<String>,
}

impl Bootstrap {
    /// Finds out who this process is and meets the other ranks: what a program calls at its beginning, best before it
    /// starts threads or other programs ([`Secret::take_from_environment`] says why). Once per process.
    ///
    /// Who this process is say the variables of srun or of `rocectl run`, else the PMI socket that `mpiexec.hydra` left
    /// open, or mpirun's PMIx. The secret is that of the environment, else rank 0 makes one and hands it on over PMI or
    /// PMIx (also `srun --mpi=pmi2` and `--mpi=pmix`). A process that no launcher started is one rank, alone; so is a batch script.
    ///
    /// # Errors
    /// [`Error::HalfSet`], [`Error::Variable`] or [`Error::Contradiction`], each naming the variables and their values:
    /// two launchers that contradict each other are an error, too. [`Error::Pmi`] or [`Error::Pmix`] where the launcher doesn't answer. And as
    /// [`Secret::take_from_environment`] and [`join`](Self::join).
    pub fn init(options: &Options) -> Result<Self> {
        let deadline = Instant::now() + options.join;
        let (identity, secret) = Discovery::of_this_process()?.introduce(deadline)?;
        Self::join(identity, secret.as_ref(), options)
    }

    /// Meets the other ranks; returns when all of them are there. One rank alone needs no secret and no network.
    ///
    /// # Errors
    /// [`Error::NoSecret`] for several ranks without one; on rank 0 [`Error::Listen`], and [`Error::Missing`] naming the
    /// ranks that did not come; on others [`Error::NoRoot`], [`Error::Resolve`], and [`Error::Aborted`] with rank 0's
    /// reason; [`Error::Lost`] for a rank that ended meanwhile.
    pub fn join(identity: Identity, secret: Option<&Secret>, options: &Options) -> Result<Self> {
        let deadline = Instant::now() + options.join;
        let star = match (identity.size, secret) {
            (1, _) => None,
            (_, None) => return Err(Error::NoSecret),
            (_, Some(secret)) => Some(Star::join(&identity, secret, options, deadline)?),
        };
        let me = [identity.node_index.to_be_bytes(), identity.local_rank.to_be_bytes()].concat();
        let mut joined =
            Self { identity, members: Vec::new(), star, options: options.clone(), round: 0, broken: None };
        let limit = deadline.saturating_duration_since(Instant::now()).max(GRACE);
        let places = joined.collective(Collective::AllGather, &me, limit)?;
        joined.members = joined.read_members(&places)?;
        joined.name_channels();
        Ok(joined)
    }

    /// Who this rank is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where every rank runs, by rank.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The name of a rank's node, `?` for a rank that does not exist.
    #[must_use]
    pub fn node_of(&self, rank: u32) -> &str {
        let member = self.members.get(rank as usize);
        member
            .and_then(|member| self.identity.nodes.get(member.node_index as usize))
            .map_or("?", |node| &node.name)
    }

    /// Every rank's bytes, by rank. Every rank must call it, with at most 1 MiB each.
    ///
    /// # Errors
    /// [`Error::TooLong`]; [`Error::Missing`] or [`Error::Aborted`] where a rank does not come in time;
    /// [`Error::Lost`], [`Error::Tampered`], [`Error::OutOfStep`]. After an error no collective can follow.
    pub fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.collective(Collective::AllGather, mine, self.options.collective)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn barrier(&mut self) -> Result<()> {
        self.collective(Collective::Barrier, &[], self.options.collective).map(|_| ())
    }

    fn collective(&mut self, collective: Collective, mine: &[u8], limit: Duration) -> Result<Vec<Vec<u8>>> {
        if let Some(reason) = &self.broken {
            return Err(Error::Broken { reason: reason.clone() });
        }
        if mine.len() > MOST_BYTES {
            return Err(Error::TooLong { what: "this rank's part", length: mine.len(), most: MOST_BYTES });
        }
        let round = self.round;
        self.round += 1;
        let gathered = match &mut self.star {
            None => Ok(vec![mine.to_vec()]),
            Some(Star::Leaf(root)) => ask(root, collective, round, mine, self.identity.size, limit),
            Some(Star::Root(channels)) => {
                let gathered = gather(channels, collective, round, mine, limit);
                if let Err(error) = &gathered {
                    abort(channels.iter_mut(), &error.to_string());
                }
                gathered
            }
        };
        gathered.inspect_err(|error| self.broken = Some(error.to_string()))
    }

    fn read_members(&self, places: &[Vec<u8>]) -> Result<Vec<Member>> {
        let read = |(rank, place): (u32, &Vec<u8>)| {
            let numbers = place.first_chunk::<8>().filter(|_| place.len() == 8);
            let malformed = || Error::Malformed {
                rank,
                node: "?".to_owned(),
                what: "its place in the step has not 8 bytes",
            };
            let [a, b, c, d, e, f, g, h] = *numbers.ok_or_else(malformed)?;
            Ok(Member {
                node_index: u32::from_be_bytes([a, b, c, d]),
                local_rank: u32::from_be_bytes([e, f, g, h]),
            })
        };
        (0..).zip(places).map(read).collect()
    }

    /// From here on errors about a connection name the node too.
    fn name_channels(&mut self) {
        let names: Vec<String> = (0..self.identity.size).map(|rank| self.node_of(rank).to_owned()).collect();
        if let Some(Star::Root(channels)) = &mut self.star {
            for channel in channels {
                let rank = channel.rank() as usize;
                channel.set_node(&names[rank]);
            }
        }
    }
}

/// Rank 0: takes every rank's part, in the order they come, then sends everyone the table.
fn gather(
    channels: &mut [Channel],
    collective: Collective,
    round: u64,
    mine: &[u8],
    limit: Duration,
) -> Result<Vec<Vec<u8>>> {
    let start = Instant::now();
    let deadline = start + limit;
    let mut parts: Vec<Option<Vec<u8>>> = channels.iter().map(|_| None).collect();
    while parts.iter().any(Option::is_none) {
        let mut came = false;
        for (channel, part) in channels.iter_mut().zip(&mut parts).filter(|(_, part)| part.is_none()) {
            if channel.is_ready()? {
                came = true;
                *part = Some(take_part(channel, collective, round, deadline)?);
            }
        }
        if !came && Instant::now() >= deadline {
            let waiting = channels.iter().zip(&parts).filter(|(_, part)| part.is_none());
            let ranks = list_ranks(waiting.map(|(channel, _)| (channel.rank(), Some(channel.node()))));
            let what =
                if collective == Collective::Barrier { "reach the barrier" } else { "reach the all_gather" };
            return Err(Error::Missing { ranks, what, waited: start.elapsed(), refused: String::new() });
        }
        if !came {
            thread::sleep(PAUSE);
        }
    }
    let parts: Vec<Vec<u8>> = std::iter::once(mine.to_vec()).chain(parts.into_iter().flatten()).collect();
    let table = Message::Table { round, parts };
    for channel in channels.iter_mut() {
        channel.send(&table, deadline.max(Instant::now() + GRACE))?;
    }
    match table {
        Message::Table { parts, .. } => Ok(parts),
        Message::Part { .. } | Message::Abort { .. } => unreachable!("it was made as a table above"),
    }
}

fn take_part(
    channel: &mut Channel,
    collective: Collective,
    round: u64,
    deadline: Instant,
) -> Result<Vec<u8>> {
    // A frame that has begun gets a moment to end even when the deadline is near.
    let deadline = deadline.max(Instant::now() + LAST_WORDS);
    let theirs = match channel.receive(MOST_BYTES + OVERHEAD, deadline)? {
        Message::Part { collective: theirs, round: number, bytes } => {
            if (theirs, number) == (collective, round) {
                return Ok(bytes);
            }
            format!("{} number {number}", theirs.name())
        }
        Message::Abort { reason } => return Err(Error::Aborted { reason }),
        Message::Table { .. } => "a table".to_owned(),
    };
    Err(out_of_step(channel, theirs, collective, round))
}

/// Any other rank: sends its part to rank 0 and waits for the table.
fn ask(
    root: &mut Channel,
    collective: Collective,
    round: u64,
    mine: &[u8],
    size: u32,
    limit: Duration,
) -> Result<Vec<Vec<u8>>> {
    let start = Instant::now();
    let deadline = start + limit + GRACE;
    let part = Message::Part { collective, round, bytes: mine.to_vec() };
    let sent = root.send(&part, deadline);
    let most = (MOST_BYTES + OVERHEAD).saturating_mul(size as usize);
    let answer = match (sent, root.receive(most, deadline)) {
        // Rank 0 may have said why before it closed the connection.
        (_, Ok(answer)) => answer,
        (Err(error), Err(_)) => return Err(error),
        (Ok(()), Err(Error::Lost { source, .. })) if source.kind() == std::io::ErrorKind::TimedOut => {
            let (node, operation) = (root.node().to_owned(), collective.name());
            return Err(Error::Silent { node, operation, waited: start.elapsed() });
        }
        (Ok(()), Err(error)) => return Err(error),
    };
    match answer {
        Message::Table { round: number, parts } if number == round && parts.len() == size as usize => {
            Ok(parts)
        }
        Message::Abort { reason } => Err(Error::Aborted { reason }),
        Message::Table { round: number, parts } => {
            let theirs = format!("a table of {} parts, number {number}", parts.len());
            Err(out_of_step(root, theirs, collective, round))
        }
        Message::Part { .. } => Err(out_of_step(root, "a part of its own".to_owned(), collective, round)),
    }
}

fn out_of_step(channel: &Channel, theirs: String, collective: Collective, round: u64) -> Error {
    let ours = format!("{} number {round}", collective.name());
    Error::OutOfStep { rank: channel.rank(), node: channel.node().to_owned(), theirs, ours }
}

/// Tells ranks why there will be no answer.
pub(crate) fn abort<'a>(channels: impl Iterator<Item = &'a mut Channel>, reason: &str) {
    let message = Message::Abort { reason: reason.to_owned() };
    let deadline = Instant::now() + LAST_WORDS;
    for channel in channels {
        // Whoever cannot be told sees the connection end instead.
        let _ = channel.send(&message, deadline);
    }
}

/// `rank 3`, or `ranks 3 (vm2), 4 (vm2) and 12 others`.
pub(crate) fn list_ranks<'a>(ranks: impl Iterator<Item = (u32, Option<&'a str>)>) -> String {
    let named = |(rank, node): (u32, Option<&str>)| match node {
        Some(node) => format!("{rank} ({node})"),
        None => rank.to_string(),
    };
    let mut all: Vec<String> = ranks.map(named).collect();
    let more = all.len().saturating_sub(8);
    all.truncate(8);
    let plural = if all.len() + more == 1 { "rank" } else { "ranks" };
    let others = if more == 0 { String::new() } else { format!(" and {more} others") };
    format!("{plural} {}{others}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_ranks_are_cut() {
        assert_eq!(list_ranks([(3, Some("vm2"))].into_iter()), "rank 3 (vm2)");
        assert_eq!(
            list_ranks((1..=10).map(|rank| (rank, None))),
            "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 2 others"
        );
    }
}
