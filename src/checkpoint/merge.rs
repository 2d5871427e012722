//! From the files of a base and an adapter to those of the merged model.

use std::path::Path;

use burn::tensor::Device;

use super::any_adapter::{attach_any_adapter, is_peft};
use super::any_base::{load_any_base, read_base_config};
use super::gguf::{GgufFormat, save_merged_gguf};
use super::hf::{copy_generation_config, is_hf_folder, read_hf_config};
use super::merged::{MergedCheckpoint, save_merged_hf};
use crate::adapter::RequantizationLoss;
use crate::settings::setters;
use crate::tokenizer::copy_tokenizer;
use crate::{Error, Result};

/// How a merged model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MergeOptions {
    /// How a GGUF file is stored. Without it a folder is written, or an F16 file if the name ends in `.gguf`.
    pub gguf: Option<GgufFormat>,
    /// Whether weights that the base has packed (in a GGUF file, or by bitsandbytes) are packed again, in a GGUF file.
    pub requantize: bool,
}

impl MergeOptions {
    setters! {
        with_gguf => gguf: Option<GgufFormat>,
        with_requantize => requantize: bool,
    }
}

/// Merges an adapter into the base that it is for, or writes a base alone in another form: a Hugging Face folder that any
/// program loads, with its tokenizer, or a GGUF file. Of a Hugging Face folder one weight is in memory at a time
/// ([`MergedCheckpoint`]); Meta's folders and GGUF files are loaded, and merged weight by weight
/// ([`save_merged_hf`]).
///
/// ```no_run
/// use std::path::Path;
/// use burn_peft::checkpoint::{GgufFormat, MergeOptions, merge_files};
///
/// # fn main() -> burn_peft::Result<()> {
/// let adapter = Some(Path::new("adapter"));
/// merge_files("Llama-2-7b-hf", adapter, "merged", &MergeOptions::default())?;
/// let q8 = MergeOptions::default().with_gguf(Some(GgufFormat::Q8_0));
/// merge_files("Llama-2-7b-hf", adapter, "merged.gguf", &q8)?;
/// # Ok(())
/// # }
/// ```
///
/// Returns what packing again has lost, if that was asked for.
///
/// # Errors
/// [`Error::InvalidArgument`] for packing again without a GGUF file, and those of [`MergedCheckpoint`], [`load_any_base`], [`attach_any_adapter`],
/// [`merge_lora_requantized`](crate::llama::TransformerDecoder::merge_lora_requantized), [`save_merged_hf`] and [`save_merged_gguf`].
pub fn merge_files(
    base: impl AsRef<Path>,
    adapter: Option<&Path>,
    out: impl AsRef<Path>,
    options: &MergeOptions,
) -> Result<Option<RequantizationLoss>> {
    let (base, out) = (base.as_ref(), out.as_ref());
    let is_gguf = out.extension().is_some_and(|end| end == "gguf");
    let gguf = options.gguf.or(is_gguf.then_some(GgufFormat::F16));
    if options.requantize && gguf.is_none() {
        return Err(Error::InvalidArgument {
            name: "requantize",
            message: "a folder holds the merged numbers, and would lose by packing them before; name a file that ends in \
                      `.gguf`"
                .into(),
        });
    }
    if !is_hf_folder(base) || options.requantize {
        return merge_loaded(base, adapter, gguf, options.requantize, out);
    }
    let merged = open(base, adapter)?;
    match gguf {
        Some(format) => merged.save_gguf(format, out)?,
        None => merged.save_hf(out)?,
    }
    Ok(None)
}

fn open(base: &Path, adapter: Option<&Path>) -> Result<MergedCheckpoint> {
    if let Some(adapter) = adapter.filter(|adapter| is_peft(adapter)) {
        return MergedCheckpoint::open(base, adapter);
    }
    let mut model = read_hf_config(base)?.init(&Device::default());
    if let Some(adapter) = adapter {
        attach_any_adapter(&mut model, adapter)?;
    }
    MergedCheckpoint::new(&model, base)
}

/// Merges into a base as it is loaded: packed weights that are.
fn merge_loaded(
    base: &Path,
    adapter: Option<&Path>,
    gguf: Option<GgufFormat>,
    requantize: bool,
    out: &Path,
) -> Result<Option<RequantizationLoss>> {
    let mut model = read_base_config(base)?.init(&Device::default());
    load_any_base(&mut model, base)?;
    if let Some(adapter) = adapter {
        attach_any_adapter(&mut model, adapter)?;
    }
    let (model, loss) = match requantize {
        true => {
            let (merged, loss) = model.merge_lora_requantized()?;
            (merged, Some(loss))
        }
        false => (model, None),
    };
    if let Some(format) = gguf {
        save_merged_gguf(&model, base, format, out)?;
        return Ok(loss);
    }
    save_merged_hf(&model, out)?;
    copy_generation_config(base, out)?;
    let has = |name| base.join(name).exists();
    if base.is_file() || has("tokenizer.json") || has("tokenizer.model") {
        copy_tokenizer(base, out)?;
    }
    Ok(loss)
}
