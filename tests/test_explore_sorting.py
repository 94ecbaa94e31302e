# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/explore_sorting.py`: the numbers on the page are the model's, it is whole in itself, and clicks show them."""

import base64
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import BertConfig

from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
from browser import Browser, find_browser
from exploring.packing import choose_format, pack_matrix
from exploring.page import make_page, read_page
from exploring.reading import MOST_BYTES, Document, read_document, tokenize_document
from helpers import TOKEN, run_script, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForSequenceClassification,
    SinkhornModel,
)
from sort_net_sinkhorn import SinkhornSortNet
from sorting_sinkhorn import hard_assignment


TEXT = "peace and friendship with all mankind; the state of the union is as sound as it was the year before | so be it"
TOKEN_DECODER = TOKEN | {"is_decoder": True, "num_sorted_blocks": 2, "num_local_blocks": 2, "num_sink_blocks": 1}
CASES = {
    "soft encoder": {},
    "hard encoder": {"sort_assignment": "hard", "num_sorted_blocks": 2},
    "soft decoder": {"is_decoder": True},
    "tokens, keys": TOKEN_DECODER | {"sort_net": "keys", "sinkhorn_iterations": 0},
    "tokens, balanced": TOKEN_DECODER | {"sort_net": "bilinear", "sinkhorn_iterations": 2},
    "tokens of an encoder": TOKEN | {"sort_net": "bilinear", "num_sorted_blocks": 2},
}


class Tokens:
    """A tokenizer that can name its tokens."""

    def decode(self, ids: list[int]) -> str:
        return f" {ids[0]}"


def document(num_tokens: int = 43, next_id: int | None = None) -> Document:
    ids = torch.randint(5, 50, (1, num_tokens))
    return Document(ids, [f" {token}" for token in ids[0].tolist()], [False] * num_tokens, next_id)


def read(model: Any, doc: Document, max_passes: int = 64) -> dict[str, Any]:
    config = model.config
    layers, heads = range(config.num_hidden_layers), range(config.num_key_value_heads)
    return read_document(model, Tokens(), doc, list(layers), list(heads), max_passes)


def integers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def unpack(packed: dict[str, str], form: dict[str, Any], num_blocks: int, name: str) -> np.ndarray:
    """Weights `(R, N)`; NaN where none is stored."""
    stored = integers(packed.get(name, packed["after"]), "u1" if form["bits"] == 8 else "<u2")
    weights = stored / 65535 if form["bits"] == 16 else (stored / 255) ** 2
    if form["kept"] is None:
        return weights.reshape(-1, num_blocks)
    index = integers(packed["index"], "u1" if num_blocks <= 256 else "<u2").reshape(-1, form["kept"]).astype(int)
    rows = np.full((len(index), num_blocks), np.nan)
    np.put_along_axis(rows, index, weights.reshape(index.shape), 1)
    return rows


def save(path: Path, tokenizer, model_class=SinkhornForMaskedLM, layer_type="sinkhorn_attention", **overrides) -> Path:
    model_class(tiny_config(layer_type, vocab_size=len(tokenizer), **overrides)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path, tiny_tokenizer) -> Path:
    return save(tmp_path / "model", tiny_tokenizer, SinkhornForSequenceClassification)


