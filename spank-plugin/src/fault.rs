//! Faults on demand, for the tests of what must hold when the plugin itself is broken. Not in a release: only
//! with the feature `fault-injection`, and then only as plugstack.conf says (`fault=UserInit`).

use std::ffi::CStr;

use roce_spank::Hook;

/// Panics if plugstack.conf names this hook.
pub(crate) fn inject(hook: Hook, arguments: &[&CStr]) {
    let wanted = format!("fault={hook:?}");
    assert!(!arguments.iter().any(|argument| argument.to_bytes() == wanted.as_bytes()), "injected");
}
