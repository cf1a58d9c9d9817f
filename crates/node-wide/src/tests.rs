//! On a tree of plain files in place of configfs, as root or as whoever runs the tests: root alone is trusted with
//! what is remembered, so as another user these say that they can't run.

use std::fs;

use super::*;

struct Machine {
    folder: tempfile::TempDir,
    node: NodeWide,
}

const PORTS: [&str; 2] = ["mlx5_0:1", "mlx5_1:1"];

impl Machine {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        if roce_trust::check_folder(folder.path()).is_err() {
            println!("skipped: only root is trusted with what is remembered");
            return None;
        }
        let machine = Self { node: NodeWide::below(folder.path()), folder };
        for port in PORTS {
            let file = machine.file(port);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "0\n").unwrap();
        }
        Some(machine)
    }

    fn file(&self, port: &str) -> PathBuf {
        let (device, port) = port.split_once(':').unwrap();
        let file = format!("sys/kernel/config/rdma_cm/{device}/ports/{port}/default_roce_tos");
        self.folder.path().join(file)
    }

    fn values(&self) -> [String; 2] {
        PORTS.map(|port| fs::read_to_string(self.file(port)).unwrap().trim().to_owned())
    }

    fn set(&self, owner: &Owner, ports: &[&str], class: u8) -> Result<Vec<Restored>, Error> {
        let ports: Vec<DevicePort> = ports.iter().map(|port| port.parse().unwrap()).collect();
        self.node.set(owner.clone(), &ports, TrafficClass(class))
    }
}

fn own(step: &str) -> Owner {
    Owner::this_process(step.to_owned()).unwrap()
}

/// A process that is gone.
fn gone(step: &str) -> Owner {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    Owner { pid: child.id(), ..own(step) }
}

#[test]
fn the_class_is_set_and_put_back() {
    let Some(machine) = Machine::new() else { return };
    fs::write(machine.file(PORTS[1]), "40\n").unwrap();
    let owner = own("1.0");
    assert_eq!(machine.set(&owner, &PORTS, 106).unwrap(), []);
    assert!(machine.node.is_set());
    assert_eq!(machine.values(), ["106", "106"]);
    let restored = machine.node.release(&owner).unwrap();
    assert_eq!(machine.values(), ["0", "40"]);
    assert!(!machine.node.is_set());
    let lines: Vec<String> = restored.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "mlx5_0:1: default traffic class 106 of step 1.0 is 0 again",
            "mlx5_1:1: default traffic class 106 of step 1.0 is 40 again"
        ]
    );
    assert_eq!(machine.node.release(&owner).unwrap(), []);
}

#[test]
fn what_a_killed_process_left_is_put_back_by_the_next_one() {
    let Some(machine) = Machine::new() else { return };
    machine.set(&gone("1.0"), &PORTS, 106).unwrap();
    assert_eq!(machine.node.owners().unwrap(), []);
    // By one that needs another class of one port alone.
    let next = own("2.0");
    let restored = machine.set(&next, &PORTS[..1], 184).unwrap();
    assert_eq!((restored.len(), machine.values()), (2, ["184".to_owned(), "0".to_owned()]));
    machine.node.release(&next).unwrap();
    machine.set(&gone("3.0"), &PORTS, 106).unwrap();
    assert_eq!(machine.node.recover().unwrap().len(), 2);
    assert_eq!(machine.values(), ["0", "0"]);
}

#[test]
fn two_steps_share_one_class_and_the_last_puts_it_back() {
    let Some(machine) = Machine::new() else { return };
    let (first, second) = (own("1.0"), own("1.1"));
    machine.set(&first, &PORTS, 106).unwrap();
    machine.set(&second, &PORTS[..1], 106).unwrap();
    assert_eq!(machine.node.release(&first).unwrap(), []);
    assert_eq!(machine.values(), ["106", "106"]);
    assert_eq!(machine.node.release(&second).unwrap().len(), 2);
    assert_eq!(machine.values(), ["0", "0"]);
}

#[test]
fn a_step_with_another_class_or_port_leaves_the_first_ones_alone() {
    let Some(machine) = Machine::new() else { return };
    let first = own("1.0");
    machine.set(&first, &PORTS[..1], 106).unwrap();
    for (ports, class) in [(&PORTS[..1], 184), (&PORTS[..], 106)] {
        let error = machine.set(&own("1.1"), ports, class).unwrap_err().to_string();
        assert_eq!(error, "step 1.0 has made 106 node-wide on mlx5_0:1 and is still running");
    }
    // Its letting go, though it never held it, changes nothing.
    assert_eq!(machine.node.release(&own("1.1")).unwrap(), []);
    assert_eq!(machine.values(), ["106", "0"]);
    assert_eq!(machine.node.owners().unwrap(), std::slice::from_ref(&first));
    assert_eq!(machine.node.take_away().unwrap().len(), 1);
    assert_eq!(machine.values(), ["0", "0"]);
}

#[test]
fn what_an_admin_set_meanwhile_stays() {
    let Some(machine) = Machine::new() else { return };
    let owner = own("1.0");
    machine.set(&owner, &PORTS, 106).unwrap();
    fs::write(machine.file(PORTS[0]), "32\n").unwrap();
    let restored = machine.node.release(&owner).unwrap();
    assert_eq!(restored[0].kept, Some(TrafficClass(32)));
    assert_eq!(machine.values(), ["32", "0"]);
    assert!(!machine.node.is_set());
}

#[test]
fn a_failure_changes_nothing() {
    let Some(machine) = Machine::new() else { return };
    // A plain folder doesn't get the files that configfs would give it.
    let error = machine.set(&own("1.0"), &["mlx5_0:1", "mlx5_9:1"], 106).unwrap_err().to_string();
    assert!(error.contains("mlx5_9/ports/1/default_roce_tos: No such file"), "{error}");
    assert_eq!(machine.values(), ["0", "0"]);
    assert!(!machine.node.is_set());
    assert!(!machine.folder.path().join("sys/kernel/config/rdma_cm/mlx5_9").exists());
    fs::remove_dir_all(machine.folder.path().join("sys")).unwrap();
    let error = machine.set(&own("1.0"), &PORTS, 106).unwrap_err().to_string();
    assert!(error.contains("load the kernel module rdma_cm"), "{error}");
    assert!(!machine.node.is_set());
}

#[test]
fn only_root_may_look_into_the_folder_and_one_of_anybody_elses_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let Some(machine) = Machine::new() else { return };
    let owner = own("1.0");
    machine.set(&owner, &PORTS, 106).unwrap();
    machine.node.release(&owner).unwrap();
    let folder = machine.folder.path().join(FOLDER);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let error = machine.set(&own("1.0"), &PORTS, 106).unwrap_err().to_string();
    assert!(error.contains("can be written by others than root"), "{error}");
    assert_eq!(machine.values(), ["0", "0"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join(RECORD), "nonsense").unwrap();
    let error = machine.node.recover().unwrap_err().to_string();
    assert!(error.contains("node-wide.toml is not understood: "), "{error}");
}
