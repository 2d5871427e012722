//! The examples that need no arguments do what they show.

#[path = "../examples/chat_data.rs"]
mod chat_data;
#[path = "../examples/layer.rs"]
mod layer;
#[path = "../examples/merge_and_export.rs"]
mod merge_and_export;
#[path = "../examples/quantized_base.rs"]
mod quantized_base;
#[path = "../examples/several_adapters.rs"]
mod several_adapters;
#[path = "../examples/variants.rs"]
mod variants;

#[test]
fn one_layer() {
    layer::main();
}

#[test]
fn every_kind_of_adapter() {
    variants::main().unwrap();
}

#[test]
fn conversations() {
    chat_data::main().unwrap();
}

#[test]
fn a_packed_base() {
    quantized_base::main().unwrap();
}

#[test]
fn several_adapters_on_one_base() {
    several_adapters::main().unwrap();
}

#[test]
fn what_becomes_of_an_adapter() {
    merge_and_export::main().unwrap();
}
