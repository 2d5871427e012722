//! The configuration of a model, by its file's metadata and tensors.

use super::kind::TensorKind;
use super::metadata::Metadata;
use super::names::{ARCHITECTURES, Architecture};
use super::reader::GgufFile;
use super::rope::llama3_scaling;
use crate::checkpoint::tensors::decode;
use crate::llama::{LayerAttention, LlamaConfig, RopeScaling, Rotary, Span};
use crate::{Error, Result};
use burn::tensor::DType;

/// By what llama3's scaling divides each frequency.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
const ROPE_BASE: f64 = 1e4;

/// Settings that change what is computed, and the values with which they do not, below the architecture's name.
const NEUTRAL: [(&str, &[f64]); 9] = [
    ("expert_count", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
];

/// What the fields are called here and there, below the architecture's name.
const KEYS: [(&str, &str); 7] = [
    ("num_layers", "block_count"),
    ("num_heads", "attention.head_count"),
    ("num_kv_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("embed_dim", "embedding_length"),
    ("intermediate_dim", "feed_forward_length"),
    ("max_seq_len", "context_length"),
];

impl GgufFile {
    /// The sizes of the model.
    ///
    /// # Errors
    /// [`Error::Format`] if the metadata lack one, disagree with the tensors, or describe a model that this crate does
    /// not compute.
    pub(crate) fn config(&self) -> Result<LlamaConfig> {
        let model = Model::of(self)?;
        model.require_neutral()?;
        let [bos, eos, eot, eom, pad] =
            ["bos", "eos", "eot", "eom", "padding"].map(|name| self.metadata().token_id(name));
        let heads = model.size("attention.head_count")?;
        let embed_dim = model.size("embedding_length")?;
        let head_dim = model.head_dim(embed_dim, heads)?;
        let vocab_size = self.shape("token_embd.weight")?[0];
        let known = |id: Option<u32>| id.filter(|id| (*id as usize) < vocab_size);
        let mut ends: Vec<u32> = Vec::new();
        for id in [eos?, eot?, eom?].into_iter().filter_map(known) {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        let rope_base = model.number("rope.freq_base")?.unwrap_or(ROPE_BASE);
        let config = LlamaConfig {
            model_type: model.architecture.families[0].to_owned(),
            vocab_size,
            num_layers: model.size("block_count")?,
            num_heads: heads,
            num_kv_heads: model.size_or("attention.head_count_kv", heads)?,
            head_dim,
            embed_dim,
            intermediate_dim: model.size("feed_forward_length")?,
            max_seq_len: model.size("context_length")?,
            layer_attention: model.layer_attention()?,
            norm_eps: model.need_number("attention.layer_norm_rms_epsilon")?,
            rope_base,
            rope_scaling: model.rope_scaling(head_dim, rope_base)?,
            tie_embeddings: self.entry("output.weight").is_none(),
            qkv_bias: ["q", "k", "v"]
                .iter()
                .any(|name| self.entry(&format!("blk.0.attn_{name}.bias")).is_some()),
            output_proj_bias: self.entry("blk.0.attn_output.bias").is_some(),
            bos_token_id: known(bos?),
            eos_token_ids: ends,
            pad_token_id: known(pad?),
            ..LlamaConfig::llama2_7b()
        };
        model.require_consistent(&config)?;
        Ok(config)
    }

    /// The architecture.
    pub(super) fn architecture(&self) -> Result<&'static Architecture> {
        let metadata = self.metadata();
        if metadata.text("general.type")? == Some("adapter") {
            let message = "an adapter, not a model; load the model that it was made for";
            return Err(Error::format(self.path(), message));
        }
        let key = "general.architecture";
        let name = metadata.need(key, metadata.text(key)?)?;
        let found = ARCHITECTURES.iter().find(|known| known.name == name);
        found.ok_or_else(|| {
            let known = ARCHITECTURES.each_ref().map(|known| known.name).join(", ");
            metadata.error(key, format!("a `{name}` is not one of {known}"))
        })
    }

    /// The shape of a tensor.
    fn shape(&self, name: &str) -> Result<&[usize]> {
        let entry = self.entry(name).ok_or_else(|| {
            let message =
                format!("there is no tensor `{name}`; is this the file of a whole model?");
            Error::format(self.path(), message)
        })?;
        Ok(&entry.shape)
    }
}

/// A file and its architecture.
struct Model<'a> {
    file: &'a GgufFile,
    metadata: Metadata<'a>,
    architecture: &'static Architecture,
}

impl<'a> Model<'a> {
    fn of(file: &'a GgufFile) -> Result<Self> {
        Ok(Self {
            file,
            metadata: file.metadata(),
            architecture: file.architecture()?,
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// A number of things. Products of two do not overflow.
    fn size_if_given(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(value) = self.metadata.integer(&key)? else {
            return Ok(None);
        };
        let size = u32::try_from(value);
        let size = size.map_err(|_| self.metadata.error(&key, format!("{value} is no size")))?;
        Ok(Some(size as usize))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_if_given(key)?.unwrap_or(default))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let size = self.size_if_given(key)?;
        self.metadata.need(&self.key(key), size)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(key))
    }

    fn need_number(&self, key: &str) -> Result<f64> {
        let number = self.number(key)?;
        self.metadata.need(&self.key(key), number)
    }

    fn require_neutral(&self) -> Result<()> {
        for (key, neutral) in NEUTRAL {
            if let Some(value) = self.number(key)?.filter(|value| !neutral.contains(value)) {
                let message = format!("{value} is not supported");
                return Err(self.metadata.error(&self.key(key), message));
            }
        }
        let causal = self.key("attention.causal");
        match self.metadata.flag(&causal)? {
            Some(false) => Err(self
                .metadata
                .error(&causal, "attention that looks ahead is not supported")),
            _ => Ok(()),
        }
    }

    /// The width of a head, which keys, values and rotation have to share.
    fn head_dim(&self, embed_dim: usize, heads: usize) -> Result<usize> {
        if heads == 0 {
            let key = self.key("attention.head_count");
            return Err(self.metadata.error(&key, "must be at least 1"));
        }
        let head_dim = self.size_or("attention.key_length", embed_dim / heads)?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            let other = self.size_or(key, head_dim)?;
            if other != head_dim {
                let message =
                    format!("{other} is not supported where a head has a width of {head_dim}");
                return Err(self.metadata.error(&self.key(key), message));
            }
        }
        Ok(head_dim)
    }

    /// The window of all layers, if there is one.
    fn layer_attention(&self) -> Result<Vec<LayerAttention>> {
        let window = self.size_or("attention.sliding_window", 0)?;
        let span = if window > 0 {
            Span::Window(window)
        } else {
            Span::Full
        };
        let rotary = Rotary::Global;
        Ok(LayerAttention::pattern([LayerAttention { span, rotary }]))
    }

    fn rope_scaling(&self, head_dim: usize, base: f64) -> Result<Option<RopeScaling>> {
        let key = self.key("rope.scaling.type");
        let older = self
            .number("rope.scale_linear")?
            .filter(|factor| *factor != 1.0);
        let named = match self.metadata.text(&key)? {
            None => older.map(|factor| RopeScaling::Linear { factor }),
            Some("none") => None,
            Some("linear") => Some(RopeScaling::Linear {
                factor: self.need_number("rope.scaling.factor")?,
            }),
            Some(other) => {
                let message = format!("`{other}` is not one of none, linear");
                return Err(self.metadata.error(&key, message));
            }
        };
        let Some(factors) = self.rope_factors()? else {
            return Ok(named);
        };
        let found = llama3_scaling(&factors, head_dim, base).filter(|_| named.is_none());
        found.ok_or_else(|| {
            let message = format!(
                "`{ROPE_FACTORS}` does not have the factors of Llama 3.1's rope scaling with its own bounds; load the \
                 model's original folder"
            );
            Error::format(self.file.path(), message)
        })
    }

    fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.file.entry(ROPE_FACTORS) else {
            return Ok(None);
        };
        if entry.kind != TensorKind::F32 {
            let message = format!("`{ROPE_FACTORS}` is of {:?}, not of F32", entry.kind);
            return Err(Error::format(self.file.path(), message));
        }
        let data = decode(
            self.file.bytes(entry),
            DType::F32,
            entry.shape.clone(),
            DType::F32,
        );
        Ok(Some(data.iter().collect()))
    }

    /// Checks that the sizes make up a model, and are those of the tensors: a model of other sizes is never made.
    fn require_consistent(&self, config: &LlamaConfig) -> Result<()> {
        config.validate().map_err(|error| match error {
            Error::InvalidArgument { name, message } => {
                let theirs = KEYS.iter().find(|(ours, _)| *ours == name);
                let key = theirs.map_or(name.to_owned(), |(_, theirs)| self.key(theirs));
                self.metadata.error(&key, message)
            }
            other => other,
        })?;
        let dim = config.embed_dim;
        let last = config.num_layers - 1;
        for (name, expected) in [
            ("token_embd.weight".to_owned(), vec![config.vocab_size, dim]),
            ("blk.0.attn_q.weight".to_owned(), vec![config.q_dim(), dim]),
            ("blk.0.attn_k.weight".to_owned(), vec![config.kv_dim(), dim]),
            (
                "blk.0.ffn_gate.weight".to_owned(),
                vec![config.intermediate_dim, dim],
            ),
            (format!("blk.{last}.attn_norm.weight"), vec![dim]),
        ] {
            let found = self.file.shape(&name)?;
            if found != expected {
                let message =
                    format!("the tensor `{name}` is {found:?}, but by the metadata {expected:?}");
                return Err(Error::format(self.file.path(), message));
            }
        }
        Ok(())
    }
}
