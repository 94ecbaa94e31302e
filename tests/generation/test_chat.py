# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/chat.py`: the answers are those of the whole conversation read anew, and the document is read once."""

import io

import pytest
import torch
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from common.errors import UserError
from generation.conversation import Conversation
from generation.sampling import WriterArguments, fastest_on_cpu, open_writer
from helpers import run_script, tiny_config
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornModel


CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DOCUMENT = "peace and friendship with all mankind, " * 6
GREEDY = {"max_new_tokens": 6, "do_sample": False}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BY_TOKEN = {
    "sort_granularity": "token",
    "sort_net": "keys",
    "key_piece_size": 2,
    "sort_assignment": "hard",
    "num_sorted_blocks": 2,
    "sinkhorn_iterations": 0,
}


def make(kind: str, tokenizer):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **SIZES)).eval()
    if kind == "sliding windows":
        config = MistralConfig(vocab_size=len(tokenizer), initializer_range=0.2, sliding_window=16, **SIZES)
        return MistralForCausalLM(config).eval()
    if kind == "convolutions":  # whose state is changed in place
        layers = ["conv", "full_attention"]
        return Lfm2ForCausalLM(Lfm2Config(vocab_size=len(tokenizer), layer_types=layers, **SIZES)).eval()
    overrides = {"by token": BY_TOKEN, "by block": {}, "hard": {"sort_assignment": "hard"}}[kind]
    config = tiny_config(vocab_size=len(tokenizer), is_decoder=True, initializer_range=0.2, **overrides)
    return SinkhornForCausalLM(config).eval()


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """Each with a template of its own."""
    copy = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, **tiny_tokenizer.special_tokens_map)
    copy.chat_template = CHAT
    return copy


def anew(model, conversation: Conversation, messages: list) -> str:
    ids = conversation.prompt(messages)
    written = model.generate(torch.tensor([ids]), **GREEDY)[0, len(ids) :]
    return conversation.tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("kind", ["llama", "by token", "by block", "hard", "sliding windows", "convolutions"])
def test_answers_are_those_of_the_whole_read_anew(kind, chunk, tokenizer):
    model = make(kind, tokenizer)
    conversation = Conversation(model, tokenizer, DOCUMENT, chunk, **GREEDY)
    messages = []
    for number, question in enumerate(("who?", "the state of what?", "why?")):
        messages.append({"role": "user", "content": question if number else f"{DOCUMENT.strip()}\n\n{question}"})
        answer = conversation.ask(question)
        assert answer == anew(model, conversation, messages)
        messages.append({"role": "assistant", "content": answer})
    conversation.forget()
    first = {"role": "user", "content": f"{DOCUMENT.strip()}\n\nwhat else?"}
    assert conversation.ask("what else?") == anew(model, conversation, [first])


@pytest.mark.parametrize("kind", ["llama", "by token"])
def test_the_document_is_read_once(kind, tokenizer):
    model = make(kind, tokenizer)
    conversation = Conversation(model, tokenizer, 4 * DOCUMENT, **GREEDY)
    passes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append((kwargs.get("input_ids", *args)).shape[1]), with_kwargs=True
    )
    conversation.ask("who?")
    length = len(conversation.prompt(conversation.messages[:1]))
    assert sum(passes) == length + GREEDY["max_new_tokens"] - 1
    passes.clear()
    conversation.ask("the state of what?")
    conversation.forget()
    conversation.ask("why?")
    assert sum(passes) < 2 * 40 + 2 * GREEDY["max_new_tokens"] < length


def test_without_a_template_the_text_goes_on(tiny_tokenizer):
    conversation = Conversation(make("llama", tiny_tokenizer), tiny_tokenizer, DOCUMENT, **GREEDY)
    ids = conversation.prompt([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert tiny_tokenizer.decode(ids) == "a\nb\n"
    assert isinstance(conversation.ask("who?"), str)


@pytest.fixture
def folder(tmp_path, tokenizer):
    make("by token", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "book.txt").write_text(DOCUMENT, encoding="utf-8")
    return tmp_path


def ask(monkeypatch, folder, *flags):
    flags = ("--model_name_or_path", folder / "model", "--max_new_tokens", 6, *flags)
    run_script(monkeypatch, "chat.py", *flags)


def test_given_questions_are_asked_of_the_document_alone(folder, monkeypatch, capsys, tokenizer):
    flags = ("--document_file", folder / "book.txt", "--questions", "who?", "why?")
    ask(monkeypatch, folder, *flags)
    printed, told = capsys.readouterr()
    model = make("by token", tokenizer)
    answers = []
    for question in ("who?", "why?"):
        answers += [f"> {question}", Conversation(model, tokenizer, DOCUMENT, **GREEDY).ask(question)]
    assert [line.strip() for line in printed.splitlines()] == [
        line for answer in answers for line in answer.split("\n")
    ]
    assert "The document has" in told and "more than" not in told


def test_typed_questions_belong_to_one_conversation(folder, monkeypatch, capsys, tokenizer):
    monkeypatch.setattr("sys.stdin", io.StringIO("who?\nwhy?\n\nnever asked\n"))
    ask(monkeypatch, folder, "--document_file", folder / "book.txt")
    conversation = Conversation(make("by token", tokenizer), tokenizer, DOCUMENT, **GREEDY)
    printed = capsys.readouterr().out
    assert printed.split() == " ".join([conversation.ask("who?"), conversation.ask("why?")]).split()


def test_what_cannot_be_asked_is_refused(folder, monkeypatch, tokenizer):
    (folder / "empty.txt").write_text(" \n")
    (folder / "mark.txt").write_text("", encoding="utf-8-sig")
    SinkhornModel(tiny_config()).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    for flags, words in (
        (("--document_file", "nothing.txt"), "there is no file nothing.txt"),
        (("--document_file", folder / "empty.txt"), "is empty"),
        (("--document_file", folder), "cannot be read: Is a directory"),
        (("--document_file", folder / "mark.txt"), "is empty"),
        (("--questions", "who?", " "), "--questions: one is empty"),
        (("--max_new_tokens", "0"), "--max_new_tokens must be at least 1, got 0"),
        (("--model_name_or_path", folder / "nothing"), "there is no folder"),
        (("--model_name_or_path", folder / "encoder"), "reads in both directions"),
    ):
        with pytest.raises(SystemExit, match=words):
            ask(monkeypatch, folder, *flags)


def test_a_document_longer_than_the_training_is_told(folder, monkeypatch, capsys):
    (folder / "long.txt").write_text(DOCUMENT * 40, encoding="utf-8")
    ask(monkeypatch, folder, "--document_file", folder / "long.txt", "--questions", "who?")
    assert "more than the" in capsys.readouterr().err


def test_half_precision_is_widened_on_a_cpu_that_has_no_instructions_for_it(folder, monkeypatch):
    """Most CPUs take many times as long for it."""
    if torch.cuda.is_available():
        pytest.skip("a GPU keeps the type of the files")
    name = folder / "model"
    SinkhornForCausalLM.from_pretrained(name).to(torch.bfloat16).save_pretrained(name)
    for instructions, dtype in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=instructions: found, raising=False)
        assert open_writer(WriterArguments(str(name)))[0].dtype == dtype
    assert fastest_on_cpu(torch.float16) == fastest_on_cpu(None) == torch.float32
    assert open_writer(WriterArguments(str(name), dtype="auto"))[0].dtype == torch.bfloat16
    with pytest.raises(UserError, match="--dtype must be float32, bfloat16, float16 or auto, got half"):
        WriterArguments(str(name), dtype="half")
