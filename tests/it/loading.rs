//! Models and tokenizers as the verbs of one call load them, beside what their parts do.

use std::fs;
use std::path::Path;

use burn::tensor::DType;
use burn_peft::Error;
use burn_peft::adapter::{Adapter, initialize_adapters, initialize_params, state_dict};
use burn_peft::checkpoint::{
    AdapterFormat, GgufFormat, LoadOptions, MergeOptions, base_model_name, export_adapter,
    load_any_adapter, load_hf, load_model, load_peft, load_tokenizer, merge_files, read_hf_config,
    read_peft_config, save_adapter, save_torchtune,
};
use burn_peft::lora::{AttnModule::*, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::weight::{FrozenWeight, Quantization};

use crate::common::{device, golden};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");

#[test]
fn a_base_with_its_adapter_a_new_one_or_none() {
    let (base, folder) = (golden("gqa"), golden("gqa/lora_qv_r8"));
    let options = LoadOptions::new(&device());
    let llama = read_hf_config(&base).unwrap();

    let mut plain = llama.init(&device());
    load_hf(&mut plain, &base).unwrap();
    let loaded = load_model(&base, None, &options).unwrap();
    assert!(state_dict(&loaded) == state_dict(&plain));

    let lora = read_peft_config(&folder).unwrap();
    let mut adapted = llama.init_lora(&lora, &device()).unwrap();
    load_hf(&mut adapted, &base).unwrap();
    let mut saved = adapted.clone();
    load_peft(&mut saved, &folder).unwrap();
    let loaded = load_model(&base, &folder, &options).unwrap();
    assert!(state_dict(&loaded) == state_dict(&saved));

    let begun = initialize_adapters(adapted, 7);
    initialize_params(&begun);
    let with_seed = |seed| load_model(&base, &lora, &options.clone().with_seed(seed)).unwrap();
    assert!(state_dict(&with_seed(7)) == state_dict(&begun));
    assert!(state_dict(&with_seed(8)) != state_dict(&begun));
}

#[test]
fn a_base_in_another_type_or_in_fewer_bits() {
    let options = LoadOptions::new(&device());
    if device().supports_dtype(DType::BF16) {
        let half = options.clone().with_format(DType::BF16);
        let half = load_model(TINY, None, &half).unwrap();
        assert_eq!(half.tok_embeddings.weight.val().dtype(), DType::BF16);
    }
    let packed = load_model(TINY, None, &options.with_format(Quantization::Int8)).unwrap();
    let weight = &packed.layers[0].attn.output_proj.base.weight;
    assert!(matches!(weight, FrozenWeight::Packed(_)));
}

#[test]
fn an_adapter_in_a_file_says_what_it_is_like_or_is_refused() {
    let (base, dir) = (golden("gqa"), tempfile::tempdir().unwrap());
    let options = LoadOptions::new(&device());
    let lora = LoRAConfig::new([QProj]).with_rank(2);
    let model = load_model(&base, &lora, &options).unwrap();
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let file = dir.path().join("adapter.safetensors");
    save_adapter(&adapter, &file).unwrap();
    let again = load_model(&base, &file, &options).unwrap();
    assert!(state_dict(&again) == state_dict(&model));

    let torchtune = dir.path().join("adapter_0.pt.safetensors");
    save_torchtune(&adapter, &model.config, &torchtune).unwrap();
    let error = load_model(&base, &torchtune, &options).unwrap_err();
    assert!(matches!(error, Error::Adapter { .. }), "{error}");
    assert!(error.to_string().contains("`load_any_adapter`"), "{error}");
}

#[test]
fn a_tokenizer_that_knows_no_end_has_the_models() {
    let (dir, config) = (tempfile::tempdir().unwrap(), read_hf_config(TINY).unwrap());
    let text = fs::read_to_string(format!("{TINY}/tokenizer.json")).unwrap();
    let file = dir.path().join("tokenizer.json");
    fs::write(&file, text.replace("</s>", "<finis>")).unwrap();
    for path in [dir.path(), &file] {
        let tokenizer = load_tokenizer(path, &config).unwrap();
        assert_eq!(tokenizer.eos_id(), Some(2));
        let without = config.clone().with_eos_token_ids(Vec::new());
        assert_eq!(load_tokenizer(path, &without).unwrap().eos_id(), None);
    }
    // One that does keeps it.
    let other = config.with_eos_token_ids(vec![5]);
    assert_eq!(load_tokenizer(TINY, &other).unwrap().eos_id(), Some(2));
}

/// What is merged weight by weight or as a whole, from whatever file, is the model merged in memory.
#[test]
fn a_merged_model_from_files_to_files() {
    let (base, folder) = (golden("gqa"), golden("gqa/lora_qv_r8"));
    let (dir, options) = (tempfile::tempdir().unwrap(), LoadOptions::new(&device()));
    let model = load_model(&base, &folder, &options).unwrap();
    let own = dir.path().join("adapter.safetensors");
    save_adapter(&Adapter::of(&model, DEFAULT_ADAPTER).unwrap(), &own).unwrap();
    let expected = state_dict(&model.merge_lora());
    let merge = |adapter: Option<&Path>, name: &str, options: MergeOptions| {
        let out = dir.path().join(name);
        assert!(
            merge_files(&base, adapter, &out, &options)
                .unwrap()
                .is_none()
        );
        out
    };
    let plain = MergeOptions::default();
    for (name, adapter) in [("of_peft", &folder), ("of_own", &own)] {
        let merged = merge(Some(adapter), name, plain);
        let merged = load_model(merged, None, &options).unwrap();
        assert!(state_dict(&merged) == expected, "{name}");
    }
    let alone = load_model(merge(None, "alone", plain), None, &options).unwrap();
    let before = load_model(&base, None, &options).unwrap();
    assert!(state_dict(&alone) == state_dict(&before));
}

/// A GGUF file takes the tokenizer of its base along.
#[test]
fn a_merged_gguf_file_by_its_name_or_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let options = MergeOptions::default();
    for (name, options) in [
        ("model.gguf", options),
        ("other", options.with_gguf(Some(GgufFormat::Q8_0))),
    ] {
        let out = dir.path().join(name);
        merge_files(TINY, None, &out, &options).unwrap();
        let model = load_model(&out, None, &LoadOptions::new(&device())).unwrap();
        let weight = &model.layers[0].attn.output_proj.base.weight;
        assert_eq!(matches!(weight, FrozenWeight::Packed(_)), name == "other");
        assert!(load_tokenizer(&out, &model.config).is_ok());
    }
}

#[test]
fn an_adapter_in_the_form_of_every_program() {
    let (dir, options) = (tempfile::tempdir().unwrap(), LoadOptions::new(&device()));
    let lora = LoRAConfig::new([QProj, VProj]).with_rank(2);
    let model = load_model(TINY, &lora, &options).unwrap();
    let name = base_model_name(TINY);
    for format in AdapterFormat::ALL {
        let out = dir.path().join(format.to_string());
        export_adapter(&model, format, Some(&name), &out).unwrap();
        assert_eq!(format.to_string().parse::<AdapterFormat>().unwrap(), format);
        let again = match format {
            AdapterFormat::LlamaCpp => continue, // tests/it/gguf.rs reads these
            AdapterFormat::Torchtune => {
                let other = options.clone().with_seed(1);
                let mut again = load_model(TINY, &lora, &other).unwrap();
                load_any_adapter(&mut again, &out).unwrap();
                again
            }
            _ => load_model(TINY, &out, &options).unwrap(),
        };
        assert!(state_dict(&again) == state_dict(&model), "{format}");
    }
    let error = "pft".parse::<AdapterFormat>().unwrap_err().to_string();
    assert!(
        error.contains("`pft` is not one of peft, vllm, llama.cpp"),
        "{error}"
    );
}
