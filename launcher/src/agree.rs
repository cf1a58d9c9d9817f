//! A collective step that succeeds on every rank or on none: each rank tells the others its result or its failure,
//! so that nobody waits for a rank that gave up.

use roce_bootstrap::Bootstrap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, chain};

#[derive(Serialize, Deserialize)]
enum Report<T> {
    Done(T),
    Failed(String),
}

/// How many other ranks' failures an error shows.
const MOST_REPORTS: usize = 4;

/// Shares what this rank made: the second of the pair goes to the others, the first stays here. Gives it back with every
/// rank's, if all succeeded. Otherwise this rank's own error if it has one, else the others' words.
pub(crate) fn agree<L, T>(exchange: &mut Bootstrap, mine: Result<(L, T)>) -> Result<(L, Vec<T>)>
where
    T: Serialize + DeserializeOwned,
{
    let nodes: Vec<String> = (0..exchange.size()).map(|rank| exchange.node_of(rank).to_owned()).collect();
    let gather = |mine: &[u8]| Ok(exchange.all_gather(mine)?.iter().map(<[u8]>::to_vec).collect());
    agree_by(gather, |rank| (rank, nodes.get(rank as usize).map_or("?", String::as_str)), mine)
}

/// The same among others than all ranks: `gather` gives everyone's bytes, and `name` rank and node of each by its place there.
pub(crate) fn agree_by<'a, L, T>(
    gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>>,
    name: impl Fn(u32) -> (u32, &'a str),
    mine: Result<(L, T)>,
) -> Result<(L, Vec<T>)>
where
    T: Serialize + DeserializeOwned,
{
    let (kept, report) = match mine {
        Ok((kept, told)) => (Ok(kept), Report::Done(told)),
        Err(error) => {
            let reason = chain(&error);
            (Err(error), Report::Failed(reason))
        }
    };
    let text = serde_json::to_vec(&report).map_err(|source| Error::Unwritable { source })?;
    let gathered = gather(&text);
    // Also where the exchange failed after that: this rank's own failure came first.
    let kept = kept?;
    let mut values = Vec::new();
    let mut failures = Vec::new();
    for (place, text) in (0..).zip(gathered?) {
        let (rank, node) = name(place);
        match serde_json::from_slice(&text) {
            Ok(Report::Done(value)) => values.push(value),
            Ok(Report::Failed(reason)) => failures.push(format!("rank {rank} ({node}) failed: {reason}")),
            Err(error) => {
                let problem = error.to_string();
                return Err(Error::Unreadable { rank, node: node.to_owned(), problem });
            }
        }
    }
    if failures.is_empty() {
        return Ok((kept, values));
    }
    let more = failures.len().saturating_sub(MOST_REPORTS);
    failures.truncate(MOST_REPORTS);
    if more > 0 {
        failures.push(format!("and {more} more ranks failed"));
    }
    Err(Error::Others { reports: failures.join("; ") })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use roce_bootstrap::{Identity, Launch, Node, Options, Secret};

    use super::*;

    fn run<T: Send>(size: u32, step: u32, rank: impl Fn(u32, &mut Bootstrap) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let rank = &rank;
            let threads: Vec<_> = (0..size)
                .map(|i| {
                    scope.spawn(move || {
                        let nodes = vec![Node { name: "here".to_owned(), tasks: size }];
                        let launch = Launch::Slurm { job: std::process::id(), step };
                        let identity =
                            Identity { rank: i, size, local_rank: i, node_index: 0, nodes, launch };
                        let secret = Secret::new([3; 32]);
                        let mut joined =
                            Bootstrap::join(identity, Some(&secret), &Options::default()).unwrap();
                        rank(i, &mut joined)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn results_are_shared_when_all_succeed() {
        let results = run(3, 0, |rank, exchange| agree(exchange, Ok((rank, rank * 10))).unwrap());
        assert_eq!(results, [0, 1, 2].map(|rank| (rank, vec![0, 10, 20])));
    }

    #[test]
    fn one_failure_reaches_everyone_with_rank_node_and_cause() {
        let results = run(3, 1, |rank, exchange| {
            let mine = if rank == 2 {
                Err(Error::NoPort { node: "vm9".to_owned(), reason: "nothing there".to_owned() })
            } else {
                Ok(((), ()))
            };
            agree(exchange, mine).unwrap_err().to_string()
        });
        assert!(results[2].starts_with("this node (vm9) has no RoCE port: nothing there"), "{}", results[2]);
        for result in &results[..2] {
            assert!(result.starts_with("rank 2 (here) failed: this node (vm9) has no RoCE port"), "{result}");
        }
    }
}
