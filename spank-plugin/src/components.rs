//! The components of a heterogeneous job or step, separated by `:` on the command line.
//!
//! Slurm keeps one value of a plugin's option for all of them, the last one it meets, also where only one
//! component has the option. What can't be kept apart is refused.

use std::os::unix::ffi::OsStrExt;

use roce_plan::RoceOption;

use crate::submit::named;

/// The options of one component, with their values as typed.
type Typed = Vec<(RoceOption, String)>;

/// Judges the command line of this process.
///
/// # Errors
/// What was asked of one component only.
pub(crate) fn judge(is_srun: bool) -> Result<(), String> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&[u8]> = arguments.iter().map(|argument| argument.as_bytes()).collect();
    judge_arguments(&arguments, is_srun)
}

fn judge_arguments(arguments: &[&[u8]], is_srun: bool) -> Result<(), String> {
    let components: Vec<Typed> = arguments.split(|argument| *argument == b":").map(typed).collect();
    for option in RoceOption::ALL {
        // The last one counts, as it does for Slurm.
        let value = |typed: &Typed| {
            typed.iter().rev().find(|(known, _)| *known == option).map(|(_, value)| value.clone())
        };
        let values: Vec<Option<String>> = components.iter().map(value).collect();
        // sbatch and salloc take a `:` after the script's name for an argument of the script, so that a
        // component without the option may be none.
        let first = if is_srun { values.first() } else { values.iter().find(|value| value.is_some()) };
        let Some(first) = first else { continue };
        if let Some(other) = values.iter().find(|other| **other != *first && (is_srun || other.is_some())) {
            let written = |value: &Option<String>| match value {
                Some(value) => format!("--{}={}", option.name(), value.escape_debug()),
                None => format!("no --{}", option.name()),
            };
            return Err(format!(
                "{} and {}: Slurm can't keep options of the components of a heterogeneous job apart; \
                 give the same to all, or start each with an srun of its own",
                written(first),
                written(other)
            ));
        }
    }
    Ok(())
}

/// The options among a component's arguments. Those of the program that it runs may look alike, which
/// matters only if they differ.
fn typed(arguments: &[&[u8]]) -> Typed {
    let mut typed = Typed::new();
    for (i, argument) in arguments.iter().enumerate() {
        let Some(option) = RoceOption::ALL.into_iter().find(|option| named(argument, *option)) else {
            continue;
        };
        let joined = argument.iter().position(|byte| *byte == b'=').map(|equals| &argument[equals + 1..]);
        let value = joined.or_else(|| arguments.get(i + 1).copied()).unwrap_or_default();
        typed.push((option, String::from_utf8_lossy(value).into_owned()));
    }
    typed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(line: &str, is_srun: bool) -> Result<(), String> {
        let arguments: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        judge_arguments(&arguments, is_srun)
    }

    #[test]
    fn what_all_components_have_alike_is_fine() {
        for line in [
            "--roce-tc=3 a",
            "a : b : c",
            "--roce-tc=3 a : --roce-tc 3 b",
            "--roce-tc=5 --roce-tc=3 a : --roce-tc=3 b",
            "--roce-tcl=9 a : --roce-tclass=9 b",
        ] {
            assert_eq!(judged(line, true), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_one_component_has_alone_is_refused() {
        let error = judged("--roce-tc=3 a : --roce-tc=4 b", true).unwrap_err();
        assert!(error.starts_with("--roce-tc=3 and --roce-tc=4: Slurm can't keep"), "{error}");
        let error = judged("a : --roce=off b", true).unwrap_err();
        assert!(error.starts_with("no --roce and --roce=off: "), "{error}");
    }

    #[test]
    fn a_colon_among_a_scripts_arguments_separates_nothing() {
        assert_eq!(judged("--roce-tc=3 job.sh a : b", false), Ok(()));
        assert!(judged("--roce-tc=3 -n1 : -n1 --roce-tc=4 job.sh", false).is_err());
    }
}
