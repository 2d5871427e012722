//! Verbs over any Burn module that holds [`LoRALinear`](crate::lora::LoRALinear)s: list, count and
//! freeze parameters, take and load state dicts, check them. No Llama, no file.

mod init;
mod magnitude;
mod params;
mod path;
mod state_dict;
mod validate;

pub use init::initialize_adapters;
pub use params::{
    ParamCount, ParamInfo, ParamSet, get_adapter_params, get_params, initialize_params,
    set_trainable_params,
};
pub use state_dict::{
    LoadReport, StateDict, StateReader, adapter_state_dict, load_state_dict, load_tensors,
    state_dict, state_readers,
};
pub(crate) use state_dict::{compare_keys, lasting_tensor, require_dtype, to_host};
pub use validate::{AdaptedModules, StateDictKeys, validate_state_dict_for_lora};
