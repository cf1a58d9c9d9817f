//! The page and the plots about messages, in docs/.

use std::path::Path;

use anyhow::Result;

use super::measured::{Measured, bytes, name};
use super::player::Player;
use super::{Case, What};
use crate::page;
use crate::plot::{Curve, Plot, Point};
use crate::report::{median, spread};

/// Writes `messages.md`'s tables, `images/messages-latency.svg` and `images/messages-stream.svg` below the folder.
pub(super) fn write(docs: &Path, measured: &Measured, setting: &str) -> Result<()> {
    let command = "cargo xtask bench messages --docs";
    page::replace(&docs.join("messages.md"), command, &tables(measured, setting))?;
    latency(measured, setting).write(&docs.join("images/messages-latency.svg"))?;
    stream(measured, setting).write(&docs.join("images/messages-stream.svg"))
}

fn tables(measured: &Measured, setting: &str) -> String {
    let mut text = format!("Median (minimum-maximum). {setting}.\n\n");
    text += &format!("A bare cache line: {} ns.\n\n", show(measured.line()));
    text += &table(measured, "ns", &|case| case.what != What::Stream);
    text += "\n";
    text += &table(measured, "MB/s", &|case| case.what == What::Stream);
    text
}

fn table(measured: &Measured, unit: &str, is_in: &dyn Fn(&Case) -> bool) -> String {
    let players = Player::ALL.map(|player| player.name().to_owned());
    let mut text = page::row(&[[unit.to_owned()].as_slice(), &players].concat());
    text += &page::row(&["---", "---:", "---:", "---:"]);
    for case in measured.played().into_iter().filter(is_in) {
        let cells = Player::ALL.map(|player| show(&measured.of(case, player)));
        text += &page::row(&[[name(case)].as_slice(), &cells].concat());
    }
    text
}

/// Digits as many as mean something.
pub(crate) fn show(values: &[f64]) -> String {
    let ((least, most), middle) = (spread(values), median(values));
    let show = crate::plot::number;
    format!("{} ({}-{})", show(&middle), show(&least), show(&most))
}

fn curve(measured: &Measured, what: What, player: Player, scale: f64) -> Curve {
    let points = measured.played().into_iter().filter(|case| case.what == what).map(|case| {
        let values = measured.of(case, player);
        let (least, most) = spread(&values);
        #[expect(clippy::cast_precision_loss, reason = "sizes of messages")]
        let x = case.size as f64;
        Point { least: least * scale, most: most * scale, ..Point::new(x, median(&values) * scale) }
    });
    Curve { name: player.name().to_owned(), points: points.collect() }
}

fn plot(title: &str, setting: &str, y: &str, curves: Vec<Curve>) -> Plot {
    Plot {
        title: title.to_owned(),
        subtitle: setting.to_owned(),
        x: "bytes of a message".to_owned(),
        x_number: size,
        y: y.to_owned(),
        curves,
    }
}

fn latency(measured: &Measured, setting: &str) -> Plot {
    let mut curves: Vec<Curve> =
        Player::ALL.into_iter().map(|player| curve(measured, What::Latency, player, 1e-3)).collect();
    let (least, most) = spread(measured.line());
    let middle = median(measured.line());
    let point = Point { least: least / 1e3, most: most / 1e3, ..Point::new(8.0, middle / 1e3) };
    curves.push(Curve { name: "a bare cache line".to_owned(), points: vec![point] });
    plot("Half of a round trip between two ranks of a node", setting, "us", curves)
}

fn stream(measured: &Measured, setting: &str) -> Plot {
    let curves = Player::ALL.into_iter().map(|player| curve(measured, What::Stream, player, 1.0));
    plot("A stream of messages between two ranks of a node", setting, "MB/s", curves.collect())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "plotters' type")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes of messages")]
pub(crate) fn size(value: &f64) -> String {
    bytes(value.round() as usize)
}
