//! The page and the plot about the exchange, in docs/.

use std::path::Path;

use anyhow::Result;

use super::measured::{Measured, Theirs};
use super::{OURS, PEERS, figure, show};
use crate::page;
use crate::plot::{Curve, Plot, Point, number};
use crate::report::{median, spread};

/// Writes `bootstrap.md`'s table and `images/bootstrap.svg` below the folder.
pub(super) fn write(docs: &Path, all: &[Measured], setting: &str) -> Result<()> {
    let command = "cargo xtask bench bootstrap --docs";
    page::replace(&docs.join("bootstrap.md"), command, &table(all, setting))?;
    plot(all, setting).write(&docs.join("images/bootstrap.svg"))
}

fn table(all: &[Measured], setting: &str) -> String {
    let names = [OURS.name].into_iter().chain(PEERS.iter().map(|peer| peer.name)).map(str::to_owned);
    let mut text = format!("Milliseconds, median (minimum-maximum). {setting}.\n\n");
    text += &page::row(&["ranks".to_owned()].into_iter().chain(names).collect::<Vec<_>>());
    text += &page::row(&["---:"; PEERS.len() + 2]);
    for Measured { ranks, ours, theirs, .. } in all {
        let cells = [ranks.to_string(), show(ours)].into_iter().chain(theirs.iter().map(figure));
        text += &page::row(&cells.collect::<Vec<_>>());
    }
    for Measured { ranks, theirs, .. } in all {
        for (peer, theirs) in PEERS.iter().zip(theirs) {
            if let Some(note) = theirs.note() {
                text += &format!("\n{} at {ranks} ranks: {note}.\n", peer.name);
            }
        }
    }
    text
}

fn plot(all: &[Measured], setting: &str) -> Plot {
    let point = |ranks: usize, times: &[f64]| {
        let (least, most) = spread(times);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        Point { least, most, ..Point::new(ranks as f64, median(times)) }
    };
    let ours = Curve {
        name: OURS.name.to_owned(),
        points: all.iter().map(|measured| point(measured.ranks, &measured.ours)).collect(),
    };
    let measured_point = |ranks, theirs: &Theirs| match theirs.more_than {
        Some(bound) if theirs.times.is_empty() => Some(Point { is_bound: true, ..point(ranks, &[bound]) }),
        _ => (!theirs.times.is_empty()).then(|| point(ranks, &theirs.times)),
    };
    let theirs = PEERS.iter().enumerate().map(|(number, peer)| {
        let measured = all.iter().filter_map(|all| measured_point(all.ranks, &all.theirs[number]));
        Curve { name: peer.name.to_owned(), points: measured.collect() }
    });
    Plot {
        title: "Until every rank has 64 bytes of every other one".to_owned(),
        subtitle: setting.to_owned(),
        x: "ranks on 8 nodes".to_owned(),
        x_number: number,
        y: "ms from the last start to the last end".to_owned(),
        curves: [ours].into_iter().chain(theirs).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_not_be_measured_is_told_with_the_reason() {
        let mut measured = Measured::new(32);
        measured.ours = vec![1.0, 3.0, 2.0];
        measured.theirs[0].times = vec![40.0];
        measured.theirs[1].stopped = Some("no plugin".to_owned());
        measured.theirs[2].more_than = Some(19_500.2);
        measured.theirs[2].stopped = Some("no end".to_owned());
        let text = table(&[measured], "here");
        assert!(
            text.contains("| 32 | 2.0 (1.0-3.0) | 40.0 (40.0-40.0) | not measured | > 19500 |"),
            "{text}"
        );
        assert!(text.contains("PMIx at 32 ranks: not measured: no plugin."), "{text}");
    }
}
