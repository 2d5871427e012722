//! Runs a training as the processes and devices that it was started with.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::thread;

use burn::tensor::Device;
#[cfg(feature = "mpi")]
use burn_peft::distributed::MpiGroup;
use burn_peft::distributed::{DeviceGroup, ProcessGroup, SingleProcess};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::{Error, Result};

use super::interrupt::LastStep;
use crate::device;
#[cfg(feature = "mpi")]
use crate::exit::complain;
use crate::exit::exit_code;

/// One of those that train together.
pub struct Member<'a> {
    pub device: &'a Device,
    pub group: &'a dyn ProcessGroup,
    /// How many members this machine has, itself among them.
    pub num_local: usize,
    /// Where it keeps what is saved if the program is told to end.
    pub last_step: LastStep,
}

/// What a member does.
pub type Train<'a> = &'a (dyn Fn(Member) -> Result<()> + Sync);

/// Calls `train` for each device of the configuration, names separated by commas, in a thread of its
/// own; or, in a program with the feature `mpi` that `mpirun` started, once in each process.
pub fn launch(config: &RecipeConfig, train: Train) -> ExitCode {
    #[cfg(feature = "mpi")]
    {
        let group = MpiGroup::init();
        if group.size() > 1 {
            return in_each_process(&group, &config.device, train);
        }
    }
    exit_code(in_this_process(config, train))
}

#[cfg(feature = "mpi")]
fn in_each_process(group: &MpiGroup, devices: &str, train: Train) -> ExitCode {
    let run = || {
        let member = Member {
            device: &device::from_name(devices, group.local_rank())?,
            group,
            num_local: group.local_size(),
            last_step: LastStep::watch()?,
        };
        train_safely(train, member)
    };
    if let Err(error) = run() {
        // The others wait for this process: end them too.
        let (rank, size) = (group.rank(), group.size());
        complain(format_args!("error in process {rank} of {size}: {error}"));
        group.abort();
    }
    ExitCode::SUCCESS
}

fn in_this_process(config: &RecipeConfig, train: Train) -> Result<()> {
    let devices = config
        .device
        .split(',')
        .map(|name| device::from_name(name.trim(), 0));
    let devices: Vec<Device> = devices.collect::<Result<_>>()?;
    let last_step = LastStep::watch()?;
    if let [device] = &devices[..] {
        let member = Member {
            device,
            group: &SingleProcess,
            num_local: 1,
            last_step,
        };
        return train_safely(train, member);
    }
    let results = in_threads(devices, &last_step, train);
    let is_lost = |error: &Error| matches!(error, Error::PeerLost);
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    // The cause before its consequences.
    errors.sort_by_key(is_lost);
    match errors.into_iter().next() {
        Some(error) => {
            last_step.rescue(Some(&error));
            Err(error)
        }
        None => Ok(()),
    }
}

/// What the threads came to, one a device; a panic counts as a lost one. The first keeps its steps in
/// `last_step`.
fn in_threads(devices: Vec<Device>, last_step: &LastStep, train: Train) -> Vec<Result<()>> {
    let num_local = devices.len();
    thread::scope(|scope| {
        let members = DeviceGroup::new(devices).into_iter();
        let threads = members.map(|member| {
            let last_step = match member.rank() {
                0 => last_step.clone(),
                _ => LastStep::default(),
            };
            scope.spawn(move || {
                train(Member {
                    device: member.device(),
                    group: &member,
                    num_local,
                    last_step,
                })
            })
        });
        let threads: Vec<_> = threads.collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .map(|result| result.unwrap_or(Err(Error::PeerLost)))
            .collect()
    })
}

/// Whatever ends the training early, what was learned until then is saved.
fn train_safely(train: Train, member: Member) -> Result<()> {
    let last_step = member.last_step.clone();
    let ended = catch_unwind(AssertUnwindSafe(|| train(member)));
    if !matches!(ended, Ok(Ok(()))) {
        last_step.rescue(ended.as_ref().ok().and_then(|ended| ended.as_ref().err()));
    }
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}
