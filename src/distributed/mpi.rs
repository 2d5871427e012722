use std::marker::PhantomData;

use burn::tensor::{DType, Tensor, TensorData};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::{Universe, initialize_with_threading};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;

use super::ProcessGroup;
use crate::Result;

/// The processes that an MPI launcher started: `mpirun -n 2 program`. Any implementation of MPI 3
/// serves. A program that was started without one is a group of its own.
///
/// What MPI itself reports as an error ends the program, by MPI's default. So does the death of
/// another process: the launcher then sends `SIGTERM` to the rest. A process that returns early for a
/// reason of its own must [`abort`](Self::abort).
pub struct MpiGroup {
    world: SimpleCommunicator,
    /// The rank among the processes of this machine, and how many there are.
    local_rank: usize,
    local_size: usize,
    /// Only the thread that initialised MPI may call it.
    one_thread: PhantomData<*const ()>,
    // Dropped last: it ends MPI.
    _universe: Universe,
}

/// MPI counts elements in C's `int`.
const CHUNK: usize = 1 << 28;

impl MpiGroup {
    /// Joins the processes that were started together. The thread that calls this is the one that
    /// may use the group.
    ///
    /// # Panics
    /// If MPI was initialised before in this process.
    pub fn init() -> Self {
        let (universe, _) = initialize_with_threading(Threading::Funneled)
            .expect("MPI is initialised once in a process");
        let world = universe.world();
        let machine = world.split_shared(world.rank());
        Self {
            local_rank: machine.rank() as usize,
            local_size: machine.size() as usize,
            world,
            one_thread: PhantomData,
            _universe: universe,
        }
    }

    /// This process's number among those of its machine, counted from 0: the number of its GPU,
    /// where each has one.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// How many processes of the group this machine has.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// Ends all processes of the group. What holds for one that returns while others wait for it:
    /// they would wait for ever.
    pub fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

/// A panic ends all processes: MPI's own end waits for the others, which wait for this one.
impl Drop for MpiGroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort();
        }
    }
}

impl ProcessGroup for MpiGroup {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>> {
        let (device, shape) = (values.device(), values.shape());
        let mine = values.into_data();
        let mine = mine.as_slice::<f32>().expect("groups add f32");
        let mut sums = vec![0f32; mine.len()];
        for (mine, sums) in mine.chunks(CHUNK).zip(sums.chunks_mut(CHUNK)) {
            self.world
                .all_reduce_into(mine, sums, SystemOperation::sum());
        }
        let sums = TensorData::new(sums, shape);
        Ok(Tensor::from_data(sums, (&device, DType::F32)))
    }

    fn all_gather(&self, values: &[f64]) -> Result<Vec<f64>> {
        let mut all = vec![0.0; values.len() * self.size()];
        self.world.all_gather_into(values, &mut all[..]);
        Ok(all)
    }
}
