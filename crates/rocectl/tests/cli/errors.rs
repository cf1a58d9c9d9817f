//! Every way of being refused, as the user reads it.

use crate::common::{Folder, TWO_CPUS, stderr};

fn refused(folder: &Folder, cases: &[&str]) -> String {
    let seen: Vec<String> = cases.iter().map(|words| folder.seen(words)).collect();
    for words in cases {
        let output = folder.run(words, &[]);
        assert!(!output.status.success(), "{words}");
        assert!(!stderr(&output).is_empty(), "{words}");
    }
    seen.join("\n")
}

#[test]
fn options() {
    let folder = Folder::with(&["dgx_h100"])
        .file("bad.toml", "[policy]\nclas = \"x\"\n")
        .file("few.toml", "[policy]\nallowed_priorities = [3]\n");
    insta::assert_snapshot!(refused(
        &folder,
        &[
            "plan --topology dgx_h100",
            "plan -n0 --topology dgx_h100",
            "plan -n1 -c0 --topology dgx_h100",
            "plan -n4000000000 --topology dgx_h100",
            "plan -n1 --roce-tc=9 --topology dgx_h100",
            "plan -n1 --roce-tc=3 --roce-dscp=26 --topology dgx_h100",
            "plan -n1 --roce-place=far --topology dgx_h100",
            "plan -n1 --roce-tc=5 --site few.toml --topology dgx_h100",
            "plan -n1 --site bad.toml --topology dgx_h100",
            "plan -n1 --site nosuch.toml --topology dgx_h100",
            "plan --mask 0-3, --topology dgx_h100",
            "plan -n2 --mask 0-3 --topology dgx_h100",
            "env --rank 2 --of 2 --topology dgx_h100",
            "env --rank 2 --topology dgx_h100",
            "exec --rank 0 --of 1",
            "show --json=yes",
        ]
    ));
}

#[test]
fn nodes() {
    let folder =
        Folder::with(&["dgx_h100", "no_rdma", "all_ports_down"]).file("notes.txt", "nothing of the kind\n");
    folder.path("empty");
    insta::assert_snapshot!(refused(
        &folder,
        &[
            "plan -n300 --topology dgx_h100",
            "plan -n8 -c32 --topology dgx_h100",
            "plan -n3 --gpus-per-task 3 --topology dgx_h100",
            "plan --mask 0-3 --mask 220-230 --topology dgx_h100",
            "plan -n1 --roce-nics=9 --topology dgx_h100",
            "plan -n1 --roce-nics=mlx5_77 --topology dgx_h100",
            "plan -n1 --roce-gid=192.0.2.0/24 --roce-nics=mlx5_0 --topology dgx_h100",
            "plan -n1 --sysfs no_rdma",
            "plan -n1 --roce-tc=3 --sysfs all_ports_down",
            "plan -n1 --topology nosuch.xml",
            "plan -n1 --topology notes.txt",
            "plan -n1 --topology empty",
            "show --sysfs empty",
            "show --topology dgx_h100 --svg nosuch.d/node.svg",
            "capture --sysfs dgx_h100 -o nosuch.d/node.tar",
        ]
    ));
}

#[test]
fn tasks() {
    let folder = Folder::with(&["no_rdma"]).machine("two", TWO_CPUS).keeping_memlock();
    insta::assert_snapshot!(refused(
        &folder,
        &[
            "env --sysfs two",
            "exec --sysfs two -- true",
            "exec --rank 0 --of 1 --sysfs no_rdma -- true",
            "exec --rank 0 --of 1 --site site.toml --sysfs two -- ./no-such-command",
            "exec --rank 0 --of 1 --site site.toml --sysfs two -- /",
            "env --rank 0 --of 2 --cpus-per-task 2 --topology two",
            "env --rank 0 --of 2 --gpus-per-task 2 --topology two",
        ]
    ));
    let launchers = [
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("MPI_LOCALRANKID", "0"),
        ("MPI_LOCALNRANKS", "2"),
    ];
    insta::assert_snapshot!("launchers_contradict", folder.seen_with("env --topology two", &launchers));
    insta::assert_snapshot!("off", folder.seen_with("plan -n1 --topology two", &[("SLURM_ROCE", "off")]));
}
