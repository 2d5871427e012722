"""Alpaca's records: the prompt, and samples with labels on the answer."""

from tokenizers import Tokenizer

IGNORE_INDEX = -100

INTRODUCTION = "Below is an instruction that describes a task"
INPUT_INTRODUCTION = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request.\n\n"

Ends = tuple[list[str], list[str]]
# The tokens before and after a sample.
LLAMA2_ENDS: Ends = (["<s>"], ["</s>"])
SMOLLM2_ENDS: Ends = ([], ["<|im_end|>"])


def prompt(record: dict[str, str]) -> str:
    instruction = f"### Instruction:\n{record['instruction']}\n\n"
    response = "### Response:\n"
    if not record.get("input"):
        return INTRODUCTION + REQUEST + instruction + response
    context = f"### Input:\n{record['input']}\n\n"
    return INTRODUCTION + INPUT_INTRODUCTION + REQUEST + instruction + context + response


def sample(record: dict[str, str], tokenizer: Tokenizer, ends: Ends) -> tuple[list[int], list[int]]:
    """`[BOS] prompt answer [EOS]`, and labels for the answer and EOS."""
    bos, eos = ([tokenizer.token_to_id(token) for token in tokens] for tokens in ends)
    question = bos + tokenizer.encode(prompt(record), add_special_tokens=False).ids
    answer = tokenizer.encode(record["output"], add_special_tokens=False).ids + eos
    return question + answer, [IGNORE_INDEX] * len(question) + answer
