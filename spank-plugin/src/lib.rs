//! spank_roce.so: pins each task of a Slurm step to its nearest RoCE NIC.
