//! The tests of the whole library, in one program: against other implementations, of laws, and of
//! bad input. `BURN_DEVICE` names the device.

mod adapters;
#[path = "../support/at_hand.rs"]
mod at_hand;
mod bad_input;
mod bitsandbytes;
mod burns_layers;
mod common;
mod counts;
mod distributed;
mod docs;
mod experts;
mod generation;
mod gguf;
mod gguf_models;
mod golden;
mod golden_cases;
mod initialize;
mod joint;
mod left_out;
mod loading;
mod loftq;
mod losses;
mod merged;
mod meta;
#[path = "../support/one_step.rs"]
mod one_step;
mod own_method;
mod own_model;
mod own_model_slips;
mod panics;
mod quantized;
mod saved_gguf;
mod snapshots;
mod stories;
#[path = "../support/zero_gguf.rs"]
mod zero_gguf;
