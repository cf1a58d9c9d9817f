//! The exchange of `roce-bootstrap`: everyone's bytes come with joining.

use anyhow::{Context, Result};
use roce_bootstrap::{Bootstrap, Options};

use crate::{Exchange, Known, LENGTH, Network, bytes_of};

pub(crate) struct Ours {
    joined: Option<Bootstrap>,
}

impl Ours {
    pub(crate) fn new() -> Self {
        Self { joined: None }
    }
}

impl Exchange for Ours {
    fn run(&mut self) -> Result<Known> {
        // Other codes' cards don't depend on the rank.
        let rank: usize = std::env::var("SLURM_PROCID").context("SLURM_PROCID")?.parse()?;
        let options = Options { card: bytes_of(rank).to_vec(), ..Options::default() };
        let joined = self.joined.insert(Bootstrap::init(&options)?);
        let mut bytes = Vec::with_capacity(joined.size() as usize * LENGTH);
        for rank in 0..joined.size() {
            bytes.extend_from_slice(
                joined.card_of(rank).with_context(|| format!("rank {rank} told nothing"))?,
            );
        }
        let (rank, size) = (joined.rank() as usize, joined.size() as usize);
        Ok(Known { rank, size, bytes: Some(bytes) })
    }

    fn network(&self) -> Option<Network> {
        let counters = self.joined.as_ref()?.counters();
        let connections = counters.connections_made + counters.connections_accepted;
        Some(Network { rounds: counters.rounds, connections })
    }

    fn end(self: Box<Self>) -> Result<()> {
        if let Some(joined) = self.joined {
            joined.leave()?;
        }
        Ok(())
    }
}
