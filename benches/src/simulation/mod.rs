//! The exchange on up to 100,000 nodes: the leaders' own state machines and searches, with a simulated network between them.

mod counted;
mod docs;
mod network;
mod world;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::network::Network;
use self::world::{Job, Node};

/// On each node.
const RANKS: u32 = 64;
/// Bytes that each rank tells the others.
const CARD: usize = 64;

/// Networks that differ from the first in one thing each, and the last in all.
const SCENARIOS: [(&str, Network); 5] = [
    ("calm", CALM),
    ("starts within 1 s", Network { skew: 1_000_000_000, ..CALM }),
    ("1 packet in 10,000 lost", Network { loss: 1e-4, ..CALM }),
    ("1 node in 100 ten times slower", Network { slow: 0.01, ..CALM }),
    ("all of these", Network { skew: 1_000_000_000, loss: 1e-4, slow: 0.01, ..CALM }),
];
const CALM: Network = Network { latency: 25_000, gbit_s: 25.0, loss: 0.0, slow: 0.0, skew: 0 };

/// The nodes of one scenario at one size, taken together.
#[derive(Serialize)]
struct Row {
    scenario: &'static str,
    nodes: u32,
    ranks: u64,
    /// The most of any node.
    rounds: u32,
    connections: u32,
    /// Of each node's messages and handshakes, in bytes: the most of any node.
    sent: u64,
    /// Calls that nobody took, of a node: the mean.
    refused: f64,
    /// From the last start until a node's ranks know everyone, in milliseconds: the median of all nodes, and the last.
    median_ms: f64,
    last_ms: f64,
}

#[derive(Serialize)]
struct Simulated<'a> {
    name: &'static str,
    seed: u64,
    rows: &'a [Row],
}

/// Simulates all scenarios at each size; with `docs`, writes the page and the plots below that folder.
pub(crate) fn run(seed: u64, sizes: &[u32], output: &Path, docs: Option<&Path>) -> Result<()> {
    let mut rows = Vec::new();
    println!("{}", docs::HEAD.join(" | "));
    for (scenario, network) in &SCENARIOS {
        for &nodes in sizes {
            ensure!((1..=1_000_000).contains(&nodes), "--nodes={nodes}: 1 to 1,000,000 can be simulated");
            let begun = Instant::now();
            let job = Job { nodes, ranks: RANKS, card: CARD };
            let found = world::run(&job, network, seed);
            let found = found.with_context(|| format!("{nodes} nodes, {scenario}"))?;
            let row = summarise(scenario, nodes, &found)?;
            println!("{}   [{:.1} s]", docs::cells(&row).join(" | "), begun.elapsed().as_secs_f64());
            rows.push(row);
        }
    }
    let text = serde_json::to_string_pretty(&Simulated { name: "simulate-bootstrap", seed, rows: &rows })?;
    std::fs::write(output, text + "\n").with_context(|| output.display().to_string())?;
    println!("{}", output.display());
    if let Some(docs) = docs {
        docs::write(docs, &rows, seed)?;
    }
    Ok(())
}

/// Also checks that no node needed more than theory allows.
fn summarise(scenario: &'static str, nodes: u32, found: &[Node]) -> Result<Row> {
    let most = |what: fn(&Node) -> u32| found.iter().map(what).max().unwrap_or(0);
    let (rounds, connections) = (most(|node| node.rounds), most(|node| node.made + node.accepted));
    let theory = nodes.next_power_of_two().ilog2();
    ensure!(rounds == theory, "{nodes} nodes took {rounds} rounds, not {theory}");
    ensure!(connections <= 2 * theory, "a leader of {nodes} nodes had {connections} connections");
    let mut times: Vec<u64> = found.iter().map(|node| node.time).collect();
    times.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of seconds")]
    let ms = |time: Option<&u64>| time.copied().unwrap_or(0) as f64 / 1e6;
    let refused: f64 = found.iter().map(|node| f64::from(node.refused)).sum();
    Ok(Row {
        scenario,
        nodes,
        ranks: u64::from(nodes) * u64::from(RANKS),
        rounds,
        connections,
        sent: found.iter().map(|node| node.sent).max().unwrap_or(0),
        refused: refused / f64::from(nodes),
        median_ms: ms(times.get(times.len() / 2)),
        last_ms: ms(times.last()),
    })
}
