//! Communicators made of others.

use crate::collectives::{Choice, Collective, Max, Nodes, call_varying};
use crate::error::{Error, Result};
use crate::messages::Communicator;

impl Communicator {
    /// The same ranks, whose messages are apart from this communicator's: for a library that must not take its caller's.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let own = world.duplicate()?;
    /// own.send(0, 1, &[1_u8])?;
    /// assert_eq!(world.try_probe::<u8>(0, 1)?, None);
    /// assert_eq!(own.receive_vec::<u8>(0, 1)?.0, [1]);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn duplicate(&self) -> Result<Self> {
        let context = self.new_context()?;
        let ranks = (0..self.size()).filter_map(|rank| self.rank_in_job(rank)).collect();
        self.make(Some(ranks), context).map(|made| made.unwrap_or_else(|| self.clone()))
    }

    /// Groups of those ranks that give the same color, ordered by key, then by rank here. Who gives no color is in none.
    ///
    /// ```
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let half = world.split(Some(world.rank() % 2), 0)?.unwrap();
    /// assert_eq!(half.rank(), world.rank() / 2);
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Self>> {
        let context = self.new_context()?;
        let all = self.all_gather(&[[u32::from(color.is_some()), color.unwrap_or_default(), key]])?;
        let Some(color) = color else { return self.make(None, context) };
        let mut members: Vec<(u32, u32)> = (0..)
            .zip(all)
            .filter(|(_, [has_color, theirs, _])| *has_color == 1 && *theirs == color)
            .map(|(rank, [_, _, key])| (key, rank))
            .collect();
        members.sort_unstable();
        let ranks = members.into_iter().filter_map(|(_, rank)| self.rank_in_job(rank)).collect();
        self.make(Some(ranks), context)
    }

    /// A communicator of these ranks of the job, if any; its leader on each node makes the memory that they share. Every rank must
    /// call it.
    fn make(&self, ranks: Option<Vec<u32>>, context: u32) -> Result<Option<Self>> {
        self.collective(call_varying("a new communicator", None), |round| {
            let Some(ranks) = ranks else { return Ok(None) };
            let own = ranks.iter().position(|rank| *rank == self.world.rank).unwrap_or(0);
            let names = ranks.iter().map(|rank| self.world.node_of(*rank));
            let mut nodes = Nodes::new(names, u32::try_from(own).unwrap_or(u32::MAX), self.nodes.overrides());
            if nodes.share() {
                // By rank of this communicator.
                let team = round.everyone();
                let here: Vec<u32> =
                    nodes.here().iter().filter_map(|rank| self.rank_here(ranks[*rank as usize])).collect();
                if here[0] == team.rank() {
                    let card = nodes.create();
                    let told: Vec<u8> =
                        serde_json::to_vec(&card).map_err(|source| Error::Unwritable { source })?;
                    here[1..].iter().try_for_each(|rank| team.send(*rank, &told))?;
                    nodes.set_card(card);
                } else {
                    let told: Vec<u8> = team.receive_vec(here[0])?;
                    let card = serde_json::from_slice(&told);
                    nodes.set_card(
                        card.unwrap_or_else(|error| Err(format!("its leader sent no card: {error}"))),
                    );
                }
            }
            Ok(Some(self.of(ranks, context, nodes)))
        })
    }

    /// A context that none of these ranks uses. Groups of one split can share it: they have no rank in common.
    fn new_context(&self) -> Result<u32> {
        let mut context = [self.world.next_context()];
        self.all_reduce(&mut context, Max)?;
        // One for its messages, one for its collectives.
        self.world.set_next_context(context[0] + 2);
        Ok(context[0])
    }

    /// What a collective does with so many bytes on each rank (of all-to-all: for each rank). It depends on the ranks, their nodes
    /// and the length; `ROCE_ALGORITHMS` can say otherwise, which must be the same on all ranks, as in
    /// `all_reduce=ring,broadcast=shared_memory+chain`.
    ///
    /// ```
    /// use roce_launcher::Collective;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// println!("{}", world.algorithm(Collective::AllReduce, 1 << 20)); // as in shared_memory+ring
    /// assert_eq!(world.algorithm(Collective::AllReduce, 1 << 20).to_string(), "nothing"); // alone
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    #[must_use]
    pub fn algorithm(&self, collective: Collective, bytes: usize) -> Choice {
        self.nodes.choose_sized(collective, bytes, 1)
    }
}