def explore(monkeypatch, folder: Path, output: Path, *flags) -> dict[str, Any]:
    flags = ("--model_name_or_path", folder, "--output", output, *flags)
    run_script(monkeypatch, "explore_sorting.py", *flags, *([] if "--text_file" in flags else ["--text", TEXT]))
    return read_page(output.read_text(encoding="utf-8"))


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_models(case):
    config = tiny_config(**CASES[case])
    model, doc = SinkhornModel(config).eval(), document()
    page = read(model, doc)
    expected = model(doc.input_ids, output_sort_matrices=True, use_cache=False).sort_matrices
    kind = "tokens" if page["by_token"] else "blocks"
    assert page["num_blocks"] == 11 and page["kind"] == ("decoder" if config.is_decoder else "encoder")
    form = page["formats"][kind]
    assert form["kept"] in (None, 8)
    for layer, matrix in zip(page["layers"], expected):
        for head, packed in enumerate(layer["heads"]):
            found = unpack(packed[kind], form, 11, "after")
            weights = matrix[0, head].detach().numpy()
            # Those left out are no larger than those stored, the chosen ones aside.
            stored = ~np.isnan(found)
            assert (stored.sum(1) == (form["kept"] or 11)).all()
            assert np.abs(found - weights)[stored].max() <= (1e-5 if form["bits"] == 16 else 4e-3)
            if kind == "tokens":  # the sort matrix between blocks is the mean over tokens
                means = torch.stack([part.mean(0) for part in matrix[0, head].detach().split(4)]).numpy()
                assert np.abs(unpack(packed["blocks"], page["formats"]["blocks"], 11, "after") - means).max() <= 1e-5


@pytest.mark.parametrize("is_decoder", [False, True])
def test_weights_before_balancing(is_decoder, monkeypatch):
    model, doc, seen = SinkhornModel(tiny_config(is_decoder=is_decoder)).eval(), document(), []
    page = read(model, doc)
    balance = SinkhornSortNet.perturb
    monkeypatch.setattr(SinkhornSortNet, "perturb", lambda net, x: seen.append(balance(net, x)) or seen[-1])
    model(doc.input_ids, use_cache=False)
    for layer, scaled in zip(page["layers"], seen, strict=True):
        if is_decoder:
            allowed = torch.ones(11, 11, dtype=torch.bool).tril(-1)
            before, _ = causal_sinkhorn_balance(scaled, allowed[None, None], 0)
        else:
            before = sinkhorn_balance(scaled, None, 0)
        for head, packed in enumerate(layer["heads"]):
            stored = unpack(packed["blocks"], page["formats"]["blocks"], 11, "before")
            assert np.abs(stored - before[0, head].detach().numpy()).max() <= 1e-5


