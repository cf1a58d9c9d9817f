//! `rocectl plan`: what each task would get.

use crate::common::Folder;

#[test]
fn one_task_per_gpu() {
    let folder = Folder::with(&["dgx_h100"]);
    insta::assert_snapshot!(folder.seen("plan --tasks 8 --gpus-per-task 1 --roce-tc=3 --topology dgx_h100"));
}

#[test]
fn numa_nodes_without_a_nic_use_the_nearest() {
    let folder = Folder::with(&["nps4_two_quadrants"]);
    insta::assert_snapshot!(folder.seen("plan --tasks 8 --cpus-per-task 4 --topology nps4_two_quadrants"));
}

#[test]
fn fewer_tasks_than_gpus_stay_near_theirs() {
    let folder = Folder::with(&["dgx_h100"]);
    insta::assert_snapshot!(folder.seen("plan --tasks 2 --gpus-per-task 1 --topology dgx_h100"));
}

#[test]
fn several_nics_per_task() {
    let folder = Folder::with(&["dgx_h100"]);
    insta::assert_snapshot!(folder.seen("plan -n2 --gpus-per-task 4 --roce-nics=4 --topology dgx_h100"));
}

#[test]
fn distributions_and_masks() {
    let folder = Folder::with(&["dgx_h100"]);
    let seen = [
        folder.seen("plan -n4 -c2 --topology dgx_h100"),
        folder.seen("plan -n4 -c2 -m block --topology dgx_h100"),
        folder.seen("plan -n4 -c2 -m cyclic --topology dgx_h100"),
        folder.seen("plan --mask 0-3 --mask 56-59 --topology dgx_h100"),
    ];
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn tasks_that_may_run_anywhere_are_narrowed_to_their_nic() {
    let folder = Folder::with(&["dgx_h100"]);
    let words = "plan --mask 0-223 --mask 0-223 --roce-place=block --topology dgx_h100";
    insta::assert_snapshot!(folder.seen(words));
}

#[test]
fn infiniband_ports_count_if_asked_for() {
    let folder = Folder::with(&["infiniband_beside_roce"]);
    let seen = [
        folder.seen("plan -n2 --topology infiniband_beside_roce"),
        folder.seen("plan -n2 --link-layer any --topology infiniband_beside_roce"),
    ];
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn json() {
    let folder = Folder::with(&["dgx_h100"]);
    let words = "plan --tasks 2 --gpus-per-task 1 --roce-tc=3 --json --topology dgx_h100";
    insta::assert_snapshot!(folder.seen(words));
}

#[test]
fn variables_are_as_sruns_and_the_command_line_wins() {
    let folder = Folder::with(&["soft_roce_laptop"]);
    let variables = [("SLURM_ROCE_TC", "5"), ("SLURM_ROCE_NICS", "rxe0")];
    let words = "plan -n1 --topology soft_roce_laptop --roce-nics=rxe1";
    insta::assert_snapshot!(folder.seen_with(words, &variables));
}
