//! Plots as SVG, with logarithmic axes.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

/// One picture.
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What was measured on, in small letters.
    pub(crate) subtitle: String,
    /// What the axes show.
    pub(crate) x: String,
    /// How numbers of that axis are written.
    pub(crate) x_number: fn(&f64) -> String,
    pub(crate) y: String,
    pub(crate) curves: Vec<Curve>,
}

/// One line of it.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// A median between its extremes.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) least: f64,
    pub(crate) y: f64,
    pub(crate) most: f64,
    /// It lies somewhere above: a triangle, and no part of the line.
    pub(crate) is_bound: bool,
}

impl Point {
    /// Without extremes.
    pub(crate) fn new(x: f64, y: f64) -> Self {
        Self { x, least: y, y, most: y, is_bound: false }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Of the legend: names side by side, and the height of a line of them.
const COLUMNS: usize = 3;
const LINE: u32 = 20;
const SIZE: (u32, u32) = (860, 540);
/// Colours that the colour-blind tell apart too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 86, 86),
    RGBColor(230, 159, 0),
];

impl Plot {
    /// Writes it.
    ///
    /// # Errors
    /// Without a point; if the file can't be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut svg = String::new();
        self.draw(&mut svg)?;
        Ok(std::fs::write(path, svg)?)
    }

    fn draw(&self, svg: &mut String) -> Result<()> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        ensure!(points().next().is_some(), "nothing to plot in \"{}\"", self.title);
        let range = |low: &dyn Fn(&Point) -> f64, high: &dyn Fn(&Point) -> f64| {
            let least = points().map(low).fold(f64::INFINITY, f64::min);
            let most = points().map(high).fold(0.0, f64::max);
            // Room around the outermost points; a logarithm needs more than zero.
            (least / 1.3).max(1e-9)..most * 1.3
        };
        let (x, y) =
            (range(&|point| point.x, &|point| point.x), range(&|point| point.least, &|point| point.most));
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(&self.title, ("sans-serif", 20))?;
        let root = root.titled(&self.subtitle, ("sans-serif", 12).into_font().color(&BLACK.mix(0.7)))?;
        let curves: Vec<&Curve> = self.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
        let (legend, root) = root.split_vertically(u32::try_from(curves.len().div_ceil(COLUMNS))? * LINE);
        draw_legend(&legend, &curves)?;
        let mut places: Vec<f64> = points().map(|point| point.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let mut chart = ChartBuilder::on(&root)
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(x.log_scale().with_key_points(places), y.log_scale())?;
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&self.x_number)
            .y_label_formatter(&number)
            .light_line_style(BLACK.mix(0.05))
            .draw()?;
        for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let (bounds, found): (Vec<&Point>, Vec<&Point>) =
                curve.points.iter().partition(|point| point.is_bound);
            let line = found.iter().map(|point| (point.x, point.y));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            let bars = found.iter().map(|point| {
                ErrorBar::new_vertical(point.x, point.least, point.y, point.most, colour.filled(), 8)
            });
            chart.draw_series(bars)?;
            let triangles = bounds.iter();
            let triangle = |point: &&Point| TriangleMarker::new((point.x, point.y), 9, colour.filled());
            chart.draw_series(triangles.map(triangle))?;
        }
        Ok(root.present()?)
    }
}

/// Above the chart, where no curve can run through it.
fn draw_legend(area: &Area, curves: &[&Curve]) -> Result<()> {
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let column = i32::try_from(SIZE.0 as usize * (number % COLUMNS) / COLUMNS)? + 30;
        let row = i32::try_from(number / COLUMNS * LINE as usize)? + 10;
        let style = colour.stroke_width(3);
        area.draw(&PathElement::new([(column, row), (column + 24, row)], style))?;
        let text = ("sans-serif", 13).into_font().color(&BLACK);
        area.draw(&Text::new(curve.name.clone(), (column + 32, row - 6), text))?;
    }
    Ok(())
}

/// `1,000` and `0.25`: as short as it can be.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "plotters' type")]
pub(crate) fn number(value: &f64) -> String {
    if *value < 1.0 {
        return format!("{value:.3}").trim_end_matches('0').to_owned();
    }
    let digits = format!("{value:.0}");
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    grouped.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.25, 1.0, 64.0, 1_000.0, 6_400_000.0].map(|value| number(&value)),
            ["0.25", "1", "64", "1,000", "6,400,000"]
        );
    }

    #[test]
    fn every_curve_is_named_and_nothing_is_no_plot() {
        let point = |x, y| Point { least: y / 2.0, most: y * 2.0, ..Point::new(x, y) };
        let curve =
            |name: &str| Curve { name: name.to_owned(), points: vec![point(32.0, 4.0), point(512.0, 900.0)] };
        let mut plot = Plot {
            title: "title".to_owned(),
            subtitle: "here".to_owned(),
            x: "ranks".to_owned(),
            x_number: number,
            y: "ms".to_owned(),
            curves: vec![curve("ours"), curve("theirs")],
        };
        let mut svg = String::new();
        plot.draw(&mut svg).unwrap();
        assert!(svg.starts_with("<svg"));
        for text in ["title", "here", "ranks", "ms", "ours", "theirs"] {
            assert!(svg.contains(text), "{text}");
        }
        plot.curves.push(Curve { name: "nobody".to_owned(), points: Vec::new() });
        let mut svg = String::new();
        plot.draw(&mut svg).unwrap();
        assert!(!svg.contains("nobody"), "a name without a curve");
        plot.curves.clear();
        assert!(plot.draw(&mut String::new()).is_err());
    }
}
