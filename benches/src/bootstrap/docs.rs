//! The page and the plot about the exchange, in docs/.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::measured::{Measured, Theirs};
use super::{OURS, PEERS, figure, show};
use crate::plot::{Curve, Plot, Point};
use crate::report::{median, spread};

/// Between these lines of the page stands what was measured.
const START: &str = "<!-- measured: written by cargo xtask bench bootstrap --docs -->";
const END: &str = "<!-- measured: end -->";

/// Writes `bootstrap.md`'s table and `images/bootstrap.svg` below the folder.
pub(super) fn write(docs: &Path, all: &[Measured], setting: &str) -> Result<()> {
    let page = docs.join("bootstrap.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let replaced = replace(&text, &table(all, setting))
        .with_context(|| format!("{} lacks the line \"{START}\" or \"{END}\"", page.display()))?;
    fs::write(&page, replaced).with_context(|| page.display().to_string())?;
    plot(all, setting).write(&docs.join("images/bootstrap.svg"))
}

/// Another table between the two lines.
fn replace(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(START)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{START}\n{table}{END}{after}"))
}

fn table(all: &[Measured], setting: &str) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let names = [OURS.name].into_iter().chain(PEERS.iter().map(|peer| peer.name)).map(str::to_owned);
    let mut text = format!("Milliseconds, median (minimum-maximum). {setting}.\n\n");
    text += &row(["ranks".to_owned()].into_iter().chain(names).collect());
    text += &row(vec!["---:".to_owned(); PEERS.len() + 2]);
    for Measured { ranks, ours, theirs, .. } in all {
        let cells = [ranks.to_string(), show(ours)].into_iter().chain(theirs.iter().map(figure));
        text += &row(cells.collect());
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
        Point { x: ranks as f64, least, y: median(times), most }
    };
    let ours = Curve {
        name: OURS.name.to_owned(),
        points: all.iter().map(|measured| point(measured.ranks, &measured.ours)).collect(),
    };
    // A bound is no point of a curve.
    let measured_point =
        |ranks, theirs: &Theirs| (!theirs.times.is_empty()).then(|| point(ranks, &theirs.times));
    let theirs = PEERS.iter().enumerate().map(|(number, peer)| {
        let measured = all.iter().filter_map(|all| measured_point(all.ranks, &all.theirs[number]));
        Curve { name: peer.name.to_owned(), points: measured.collect() }
    });
    Plot {
        title: "Until every rank has 64 bytes of every other one".to_owned(),
        subtitle: setting.to_owned(),
        x: "ranks on 8 nodes".to_owned(),
        y: "ms from the last start to the last end".to_owned(),
        curves: [ours].into_iter().chain(theirs).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_old_ones_place_and_leaves_the_rest() {
        let page = format!("before\n{START}\nold\n{END}\nafter\n");
        assert_eq!(replace(&page, "new\n").unwrap(), format!("before\n{START}\nnew\n{END}\nafter\n"));
        assert!(replace("no lines", "new").is_none());
    }

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
