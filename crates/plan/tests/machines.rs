//! What is planned on every described machine: a snapshot each, checked by hand against the rules.

use std::fmt::Write as _;

use roce_node::Node;
use roce_plan::{Options, Plan, Request, RoceOption, Site, Source, Task, plan};
use roce_types::CpuSet;

fn request(options: &[(RoceOption, &str)]) -> Request {
    let mut given = Options::default();
    given.set(RoceOption::Tc, "3", Source::CommandLine);
    for (option, value) in options {
        given.set(*option, value, Source::CommandLine);
    }
    given.request(&Site::default()).unwrap().unwrap()
}

/// As many tasks as GPUs, each with one, or else two per NUMA node that has CPUs; the CPUs of each
/// NUMA node are split among its tasks.
fn tasks(node: &Node) -> Vec<Task> {
    let homes: Vec<(u32, Vec<_>)> = if node.gpus.is_empty() {
        let with_cpus = node.numa_nodes.iter().filter(|numa| !numa.cpus.is_empty());
        with_cpus.flat_map(|numa| [(numa.id, Vec::new()), (numa.id, Vec::new())]).collect()
    } else {
        let first = node.numa_nodes[0].id;
        node.gpus.iter().map(|gpu| (gpu.numa_node.unwrap_or(first), vec![gpu.pci.address])).collect()
    };
    let share = |rank: usize, home: u32| -> CpuSet {
        let sharers: Vec<usize> = (0..homes.len()).filter(|&other| homes[other].0 == home).collect();
        let place = sharers.iter().position(|&other| other == rank).unwrap();
        let cpus: Vec<usize> = node.numa_node(home).unwrap().cpus.iter().collect();
        let size = (cpus.len() / sharers.len()).max(1);
        cpus.chunks(size).nth(place).unwrap_or(&cpus).iter().copied().collect()
    };
    (0..)
        .zip(homes.iter().enumerate())
        .map(|(local_rank, (rank, (home, gpus)))| Task {
            local_rank,
            cpus: share(rank, *home),
            cpus_needed: 1,
            gpus: gpus.clone(),
        })
        .collect()
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for task in &plan.tasks {
        let line = plan.describe(task.local_rank).unwrap();
        writeln!(text, "task {}: {line}\n    {}", task.local_rank, task.reasons.join("\n    ")).unwrap();
    }
    for (port, reason) in &plan.rejected {
        writeln!(text, "not used: {port}: {reason}").unwrap();
    }
    for warning in plan.class.iter().flat_map(|class| &class.warnings) {
        writeln!(text, "warning: {warning}").unwrap();
    }
    text
}

fn planned(node: &Node, options: &[(RoceOption, &str)]) -> String {
    match plan(node, &request(options), &Site::default(), &tasks(node)) {
        Ok(plan) => text(&plan),
        Err(error) => format!("error: {error}\n"),
    }
}

#[test]
fn every_machine_has_the_plan_that_the_rules_give() {
    for shipped in roce_machines::all() {
        let machine = shipped.machine().unwrap();
        let root = roce_machines::scratch().unwrap();
        machine.build(root.path()).unwrap();
        let node = roce_node::read(root.path()).unwrap();
        insta::assert_snapshot!(shipped.name, planned(&node, &[]));
    }
}

#[test]
fn all_nics_and_the_other_policies_on_the_largest_machine() {
    let root = roce_machines::scratch().unwrap();
    roce_machines::named("dgx_h100").unwrap().build(root.path()).unwrap();
    let node = roce_node::read(root.path()).unwrap();
    let mut text = String::new();
    for options in [
        [(RoceOption::Place, "rail")],
        [(RoceOption::Place, "round-robin")],
        [(RoceOption::Place, "block")],
        [(RoceOption::Nics, "2")],
        [(RoceOption::Nics, "all")],
    ] {
        let plan = plan(&node, &request(&options), &Site::default(), &tasks(&node)).unwrap();
        let devices = |task: &roce_plan::TaskPlan| {
            task.nics.iter().map(|nic| nic.port.device.as_str()).collect::<Vec<_>>().join(",")
        };
        let rows: Vec<String> = plan.tasks.iter().map(devices).collect();
        writeln!(text, "--{}={}: {}", options[0].0.name(), options[0].1, rows.join(" | ")).unwrap();
    }
    insta::assert_snapshot!(text);
}
