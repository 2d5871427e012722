use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::nearest;
use crate::{Error, Result};

/// A linear layer of the attention that can hold an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnModule {
    /// The query projection.
    QProj,
    /// The key projection.
    KProj,
    /// The value projection.
    VProj,
    /// The projection of the heads' outputs.
    OutputProj,
}

impl AttnModule {
    /// All of them, in the model's order.
    pub const ALL: [Self; 4] = [Self::QProj, Self::KProj, Self::VProj, Self::OutputProj];

    /// The field's name in the model and in state-dict keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OutputProj => "output_proj",
        }
    }
}

impl fmt::Display for AttnModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AttnModule {
    type Err = Error;

    /// Parses a module's name; `o_proj`, the name in Hugging Face's Llama, means `output_proj`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name, with the nearest valid one.
    fn from_str(name: &str) -> Result<Self> {
        let wanted = if name == "o_proj" {
            "output_proj"
        } else {
            name
        };
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|m| m.name() == wanted)
            .ok_or_else(|| Error::Config {
                origin: "lora_attn_modules".into(),
                key: "lora_attn_modules".into(),
                line: None,
                message: format!(
                    "unknown attention module `{name}`; choose from {}",
                    names.join(", ")
                ),
                nearest: nearest(name, names, 1),
            })
    }
}

/// A linear layer of the feed-forward block that can hold an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpModule {
    /// The gate projection (`gate_proj` in Hugging Face's Llama).
    W1,
    /// The down projection (`down_proj`).
    W2,
    /// The up projection (`up_proj`).
    W3,
}

impl MlpModule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::W1, Self::W2, Self::W3];

    /// The field's name in the model and in state-dict keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }
}

/// Which linear layers get an adapter, and what the adapter is like.
///
/// ```
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
///
/// // The tutorial's first experiment: rank 8, alpha 16, no dropout.
/// let lora = LoRAConfig::new([QProj, VProj]);
/// assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 16.0, 0.0));
/// assert_eq!(lora.scale(), 2.0);
///
/// // Its second one.
/// let lora = LoRAConfig::new([QProj, KProj, VProj, OutputProj]).with_rank(32).with_alpha(64.0);
/// assert_eq!(lora.scale(), 2.0);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoRAConfig {
    /// The attention's layers with an adapter.
    pub attn_modules: Vec<AttnModule>,
    /// The feed-forward's layers with an adapter.
    pub mlp_modules: Vec<MlpModule>,
    /// Whether the output projection (`lm_head`) has an adapter.
    pub apply_to_output: bool,
    /// The rank r of the update `B·A`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// The probability with which an element of the adapter's input is dropped in training.
    pub dropout: f64,
    /// Whether to train DoRA's magnitude beside `A` and `B` (<https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
    /// Whether to scale by `alpha / sqrt(r)` (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
}

impl Default for LoRAConfig {
    /// That of no module: [`LoRAConfig::new`].
    fn default() -> Self {
        Self::new([])
    }
}

impl LoRAConfig {
    /// Rank 8, alpha 16 and no dropout on the given attention modules.
    pub fn new(attn_modules: impl IntoIterator<Item = AttnModule>) -> Self {
        Self {
            attn_modules: attn_modules.into_iter().collect(),
            mlp_modules: Vec::new(),
            apply_to_output: false,
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            use_dora: false,
            use_rslora: false,
        }
    }

    /// Adapters on all three layers of the feed-forward too, or on none of them.
    pub fn with_mlp(mut self, apply: bool) -> Self {
        self.mlp_modules = if apply {
            MlpModule::ALL.to_vec()
        } else {
            Vec::new()
        };
        self
    }

    /// An adapter on the output projection too.
    pub fn with_output(mut self, apply: bool) -> Self {
        self.apply_to_output = apply;
        self
    }

    /// Another rank.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// Another alpha.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Dropout on the adapter's input.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// With or without DoRA's magnitude.
    pub fn with_dora(mut self, use_dora: bool) -> Self {
        self.use_dora = use_dora;
        self
    }

