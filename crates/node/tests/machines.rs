//! Each described machine, built as a sysfs tree and read back.

mod common;

use common::summary;
use roce_node::{Node, PciRelation, RdmaPort, read};

fn built(name: &str) -> Node {
    let folder = roce_machines::scratch().unwrap();
    let machine = roce_machines::named(name).unwrap_or_else(|| panic!("no machine {name}"));
    machine.build(folder.path()).unwrap();
    read(folder.path()).unwrap()
}

fn port<'a>(node: &'a Node, device: &str) -> &'a RdmaPort {
    node.ports.iter().find(|port| port.name.device == device).unwrap()
}

#[test]
fn every_machine_reads_back_as_it_is_described() {
    for machine in roce_machines::all() {
        let node = built(machine.name);
        let about = machine.machine().unwrap().about;
        insta::with_settings!({ description => about.as_str(), omit_expression => true }, {
            insta::assert_snapshot!(format!("machine_{}", machine.name), summary(&node));
        });
        assert_eq!(node.problems, Vec::<String>::new(), "{}", machine.name);
    }
}

#[test]
fn a_nic_of_the_dgx_is_one_switch_from_its_gpu_and_the_storage_nics_are_not() {
    let node = built("dgx_h100");
    assert_eq!((node.gpus.len(), node.ports.len()), (8, 10));
    let relation =
        |gpu: usize, device: &str| node.gpus[gpu].pci.relation(port(&node, device).pci.as_ref().unwrap());
    assert_eq!(relation(0, "mlx5_0"), PciRelation::OneSwitch);
    assert_eq!(relation(7, "mlx5_9"), PciRelation::OneSwitch);
    assert_eq!(relation(0, "mlx5_1"), PciRelation::Apart);
}

#[test]
fn two_nics_of_one_switch_are_told_from_two_of_one_host() {
    let node = built("sixteen_nics");
    let place = |device: &str| port(&node, device).pci.clone().unwrap();
    assert_eq!(place("mlx5_0").relation(&place("mlx5_1")), PciRelation::OneSwitch);
    assert_eq!(place("mlx5_0").relation(&place("mlx5_2")), PciRelation::Apart);
}

#[test]
fn one_card_on_two_sockets_is_one_chip_in_two_places() {
    let node = built("one_card_two_sockets");
    let (first, second) = (port(&node, "mlx5_0"), port(&node, "mlx5_1"));
    assert_eq!(first.asic, second.asic);
    assert_eq!((first.numa_node, second.numa_node), (Some(0), Some(1)));
}

#[test]
fn the_functions_of_a_card_share_its_guid_and_others_do_not() {
    let node = built("dual_port_cards");
    assert_eq!(port(&node, "mlx5_0").asic, port(&node, "mlx5_1").asic);
    assert_ne!(port(&node, "mlx5_0").asic, port(&node, "mlx5_2").asic);
}

#[test]
fn both_cards_of_a_bond_answer_to_its_address() {
    let node = built("bond_over_two_cards");
    for device in ["mlx5_0", "mlx5_1"] {
        assert_eq!(port(&node, device).netdev.as_deref(), Some("bond0"));
        let has =
            port(&node, device).gids.iter().any(|row| row.gid.to_ipv4() == Some("10.0.0.1".parse().unwrap()));
        assert!(has, "{device}");
    }
}

#[test]
fn a_nic_whose_numa_node_nothing_tells_has_none() {
    let node = built("numa_unknown");
    let of = |device: &str| port(&node, device).numa_node;
    assert_eq!((of("by_bridge"), of("by_cpus"), of("unknown")), (Some(1), Some(1), None));
}
