//! The simulation's table and plots in docs/.

use std::path::Path;

use anyhow::Result;

use super::{Row, SCENARIOS};
use crate::page;
use crate::plot::{Curve, Plot, Point, number};

pub(super) const HEAD: [&str; 8] =
    ["scenario", "nodes", "ranks", "rounds", "connections", "MB sent", "ms, median node", "ms, last node"];

/// A row of the table.
pub(super) fn cells(row: &Row) -> [String; 8] {
    let grouped = |value: f64| number(&value);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let [ranks, sent] = [row.ranks, row.sent].map(|value| value as f64);
    [
        row.scenario.to_owned(),
        grouped(f64::from(row.nodes)),
        grouped(ranks),
        row.rounds.to_string(),
        row.connections.to_string(),
        short(sent / 1e6),
        short(row.median_ms),
        short(row.last_ms),
    ]
}

/// Three digits or all before the point.
fn short(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => number(&value),
    }
}

/// Writes the table into `bootstrap.md` and the plots into `images/` below the folder.
pub(super) fn write(docs: &Path, rows: &[Row], seed: u64) -> Result<()> {
    let mut table = format!("Seed {seed}, 64 ranks a node, 64 bytes a rank.\n\n");
    table += &page::row(&HEAD);
    table += &page::row(&["---", "---:", "---:", "---:", "---:", "---:", "---:", "---:"]);
    for row in rows {
        table += &page::row(&cells(row));
    }
    page::replace(&docs.join("bootstrap.md"), "cargo xtask simulate bootstrap --docs", &table)?;
    let images = docs.join("images");
    times(rows).write(&images.join("bootstrap-simulated-time.svg"))?;
    counts(rows).write(&images.join("bootstrap-simulated-counts.svg"))
}

fn times(rows: &[Row]) -> Plot {
    let curve = |scenario: &str| {
        let rows = rows.iter().filter(|row| row.scenario == scenario);
        let point = |row: &Row| Point::new(f64::from(row.nodes), row.last_ms);
        Curve { name: scenario.to_owned(), points: rows.map(point).collect() }
    };
    Plot {
        title: "Simulated: until the last of all nodes knows everyone".to_owned(),
        subtitle: "64 ranks a node, 64 bytes a rank; 25 µs, 25 Gbit/s".to_owned(),
        x: "nodes".to_owned(),
        x_number: number,
        y: "ms from the last start to the last end".to_owned(),
        curves: SCENARIOS.iter().map(|(scenario, _)| curve(scenario)).collect(),
    }
}

/// They are the same in all scenarios.
fn counts(rows: &[Row]) -> Plot {
    let curve = |name: &str, count: &dyn Fn(&Row) -> f64| {
        let rows = rows.iter().filter(|row| row.scenario == SCENARIOS[0].0);
        let points = rows.map(|row| Point::new(f64::from(row.nodes), count(row)));
        Curve { name: name.to_owned(), points: points.collect() }
    };
    #[expect(clippy::cast_precision_loss, reason = "for a plot")]
    let curves = vec![
        curve("rounds", &|row| f64::from(row.rounds)),
        curve("connections of a leader", &|row| f64::from(row.connections)),
        curve("MB that a leader sends", &|row| row.sent as f64 / 1e6),
    ];
    Plot {
        title: "Simulated: what a node needs".to_owned(),
        subtitle: "64 ranks a node, 64 bytes a rank".to_owned(),
        x: "nodes".to_owned(),
        x_number: number,
        y: "rounds, connections, MB".to_owned(),
        curves,
    }
}
