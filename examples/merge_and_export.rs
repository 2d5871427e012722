//! What becomes of an adapter: the forms that other programs have it in, and the merged model, as a folder and as a GGUF
//! file. `burn-peft export` and `burn-peft merge` do this.
//!
//! ```text
//! cargo run --release --example merge_and_export
//! ```

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::checkpoint::{
    AdapterFormat, GgufFormat, LoadOptions, MergeOptions, base_model_name, export_adapter,
    load_model, merge_files, save_peft,
};
use burn_peft::lora::{AttnModule::*, LoRAConfig};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");

pub fn main() -> Result<()> {
    let out = std::env::temp_dir().join("burn-peft-exported");
    export(TINY, &new_adapter(&out)?, &out)
}

/// It knows nothing yet.
fn new_adapter(out: &Path) -> Result<PathBuf> {
    let lora = LoRAConfig::new([QProj, VProj]);
    let model = load_model(TINY, &lora, &LoadOptions::new(&Device::default()))?;
    save_peft(&model, &lora, out.join("new"))?;
    Ok(out.join("new"))
}

fn export(base: &str, adapter: &Path, out: &Path) -> Result<()> {
    let model = load_model(base, adapter, &LoadOptions::new(&Device::default()))?;
    for format in AdapterFormat::ALL {
        let to = out.join(format!("adapter.{format}"));
        // A program may have no place for what this adapter has.
        match export_adapter(&model, format, Some(&base_model_name(base)), &to) {
            Ok(()) => println!("{format:>10}: {}", to.display()),
            Err(error) => println!("{format:>10}: {error}"),
        }
    }
    // One weight at a time: neither the base nor the merged model is held.
    let (folder, file) = (out.join("merged"), out.join("merged.gguf"));
    merge_files(base, Some(adapter), &folder, &MergeOptions::default())?;
    let q8 = MergeOptions::default().with_gguf(Some(GgufFormat::Q8_0));
    merge_files(base, Some(adapter), &file, &q8)?;
    println!("    merged: {} and {}", folder.display(), file.display());
    Ok(())
}
