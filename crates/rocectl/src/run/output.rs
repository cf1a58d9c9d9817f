//! What ranks print, line by line, so that the lines of two ranks never mix.

use std::io::{self, BufRead, BufReader, Read, Write};

/// A longer line is handed on in pieces: a rank that prints no line end must not fill memory.
const LONGEST: u64 = 64 * 1024;

/// Hands on every line as a whole, until the rank closes its end or nobody reads ours. A last line that does not end
/// is ended here. Lines that `keep` wants are not handed on.
pub(super) fn forward<W: Write>(
    from: impl Read,
    prefix: &str,
    to: impl Fn() -> W,
    keep: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        if from.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.strip_prefix(prefix.as_bytes()).is_some_and(&keep) {
            continue;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let mut to = to();
        to.write_all(&line)?;
        to.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Counts how many writes there are: each one is a whole line.
    struct Writes<'a>(&'a RefCell<Vec<String>>);

    impl Write for Writes<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn forwarded(text: &str, prefix: &str) -> Vec<String> {
        let writes = RefCell::new(Vec::new());
        forward(text.as_bytes(), prefix, || Writes(&writes), |line| line == b"kept\n").unwrap();
        writes.into_inner()
    }

    #[test]
    fn every_line_is_one_write_with_its_prefix() {
        assert_eq!(forwarded("a\n\nkept\nb", "3: "), ["3: a\n", "3: \n", "3: b\n"]);
        assert!(forwarded("", "3: ").is_empty());
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let pieces = forwarded(&"x".repeat(100_000), "");
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [65_537, 34_465]);
    }
}
