//! `rocectl show` on machines of every kind.

use crate::common::{Folder, read, stdout};

#[test]
fn a_large_node() {
    insta::assert_snapshot!(Folder::with(&["dgx_h100"]).seen("show --topology dgx_h100"));
}

#[test]
fn a_live_laptop_with_soft_roce() {
    insta::assert_snapshot!(Folder::with(&["soft_roce_laptop"]).seen("show --sysfs soft_roce_laptop"));
}

#[test]
fn a_machine_without_rdma_says_why() {
    insta::assert_snapshot!(Folder::with(&["no_rdma"]).seen("show --sysfs no_rdma"));
}

#[test]
fn verbose_shows_every_gid_with_its_reason() {
    let folder = Folder::with(&["vlan_and_base", "virtual_functions", "infiniband_beside_roce"]);
    let seen = [
        folder.seen("show -v --sysfs vlan_and_base"),
        folder.seen("show -v --sysfs virtual_functions"),
        folder.seen("show -v --sysfs infiniband_beside_roce"),
    ];
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn ports_that_are_down_are_shown_all_the_same() {
    insta::assert_snapshot!(Folder::with(&["all_ports_down"]).seen("show --sysfs all_ports_down"));
}

#[test]
fn the_sites_word_is_heard() {
    let site = "[nics]\nexclude = [\"mlx5_0\"]\nrails = [\"mlx5_9\", \"10.1.0.0/24\"]\n";
    let folder = Folder::with(&["dgx_h100"]).file("site.toml", site);
    insta::assert_snapshot!(folder.seen("show --topology dgx_h100 --site site.toml"));
}

#[test]
fn json() {
    insta::assert_snapshot!(Folder::with(&["soft_roce_laptop"]).seen("show --json --sysfs soft_roce_laptop"));
}

#[test]
fn what_could_not_be_read_is_named() {
    let folder = Folder::with(&["soft_roce_laptop"]);
    let gid = "soft_roce_laptop/sys/class/infiniband/rxe0/ports/1/gids/0";
    std::fs::write(folder.path("soft_roce_laptop").join("..").join(gid), "nonsense\n").unwrap();
    insta::assert_snapshot!(folder.seen("show --sysfs soft_roce_laptop"));
}

#[test]
fn colours_are_for_terminals_and_those_who_ask() {
    let folder = Folder::with(&["soft_roce_laptop"]);
    let words = "show --sysfs soft_roce_laptop";
    assert!(!stdout(&folder.run(words, &[])).contains('\x1b'));
    assert!(stdout(&folder.run(words, &[("CLICOLOR_FORCE", "1")])).contains('\x1b'));
    assert!(!stdout(&folder.run(words, &[("NO_COLOR", "1")])).contains('\x1b'));
}

#[test]
fn a_capture_shows_what_the_machine_shows() {
    let folder = Folder::with(&["dgx_h100"]);
    insta::assert_snapshot!(folder.seen("capture --sysfs dgx_h100 --raw -o node.tar.gz"));
    let of_machine = stdout(&folder.run("show --json --topology dgx_h100", &[]));
    let of_capture = stdout(&folder.run("show --json --topology node.tar.gz", &[]));
    assert_eq!(of_machine, of_capture);
}

#[test]
fn man_pages_and_completions_are_there() {
    let folder = Folder::with(&[]);
    assert!(stdout(&folder.run("man", &[])).contains(".TH rocectl 1"));
    assert!(folder.run("man pages", &[]).status.success());
    assert!(read(&folder.path("pages").join("rocectl-plan.1")).contains("roce\\-tc"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&folder.run(&format!("completions {shell}"), &[])).contains("rocectl"), "{shell}");
    }
}
