//! `/sys/devices/system`: CPUs, packages, NUMA nodes.

use roce_types::CpuSet;

use crate::sysfs::Sysfs;
use crate::{Machine, MachineError, Numa};

pub(crate) fn all(machine: &Machine) -> Result<CpuSet, MachineError> {
    let mut all = CpuSet::new();
    for numa in &machine.numa {
        all = all.union(&numa.cpu_set()?);
    }
    Ok(all)
}

pub(crate) fn build(machine: &Machine, sysfs: &Sysfs<'_>) -> Result<(), MachineError> {
    let all = all(machine)?;
    for name in ["online", "possible", "present"] {
        sysfs.file(&format!("sys/devices/system/cpu/{name}"), &all)?;
    }
    let ids: Vec<u32> = machine.numbered().map(|(id, _)| id).collect();
    let list: CpuSet = ids.iter().map(|&id| id as usize).collect();
    for name in ["online", "possible", "has_memory"] {
        sysfs.file(&format!("sys/devices/system/node/{name}"), &list)?;
    }
    for (position, (id, numa)) in machine.numbered().enumerate() {
        let cpus = numa.cpu_set()?;
        let folder = format!("sys/devices/system/node/node{id}");
        sysfs.file(&format!("{folder}/cpulist"), &cpus)?;
        sysfs.file(&format!("{folder}/cpumap"), mask(&cpus))?;
        sysfs.file(&format!("{folder}/distance"), distances(machine, position))?;
        let package: CpuSet = of_package(machine, numa.package)?;
        for cpu in cpus.iter() {
            topology(sysfs, numa, cpu, &cpus, &package)?;
            sysfs.link(&format!("{folder}/cpu{cpu}"), &format!("sys/devices/system/cpu/cpu{cpu}"))?;
        }
    }
    Ok(())
}

fn of_package(machine: &Machine, package: u32) -> Result<CpuSet, MachineError> {
    let mut all = CpuSet::new();
    for numa in machine.numa.iter().filter(|numa| numa.package == package) {
        all = all.union(&numa.cpu_set()?);
    }
    Ok(all)
}

fn distances(machine: &Machine, from: usize) -> String {
    let row: Vec<String> = match machine.distances.get(from) {
        Some(row) => row.iter().map(ToString::to_string).collect(),
        None => (0..machine.numa.len()).map(|to| default_distance(machine, from, to).to_string()).collect(),
    };
    row.join(" ")
}

fn default_distance(machine: &Machine, from: usize, to: usize) -> u32 {
    match (from == to, machine.numa[from].package == machine.numa[to].package) {
        (true, _) => 10,
        (false, true) => 12,
        (false, false) => 21,
    }
}

fn topology(
    sysfs: &Sysfs<'_>,
    numa: &Numa,
    cpu: usize,
    cpus: &CpuSet,
    package: &CpuSet,
) -> Result<(), MachineError> {
    let folder = format!("sys/devices/system/cpu/cpu{cpu}/topology");
    let threads = threads(numa, cpu, cpus);
    sysfs.file(&format!("{folder}/physical_package_id"), numa.package)?;
    sysfs.file(&format!("{folder}/core_id"), threads.iter().next().unwrap_or(cpu))?;
    for (name, set) in [("thread_siblings", &threads), ("core_siblings", package)] {
        sysfs.file(&format!("{folder}/{name}"), mask(set))?;
        sysfs.file(&format!("{folder}/{name}_list"), set)?;
    }
    Ok(())
}

/// The CPUs of this one's core: itself and, where a node's list is two ranges of one length, the
/// one at the same place of the other range.
fn threads(numa: &Numa, cpu: usize, cpus: &CpuSet) -> CpuSet {
    let half = cpus.len() / 2;
    let all: Vec<usize> = cpus.iter().collect();
    let two_ranges = numa.cpus.matches(',').count() == 1 && all[half - 1] - all[0] == half - 1;
    match all.iter().position(|&other| other == cpu) {
        Some(place) if two_ranges => [all[place % half], all[place % half + half]].into_iter().collect(),
        _ => [cpu].into_iter().collect(),
    }
}

/// As the kernel writes a mask: words of 32 bits, the most significant first.
fn mask(cpus: &CpuSet) -> String {
    let words = cpus.words().iter().rev().flat_map(|word| [word >> 32, word & 0xffff_ffff]);
    let text: Vec<String> = words.map(|word| format!("{word:08x}")).collect();
    if text.is_empty() { "00000000".into() } else { text.join(",") }
}
