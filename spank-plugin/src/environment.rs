//! The environment of the step's tasks. Where many tasks are on the node, room is made for the plan's
//! variables once, before the fork; each task then writes its own values there.
//!
//! Setting them one by one through Slurm costs a task more than all the rest of the plugin
//! (`Spank::overwrite` says why).

use std::collections::BTreeMap;
use std::ffi::OsString;

use roce_plan::{Change, Export};
use roce_spank::{Failure, Spank};

/// What a task's value may be longer than expected and still find room: CPU lists vary.
const SPARE: usize = 48;

/// The environment as the plan found it, and what has been done to it since.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    before: BTreeMap<String, OsString>,
    /// Variables that were set for all tasks: to what they are likely to be, or, without that, to blanks.
    reserved: BTreeMap<String, Option<String>>,
}

impl Environment {
    /// The environment of the hook that runs.
    pub(crate) fn of(spank: &Spank<'_>) -> Result<Self, Failure> {
        let before = spank.environment(|_| true)?.into_iter();
        // The plan's names are text, so what isn't is none of them.
        let before = before.filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Ok(Self { before, reserved: BTreeMap::new() })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.before.contains_key(name)
    }

    /// What the plan changes: its exports, less what the user has set.
    fn changes(&self, exports: Vec<Export>) -> Vec<Change> {
        roce_plan::changes(exports, &|name| Some(self.before.get(name)?.to_string_lossy().into_owned()))
    }

    /// Makes room for values like these, and sets what is the same in all examples, for then it is likely to be
    /// the same in all tasks. In slurmstepd, before the fork.
    pub(crate) fn reserve(&mut self, spank: &Spank<'_>, examples: Vec<Vec<Export>>) -> Result<(), Failure> {
        let count = examples.len();
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in examples.into_iter().flat_map(|exports| self.changes(exports)) {
            if let Some(value) = value {
                values.entry(name).or_default().push(value);
            }
        }
        for (name, values) in values {
            let is_common = values.len() == count && values.iter().all(|value| *value == values[0]);
            let room = values.iter().map(String::len).max().unwrap_or_default() + SPARE;
            let value = is_common.then(|| values[0].clone());
            spank.setenv(&name, value.as_deref().unwrap_or(&" ".repeat(room)))?;
            self.reserved.insert(name, value);
        }
        Ok(())
    }

    pub(crate) fn has_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// What is left to do for a task with these exports: sets the variables, except those that the user set and
    /// those that are right already, and removes those that an outer step's plan had and this one's hasn't.
    pub(crate) fn edits(&self, exports: Vec<Export>) -> Vec<Change> {
        let mut edits = self.changes(exports);
        let is_wanted = |name: &str| edits.iter().any(|(wanted, value)| wanted == name && value.is_some());
        let unused = self.reserved.keys().filter(|name| !is_wanted(name));
        let unused: Vec<Change> = unused.map(|name| (name.clone(), None)).collect();
        edits.retain(|(name, value)| value.is_none() || self.reserved.get(name) != Some(value));
        edits.extend(unused);
        edits
    }

    /// Carries out the [`edits`](Self::edits). In the task.
    ///
    /// # Errors
    /// If Slurm refuses one. The environment is then as it was before the plan.
    pub(crate) fn write(&self, spank: &Spank<'_>, edits: &[Change]) -> Result<(), Failure> {
        let result = try_write(spank, edits);
        if result.is_err() {
            self.restore(spank);
            for (name, _) in edits {
                self.put_back(spank, name);
            }
        }
        result
    }

    /// Takes back what was reserved or written there.
    pub(crate) fn restore(&self, spank: &Spank<'_>) {
        for name in self.reserved.keys() {
            self.put_back(spank, name);
        }
    }

    fn put_back(&self, spank: &Spank<'_>, name: &str) {
        let old = self.before.get(name).and_then(|value| value.to_str());
        // What Slurm took a moment ago it takes again; if not, there is nothing else to try.
        let _ = old.map_or_else(|| spank.unsetenv(name), |old| spank.setenv(name, old));
    }
}

fn try_write(spank: &Spank<'_>, edits: &[Change]) -> Result<(), Failure> {
    let set = edits.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)));
    for (name, value) in spank.overwrite(set.collect())? {
        spank.setenv(name, value)?;
    }
    let removed = edits.iter().filter(|(_, value)| value.is_none());
    removed.map(|(name, _)| name).try_for_each(|name| spank.unsetenv(name))
}
