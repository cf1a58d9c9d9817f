//! Rank discovery, address exchange and RC queue pairs over RoCE for codes without MPI.
