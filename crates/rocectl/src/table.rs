//! Tables for people: columns as wide as they must be, a style per cell.

use anstyle::{AnsiColor, Style};

/// Styles by meaning. Each also differs in words, so that nothing hangs on the colour.
pub(crate) const PLAIN: Style = Style::new();
pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();

/// A text with a style.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// A cell of some style.
pub(crate) fn cell(text: impl Into<String>, style: Style) -> Cell {
    Cell { text: text.into(), style }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        cell(text, PLAIN)
    }
}

/// The text in the style, for a terminal.
pub(crate) fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// A table under construction.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
}

enum Row {
    Cells(Vec<Cell>),
    /// A whole line that belongs to the row above.
    Note(Cell),
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row::Cells(cells));
    }

    pub(crate) fn note(&mut self, note: Cell) {
        self.rows.push(Row::Note(note));
    }

    /// Columns in which no row has anything are left out.
    pub(crate) fn render(&self) -> String {
        let cells = || {
            self.rows.iter().filter_map(|row| match row {
                Row::Cells(cells) => Some(cells),
                Row::Note(_) => None,
            })
        };
        let width = |column: usize| {
            let widest = cells().map(|cells| cells[column].text.chars().count()).max().unwrap_or(0);
            if widest == 0 { 0 } else { widest.max(self.header[column].chars().count()) }
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header: Vec<Cell> = self.header.iter().map(|name| cell(*name, BOLD)).collect();
        let mut out = line(&header, &widths);
        for row in &self.rows {
            match row {
                Row::Cells(cells) => out += &line(cells, &widths),
                Row::Note(note) => out += &format!("    {}\n", styled(&note.text, note.style)),
            }
        }
        out
    }
}

fn line(cells: &[Cell], widths: &[usize]) -> String {
    let shown: Vec<(&Cell, usize)> =
        cells.iter().zip(widths.iter().copied()).filter(|(_, width)| *width > 0).collect();
    let last = shown.iter().rposition(|(cell, _)| !cell.text.is_empty());
    let mut out = String::new();
    for (place, (cell, width)) in shown.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
        out += &styled(&cell.text, cell.style);
        if Some(place) != last {
            out += &" ".repeat(width - cell.text.chars().count() + 2);
        }
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_ones_vanish() {
        let mut table = Table::new(&["A", "EMPTY", "LONG"]);
        table.row(vec!["xyz".into(), "".into(), cell("1", BAD)]);
        table.note(cell("why", DIM));
        table.row(vec!["".into(), "".into(), "".into()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(plain, "A    LONG\nxyz  1\n    why\n\n");
    }
}
