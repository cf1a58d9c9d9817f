//! What is left of the plugin once its code has panicked in a process: it says so where somebody asked for
//! RoCE, and is silent where nobody did.

use roce_plan::{OnFailure, RoceOption};
use roce_spank::{Context, Hook, Panic, Spank, Verdict};

use crate::state::{State, state};
use crate::{node_wide, report, step};

/// Runs in place of every hook after the panic, and once in place of the rest of the hook that panicked.
pub(crate) fn disabled(hook: Hook, spank: &Spank<'_>, panic: &Panic) -> Verdict {
    let mut state = state();
    if hook == Hook::Exit {
        // Whatever is broken, nothing of the step's stays behind.
        node_wide::end(&mut state);
        return Verdict::Continue;
    }
    match (spank.context(), hook) {
        (Context::Local | Context::Allocator, _) if asked_here(&state) => {
            report::error(panic);
            Verdict::Fail
        }
        (Context::Remote, Hook::TaskInit) if asked_on_node(&state, spank) => {
            step::give_up(spank, &state.environment, &panic.to_string(), on_failure(&state))
        }
        // Once is enough.
        (context, _) if hook == panic.hook => {
            let is_local = matches!(context, Context::Local | Context::Allocator);
            let report = if is_local { report::note } else { report::log };
            report(panic);
            Verdict::Continue
        }
        _ => Verdict::Continue,
    }
}

/// In srun, sbatch, salloc: was any option or variable given?
fn asked_here(state: &State) -> bool {
    !state.seen.is_empty()
        || RoceOption::ALL.iter().any(|option| std::env::var_os(option.variable()).is_some())
}

/// On the node: does the step ask for RoCE? If that can't be found out, it may.
fn asked_on_node(state: &State, spank: &Spank<'_>) -> bool {
    let is_step = !spank.is_special_step().unwrap_or(false);
    is_step && step::asked(state, spank).map_or(true, |options| !options.is_empty())
}

fn on_failure(state: &State) -> OnFailure {
    match &state.site {
        Some(Ok(site)) => site.policy.on_failure,
        _ => OnFailure::Fail,
    }
}
