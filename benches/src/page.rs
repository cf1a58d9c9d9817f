//! Pages of docs/ with parts that a command writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A row of a table.
pub(crate) fn row<T: AsRef<str>>(cells: &[T]) -> String {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// Puts `text` in the place of what stands between the two lines of the page that name the command.
///
/// # Errors
/// If the page lacks one of them, or can't be written.
pub(crate) fn replace(page: &Path, command: &str, text: &str) -> Result<()> {
    let [start, end] = lines(command);
    let old = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let new = replaced(&old, command, text)
        .with_context(|| format!("{} lacks the line \"{start}\" or \"{end}\"", page.display()))?;
    fs::write(page, new).with_context(|| page.display().to_string())
}

fn lines(command: &str) -> [String; 2] {
    [format!("<!-- written by {command} -->"), format!("<!-- end of what {command} writes -->")]
}

fn replaced(page: &str, command: &str, text: &str) -> Option<String> {
    let [start, end] = lines(command);
    let (before, rest) = page.split_once(&start)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{start}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_text_takes_the_old_ones_place_and_leaves_the_rest() {
        let [start, end] = lines("make");
        let page = format!("before\n{start}\nold\n{end}\nafter\n");
        let new = replaced(&page, "make", "new\n").unwrap();
        assert_eq!(new, format!("before\n{start}\nnew\n{end}\nafter\n"));
        assert!(replaced(&page, "brew", "new").is_none());
    }
}
