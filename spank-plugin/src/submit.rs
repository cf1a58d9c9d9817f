//! The side where a job is submitted: srun, sbatch, salloc.
//!
//! Everything that can be judged without the node is judged here, so that a bad value ends the command
//! before anything is launched. A value by itself is judged in its option's callback, where Slurm adds one
//! short line; values together, and variables, in `init_post_opt`, where it adds two.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;

use roce_plan::{Options, RoceOption, Site, Source};
use roce_spank::{Context, OptionSpec, Spank, Verdict, inherited_option_variable};

use crate::abi::PLUGIN_NAME;
use crate::arguments::{ArgumentError, Arguments};
use crate::state::{State, state};
use crate::{components, node_wide, os, report, step};

/// The step's secret, from which the ranks authenticate each other; 64 hexadecimal digits.
pub(crate) const SECRET: &str = "SLURM_ROCE_SECRET";

/// Reads plugstack.conf's arguments and registers the options, in every program that knows options.
pub(crate) fn init(spank: &Spank<'_>, arguments: &[&CStr]) -> Verdict {
    let known = roce_spank::release().ok_or(ArgumentError::UnknownSlurm);
    let arguments = known.and_then(|_| Arguments::parse(arguments));
    let mut verdict = Verdict::Continue;
    if let Err(error) = &arguments {
        let report = if submitting(spank) { report::error } else { report::log };
        report(error);
        verdict = Verdict::Fail;
    }
    state().arguments = Some(arguments);
    if !submitting(spank) && spank.context() != Context::Remote {
        return verdict;
    }
    let options = RoceOption::ALL.map(|option| OptionSpec {
        name: option.name(),
        argument: option.argument(),
        usage: option.usage(),
    });
    if let Err(error) = spank.register_options(&options, option) {
        report::error(&error);
        verdict = Verdict::Fail;
    }
    verdict
}

/// In srun, sbatch or salloc?
fn submitting(spank: &Spank<'_>) -> bool {
    matches!(spank.context(), Context::Local | Context::Allocator)
}

/// One use of an option: typed, or inherited from the job, or delivered to the node.
fn option(index: usize, value: &CStr, remote: bool) -> Verdict {
    let Some(&option) = RoceOption::ALL.get(index) else { return Verdict::Continue };
    let mut state = state();
    if remote {
        // Judged in user_init. The callback may be called twice for one option; the last value counts.
        state.delivered.retain(|(known, _)| *known != option);
        state.delivered.push((option, value.to_bytes().to_vec()));
        return Verdict::Continue;
    }
    let Ok(value) = value.to_str() else {
        report::error(&format!("--{}={}: not UTF-8 text", option.name(), value.to_string_lossy()));
        return Verdict::Fail;
    };
    let source = state.source_of(option);
    state.options.set(option, value, source);
    // By itself; what other options make of it is judged when all are known. A site file that can't be read
    // is reported there too: it isn't this option's fault.
    let mut alone = Options::default();
    alone.set(option, value, source);
    if let Ok(site) = state.site()
        && let Err(error) = alone.request(&site)
    {
        report::error(&error);
        return Verdict::Fail;
    }
    Verdict::Continue
}

impl State {
    /// Where this use of an option comes from: Slurm doesn't say.
    fn source_of(&mut self, option: RoceOption) -> Source {
        let first = !self.seen.contains(&option);
        self.seen.push(option);
        // In a job Slurm calls the callback for the job's options first, then for the command line's.
        let inherited = first && std::env::var_os(inherited_variable(option)).is_some();
        // sbatch calls it for the lines of the script first; those too give way to what is typed.
        if inherited || !is_typed(option) { Source::Inherited } else { Source::CommandLine }
    }
}

/// Is the option among the arguments of this command? A program's own arguments may look like it, which
/// matters only if the script of an sbatch has the same option.
fn is_typed(option: RoceOption) -> bool {
    std::env::args_os().skip(1).any(|argument| named(argument.as_bytes(), option))
}

/// Does the argument name this option? `getopt_long` takes abbreviations too, if they fit no other.
pub(crate) fn named(argument: &[u8], option: RoceOption) -> bool {
    let Some(argument) = argument.strip_prefix(b"--") else { return false };
    let name = argument.split(|byte| *byte == b'=').next().unwrap_or_default();
    let exact = RoceOption::ALL.iter().find(|known| known.name().as_bytes() == name);
    match exact {
        Some(exact) => *exact == option,
        None => !name.is_empty() && option.name().as_bytes().starts_with(name),
    }
}

