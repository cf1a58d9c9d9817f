//! A binomial tree in the order of ranks: each rank combines what the ranks behind it have, and hands it to the front.

use bytemuck::Pod;

use crate::collectives::{Operator, Round, zeros};
use crate::error::Result;
use crate::messages::Communicator;

impl Communicator {
    /// Combines all ranks' elements, place by place; rank `root` gets the result, the others `None`.
    ///
    /// ```
    /// use roce_launcher::Sum;
    /// # let job = roce_launcher::Job::init()?;
    /// # let world = job.world();
    /// let total = world.reduce(0, &[1_u64, 10], Sum)?;
    /// if world.rank() == 0 {
    ///     let ranks = u64::from(world.size());
    ///     assert_eq!(total, Some(vec![ranks, 10 * ranks]));
    /// }
    /// # Ok::<(), roce_launcher::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`Error::Lengths`](crate::Error::Lengths).
    #[expect(clippy::needless_pass_by_value, reason = "operators have no size, and read better so")]
    pub fn reduce<T: Pod>(
        &self,
        root: u32,
        data: &[T],
        operator: impl Operator<T>,
    ) -> Result<Option<Vec<T>>> {
        self.job_rank("reduce", root)?;
        let round = Round::of(self);
        let mut result = data.to_vec();
        let mut others = zeros(data.len());
        let mut distance = 1;
        while distance < round.size() {
            if round.rank() & distance != 0 {
                round.send(round.rank() - distance, &result)?;
                break;
            }
            if round.rank() + distance < round.size() {
                round.receive("reduce", round.rank() + distance, &mut others)?;
                operator.combine(&mut result, &others);
            }
            distance *= 2;
        }
        // Rank 0 has it.
        if root == 0 {
            return Ok((round.rank() == 0).then_some(result));
        }
        if round.rank() == 0 {
            round.send(root, &result)?;
        }
        if round.rank() != root {
            return Ok(None);
        }
        round.receive("reduce", 0, &mut result)?;
        Ok(Some(result))
    }
}
