//! Whom a rank talks to.

use roce_launcher::Job;

/// Whom to choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Peers {
    /// The same local rank on the neighbour node: nodes 0 and 1 are neighbours, 2 and 3, and so on.
    Partner,
    /// Every rank of all other nodes.
    All,
}

impl Peers {
    /// The peers of this rank, ascending. A rank whose neighbour node does not exist has no partner.
    #[must_use]
    pub fn of(self, job: &Job) -> Vec<u32> {
        let places: Vec<(u32, u32)> = (0..job.size()).map_while(|rank| job.place_of(rank)).collect();
        self.choose(job.rank(), &places)
    }

    /// The same from each rank's node and local rank.
    fn choose(self, rank: u32, places: &[(u32, u32)]) -> Vec<u32> {
        let Some(&(node, local)) = places.get(rank as usize) else { return Vec::new() };
        let wanted = |place: (u32, u32)| match self {
            Self::Partner => place == (node ^ 1, local),
            Self::All => place.0 != node,
        };
        (0..).zip(places).filter(|(_, place)| wanted(**place)).map(|(rank, _)| rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_are_on_the_neighbour_node_and_choose_each_other() {
        let block = [(0, 0), (0, 1), (1, 0), (1, 1)];
        assert_eq!(Peers::Partner.choose(0, &block), [2]);
        assert_eq!(Peers::Partner.choose(3, &block), [1]);
        let cyclic = [(0, 0), (1, 0), (0, 1), (1, 1)];
        assert_eq!(Peers::Partner.choose(0, &cyclic), [1]);
        assert_eq!(Peers::Partner.choose(2, &[(0, 0), (1, 0), (2, 0)]), Vec::<u32>::new());
    }

    #[test]
    fn all_means_every_rank_of_other_nodes() {
        assert_eq!(Peers::All.choose(1, &[(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]), [2, 3, 4]);
    }
}
