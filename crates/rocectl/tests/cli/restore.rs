//! `rocectl restore`, on plain files in place of configfs.

use std::fs;

use crate::common::{Folder, stderr, stdout};

/// The record of a process; with a start time of 0, of one that is gone whatever its number is now.
fn record(started: &str) -> String {
    format!(
        "traffic_class = 106\n\
         [[owners]]\npid = {}\nstarted = {started}\nstep = \"17.0\"\n\
         [[ports]]\nport = \"mlx5_0:1\"\nbefore = 8\ncreated = false\n",
        std::process::id()
    )
}

/// When this process started: field 22 of its stat, whose second field may have blanks in it.
fn started() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat[stat.rfind(')').unwrap()..].split(' ').nth(20).unwrap().to_owned()
}

#[test]
fn restore_puts_back_what_the_dead_left_and_refuses_while_they_live() {
    let folder = Folder::with(&[]);
    let (configfs, run) =
        (folder.path("sys/kernel/config/rdma_cm/mlx5_0/ports/1"), folder.path("run/roce-launch"));
    fs::create_dir_all(&configfs).unwrap();
    fs::create_dir_all(&run).unwrap();
    let (value, file) = (configfs.join("default_roce_tos"), run.join("node-wide.toml"));
    let restore = |record: &str, arguments: &str| {
        fs::write(&value, "106\n").unwrap();
        fs::write(&file, record).unwrap();
        let ran = folder.run(&format!("restore --sysfs . {arguments}"), &[]);
        (ran, fs::read_to_string(&value).unwrap().trim().to_owned(), file.exists())
    };
    if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        println!("skipped: only what root has written is trusted");
        return;
    }
    let (ran, value_now, is_kept) = restore(&record("0"), "");
    assert_eq!(
        stdout(&ran),
        "mlx5_0:1: default traffic class 106 of step 17.0 is 8 again\n",
        "{}",
        stderr(&ran)
    );
    assert_eq!((value_now.as_str(), is_kept), ("8", false));
    let alive = record(&started());
    let (ran, value_now, is_kept) = restore(&alive, "");
    let said = format!("rocectl: step 17.0 (slurmstepd {}) still needs the class, ", std::process::id());
    assert!(stderr(&ran).starts_with(&said) && ran.status.code() == Some(1), "{}", stderr(&ran));
    assert_eq!((value_now.as_str(), is_kept), ("106", true));
    let (_, value_now, is_kept) = restore(&alive, "--force");
    assert_eq!((value_now.as_str(), is_kept), ("8", false));
    let (ran, ..) = restore("nonsense", "");
    assert!(
        stderr(&ran).contains("node-wide.toml is not understood: ") && ran.status.code() == Some(1),
        "{}",
        stderr(&ran)
    );
}
