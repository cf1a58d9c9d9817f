//! Slurm's log. User text is always an argument, never the format.
#![expect(unsafe_code, reason = "Slurm's logging functions are C and variadic")]

use std::ffi::CString;

use crate::abi::Host;

/// How loud a message is. srun shows errors on its standard error; the rest with `-v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something was refused or went wrong.
    Error,
    /// For the log.
    Info,
    /// With `-v`.
    Verbose,
    /// With `-vv`.
    Debug,
}

/// Writes one line to the log of the program that loaded the plugin.
///
/// Control characters are written as escapes, so a value can't add a second line or drive a terminal.
pub fn log(level: Level, text: &str) {
    let Ok(host) = Host::get() else {
        // Not a Slurm program: its standard error is all there is.
        eprintln!("{text}");
        return;
    };
    let function = match level {
        Level::Error => host.slurm_error,
        Level::Info => host.slurm_info,
        Level::Verbose => host.slurm_verbose,
        Level::Debug => host.slurm_debug,
    };
    let line = one_line(text);
    // SAFETY: the format is a constant that takes exactly one C string, which lives until the call returns.
    unsafe { function(c"%s".as_ptr(), line.as_ptr()) }
}

/// The text as one C string without control characters.
fn one_line(text: &str) -> CString {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    // No zero byte is left: it is a control character.
    CString::new(line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_the_user_typed() {
        let line = one_line("a\nb\0c\u{1b}[31m\u{9b} é %s");
        assert_eq!(line.to_str().unwrap(), "a\\nb\\u{0}c\\u{1b}[31m\\u{9b} é %s");
    }
}
