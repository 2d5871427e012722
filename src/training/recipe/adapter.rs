//! A recipe that goes on with an adapter: its files say what the adapter is like.

use std::path::Path;

use serde_json::{Value, json};

use super::yaml::{self, Setting};
use super::{RecipeConfig, RecipeKey, Resume, keys};
use crate::checkpoint::{read_adapter_config, translated};
use crate::lora::{Init, LoRAConfig, Targets};
use crate::{Error, Result};

/// Keys that say the same of an adapter, and the first one's value, in the words of Hugging Face's files.
type Described = (&'static [&'static str], Value);

const TARGETS: &[&str] = &[
    "target_modules",
    "lora_attn_modules",
    "apply_lora_to_mlp",
    "apply_lora_to_output",
];
const INIT: &str = "init_lora_weights";
/// What a training may do otherwise than the one before.
const FREE: [&str; 2] = ["lora_dropout", "freeze_a"];

impl RecipeConfig {
    /// The adapters of a new run: that of `adapter_checkpoint` as its files describe it, or else [`Self::lora`], which
    /// also describes an adapter whose file does not (torchtune's). Dropout and `freeze_a` are the recipe's.
    ///
    /// # Errors
    /// Those of [`read_adapter_config`].
    pub fn adapter_config(&self) -> Result<LoRAConfig> {
        let path = self.adapter_checkpoint.as_ref();
        let described = path.map(read_adapter_config).transpose()?.flatten();
        Ok(described.map_or_else(|| self.lora(), |lora| self.trains(lora)))
    }

    /// An adapter with what the recipe alone says of its training.
    pub(super) fn trains(&self, lora: LoRAConfig) -> LoRAConfig {
        lora.with_dropout(self.lora_dropout)
            .with_frozen_a(self.freeze_a)
    }

    /// The values that the files of `adapter_checkpoint` have for keys that are not set. Keys that are must say the
    /// same.
    pub(super) fn with_keys_of_adapter(self, settings: &[Setting]) -> Result<Self> {
        let Some(lora) = self.adapter_of_files()? else {
            return Ok(self);
        };
        let mut tree = self.tree();
        let mut differing = Vec::new();
        for (names, own, of_files) in unequal(&self.lora(), &lora) {
            match set_key(settings, names) {
                None => {
                    let key = RecipeKey::find(names[0]).expect("it is in the table");
                    *key.of_mut(&mut tree) = of_files;
                }
                Some(key) if self.may_differ(key, &lora) => {}
                Some(key) => {
                    let [own, of_files] = [&own, &of_files].map(keys::show);
                    differing.push((key, format!("`{key}` is {own}, the adapter's {of_files}")));
                }
            }
        }
        match differing.is_empty() {
            true => {
                Ok(serde_json::from_value(tree).expect("an adapter's values are those of keys"))
            }
            false => Err(self.contradiction(settings, &differing)),
        }
    }

    /// The adapter to go on with, if there is one and its files describe it.
    fn adapter_of_files(&self) -> Result<Option<LoRAConfig>> {
        let Some(path) = &self.adapter_checkpoint else {
            return Ok(None);
        };
        match read_adapter_config(path) {
            // The run has its checkpoints.
            Err(_) if self.resume_from_checkpoint != Resume::No => Ok(None),
            read => read,
        }
    }

    /// Whether a key may say otherwise than the adapter's files.
    fn may_differ(&self, key: &str, lora: &LoRAConfig) -> bool {
        FREE.contains(&key) || key == INIT && !decides(self.init_lora_weights, lora.init)
    }

    /// The keys that say otherwise than the adapter's files, as an error at the first.
    fn contradiction(&self, settings: &[Setting], differing: &[(&str, String)]) -> Error {
        let all: Vec<_> = differing.iter().map(|(_, text)| text.as_str()).collect();
        let path = self.adapter_checkpoint.as_deref();
        let message = format!(
            "{}; leave such keys out to go on with the adapter in {} as it is, or set no `adapter_checkpoint`",
            all.join("; "),
            path.unwrap_or(Path::new("")).display()
        );
        yaml::conflict(settings, differing[0].0, &message)
    }
}

/// The last of these keys that is set.
fn set_key(settings: &[Setting], keys: &[&'static str]) -> Option<&'static str> {
    let mut settings = settings.iter().rev();
    settings.find_map(|setting| keys.iter().copied().find(|key| setting.key == *key))
}

/// The keys in which two adapters differ, with both values.
fn unequal(
    own: &LoRAConfig,
    of_files: &LoRAConfig,
) -> Vec<(&'static [&'static str], Value, Value)> {
    let pairs = described(own).into_iter().zip(described(of_files));
    pairs
        .filter(|((_, own), (_, of_files))| own != of_files)
        .map(|((names, own), (_, of_files))| (names, own, of_files))
        .collect()
}

/// Whether it matters to an adapter that exists how it is said to begin: if a part of the base is its, or more than a seed
/// is asked for.
fn decides(own: Init, of_files: Init) -> bool {
    own.shifts_base() || of_files.shifts_base() || [Init::Eva, Init::Loftq].contains(&own)
}

fn described(lora: &LoRAConfig) -> Vec<Described> {
    let lora = translated(lora);
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        json!(names)
    };
    let modules = |targets: &Targets| match targets {
        Targets::Names(names) => sorted(names),
        Targets::Pattern(pattern) => json!(pattern),
        Targets::AllLinear => json!("all-linear"),
    };
    vec![
        (TARGETS, modules(&lora.targets)),
        (
            &["exclude_modules"],
            json!(lora.exclude.as_ref().map(modules)),
        ),
        (&["layers_to_transform"], json!(lora.layers)),
        (&["modules_to_save"], sorted(&lora.modules_to_save)),
        (
            &["trainable_token_indices"],
            json!(lora.trainable_token_indices),
        ),
        (&["lora_rank"], json!(lora.rank)),
        (&["lora_alpha"], json!(lora.alpha)),
        (&["rank_pattern"], json!(lora.rank_pattern)),
        (&["alpha_pattern"], json!(lora.alpha_pattern)),
        (&["lora_dropout"], json!(lora.dropout)),
        (&["use_dora"], json!(lora.uses_dora())),
        (&["use_rslora"], json!(lora.use_rslora)),
        (&[INIT], json!(lora.init)),
        (&["lora_bias"], json!(lora.lora_bias)),
        (&["bias"], json!(lora.bias)),
        (&["freeze_a"], json!(lora.freeze_a)),
    ]
}
