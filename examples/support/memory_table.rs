//! How much memory some trainings would take, as a table in Markdown.

use burn::tensor::DType;
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::Activations::{self, Keep};
use burn_peft::training::{Bytes, EstimateConfig, estimate};
use burn_peft::weight::Quantization;

const RECOMPUTE: Activations = Activations::Recompute { layers: 1 };

/// The type of the weights, and how those of linear layers are packed.
type Base = (DType, Option<Quantization>);

const F32: Base = (DType::F32, None);
const BF16: Base = (DType::BF16, None);
const NF4: Base = (DType::BF16, Some(Quantization::Nf4));

/// Batch, tokens of a row, rank, whether all linear layers have an adapter, base, activations.
type Case = (usize, usize, usize, bool, Base, Activations);

const SMALL: [Case; 7] = [
    (1, 512, 8, false, F32, Keep),
    (2, 512, 8, false, BF16, Keep),
    (2, 512, 8, false, BF16, RECOMPUTE),
    (2, 512, 64, true, BF16, Keep),
    (2, 512, 64, true, BF16, RECOMPUTE),
    (1, 4096, 8, false, BF16, RECOMPUTE),
    (1, 512, 8, false, NF4, RECOMPUTE),
];
const LARGE: [Case; 3] = [
    (1, 512, 8, false, BF16, RECOMPUTE),
    (1, 4096, 64, true, BF16, RECOMPUTE),
    (1, 512, 8, false, NF4, RECOMPUTE),
];

fn row(name: &str, model: &LlamaConfig, case: &Case) -> String {
    let &(batch_size, seq_len, rank, is_all, (dtype, quantization), activations) = case;
    let lora = match is_all {
        true => LoRAConfig::new(AttnModule::ALL).with_mlp(true),
        false => LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]),
    };
    let config = EstimateConfig::new(
        model.clone(),
        Some(lora.with_rank(rank)),
        batch_size,
        seq_len,
    )
    .with_dtype(dtype)
    .with_quantization(quantization)
    .with_activations(activations);
    let modules = if is_all { "all" } else { "q, v" };
    let kept = if activations == Keep {
        "kept"
    } else {
        "recomputed"
    };
    let base = match quantization {
        None => dtype.name(),
        Some(_) => "NF4",
    };
    let total = Bytes(estimate(&config).total());
    format!(
        "| {name} | {batch_size} x {seq_len} | {rank} on {modules} | {base} | {kept} | {total} |"
    )
}

/// The whole table.
pub fn markdown() -> String {
    let models = [
        ("Llama 2 7B", LlamaConfig::llama2_7b(), &SMALL[..]),
        ("Llama 2 13B", LlamaConfig::llama2_13b(), &SMALL[1..3]),
        ("Llama 2 70B", LlamaConfig::llama2_70b(), &LARGE[..]),
    ];
    let header = "| Model | Batch | Rank | Base | Activations | Peak |\n|---|---|---|---|---|---|";
    let rows = models
        .iter()
        .flat_map(|(name, model, cases)| cases.iter().map(move |case| row(name, model, case)));
    let lines: Vec<String> = std::iter::once(header.to_owned()).chain(rows).collect();
    lines.join("\n")
}
