//! Tests that cross crates: the plugin in real Slurm, the whole path in the lab.
