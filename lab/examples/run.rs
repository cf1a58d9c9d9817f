//! Boots two guests, runs a script on the first, prints what it printed and which RoCEv2 packets it sent.
//!
//! `cargo run -p roce-lab --example run -- 'srun -N2 cat /sys/class/infiniband/rxe0/ports/1/gids/1'`

use roce_lab::{Cluster, GuestRoot, Interrupt, Options, Software, wire::Table};
use std::{
    path::Path,
    time::{Duration, Instant},
};

fn main() -> Result<(), roce_lab::Error> {
    let script = std::env::args().nth(1).unwrap_or_else(|| "sinfo -N -l; srun -N2 -l hostname".into());
    let start = Instant::now();
    let told = |what: &str| eprintln!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let interrupt = Interrupt::on_signals()?;
    let root = GuestRoot::ensure(Path::new("target/lab"), "trixie", Software::Rdma, &interrupt)?;
    told("guest root");
    let cluster = Cluster::boot(&root, Options::new("target/lab/example"), &interrupt)?;
    told(&format!("cluster, by {}", cluster.accelerator()));
    let mark = cluster.captures().mark();
    let output = cluster.run("vm1", &script, Duration::from_secs(120))?;
    told(&format!("command, which returned {} after {:.1} s", output.status, output.elapsed.as_secs_f64()));
    print!("{}{}{}", output.stdout, output.stderr, Table::of(&cluster.captures().packets_since(&mark)?));
    cluster.shut_down()?;
    told("shut down");
    Ok(())
}
