//! The side where a job is submitted: srun, sbatch, salloc.
//!
//! Everything that can be judged without the node is judged here, so that a bad value ends the command
//! before anything is launched. A value by itself is judged in its option's callback, where Slurm adds one
//! short line; values together, and variables, in `init_post_opt`, where it adds two.

use std::ffi::CStr;

use roce_plan::{Options, RoceOption, Source};
use roce_spank::{Context, OptionSpec, Spank, Verdict};

use crate::arguments::Arguments;
use crate::state::{State, state};
use crate::{os, report};

/// The step's secret, from which the ranks authenticate each other; 64 hexadecimal digits.
pub(crate) const SECRET: &str = "SLURM_ROCE_SECRET";

/// Reads plugstack.conf's arguments and registers the options, in every program that knows options.
pub(crate) fn init(spank: &Spank<'_>, arguments: &[&CStr]) -> Verdict {
    let arguments = Arguments::parse(arguments);
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
    /// Where this use of an option comes from. Slurm gives a job's options to its inner sruns through the
    /// environment and calls the callback for those first, then for the command line.
    fn source_of(&mut self, option: RoceOption) -> Source {
        let first = !self.seen.contains(&option);
        self.seen.push(option);
        let inherited = std::env::var_os(inherited_variable(option)).is_some();
        if first && inherited { Source::Inherited } else { Source::CommandLine }
    }
}

/// The variable in which Slurm hands a job's option to its inner sruns.
fn inherited_variable(option: RoceOption) -> String {
    format!("SLURM_SPANK__SLURM_SPANK_OPTION_spank_roce_{}", option.name().replace('-', "_"))
}

/// All options are known: judges them with the variables and the site file.
pub(crate) fn init_post_opt(spank: &Spank<'_>, _: &[&CStr]) -> Verdict {
    if !submitting(spank) {
        return Verdict::Continue;
    }
    let mut state = state();
    match judge(&mut state) {
        Ok(active) => {
            state.active = Some(active);
            Verdict::Continue
        }
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
        Err(error) if state.asked() => return Err(error),
        Err(error) => {
            report::error(&format!("{error}; this step runs without RoCE placement"));
            return Ok(false);
        }
    };
    let request = state.options.request(&site).map_err(|error| error.to_string())?;
    Ok(request.is_some())
}

impl State {
    /// Was any option or variable given?
    pub(crate) fn asked(&self) -> bool {
        self.options.variables().iter().any(|(_, value)| value.is_some())
    }
}

/// srun is about to launch: puts what was resolved into its environment, which becomes the tasks'.
///
/// The nodes then read one resolved request, and so does an srun inside the step.
pub(crate) fn local_user_init(_: &Spank<'_>, _: &[&CStr]) -> Verdict {
    let mut state = state();
    let active = state.active.unwrap_or(false);
    if !active && !state.asked() {
        return Verdict::Continue;
    }
    match hand_over(&mut state, active) {
        Ok(()) => Verdict::Continue,
        Err(error) => {
            report::error(&error);
            Verdict::Fail
        }
    }
}

fn hand_over(state: &mut State, active: bool) -> Result<(), String> {
    for (name, value) in state.options.variables() {
        os::set_own_variable(name, value.as_deref())?;
    }
    // They are in the variables now; left here, they would beat the variables in an srun inside the step.
    for option in RoceOption::ALL {
        os::set_own_variable(&inherited_variable(option), None)?;
    }
    if !active {
        // --roce=off inside a step that was placed: its secret is not this one's.
        return os::set_own_variable(SECRET, None);
    }
    if !state.has_secret {
        let secret = secret().map_err(|error| format!("can't make the step's secret: {error}"))?;
        os::set_own_variable(SECRET, Some(&secret))?;
        state.has_secret = true;
    }
    Ok(())
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
    fn the_inherited_variable_is_spelled_as_slurm_does() {
        assert!(inherited_variable(RoceOption::Tc).ends_with("_SLURM_SPANK_OPTION_spank_roce_roce_tc"));
    }
}
