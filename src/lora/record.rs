//! What goes into layers during forward passes, for what is to be known of it before a training.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::module::ParamId;
use burn::tensor::Tensor;

use super::init::ActivationStatistics;
use crate::Result;

/// Statistics of the inputs of layers, by the ids of their weights.
pub(crate) type Inputs = HashMap<ParamId, ActivationStatistics>;

thread_local! {
    static INPUTS: RefCell<Option<Result<Inputs>>> = const { RefCell::new(None) };
}

/// Calls `run` and lets `inputs` take in what goes into the layers meanwhile, on this thread.
///
/// # Errors
/// The first of [`ActivationStatistics::update`].
pub(crate) fn record_inputs(inputs: Inputs, run: impl FnOnce()) -> Result<Inputs> {
    /// Ends the recording, also if `run` panics.
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            INPUTS.set(None);
        }
    }
    let _guard = Guard;
    INPUTS.set(Some(Ok(inputs)));
    run();
    INPUTS.take().expect("it was set above")
}

/// For a layer's forward pass: takes its input in, if that is asked for.
pub(super) fn input_of<const D: usize>(weight: ParamId, x: &Tensor<D>) {
    INPUTS.with_borrow_mut(|recording| {
        let Some(Ok(inputs)) = recording else { return };
        let Some(statistics) = inputs.get_mut(&weight) else {
            return;
        };
        let [.., in_dim] = x.dims()[..] else { return };
        let rows = x.clone().detach().reshape([-1, in_dim as i32]);
        if let Err(error) = statistics.update(rows) {
            *recording = Some(Err(error));
        }
    });
}
