//! The tables and plots about verbs, in docs/messages.md.

use std::path::Path;

use anyhow::Result;

use super::measured::{Measured, Player};
use super::{LONG, SIZES};
use crate::messages::{bytes, show, size};
use crate::page;
use crate::plot::{Curve, Plot, Point};
use crate::report::{Case, median, spread};

/// Of latencies: what was measured, and its name.
const LATENCIES: [(&str, Player, &str); 6] = [
    ("message", Player::Ours, "message"),
    ("pair-send", Player::Ours, "queue pair's send"),
    ("send", Player::Perftest, "ib_send_lat"),
    ("put", Player::Ours, "window's put"),
    ("pair-write", Player::Ours, "queue pair's write"),
    ("write", Player::Perftest, "ib_write_lat"),
];
const MEANS: [(&str, Player, &str); 5] = [
    ("mean", Player::Ours, "message"),
    ("mean", Player::OpenMpi, "Open MPI (UCX)"),
    ("mean", Player::Datagrams, "fi_pingpong -e rdm"),
    ("pair-mean", Player::Ours, "queue pair's send"),
    ("mean", Player::Endpoints, "fi_pingpong -e msg"),
];
const STREAMS: [(&str, Player, &str); 5] = [
    ("stream", Player::Ours, "messages"),
    ("pair-send-stream", Player::Ours, "queue pair's sends"),
    ("send-stream", Player::Perftest, "ib_send_bw"),
    ("pair-write-stream", Player::Ours, "queue pair's writes"),
    ("write-stream", Player::Perftest, "ib_write_bw"),
];

/// Writes the page's tables and `images/messages-verbs.svg` below the folder.
pub(super) fn write(docs: &Path, measured: &Measured, setting: &str) -> Result<()> {
    let command = "cargo xtask bench messages --over verbs --docs";
    page::replace(&docs.join("messages.md"), command, &tables(measured, setting))?;
    plot(measured, setting).write(&docs.join("images/messages-verbs.svg"))
}

fn tables(measured: &Measured, setting: &str) -> String {
    let mut text = format!("Median (minimum-maximum) of the rounds. {setting}.\n\n");
    text += "Medians of a round, in microseconds:\n\n";
    text += &table(measured, &LATENCIES, &SIZES, 1e-3);
    text += "\nMeans of a round, which is what these peers tell, in microseconds:\n\n";
    text += &table(measured, &MEANS, &SIZES, 1e-3);
    text += "\nMB/s:\n\n";
    text += &table(measured, &STREAMS, &LONG, 1.0);
    text +=
        "\nRatios, more is better for us (1.03 times the latency is 0.97), and what was to be reached:\n\n";
    text += &page::row(&["", "peer", "ratio", "goal"]);
    text += &page::row(&["---", "---", "---:", "---:"]);
    for case in measured.cases() {
        text += &page::row(&ratio(&case));
    }
    text
}

fn ratio(case: &Case) -> [String; 4] {
    let goal = case.goal.map_or(String::new(), |goal| format!("{goal:.2}"));
    let missed = if case.holds() { "" } else { " (missed)" };
    let ours = if case.ours.len() == 1 { format!(": {:.0}", case.ours[0]) } else { String::new() };
    [format!("{}{ours}", case.case), case.peer.clone(), format!("{:.2}{missed}", case.ratio), goal]
}

fn table(
    measured: &Measured,
    columns: &[(&'static str, Player, &str)],
    sizes: &[usize],
    scale: f64,
) -> String {
    let names: Vec<String> = columns.iter().map(|(_, _, name)| (*name).to_owned()).collect();
    let mut text = page::row(&[[String::new()].as_slice(), &names].concat());
    text += &page::row(&[vec!["---"], vec!["---:"; columns.len()]].concat());
    for size in sizes {
        let cells = columns.iter().map(|(what, player, _)| {
            let values: Vec<f64> =
                measured.of(what, *size, *player).iter().map(|value| value * scale).collect();
            show(&values)
        });
        text += &page::row(&[bytes(*size)].into_iter().chain(cells).collect::<Vec<_>>());
    }
    text
}

fn plot(measured: &Measured, setting: &str) -> Plot {
    let curve = |(what, player, name): (&'static str, Player, &str)| {
        let points = SIZES.into_iter().map(|size| {
            let values: Vec<f64> = measured.of(what, size, player).iter().map(|ns| ns * 1e-3).collect();
            let (least, most) = spread(&values);
            #[expect(clippy::cast_precision_loss, reason = "sizes of messages")]
            let x = size as f64;
            Point { least, most, ..Point::new(x, median(&values)) }
        });
        Curve { name: name.to_owned(), points: points.collect() }
    };
    // Of these there are no medians.
    let means = [(MEANS[1], "Open MPI (UCX), mean"), (MEANS[2], "fi_pingpong -e rdm, mean")];
    let means = means.map(|((what, player, _), name)| (what, player, name));
    let medians = [LATENCIES[0], LATENCIES[2], LATENCIES[4], LATENCIES[5]];
    let curves: Vec<_> = medians.into_iter().chain(means).map(curve).collect();
    Plot {
        title: "One way between two ranks over a soft-RoCE device".to_owned(),
        // The page has all of it; a picture has room for the first part.
        subtitle: setting.split("; on ").next().unwrap_or(setting).chars().take(130).collect(),
        x: "bytes of a message".to_owned(),
        x_number: size,
        y: "us".to_owned(),
        curves,
    }
}
