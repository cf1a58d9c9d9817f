//! A step that asks for nothing gets nothing: it is the same with the plugin as without.

use crate::{
    Control,
    lab::{Lab, ensure, must_run, without_plugin},
};
use libtest_mimic::Failed;
use roce_lab::Cluster;
use std::collections::BTreeMap;

pub(crate) const CONTROLS: &[Control] =
    &[Control { name: "untouched::a_step_without_options_is_as_if_there_were_no_plugin", run: untouched }];

/// What a task can see of what was done to it, by the name of each thing.
type Sight = BTreeMap<String, String>;

fn untouched(lab: &Lab) -> Result<(), Failed> {
    let cluster = lab.cluster()?;
    let (before, after) = without_plugin(&cluster, || Ok((sight(&cluster)?, sight(&cluster)?)))?;
    let with = sight(&cluster)?;
    ensure(before.len() > 80, || format!("too little to compare: {before:?}"))?;
    let names = |sight: &Sight| sight.keys().cloned().collect::<Vec<_>>();
    ensure(names(&before) == names(&with), || {
        let only = |one: &Sight, other: &Sight| {
            one.keys().filter(|name| !other.contains_key(*name)).cloned().collect::<Vec<_>>()
        };
        format!("only without: {:?}, only with: {:?}", only(&before, &with), only(&with, &before))
    })?;
    // What differs from step to step without any plugin (numbers, ports, times) says nothing.
    let stable = before.iter().filter(|(name, value)| after.get(*name) == Some(value));
    let changed: Vec<_> = stable.filter(|(name, value)| with.get(*name) != Some(value)).collect();
    ensure(changed.is_empty(), || format!("changed by the plugin: {changed:?}"))
}

fn sight(cluster: &Cluster) -> Result<Sight, Failed> {
    // Names first, so that a value with an equal sign does no harm.
    let look = "env | sed \"s/^/environment /\"; \
                grep -E \"^(Cpus|Mems)_allowed_list\" /proc/self/status | sed \"s/:\\s*/=/\"; \
                echo \"policy=$(awk \"{print \\$2}\" /proc/self/numa_maps | sort -u)\"; \
                ulimit -a | sed \"s/  *(/=(/\"";
    let output = must_run(cluster, &format!("srun -N2 --ntasks-per-node=2 --label bash -c '{look}'"))?;
    let entries = output.stdout.lines().filter_map(|line| line.split_once('='));
    Ok(entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
