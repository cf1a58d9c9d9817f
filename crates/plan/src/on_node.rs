//! What was asked for, as it reaches a node: bytes that any user may have written, whatever srun checked.

use crate::option::{OptionError, Options, RoceOption, Source};

impl RoceOption {
    /// The option whose variable this is.
    #[must_use]
    pub fn of_variable(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|option| option.variable().as_bytes() == name)
    }
}

impl Options {
    /// The options of a step on its node: those of its variables, into which srun puts the settled request; and
    /// only when there is none, those that Slurm delivers, of which the last of each counts.
    ///
    /// # Errors
    /// When a value that counts is no text.
    pub fn on_node<'a>(
        variables: impl IntoIterator<Item = (RoceOption, &'a [u8])>,
        delivered: impl IntoIterator<Item = (RoceOption, &'a [u8])>,
    ) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for (option, value) in variables {
            // Users know the option, and that is what srun settled on, wherever it came from.
            options.set(option, text(option, value)?, Source::CommandLine);
        }
        if options.is_empty() {
            for (option, value) in delivered {
                options.set_last(option, text(option, value)?);
            }
        }
        Ok(options)
    }
}

fn text(option: RoceOption, value: &[u8]) -> Result<&str, OptionError> {
    std::str::from_utf8(value).map_err(|_| {
        // As much of it as other errors show.
        let shown = String::from_utf8_lossy(&value[..value.len().min(64)]);
        let shown: String = shown.chars().flat_map(char::escape_debug).collect();
        OptionError { given: format!("--{}={shown}", option.name()), why: "not UTF-8 text".to_owned() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Site;

    fn asked(variables: &[(RoceOption, &[u8])], delivered: &[(RoceOption, &[u8])]) -> String {
        let options = Options::on_node(variables.iter().copied(), delivered.iter().copied());
        match options.and_then(|options| options.request(&Site::default())) {
            Ok(request) => request.map_or("nothing".to_owned(), |request| request.asked_by()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_delivered_counts_only_without_variables() {
        let (tc, dscp) = (RoceOption::Tc, RoceOption::Dscp);
        assert_eq!(asked(&[], &[]), "nothing");
        assert_eq!(asked(&[(tc, b"3")], &[(tc, b"\xff")]), "--roce-tc=3");
        assert_eq!(asked(&[], &[(dscp, b"46"), (tc, b"4"), (tc, b"3")]), "--roce-tc=3");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_part() {
        let error = asked(&[(RoceOption::Tc, &[0xff; 1 << 20])], &[]);
        assert!(error.ends_with(": not UTF-8 text") && error.len() < 300, "{error}");
        assert!(!asked(&[(RoceOption::Gid, b"\x1b[2J\xff")], &[]).contains('\u{1b}'));
    }

    #[test]
    fn every_option_is_found_by_its_variable() {
        for option in RoceOption::ALL {
            assert_eq!(RoceOption::of_variable(option.variable().as_bytes()), Some(option));
        }
        assert_eq!(RoceOption::of_variable(b"SLURM_ROCE_SECRET"), None);
    }
}