    /// With rsLoRA's scale or with the original one.
    pub fn with_rslora(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// The factor s of the update: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether an attention module has an adapter.
    pub fn adapts_attn(&self, module: AttnModule) -> bool {
        self.attn_modules.contains(&module)
    }

    /// Whether a feed-forward module has an adapter.
    pub fn adapts_mlp(&self, module: MlpModule) -> bool {
        self.mlp_modules.contains(&module)
    }

    /// The field names of all adapted layers: `q_proj`, `w1`, `output`, ...
    pub fn module_names(&self) -> Vec<&'static str> {
        let attn = AttnModule::ALL.into_iter().filter(|m| self.adapts_attn(*m));
        let mlp = MlpModule::ALL.into_iter().filter(|m| self.adapts_mlp(*m));
        attn.map(AttnModule::name)
            .chain(mlp.map(MlpModule::name))
            .chain(self.apply_to_output.then_some("output"))
            .collect()
    }

    /// Checks that a model can get adapters by this: that it names a module, and [`Self::validate_adapter`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no module is named (the message lists the choices), and as
    /// [`Self::validate_adapter`].
    pub fn validate(&self) -> Result<()> {
        if self.module_names().is_empty() {
            let choices = AttnModule::ALL.map(AttnModule::name).join(", ");
            return Err(invalid(
                "lora_attn_modules",
                format!(
                    "no module has an adapter; name at least one of {choices}, \
                     or apply LoRA to the MLP or to the output"
                ),
            ));
        }
        self.validate_adapter()
    }

    /// Checks what makes an adapter, whatever layer it is put beside: one of a model of your own, say. A rank
    /// may be above the layer's width: it is then of no more use than the width itself, but PEFT has such
    /// adapters, with one rank for wide and narrow layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rank is 0, alpha is not a positive number, or the dropout is outside
    /// of `[0, 1)`.
    pub fn validate_adapter(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(invalid("lora_rank", "the rank must be at least 1".into()));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let message = format!("alpha must be a positive number, not {}", self.alpha);
            return Err(invalid("lora_alpha", message));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("the dropout must lie in [0, 1), not {}", self.dropout);
            return Err(invalid("lora_dropout", message));
        }
        Ok(())
    }
}

fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_parse_back() {
        for module in AttnModule::ALL {
            assert_eq!(module.to_string().parse::<AttnModule>().unwrap(), module);
        }
        assert_eq!(
            "o_proj".parse::<AttnModule>().unwrap(),
            AttnModule::OutputProj
        );
    }

    #[test]
    fn unknown_module_names_the_nearest() {
        let message = "q_porj".parse::<AttnModule>().unwrap_err().to_string();
        assert!(message.contains("q_porj"), "{message}");
        assert!(message.contains("did you mean `q_proj`"), "{message}");
    }

    #[test]
    fn bad_configurations_are_errors() {
        let good = LoRAConfig::new([AttnModule::QProj]);
        assert!(good.validate().is_ok());
        assert!(LoRAConfig::new([]).validate_adapter().is_ok());
        for (bad, word) in [
            (LoRAConfig::new([]), "output_proj"),
            (good.clone().with_rank(0), "rank"),
            (good.clone().with_alpha(f64::NAN), "alpha"),
            (good.clone().with_dropout(1.0), "dropout"),
        ] {
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn what_a_file_leaves_out_has_its_default() {
        let read: LoRAConfig = serde_json::from_str(r#"{"mlp_modules":["w2"],"rank":4}"#).unwrap();
        let mut expected = LoRAConfig::new([]).with_rank(4);
        expected.mlp_modules = vec![MlpModule::W2];
        assert_eq!(read, expected);
    }

    #[test]
    fn rslora_scales_by_the_root_of_the_rank() {
        let lora = LoRAConfig::new([AttnModule::QProj]).with_rslora(true);
        assert!((lora.scale() - 5.65685424949238).abs() < 1e-12);
    }
}