def test_chosen_blocks_are_those_that_are_read():
    """Of a hard assignment, whether by block or by token, the attention goes to what the page marks and to no other."""
    for overrides in (CASES["hard encoder"], CASES["tokens, keys"], CASES["tokens, balanced"]):
        config = tiny_config(**overrides)
        config._attn_implementation = "eager"
        model, doc = SinkhornModel(config).eval(), document()
        page = read(model, doc)
        maps = model(doc.input_ids, output_attentions=True, use_cache=False).attentions
        kind = "tokens" if page["by_token"] else "blocks"
        for layer, attention in zip(page["layers"], maps):
            counts = integers(layer["counts"], "u1")
            for head, packed in enumerate(layer["heads"]):
                if "index" in packed[kind]:
                    rows = integers(packed[kind]["index"], "u1").reshape(len(counts), -1)
                else:
                    rows = integers(packed[kind]["chosen"], "<i2").reshape(len(counts), -1)
                read_blocks = attention[0, 2 * head, :, :].view(43, 43)
                for token in range(43):
                    row = token if kind == "tokens" else token // 4
                    own = set() if kind == "blocks" else {0, max(0, token // 4 - 1)}
                    allowed = {token // 4, *own, *rows[row][: counts[row]].tolist()}
                    found = {int(j) // 4 for j in read_blocks[token].nonzero()}
                    assert found == allowed


def test_a_sorting_that_was_not_learned_is_told():
    for overrides in ({}, {"is_decoder": True, "causal_balancing": "capacity"}, CASES["tokens, balanced"]):
        model = SinkhornModel(tiny_config(**overrides)).eval()
        assert max(head["moved"] for layer in read(model, document())["layers"] for head in layer["heads"]) > 0.1
        for layer in model.layers:
            torch.nn.init.zeros_(layer.self_attn.sort_net.row_proj.weight)
        moved = [head["moved"] for layer in read(model, document())["layers"] for head in layer["heads"]]
        assert max(moved) <= 1e-4


def test_a_classifiers_answer_and_what_it_hangs_on():
    model, doc = SinkhornForSequenceClassification(tiny_config()).eval(), document()
    page = read(model, doc)
    expected = model(doc.input_ids).logits[0].softmax(-1).detach()
    assert page["kind"] == "classifier" and page["classes"]["scale"] == "class"
    assert [value for _, value in page["classes"]["listed"]] == pytest.approx(
        expected.sort(descending=True)[0].tolist(), abs=1e-6
    )
    best = int(expected.argmax())
    assert page["classes"]["best"][0] == model.config.id2label[best]
    assert page["classes"]["score"] == pytest.approx(float((expected[best] / (1 - expected[best])).log()), abs=1e-4)
    assert [span[:2] for span in page["left_out"]] == [[block, block] for block in range(11)]
    for first, last, value, score in page["left_out"]:
        ids = torch.cat((doc.input_ids[:, : 4 * first], doc.input_ids[:, 4 * last + 4 :]), dim=1)
        without = model(ids).logits[0].softmax(-1)[best].detach()
        assert value == pytest.approx(float(without), abs=1e-5)
        assert score == pytest.approx(float((without / (1 - without)).log()), abs=1e-4)


def test_passes_are_bounded_and_added_tokens_stay(monkeypatch):
    model, doc = SinkhornForSequenceClassification(tiny_config()).eval(), document()
    doc.is_special[0] = True
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    spans = read(model, doc, max_passes=3)["left_out"]
    assert [span[:2] for span in spans] == [[0, 3], [4, 7], [8, 10]]
    assert len(seen) == 1 + 3
    assert all(int(row[0]) == int(doc.input_ids[0, 0]) for row in seen)
    assert read(model, doc, max_passes=0)["left_out"] == []
    assert read(model, document(3))["left_out"] == []  # one block, without which there is nothing


def test_several_labels_and_a_regression():
    several = SinkhornForSequenceClassification(tiny_config(problem_type="multi_label_classification")).eval()
    doc = document()
    page, logits = read(several, doc), several(doc.input_ids).logits[0].detach()
    assert page["classes"]["scale"] == "label"
    assert page["classes"]["best"][1] == pytest.approx(float(logits.max().sigmoid()), abs=1e-5)
    assert page["classes"]["score"] == pytest.approx(float(logits.max()), abs=1e-4)
    one = SinkhornForSequenceClassification(tiny_config(num_labels=1, problem_type="regression")).eval()
    page = read(one, doc)
    assert page["classes"]["scale"] == "value"
    assert page["classes"]["best"][1] == pytest.approx(float(one(doc.input_ids).logits.detach()), abs=1e-5)


@pytest.mark.parametrize("case", ["soft decoder", "tokens, keys", "tokens, balanced"])
@pytest.mark.parametrize("num_tokens", [1, 43])
def test_a_language_models_next_token_and_what_it_reads(case, num_tokens):
    model, doc = SinkhornForCausalLM(tiny_config(**CASES[case])).eval(), document(num_tokens, next_id=7)
    page = read(model, doc)
    assert model.config._attn_implementation == "sdpa"
    probabilities = model(doc.input_ids).logits[0, -1].softmax(-1).detach()
    values, ids = probabilities.topk(10)
    assert [token for token, _ in page["next"]["listed"]] == [f" {token}" for token in ids.tolist()]
    assert [value for _, value in page["next"]["listed"]] == pytest.approx(values.tolist(), abs=1e-5)
    assert page["next"]["following"][1] == pytest.approx(float(probabilities[7]), abs=1e-5)
    assert page["next"]["rank"] == 1 + int((probabilities > probabilities[7]).sum())
    model.set_attn_implementation("eager")
    maps = model.model(doc.input_ids, output_attentions=True, use_cache=False).attentions
    for stored, attention in zip(page["read_last"]["layers"], maps):
        found = integers(stored, "<u2").reshape(4, -1) / 65535
        last = torch.nn.functional.pad(attention[0, :, -1], (0, -num_tokens % 4)).unflatten(-1, (-1, 4)).sum(-1)
        assert np.abs(found - last.detach().numpy()).max() <= 2e-5
    mean = torch.stack([attention[0, :, -1] for attention in maps]).mean((0, 1)).detach()
    for token, share in page["read_last"]["tokens"]:
        assert share == pytest.approx(float(mean[token]), abs=1e-5)


# Packing and the page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [40, 300])
def test_packing_keeps_the_chosen_and_the_largest(num_blocks):
    after, before = (torch.rand(1, 1, 50, num_blocks).pow(8).mul(9).softmax(-1) for _ in range(2))
    choice = hard_assignment(after, torch.ones(1, 1, 50, num_blocks, dtype=torch.bool), 2)
    chosen = choice.index[0, 0].numpy().copy()
    chosen[3, 1] = -1
    form = choose_format(50, num_blocks, 1, 2, 50 * 9 * 5)
    assert form.kept is not None and form.bits == 8
    packed = pack_matrix(after[0, 0].numpy(), before[0, 0].numpy(), chosen, form)
    index = integers(packed["index"], "u1" if num_blocks <= 256 else "<u2").reshape(50, -1)
    assert (index[:3, :2] == chosen[:3]).all() and index[3, 0] == chosen[3, 0]
    largest = torch.maximum(after, before)[0, 0].topk(form.kept)[1]
    assert set(index[10, 2:].tolist()) <= set(largest[10].tolist()) | set(chosen[10].tolist())
    for name, weights in (("after", after), ("before", before)):
        rows = unpack(packed, form._asdict(), num_blocks, name)
        assert np.nanmax(np.abs(rows - weights[0, 0].numpy())) <= 4e-3


@pytest.mark.parametrize("matrices", [1, 24, 144])
def test_pages_of_16384_tokens_are_below_five_megabytes(matrices):
    """By the bytes of the formats: base64 makes them a third more, and text, page and the rest take half a megabyte."""
    assert MOST_BYTES * 4 / 3 + 500_000 < 5_000_000
    assert choose_format(256, 256, matrices, 1, MOST_BYTES) is not None
    tokens = choose_format(16_384, 256, matrices, 2, MOST_BYTES - 500_000)
    assert (tokens is None) == (matrices == 144)  # then the error says to name fewer heads


def test_pages_say_no_more_than_their_data():
    data = {"model": "<m>", "text": "</script><script>alert(1)</script> \u2028 é", "tokens": ["<!--", "𝔸"]}
    page = make_page(data)
    assert read_page(page) == data
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert read_page("<html></html>") is None
    # Nothing comes from elsewhere, and the browser is told so.
    assert not re.search(r"https?:|//\w+\.|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|fetch\(|src=", page)
    assert "default-src 'none'" in page


def test_tokens_are_the_text(tiny_tokenizer):
    config = tiny_config(vocab_size=len(tiny_tokenizer))
    text = "  The state\nof the Union … is ☃ strong. "
    doc = tokenize_document(text, tiny_tokenizer, config, 1000)
    assert len(doc.tokens) == doc.input_ids.shape[1] == len(doc.is_special)
    assert "".join(token for token, special in zip(doc.tokens, doc.is_special) if not special) == text
    assert doc.next_id is None
    ids = tiny_tokenizer(text)["input_ids"]
    cut = tokenize_document(text, tiny_tokenizer, config, 5)
    assert cut.input_ids.tolist() == [ids[:5]] and cut.next_id == ids[5]


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [SinkhornForCausalLM, SinkhornForMaskedLM, SinkhornForSequenceClassification])
def test_command(model_class, tmp_path, monkeypatch, capsys, tiny_tokenizer):
    folder = save(tmp_path / "model", tiny_tokenizer, model_class)
    (tmp_path / "speech.txt").write_text(TEXT, encoding="utf-8")
    flags = ("--text_file", tmp_path / "speech.txt", "--layer", "1", "--head", "1")
    page = explore(monkeypatch, folder, tmp_path / "new" / "page.html", *flags)
    kinds = {SinkhornForCausalLM: "language model", SinkhornForMaskedLM: "encoder"}
    assert page["kind"] == kinds.get(model_class, "classifier")
    assert page["text"] == "speech.txt" and page["model"] == "model" and page["heads"] == [1]
    assert [layer["number"] for layer in page["layers"]] == [1] and len(page["layers"][0]["heads"]) == 1
    assert re.search(r"page\.html: \d+ tokens, \d+ blocks, 1 layer, 1 head, 0\.\d+ MB", capsys.readouterr().out)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--layer", "2"), r"--layer 2: the sorting layers are 0, 1\."),
        (("--head", "0", "2"), r"--head 2: the model has the sorting heads 0, 1\."),
        (("--text_file", "nowhere.txt"), r"--text_file: there is no file nowhere\.txt\."),
        (("--text_file", "."), r"--text_file: there is no file \.; it is a folder\."),
        (("--text_file", "latin1.txt"), r"--text_file: latin1.txt is not UTF-8 text \(byte 2\)"),
        (("--text_file", "empty.txt"), r"the text is empty"),
        (("--text_file", "empty.txt", "--text", "a"), r"give --text or --text_file, not both\."),
        (("--max_seq_length", "0"), r"--max_seq_length must be at least 1, got 0\."),
        (("--max_passes", "-1"), r"--max_passes must be at least 0, got -1\."),
        (("--tokenizer_name", "nowhere"), r"no tokenizer in nowhere .* name one with --tokenizer_name\."),
        (("--model_name_or_path", "bert"), r"--model_name_or_path: bert is a bert model, which sorts nothing; name a"),
        (("--model_name_or_path", "nowhere"), r"--model_name_or_path: nowhere cannot be loaded"),
        (("--model_name_or_path", "local"), r"--model_name_or_path: no layer of local sorts"),
        (("--output", "."), r"--output: \. is a folder; name a file"),
        (("--output", "empty.txt/page.html"), r"--output: empty.txt/page.html cannot be written"),
    ],
)
def test_wrong_flags(flags, message, folder, tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a name is refused without asking for it
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes("Señor".encode("latin1"))
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    BertConfig().save_pretrained("bert")
    if "local" in flags:
        save(tmp_path / "local", tiny_tokenizer, layer_type="local_attention")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        explore(monkeypatch, folder, tmp_path / "page.html", *flags)
    assert not (tmp_path / "page.html").exists()


def test_what_does_not_fit_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("exploring.reading.MOST_BYTES", 50)
    with pytest.raises(
        SystemExit, match="error: 4 sort matrices of .* blocks do not fit in one page: name fewer with"
    ):
        explore(monkeypatch, folder, tmp_path / "page.html")


# In a browser --------------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="needs a browser and its driver (Debian: chromium, chromium-driver)"
)


@needs_browser
def test_clicks_and_keys_in_a_browser(tmp_path):
    """One browser for all: starting it is what costs."""
    doc = document()
    classifier = SinkhornForSequenceClassification(tiny_config(initializer_range=0.6)).eval()
    writer = SinkhornForCausalLM(tiny_config(**CASES["tokens, balanced"])).eval()
    matrix = classifier.model(doc.input_ids, output_sort_matrices=True).sort_matrices[1][0, 1]
    for name, model in (("classifier", classifier), ("writer", writer)):
        page = {"model": name, "text": "a document", **read(model, doc)}
        (tmp_path / f"{name}.html").write_text(make_page(page), encoding="utf-8")

    def selected(browser: Browser) -> list[str]:
        return browser.run("return [...document.querySelectorAll('[aria-selected=true]')].map((x) => x.id)")

    def colours(browser: Browser) -> list[str]:
        return browser.run(
            "return [...document.querySelectorAll('.block')].map((x) => getComputedStyle(x).backgroundColor)"
        )

    with Browser(tmp_path / "browser") as browser:
        browser.open((tmp_path / "classifier.html").as_uri())
        browser.click("#overview tr:nth-child(3) td:nth-child(3) button")  # layer 1, head 1
        assert browser.run(
            "return [document.querySelector('#layer').value, document.querySelector('#head').value]"
        ) == ["1", "1"]
        before = colours(browser)
        browser.click("#block-7 .number")
        assert selected(browser) == ["block-7"] and colours(browser) != before
        best = int(matrix[7].argmax())
        assert browser.text("#reads-title") == f"Block 7 reads block {best}: {float(matrix[7, best]):.3f}"
        rows = browser.run(
            "return [...document.querySelectorAll('#reads tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        for block, _, _, weight, times in rows[1:-1]:
            expected = float(matrix[7, int(block.split()[1])])
            assert float(weight) == pytest.approx(expected, abs=6e-4)
            assert float(times) == pytest.approx(11 * expected, abs=0.06)
        # The other way round: a cell of the matrix chooses its row, and names its column.
        browser.click_at("#matrix", 2.5 / 11, 4.5 / 11)
        assert selected(browser) == ["block-4"]
        assert browser.text("#cell").startswith(f"Block 4 reads block 2: {float(matrix[4, 2]):.3f}")
        assert browser.run("return document.querySelector('.source').id") == "block-2"
        # Keys.
        browser.run("document.getElementById('document').focus()")
        browser.press("\ue015")  # arrow down
        assert selected(browser) == ["block-5"]
        browser.press("b")
        assert browser.run("return document.querySelector('input[name=view]:checked').value") == "before"
        browser.press("l")
        assert browser.run("return document.querySelector('#layer').value") == "0"
        # The answer.
        answer = classifier(doc.input_ids).logits[0].softmax(-1)
        assert browser.text("#answer-title").endswith(f": {float(answer.max()):.3f}")
        browser.click("input[name=paint][value=left_out]")
        assert browser.text("#block-3 .info").startswith("without it")
        assert browser.console() == []

        browser.open((tmp_path / "writer.html").as_uri())
        plan = writer.model(doc.input_ids, output_sort_matrices=True, use_cache=False).sort_matrices[0][0, 0]
        browser.click("#overview tr:nth-child(2) td:nth-child(2) button")
        browser.click("[data-token='39']")
        best = int(plan[39].argmax())
        assert re.search(
            rf"^Token “{doc.tokens[39].strip()}” of block 9 reads block {best}: ", browser.text("#reads-title")
        )
        assert browser.run("return document.querySelectorAll('.block.picked').length") == 2
        browser.press("\ue014")  # arrow right: the first token of the next block
        assert browser.run("return document.querySelector('.token.current').dataset.token") == "40"
        assert selected(browser) == ["block-10"]
        following = float(writer(doc.input_ids).logits[0, -1].softmax(-1).max())
        assert browser.text("#answer-table tr td.number") == f"{following:.3f}"
        browser.click("input[name=paint][value=last]")
        assert browser.text("#block-10 .info").endswith(" %")
        assert browser.console() == []


@needs_browser
@pytest.mark.slow  # reads 16,384 tokens twice, and writes and opens pages of some megabytes
@pytest.mark.parametrize("by_token", [False, True])
def test_a_long_document_opens_fast(by_token, tmp_path):
    overrides = CASES["tokens, balanced"] if by_token else {}
    settings = {"block_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6}
    model = SinkhornModel(tiny_config(**overrides | settings, hidden_size=24, max_position_embeddings=16_384)).eval()
    content = make_page({"model": "m", "text": "t", **read(model, document(16_384))})
    assert len(content.encode()) < 5_000_000
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    with Browser(tmp_path / "browser") as browser:
        browser.open((tmp_path / "page.html").as_uri())
        assert float(browser.run("return document.documentElement.dataset.ready")) < 2000
        assert browser.console() == []
