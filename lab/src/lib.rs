//! A real Slurm + soft-RoCE cluster in QEMU guests: boot it, run on it, capture its wires.
