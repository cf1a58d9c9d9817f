//! Communicators made of others.

use crate::collectives::Max;
use crate::error::Result;
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
    /// As [`send`](Self::send).
    pub fn duplicate(&self) -> Result<Self> {
        let context = self.new_context()?;
        let ranks = (0..self.size()).filter_map(|rank| self.rank_in_job(rank)).collect();
        Ok(self.of(ranks, context))
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
    /// As [`send`](Self::send).
    pub fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Self>> {
        let context = self.new_context()?;
        let all = self.all_gather(&[[u32::from(color.is_some()), color.unwrap_or_default(), key]])?;
        let Some(color) = color else { return Ok(None) };
        let mut members: Vec<(u32, u32)> = (0..)
            .zip(all)
            .filter(|(_, [has_color, theirs, _])| *has_color == 1 && *theirs == color)
            .map(|(rank, [_, _, key])| (key, rank))
            .collect();
        members.sort_unstable();
        let ranks = members.into_iter().filter_map(|(_, rank)| self.rank_in_job(rank)).collect();
        Ok(Some(self.of(ranks, context)))
    }

    /// A context that none of these ranks uses. Groups of one split can share it: they have no rank in common.
    fn new_context(&self) -> Result<u32> {
        let mut context = [self.world.next_context()];
        self.all_reduce(&mut context, Max)?;
        // One for its messages, one for its collectives.
        self.world.set_next_context(context[0] + 2);
        Ok(context[0])
    }
}
