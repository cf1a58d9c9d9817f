//! What changes in a task's environment: the plan's exports, less what the user has set.

use crate::exports::Export;

/// What has been exported, as `NAME=value` separated by spaces. An inner step that finds one of
/// these unchanged knows that it is not the user's. The plugin and rocectl keep it alike.
const EXPORTED: &str = "ROCE_EXPORTED";

/// A variable and its new value; `None` removes it.
pub type Change = (String, Option<String>);

/// The exports, except those that the user has set and the site doesn't overwrite; and the removal
/// of those that an outer step has left and this plan hasn't. `variable` looks up the environment as
/// it is.
#[must_use]
pub fn changes(exports: Vec<Export>, variable: &dyn Fn(&str) -> Option<String>) -> Vec<Change> {
    let record = variable(EXPORTED).unwrap_or_default();
    let outer: Vec<(&str, &str)> = record.split(' ').filter_map(|entry| entry.split_once('=')).collect();
    let is_outers = |name: &str, value: &str| outer.contains(&(name, value));
    let mut exports = exports;
    exports.retain(|export| {
        export.overwrite || variable(export.name).is_none_or(|value| is_outers(export.name, &value))
    });
    let stale = outer.iter().filter(|(name, value)| {
        variable(name).is_some_and(|old| old == *value) && exports.iter().all(|export| export.name != *name)
    });
    let stale: Vec<Change> = stale.map(|(name, _)| ((*name).to_owned(), None)).collect();
    let record: Vec<String> =
        exports.iter().map(|export| format!("{}={}", export.name, export.value)).collect();
    let set = exports.into_iter().map(|export| (export.name.to_owned(), Some(export.value)));
    set.chain([(EXPORTED.to_owned(), Some(record.join(" ")))]).chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &'static str, value: &str, overwrite: bool) -> Export {
        Export { name, value: value.to_owned(), overwrite }
    }

    fn changed(exports: Vec<Export>, before: &[(&str, &str)]) -> Vec<String> {
        let variable = |name: &str| {
            before.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let shown = |(name, value): Change| match value {
            Some(value) => format!("{name}={value}"),
            None => format!("no {name}"),
        };
        changes(exports, &variable).into_iter().map(shown).collect()
    }

    #[test]
    fn what_the_user_has_set_stays_unless_the_site_says_otherwise() {
        let exports = vec![export("A", "1", false), export("B", "1", true), export("C", "1", false)];
        let seen = changed(exports, &[("A", "mine"), ("B", "mine")]);
        assert_eq!(seen, ["B=1", "C=1", "ROCE_EXPORTED=B=1 C=1"]);
    }

    #[test]
    fn what_an_outer_step_has_set_is_replaced_or_removed() {
        let outer = [("A", "0"), ("B", "0"), ("C", "mine"), ("ROCE_EXPORTED", "A=0 B=0 C=0")];
        let seen = changed(vec![export("A", "1", false), export("C", "1", false)], &outer);
        assert_eq!(seen, ["A=1", "ROCE_EXPORTED=A=1", "no B"]);
    }
}