/// The variable in which Slurm hands a job's option to the sruns in it.
fn inherited_variable(option: RoceOption) -> String {
    inherited_option_variable(PLUGIN_NAME, option.name())
}

/// All options are known: judges them with the variables and the site file, and settles the request.
///
/// srun carries its environment of this moment to the tasks. Later, in `local_user_init`, it would still
/// carry what is set but no longer what is removed.
pub(crate) fn init_post_opt(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    let settled = match spank.context() {
        Context::Local => components::judge(true)
            .and_then(|()| judge(&mut state))
            .and_then(|active| hand_over(&state, active)),
        Context::Allocator => {
            components::judge(false).and_then(|()| judge(&mut state)).map(|_| disinherit(&state, spank))
        }
        Context::Remote => {
            node_wide::begin(&mut state, spank);
            step::begin(&mut state, spank);
            Ok(())
        }
        _ => Ok(()),
    };
    match settled {
        Ok(()) => Verdict::Continue,
        Err(error) => {
            report::error(&error);
            Verdict::Fail
        }
    }
}

/// Is the step to be placed?
fn judge(state: &mut State) -> Result<bool, String> {
    for option in RoceOption::ALL {
        if let Some(value) = std::env::var_os(option.variable()) {
            let value = value.to_str().ok_or_else(|| {
                format!("{}={}: not UTF-8 text", option.variable(), value.to_string_lossy())
            })?;
            state.options.set(option, value, Source::Variable);
        }
    }
    let site = match state.site() {
        Ok(site) => site,
        // A broken site file is the admin's to mend; who didn't ask for RoCE is not stopped by it.
        Err(error) if state.options.request(&Site::default()) != Ok(None) => return Err(error),
        Err(error) => {
            report::error(&format!("{error}; this step runs without RoCE placement"));
            return Ok(false);
        }
    };
    let request = state.options.request(&site).map_err(|error| error.to_string())?;
    Ok(request.is_some())
}

/// Slurm hands every option that sbatch saw to the job, those too that a rival of the same job displaced
/// (`sbatch --roce-dscp=46` of a script with `#SBATCH --roce-tc=3`): takes these back.
fn disinherit(state: &State, spank: &Spank<'_>) {
    let settled = state.options.variables();
    for option in &state.seen {
        let is_displaced = settled.contains(&(option.variable(), None));
        if is_displaced && let Err(error) = spank.disinherit_option(PLUGIN_NAME, option.name()) {
            report::note(&error);
        }
    }
}

/// Puts what was settled into srun's environment, which becomes the tasks': the nodes then read one request
/// that is free of conflicts, and so does an srun inside the step.
fn hand_over(state: &State, active: bool) -> Result<(), String> {
    if !active && state.options.is_empty() {
        return Ok(());
    }
    for (name, value) in state.options.variables() {
        os::set_own_variable(name, value.as_deref())?;
    }
    // They are in the variables now; left here, they would beat the variables in an srun inside the step.
    for option in RoceOption::ALL {
        os::set_own_variable(&inherited_variable(option), None)?;
    }
    // One that is there is an outer step's.
    let secret =
        active.then(secret).transpose().map_err(|error| format!("can't make the step's secret: {error}"))?;
    os::set_own_variable(SECRET, secret.as_deref())
}

/// 32 random bytes as 64 hexadecimal digits.
fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_64_hexadecimal_digits_and_never_the_same() {
        let (one, other) = (secret().unwrap(), secret().unwrap());
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }

    #[test]
    fn an_option_is_found_among_arguments_also_abbreviated() {
        assert!(named(b"--roce-tc=3", RoceOption::Tc));
        assert!(named(b"--roce-tc", RoceOption::Tc));
        assert!(!named(b"--roce-tc", RoceOption::Tclass));
        assert!(named(b"--roce-tcl=9", RoceOption::Tclass));
        assert!(named(b"--roce=on", RoceOption::Mode));
        assert!(!named(b"--roce=on", RoceOption::Tc));
        for other in ["--", "--roce-tcs=3", "roce-tc=3", "-roce-tc=3", "--exclusive"] {
            assert!(!named(other.as_bytes(), RoceOption::Tc), "{other}");
        }
    }
}
