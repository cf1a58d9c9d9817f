//! Who is there? Every rank learns every rank's node and process id, and rank 0 prints them: the exchange alone,
//! which needs no RDMA.
//!
//! ```text
//! $ rocectl run -n 2 target/debug/who
//! rank 0 of 2: login1 process 4711
//! rank 1 of 2: login1 process 4712
//! ```

use roce_bootstrap::{Bootstrap, Options};

fn main() -> anyhow::Result<()> {
    // At the beginning: the secret leaves the environment here, so that no program started later has it.
    let mut ranks = Bootstrap::init(&Options::default())?;
    let (rank, size) = (ranks.identity().rank, ranks.identity().size);
    let process = std::process::id();
    let processes = ranks.all_gather(&process.to_be_bytes())?;
    if rank == 0 {
        for (rank, process) in (0..).zip(processes.iter()) {
            let process = u32::from_be_bytes(process.try_into()?);
            println!("rank {rank} of {size}: {} process {process}", ranks.node_of(rank));
        }
    }
    ranks.barrier()?;
    Ok(())
}
