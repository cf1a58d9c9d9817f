//! Colours and inks. Tasks have the colours of Okabe and Ito and of Tol, which people who are
//! colour-blind tell apart, and always their number too.

use super::svg::{Ink, Paint};

pub(crate) const TITLE: Ink = Ink::new(20, "#1b2530").bold();
pub(crate) const SUBTITLE: Ink = Ink::new(13, "#46535f");
pub(crate) const TITLE_OF_BOX: Ink = Ink::new(14, "#1b2530").bold();
pub(crate) const HEADING: Ink = TITLE_OF_BOX.seamed();
pub(crate) const NOTE: Ink = Ink::new(12, "#46535f").seamed();
pub(crate) const LABEL: Ink = Ink::new(10, "#5b6875");
/// A group's name.
pub(crate) const PLACE: Ink = LABEL.seamed();
pub(crate) const NAME: Ink = Ink::new(13, "#1b2530").bold();
pub(crate) const FACT: Ink = Ink::new(11, "#35424e");
pub(crate) const REASON: Ink = Ink::new(11, "#a33b00");

const fn paint(fill: &'static str, stroke: &'static str) -> Paint {
    Paint { fill, stroke, dashed: false }
}

pub(crate) const PACKAGE: Paint = paint("#f4f6f8", "#9aa7b3");
pub(crate) const NUMA: Paint = paint("#ffffff", "#b7c1ca");
pub(crate) const SWITCH: Paint = paint("#eef1f4", "#8fa0b0");
pub(crate) const HOST_BRIDGE: Paint = Paint { dashed: true, ..paint("#ffffff", "#c3ccd4") };
pub(crate) const NIC: Paint = paint("#e3f0fa", "#0072b2");
pub(crate) const UNUSED_NIC: Paint = Paint { dashed: true, ..paint("#f7f7f7", "#8a8a8a") };
pub(crate) const GPU: Paint = paint("#fbf3df", "#b8860b");
pub(crate) const UP: Paint = paint("#0072b2", "#0072b2");
pub(crate) const DOWN: Paint = paint("#ffffff", "#8a8a8a");
pub(crate) const CPU: Paint = paint("#c8d2dc", "none");
/// A CPU that several tasks may use.
pub(crate) const SHARED_CPU: Paint = paint("#5b6875", "none");

const TASKS: [&str; 10] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#999933", "#882255",
    "#44aa99",
];

/// A task's colour, and one for text on it.
pub(crate) fn task(place: usize) -> (&'static str, &'static str) {
    let colour = TASKS[place % TASKS.len()];
    let light = matches!(colour, "#cc79a7" | "#e69f00" | "#56b4e9" | "#44aa99");
    (colour, if light { "#000000" } else { "#ffffff" })
}
