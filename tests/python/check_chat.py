#!/usr/bin/env python3
"""Compares how this crate applies chat templates with transformers' `apply_chat_template`.

    python check_chat.py path/to/inspect [--templates DIR ...]

`inspect` is this repository's example, built. For every template and every conversation: the text, with and without a
prompt for the next answer; the ids; and, where the template marks answers, the mask of the assistant's tokens. Where it
does not, that mask must be what the same template with marks gives, if it is at hand. Conversations that a template refuses
must be refused by both. Templates: those of `chat_templates.py`, SmolLM2's where the package that has its file is installed (see
`smollm2.py`), those of TRL where it is installed, and any `*.jinja` of the folders that `--templates` names.
Exits with 1 and says what differs.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import gguf
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import smollm2
from chat_templates import MARKED, TEMPLATES
from make_gguf import CORPUS

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# What templates write that a tokenizer has as one token.
TOKENS = re.compile(r"<[|｜][^\s<>|｜]+[|｜]>|</?[a-z_]+>|\[/?[A-Z_]+\]")
# Tokens that a text has as well: thoughts and calls.
PLAIN = re.compile(r"think|tool|function")
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a \"city\" – today's <b>&c.</b>",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Its name"}, "days": {"type": "integer", "default": 1, "enum": [1, 2]},
        "items": {"type": "array", "items": {"type": "number"}}}}}}
CALL = {"type": "function", "id": "call00001", "function": {
    "name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "f": 1.0, "g": 1e-07, "b": True, "n": None, "l": ["a", {}]}}}


def said(*messages, **more):
    return {"messages": [dict(message) for message in messages], **more}


def of(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM, HELLO, ANSWER = of("system", "You count."), of("user", "hello world"), of("assistant", "we'll count 1234")
THOUGHT = of("assistant", "<think>\nhe held 3.14\n</think>\n\nhe'd say 12")
CONVERSATIONS = {
    "one exchange": said(HELLO, ANSWER),
    "a system message": said(SYSTEM, HELLO, ANSWER),
    "several": said(SYSTEM, HELLO, ANSWER, of("user", "and 12?"), of("assistant", "the hollow wheel"), HELLO, ANSWER),
    "white space": said(of("system", " \n"), of("user", "  hello\n\n"), of("assistant", "\n he held  \n")),
    "other scripts": said(of("user", "日本語 🦙 Zürich e\u0301"), of("assistant", "한국어 🤔\u00a0é.")),
    "empty": said(of("user", ""), of("assistant", "")),
    "quotes": said(of("user", "a \"b\" 'c' \\ {{ d }} {% e %}"), of("assistant", "<b>&amp;</b>")),
    "a thought": said(HELLO, THOUGHT),
    "thoughts before": said(HELLO, THOUGHT, of("user", "12?"), THOUGHT),
    "a thought aside": said(HELLO, of("assistant", "he'd say", reasoning_content="he held 3.14")),
    "nothing thought": said(HELLO, ANSWER, chat_template_kwargs={"enable_thinking": False}),
    "tools": said(HELLO, ANSWER, tools=[WEATHER]),
    "tools and a system message": said(SYSTEM, HELLO, ANSWER, tools=[WEATHER, WEATHER]),
    "a call": said(HELLO, of("assistant", None, tool_calls=[CALL]), of("tool", "{\"t\": 3}", name="get_weather", tool_call_id="call00001"),
                   of("assistant", "3 degrees"), tools=[WEATHER]),
    "calls with words": said(HELLO, of("assistant", "", tool_calls=[CALL, CALL]), of("tool", "3"), of("tool", "4"), ANSWER,
                             of("user", "more"), ANSWER, tools=[WEATHER]),
    "parts": said(of("user", [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]), ANSWER),
    "the user last": said(HELLO, ANSWER, of("user", "and?")),
    "two of the user": said(HELLO, HELLO, ANSWER),
    "two of the assistant": said(HELLO, ANSWER, ANSWER),
    "the assistant first": said(ANSWER, HELLO, ANSWER),
    "another role": said(of("developer", "count"), HELLO, ANSWER),
    "a name": said(of("user", "hello", name="he"), ANSWER),
}
# Records that say what is a special token.
QUOTED = {
    "special tokens of the user": said(of("user", f"hello {EOS} he {BOS}he{EOS}"), ANSWER),
    "special tokens at the ends": said(of("user", f"{EOS} hello"), of("assistant", f"he {BOS}")),
    "special tokens of a tool": said(HELLO, of("assistant", f"{EOS}{EOS}"), of("user", EOS), ANSWER),
}


def base_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*CORPUS, "assistant user system content\n"] * 3, trainer)
    return tokenizer.to_str()


def tokenizer_for(template, base):
    """A tokenizer with the tokens that a template writes."""
    tokenizer = Tokenizer.from_str(base)
    words = sorted({BOS, EOS, PAD, *TOKENS.findall(template)})
    tokenizer.add_tokens([AddedToken(word, special=not PLAIN.search(word), normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=template)


def inspect(program, path, conversations, *options):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as records:
        json.dump(list(conversations.values()), records)
        records.flush()
        run = subprocess.run([program, "--tokenizer", path, "--records", records.name, *options], capture_output=True, text=True)
    if run.returncode:
        return {name: {"error": run.stderr} for name in conversations}
    return dict(zip(conversations, json.loads(run.stdout)))


def apply(tokenizer, conversation, **options):
    """What transformers makes of a conversation, or None if the template refuses it."""
    options |= {"tools": conversation.get("tools"), **conversation.get("chat_template_kwargs", {})}
    try:
        return tokenizer.apply_chat_template(conversation["messages"], **options)
    except Exception as error:  # what a template refuses is any kind of error
        return {"refused": f"{type(error).__name__}: {error}"}


def compare(program, path, tokenizer, marked=None):
    """What differs; `marked` is the same template with marks, if this one has none."""
    has_marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.chat_template))
    plain = inspect(program, path, CONVERSATIONS)
    prompted = inspect(program, path, CONVERSATIONS, "--generation-prompt")
    differences = {}
    for name, conversation in CONVERSATIONS.items():
        text = apply(tokenizer, conversation, tokenize=False)
        prompt = apply(tokenizer, conversation, tokenize=False, add_generation_prompt=True)
        found, found_prompt = plain[name], prompted[name]
        if isinstance(text, dict):
            # What Python's types refuse, as a loop over None, may be rendered.
            if "error" not in found and text["refused"].startswith("TemplateError"):
                differences[name] = (text, found)
            continue
        # An answer that cannot be told from the rest by renderings alone is an error of its own.
        if "error" in found and "marks answers" not in found["error"] and "refuses" not in found["error"]:
            differences[name] = (text, found)
        if "error" in found:
            found = inspect(program, path, {name: conversation}, "--train-on", "all")[name]
        if found.get("text") != text:
            differences[name] = (text, found.get("text", found))
            continue
        if not isinstance(prompt, dict) and "error" not in found_prompt and found_prompt["text"] != prompt:
            differences[name + ", prompted"] = (prompt, found_prompt["text"])
        encoded = apply(tokenizer, conversation, return_assistant_tokens_mask=has_marks)
        if found["ids"] != encoded["input_ids"]:
            differences[name + ", ids"] = (encoded["input_ids"], found["ids"])
        if has_marks and found["mask"] != encoded["assistant_masks"]:
            differences[name + ", mask"] = (encoded["assistant_masks"], found["mask"])
        # What stands before all others answers nothing, but a template may mark it; so it may what stands behind.
        roles = [message["role"] for message in conversation["messages"]]
        if marked and roles[0] != "assistant" and roles[-1] == "assistant" and "error" not in plain[name]:
            differences |= compare_marked(tokenizer, conversation, text, found, marked, name)
    return differences | quoted(program, path, tokenizer)


def compare_marked(tokenizer, conversation, text, found, marked, name):
    other = apply(tokenizer, conversation, chat_template=marked, tokenize=False)
    if other != text:
        return {}
    encoded = apply(tokenizer, conversation, chat_template=marked, return_assistant_tokens_mask=True)
    shown = [tokenizer.decode([token for token, counts in zip(found["ids"], mask) if counts])
             for mask in (encoded["assistant_masks"], found["mask"])]
    shown = ["".join(text.split()) for text in shown]
    return {} if shown[0] == shown[1] else {name + ", as with marks": tuple(shown)}


def quoted(program, path, tokenizer):
    """Special tokens that a message names are text, with the ids that transformers gives this text."""
    found = inspect(program, path, QUOTED, "--train-on", "all")
    differences = {}
    for name, conversation in QUOTED.items():
        expected = apply(tokenizer, conversation, sanitize_control_tokens=True)
        if "refused" in expected or "marks" in found[name].get("error", ""):
            continue
        if found[name].get("ids") != expected["input_ids"]:
            differences[name] = (expected["input_ids"], found[name].get("ids", found[name]))
    return differences


def published(folders):
    """Templates of other packages, which are read where they are."""
    trl = importlib.util.find_spec("trl")
    folders = list(folders) + ([Path(trl.origin).parent / "chat_templates"] if trl else [])
    return {path.stem: path.read_text() for folder in folders for path in sorted(Path(folder).glob("*.jinja"))}


def cases(program, root, folders):
    base = base_tokenizer()
    templates = TEMPLATES | published(folders)
    for name, template in templates.items():
        tokenizer = tokenizer_for(template, base)
        path = root / re.sub(r"\W", "_", name)
        tokenizer.save_pretrained(path)
        yield name, compare(program, path, tokenizer, MARKED.get(name))
    if importlib.util.find_spec(smollm2.PACKAGE):
        path = smollm2.find_gguf()
        tokenizer = smollm2.build_tokenizer(gguf.GGUFReader(path))
        yield "SmolLM2's file", compare(program, path, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `inspect`, built")
    parser.add_argument("--templates", nargs="*", type=Path, default=[], help="folders of further templates")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    failed = 0
    with tempfile.TemporaryDirectory() as root:
        for name, differences in cases(args.program, Path(root), args.templates):
            print(f"{'differs' if differences else 'ok':8}{name}", flush=True)
            for what, (expected, found) in list(differences.items())[:3]:
                print(f"        {what}: {expected!r}, not {found!r}")
            failed += bool(differences)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
