//! `MPI_Init` of Open MPI, after which a rank can reach every other.
#![expect(unsafe_code, reason = "calls libmpi")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use anyhow::Result;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::library::{Library, check};
use crate::{Exchange, Known};

type Communicator = *mut c_void;
type Number = unsafe extern "C" fn(Communicator, *mut c_int) -> c_int;

/// As Open MPI's mpi.h declares them.
pub(crate) struct Mpi {
    init: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char) -> c_int,
    rank: Number,
    size: Number,
    finalize: unsafe extern "C" fn() -> c_int,
    /// `MPI_COMM_WORLD` is the address of this object.
    world: Communicator,
}

impl Mpi {
    /// Loads it, and stays on one CPU from here on. In MPI_Init all ranks poll; on a machine with fewer CPUs than ranks they
    /// take them all from Slurm's daemons, which have to answer them: 128 ranks on two CPUs were not through after 44 s,
    /// yielding or not, and with one CPU left to the daemons they are in 4 s.
    pub(crate) fn load() -> Result<Self> {
        let itself = Pid::from_raw(0);
        let allowed = sched_getaffinity(itself)?;
        let mut first = CpuSet::new();
        let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        first.set(cpu.unwrap_or(0))?;
        sched_setaffinity(itself, &first)?;
        let library = Library::load("libmpi.so.40")?;
        // SAFETY: the types of the fields are those of the header.
        unsafe {
            Ok(Self {
                init: library.get("MPI_Init")?,
                rank: library.get("MPI_Comm_rank")?,
                size: library.get("MPI_Comm_size")?,
                finalize: library.get("MPI_Finalize")?,
                world: library.get("ompi_mpi_comm_world")?,
            })
        }
    }
}

impl Exchange for Mpi {
    fn run(&mut self) -> Result<Known> {
        // SAFETY: MPI allows null for both.
        check("MPI_Init", unsafe { (self.init)(ptr::null_mut(), ptr::null_mut()) })?;
        let number = |call: Number| {
            let mut number = 0;
            // SAFETY: the communicator is valid since MPI_Init; an integer to write to.
            check("MPI_Comm_rank or MPI_Comm_size", unsafe { call(self.world, &mut number) })?;
            anyhow::Ok(usize::try_from(number)?)
        };
        Ok(Known { rank: number(self.rank)?, size: number(self.size)?, bytes: None })
    }

    fn end(self: Box<Self>) -> Result<()> {
        // SAFETY: no argument, and no call after it.
        check("MPI_Finalize", unsafe { (self.finalize)() })
    }
}
