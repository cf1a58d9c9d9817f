//! What is planned on every described machine: a snapshot each, checked by hand against the rules.

use std::fmt::Write as _;
use std::path::Path;

use roce_node::Node;
use roce_plan::{LinkLayers, Options, Plan, Request, RoceOption, Site, Source, Task, UnknownFacts, plan};
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

/// Real machines, most of them InfiniBand: what a source doesn't tell is taken for good, and every link
/// layer counts.
#[test]
fn every_real_machine_has_the_plan_that_the_rules_give() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !data.is_dir() {
        let required = std::env::var("ROCE_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|tier| tier == "data"), "{} does not exist", data.display());
        eprintln!("skipped: {} does not exist", data.display());
        return;
    }
    for folder in ["hwloc-xml", "nccl-xml", "sysfs"] {
        let entries = std::fs::read_dir(data.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.filter(|path| !path.to_string_lossy().ends_with(".expected.xml")).collect();
        files.sort();
        for file in files {
            let node = roce_node::read_any(&file).unwrap();
            let mut request = request(&[]);
            request.link_layers = LinkLayers::Any;
            request.unknown_facts = UnknownFacts::Accept;
            let text = match plan(&node, &request, &Site::default(), &tasks(&node)) {
                Ok(plan) => text(&plan),
                Err(error) => format!("error: {error}\n"),
            };
            let name = file.file_name().unwrap().to_string_lossy();
            let name = name.trim_end_matches(".xml").trim_end_matches(".tar.bz2").replace('+', "_");
            insta::assert_snapshot!(format!("real_{name}"), text);
        }
    }
}

/// A copy of a tree with the entries of every folder made in the opposite order, which is the order in
/// which many file systems then list them.
fn copy_backwards(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries.iter().rev() {
        let target = to.join(entry.file_name().unwrap());
        if entry.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry).unwrap(), target).unwrap();
        } else if entry.is_dir() {
            copy_backwards(entry, &target);
        } else {
            std::fs::copy(entry, target).unwrap();
        }
    }
}

#[test]
fn a_plan_does_not_depend_on_the_order_of_directories() {
    for name in ["dgx_h100", "sixteen_nics", "dual_port_cards", "vlan_and_base"] {
        let (root, copy) = (roce_machines::scratch().unwrap(), roce_machines::scratch().unwrap());
        roce_machines::named(name).unwrap().build(root.path()).unwrap();
        copy_backwards(root.path(), copy.path());
        let listed = |root: &std::path::Path| -> Vec<_> {
            let folder = root.join("sys/class/infiniband");
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        if listed(root.path()) == listed(copy.path()) {
            assert!(std::env::var_os("ROCE_REQUIRE").is_none(), "this file system lists both alike");
            eprintln!("skipped: this file system lists both trees alike, so nothing would be tested");
            continue;
        }
        let node = roce_node::read(root.path()).unwrap();
        assert_eq!(node, roce_node::read(copy.path()).unwrap());
    }
}
