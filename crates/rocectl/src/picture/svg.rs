//! A small writer of SVG: boxes, lines and texts at whole pixels.

use std::fmt::Write as _;

/// Sans-serif fonts that exist somewhere, and the generic one.
const FONTS: &str = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif";

/// How a box is painted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    pub(crate) fill: &'static str,
    pub(crate) stroke: &'static str,
    pub(crate) dashed: bool,
}

/// A box.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rect {
    pub(crate) x: i32,
    pub(crate) y: i32,
    pub(crate) width: i32,
    pub(crate) height: i32,
}

impl Rect {
    /// The middle of the upper edge.
    fn upper(self) -> (i32, i32) {
        (self.x + self.width / 2, self.y)
    }

    /// The middle of the lower edge.
    fn lower(self) -> (i32, i32) {
        (self.x + self.width / 2, self.y + self.height)
    }

    /// The middle of the right or left edge.
    fn side(self, right: bool) -> (i32, i32) {
        (if right { self.x + self.width } else { self.x }, self.y + self.height / 2)
    }
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ink {
    /// Pixels.
    pub(crate) size: i32,
    pub(crate) bold: bool,
    pub(crate) colour: &'static str,
    /// Centred on its x instead of beginning there.
    pub(crate) centred: bool,
    /// With a white seam, so that it reads where a line passes behind it.
    pub(crate) seamed: bool,
}

impl Ink {
    pub(crate) const fn new(size: i32, colour: &'static str) -> Self {
        Self { size, bold: false, colour, centred: false, seamed: false }
    }

    pub(crate) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    pub(crate) const fn seamed(self) -> Self {
        Self { seamed: true, ..self }
    }

    pub(crate) const fn centred(self) -> Self {
        Self { centred: true, ..self }
    }

    /// About how wide a text is, on the wide side: fonts differ.
    pub(crate) fn width(self, text: &str) -> i32 {
        let per_cent = if self.bold { 66 } else { 60 };
        let count = i32::try_from(text.chars().count()).unwrap_or(i32::MAX / 10_000);
        count * self.size * per_cent / 100
    }

    /// The text, cut so that it fits.
    pub(crate) fn fit(self, text: &str, width: i32) -> String {
        if self.width(text) <= width {
            return text.to_owned();
        }
        let mut cut: String = text.to_owned();
        while !cut.is_empty() && self.width(&cut) + self.size > width {
            cut.pop();
        }
        cut.trim_end().to_owned() + "\u{2026}"
    }
}

impl Ink {
    /// The text in two lines at most; what doesn't fit into the second is cut.
    pub(crate) fn wrap(self, text: &str, width: i32) -> Vec<String> {
        if self.width(text) <= width {
            return vec![text.to_owned()];
        }
        let mut spaces = text.rmatch_indices(' ').map(|(at, _)| at);
        match spaces.find(|&at| self.width(&text[..at]) <= width) {
            Some(at) => vec![text[..at].to_owned(), self.fit(&text[at + 1..], width)],
            None => vec![self.fit(text, width)],
        }
    }
}

/// A picture under construction.
#[derive(Default)]
pub(crate) struct Svg {
    body: String,
}

impl Svg {
    pub(crate) fn rect(&mut self, rect: Rect, radius: i32, paint: Paint, title: &str) {
        let Rect { x, y, width, height } = rect;
        let Paint { fill, stroke, dashed } = paint;
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        self.push(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\"{dash}"
        ));
        self.push(&if title.is_empty() {
            "/>\n".to_owned()
        } else {
            format!("><title>{}</title></rect>\n", escaped(title))
        });
    }

    pub(crate) fn circle(&mut self, x: i32, y: i32, radius: i32, paint: Paint) {
        let Paint { fill, stroke, .. } = paint;
        self.push(&format!(
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"2\"/>\n"
        ));
    }

    /// `y` is the base line.
    pub(crate) fn text(&mut self, x: i32, y: i32, ink: Ink, text: &str) {
        let weight = if ink.bold { " font-weight=\"700\"" } else { "" };
        let seam = if ink.seamed {
            " paint-order=\"stroke\" stroke=\"#fff\" stroke-width=\"4\" stroke-linejoin=\"round\""
        } else {
            ""
        };
        let anchor = if ink.centred { " text-anchor=\"middle\"" } else { "" };
        self.push(&format!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\"{weight}{anchor}{seam} fill=\"{}\">{}</text>\n",
            ink.size,
            ink.colour,
            escaped(text)
        ));
    }

    /// A curve from one box to another, with a white seam so that crossings read: down from the
    /// lower edge to the upper one where the other box is further down, else from side to side.
    pub(crate) fn join(&mut self, from: Rect, to: Rect, colour: &str) {
        let (start, end, first, second) = if to.y >= from.y + from.height {
            let (start, end) = (from.lower(), to.upper());
            let bend = (end.1 - start.1).max(40) / 2;
            (start, end, (start.0, start.1 + bend), (end.0, end.1 - bend))
        } else if from.x + from.width < to.x || to.x + to.width < from.x {
            let rightwards = from.x < to.x;
            let (start, end) = (from.side(rightwards), to.side(!rightwards));
            let bend = (end.0 - start.0) / 2;
            (start, end, (start.0 + bend, start.1), (end.0 - bend, end.1))
        } else {
            let (start, end) = (from.upper(), to.lower());
            let bend = (start.1 - end.1).max(40) / 2;
            (start, end, (start.0, start.1 - bend), (end.0, end.1 + bend))
        };
        let path = format!(
            "M{} {}C{} {} {} {} {} {}",
            start.0, start.1, first.0, first.1, second.0, second.1, end.0, end.1
        );
        self.push(&format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"#fff\" stroke-width=\"5\" opacity=\"0.7\"/>\n"
        ));
        self.push(&format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>\n"));
    }

    /// Puts another picture's marks on top.
    pub(crate) fn append(&mut self, other: &Self) {
        self.body += &other.body;
    }

    fn push(&mut self, text: &str) {
        self.body += text;
    }

    /// The whole file.
    pub(crate) fn finish(self, width: i32, height: i32, title: &str) -> String {
        let mut out = String::new();
        let title = escaped(title);
        // Writing to a String can't fail.
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"{FONTS}\">\n<title>{title}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        );
        out
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            // XML has no way to write most control characters.
            control if control.is_control() && control != '\n' => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_can_not_break_the_markup() {
        let mut svg = Svg::default();
        svg.text(1, 2, Ink::new(10, "#000"), "</text><script>\"&\u{1}");
        let out = svg.finish(10, 10, "a<b");
        assert!(out.contains("&lt;/text&gt;&lt;script&gt;&quot;&amp;\u{fffd}</text>"), "{out}");
        assert!(out.contains("<title>a&lt;b</title>"));
    }

    #[test]
    fn long_texts_are_cut_to_their_room() {
        let ink = Ink::new(10, "#000");
        assert_eq!(ink.fit("short", 100), "short");
        let cut = ink.fit("far too long for this", 60);
        assert!(cut.ends_with('\u{2026}') && ink.width(&cut) <= 66, "{cut}");
        assert_eq!(ink.wrap("two words", 100), ["two words"]);
        assert_eq!(ink.wrap("only 200 Gbit/s", 60), ["only 200", "Gbit/s"]);
    }
}
