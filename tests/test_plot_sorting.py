# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`scripts/plot_sorting.py` draws the model's own numbers, names the blocks that it sorts, and says what is wrong."""

import re
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import BertConfig

import plot_sorting
from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
from common.errors import UserError
from helpers import TOKEN, assert_close, run_script, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForSequenceClassification,
    SinkhornModel,
)
from plotting import drawing
from plotting.passages import describe_pairs
from plotting.recording import mean_over_blocks, moved_weight, record_sorting, strongest_pairs


TEXT = "peace and friendship with all mankind; the state of the union is as sound as it was the year before | so be it"
CASES = [
    ("sinkhorn_attention", "soft", False),
    ("sinkhorn_attention", "hard", False),
    ("sinkhorn_attention", "soft", True),
    ("sinkhorn_attention", "hard", True),
    ("sortcut_attention", "soft", False),
    ("sortcut_attention", "hard", False),
    ("mixture_attention", "soft", True),
]


def body(layer_type: str, assignment: str, is_decoder: bool, **overrides) -> SinkhornModel:
    config = tiny_config(layer_type, sort_assignment=assignment, is_decoder=is_decoder, **overrides)
    config._attn_implementation = "eager"
    return SinkhornModel(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 50, (1, 23))


@pytest.fixture
def folder(tmp_path, tiny_tokenizer) -> Path:
    return save(tmp_path / "model", tiny_tokenizer, SinkhornForSequenceClassification)


def save(path: Path, tokenizer, model_class=SinkhornForCausalLM, layer_type="sinkhorn_attention", **overrides) -> Path:
    model_class(tiny_config(layer_type, vocab_size=len(tokenizer), **overrides)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def draw(monkeypatch, folder: Path, output: Path, *flags) -> None:
    flags = ("--model_name_or_path", folder, "--output_dir", output, *flags)
    run_script(monkeypatch, "plot_sorting.py", *flags, *([] if "--text_file" in flags else ["--text", TEXT]))


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_type, assignment, is_decoder", CASES)
def test_numbers_are_the_models(layer_type, assignment, is_decoder, ids):
    model = body(layer_type, assignment, is_decoder)
    expected = model(ids, output_sort_matrices=True, output_attentions=True, use_cache=False)
    layers, maps = record_sorting(model, ids, maps=True)
    assert list(layers) == [0, 1]
    for number, layer in layers.items():
        assert_close(layer.after, expected.sort_matrices[number][0], 0)
        assert_close(maps[number], expected.attentions[number][0], 0)
        # The logits are those that were balanced, and the panel "before" is what no balancing would give.
        scaled = (layer.logits / model.config.sinkhorn_temperature)[None]
        for iterations, matrix in ((0, layer.before), (model.config.sinkhorn_iterations, layer.after)):
            if is_decoder:
                balanced, _ = causal_sinkhorn_balance(scaled, layer.allowed[None], iterations)
            else:
                balanced = sinkhorn_balance(scaled, None, iterations)
            assert_close(balanced[0], matrix)
    plain = layers[0].logits / model.config.sinkhorn_temperature
    if not is_decoder:
        assert_close(layers[0].before, plain.softmax(-1))
    # Nothing stays behind: the model is as it was.
    assert all("perturb" not in vars(layer.self_attn.sort_net) for layer in model.layers)
    assert_close(model(ids, use_cache=False).last_hidden_state, expected.last_hidden_state)


def test_layers_that_do_not_sort_have_a_map_alone(ids):
    config = tiny_config(num_hidden_layers=3)
    config.layer_types = ["local_attention", "sinkhorn_attention", "full_attention"]
    config._attn_implementation = "eager"
    layers, maps = record_sorting(SinkhornModel(config), ids, maps=True)
    assert list(layers) == [1]
    assert [tuple(attention.shape) for attention in maps] == [(4, 23, 23)] * 3


def test_training_mode_is_watched_without_noise(ids):
    model = body("sinkhorn_attention", "soft", False).train()
    assert_close(record_sorting(model, ids)[0][0].after, record_sorting(model, ids)[0][0].after, 0)


@pytest.mark.parametrize("layer_type, assignment, is_decoder", CASES)
def test_pairs_are_those_of_the_matrix(layer_type, assignment, is_decoder, ids):
    model = body(layer_type, assignment, is_decoder)
    layers, _ = record_sorting(model, ids)
    kept = model.config.sortcut_blocks if layer_type == "sortcut_attention" else 6
    for layer in layers.values():
        for head in range(2):
            matrix = layer.after[head].clone()
            if assignment == "hard" and layer_type != "sortcut_attention":
                matrix.fill_diagonal_(-1)  # a block's own is local already
            destinations = range(1 if is_decoder else 0, kept)
            expected = {(i, int(matrix[i].argmax()), float(matrix[i].max())) for i in destinations}
            found = strongest_pairs(layer, head, model.config)
            assert {(pair.destination, pair.source, pair.weight) for pair in found} == expected
            gains = [pair.weight - pair.baseline for pair in found]
            assert gains == sorted(gains, reverse=True)


def test_equal_logits_are_the_yardstick(ids):
    """In an encoder they give every block the same share. The causal balancing turns them into the block before."""
    encoder, decoder = (
        record_sorting(body("sinkhorn_attention", "soft", kind), ids)[0][0].baseline for kind in (False, True)
    )
    assert_close(encoder, torch.full((6, 6), 1 / 6))
    assert decoder.argmax(-1).tolist() == [0, 0, 1, 2, 3, 4]
    assert_close(decoder.sum(-1), torch.tensor([0.0, 1, 1, 1, 1, 1]))
    net = body("sinkhorn_attention", "soft", True)
    for layer in net.layers:
        torch.nn.init.zeros_(layer.self_attn.sort_net.row_proj.weight)
    assert_close(record_sorting(net, ids)[0][0].after[1], decoder)


def test_hard_pairs_are_what_the_attention_reads(ids):
    """Outside its own block, a block gives weight to the tokens of the blocks named for its head, and to no others."""
    model = body("sinkhorn_attention", "hard", False, num_sorted_blocks=2)
    layers, maps = record_sorting(model, ids, maps=True)
    for head in range(2):
        read = {(pair.destination, pair.source) for pair in strongest_pairs(layers[0], head, model.config)}
        for query_head in (2 * head, 2 * head + 1):
            found = {(i // 4, j // 4) for i, j in maps[0][query_head].nonzero().tolist()}
            assert {(i, j) for i, j in found if i != j} == read


def test_panels_show_the_matrices(ids):
    model = body("sinkhorn_attention", "soft", False)
    layer = record_sorting(model, ids)[0][0]
    other = record_sorting(body("sinkhorn_attention", "soft", False), ids)[0][0]

    def shown(states: dict, heads: list[int]) -> list[torch.Tensor]:
        figure = drawing.draw_sorting(states, heads, "title")
        drawn = [torch.tensor(panel.images[0].get_array()) for panel in figure.axes if len(panel.images) == 1]
        drawing.plt.close(figure)
        return [image for image in drawn if image.shape == (6, 6)]

    for head, drawn in zip((0, 1), zip(*[iter(shown({"model": layer}, [0, 1]))] * 2)):
        assert_close(drawn[0], layer.before[head], 0)
        assert_close(drawn[1], layer.after[head], 0)
    drawn = shown({"step 1": other, "model": layer}, [1])
    for image, expected in zip(drawn, (other.before, layer.before, other.after, layer.after), strict=True):
        assert_close(image, expected[1], 0)


def test_a_sorting_that_was_not_learned_is_dark_and_said(ids):
    """Even weights take a quarter of the scale at most, and the scale is in multiples of them."""
    model = body("sinkhorn_attention", "soft", False)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attn.sort_net.row_proj.weight)
    layer = record_sorting(model, ids)[0][0]
    figure = drawing.draw_sorting({"model": layer}, [0, 1], "title")
    panels = [panel for panel in figure.axes if panel.images]
    assert all(panel.images[0].get_clim() == pytest.approx((0, 4 / 6)) for panel in panels)
    assert [panel.get_ylabel() for panel in panels[::2]] == [f"head {n}: block\n(no sorting learned)" for n in (0, 1)]
    bars = [panel for panel in figure.axes if panel.get_ylabel() == "weight in multiples of 1/N"]
    assert len(bars) == 2 and "1" in [label.get_text() for label in bars[0].get_yticklabels()]
    drawing.plt.close(figure)
    assert_close(moved_weight(layer), torch.zeros(2))
    assert "No sorting learned" in describe_pairs({0: layer}, [0, 1], model.config, ["a"] * 6, 1, 1)


def test_passages_are_those_of_the_heads_that_sort_most(ids):
    model = body("sinkhorn_attention", "soft", False)
    layers, _ = record_sorting(model, ids)
    named = describe_pairs(layers, [0, 1], model.config, ["words"] * 6, 2, 1)
    moved = {(number, head): float(moved_weight(layers[number])[head]) for number in (0, 1) for head in (0, 1)}
    described = re.findall(r"^## Layer (\d) \(`sinkhorn_attention`\), head (\d)$", named, re.MULTILINE)
    assert {(int(a), int(b)) for a, b in described} == set(sorted(moved, key=moved.get)[2:])
    for number in (0, 1):
        assert f"| {number} | {100 * moved[number, 0]:.1f} | {100 * moved[number, 1]:.1f} |" in named


def test_tokens_that_choose_are_drawn_as_blocks(ids, tmp_path, monkeypatch, tiny_tokenizer):
    model = SinkhornModel(tiny_config(**TOKEN, is_decoder=True, sort_net="bilinear", sinkhorn_iterations=2)).eval()
    plan = model(ids, output_sort_matrices=True, use_cache=False).sort_matrices[1][0]
    layer = mean_over_blocks(record_sorting(model, ids)[0][1], 4)
    assert_close(layer.after, torch.stack([part.mean(1) for part in plan.split(4, dim=1)], dim=1))
    folder = save(tmp_path / "model", tiny_tokenizer, **TOKEN, sort_net="keys")
    draw(monkeypatch, folder, tmp_path / "out", "--layer", "0", "--head", "0")
    assert (tmp_path / "out" / "sorting-layer0.png").is_file()


def test_tiles_of_a_map_are_shares():
    attention = torch.rand(7, 7).softmax(-1)
    tiles = drawing.tile_attention(attention, most=3)  # of three tokens, the last of one
    assert_close(tiles.sum(-1), torch.ones(3))
    assert_close(tiles[0, 1], attention[:3, 3:6].sum() / 3)
    assert_close(tiles[2, 2], attention[6, 6])
    assert_close(drawing.tile_attention(attention, most=7), attention, 0)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [SinkhornForCausalLM, SinkhornForMaskedLM, SinkhornForSequenceClassification])
def test_command(model_class, tmp_path, monkeypatch, capsys, tiny_tokenizer):
    folder = save(tmp_path / "model", tiny_tokenizer, model_class)
    for step in (20, 3):
        save(folder / f"checkpoint-{step}", tiny_tokenizer, model_class)
    titles = []
    original = plot_sorting.draw_sorting
    monkeypatch.setattr(plot_sorting, "draw_sorting", lambda *given: titles.append(list(given[0])) or original(*given))
    monkeypatch.setattr(sys, "argv", ["plot_sorting.py", "--model_name_or_path", str(folder), "--output_dir"])
    sys.argv += [str(tmp_path / "out"), "--text", TEXT, "--layer", "1", "--head", "1", "--num_pairs", "2"]
    plot_sorting.main()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"sorting-layer1.png", "training-layer1.png", "attention-layer1.png", "passages.md"}
    assert titles == [["model"], ["step 3", "step 20", "model"]]  # in the order of training

    # What it names is what the model sorts.
    model = SinkhornModel.from_pretrained(folder)
    ids = tiny_tokenizer(TEXT, return_tensors="pt")["input_ids"]
    matrix = model(ids, output_sort_matrices=True, use_cache=False).sort_matrices[1][0, 1]
    named = (tmp_path / "out" / "passages.md").read_text(encoding="utf-8")
    assert "Text: the text of --text." in named
    assert named.split("\n\n", 2)[2].strip() in capsys.readouterr().out
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (\d+) \| (.*?) \| (\S+) \| \S+ \|$", named, re.MULTILINE)
    equal = torch.full_like(matrix, 1 / len(matrix))
    if model_class is SinkhornForCausalLM:
        allowed = torch.ones_like(matrix, dtype=torch.bool).tril(-1)
        equal = causal_sinkhorn_balance(torch.zeros(1, 1, *matrix.shape), allowed[None, None], 8)[0][0, 0]
    weight, source = matrix[int(model.config.is_decoder) :].max(-1)  # a decoder's first block has no source
    gain = weight - equal[int(model.config.is_decoder) :].gather(-1, source[:, None])[:, 0]
    strongest = weight[gain.argsort(descending=True)[:2]]
    assert [weight for *_, weight in rows] == [f"{weight:.3f}" for weight in strongest.tolist()]
    for destination, begins, source, read, _ in rows:
        assert int(source) == matrix[int(destination)].argmax()
        for block, words in ((destination, begins), (source, read)):
            tokens = ids[0, 4 * int(block) : 4 * int(block) + 4]
            assert words.replace("\\|", "|") == " ".join(tiny_tokenizer.decode(tokens).split())


def test_default_text_is_a_held_out_address(tmp_path):
    args = plot_sorting.PlotArguments(model_name_or_path="m", output_dir="o")
    from training.shipped_data import load_address_splits

    text, name = plot_sorting.read_text(args)
    assert re.fullmatch(r"an example, .*'s address of \d{4}", name)
    assert text == load_address_splits(0)["test"][0]["text"]
    # Nor did the encoder that ships read it, which keeps other addresses from its training.
    assert text not in set(load_address_splits(0, "classification")["train"]["text"])


def test_sortcut_names_what_every_block_reads(tmp_path, monkeypatch, tiny_tokenizer, capsys):
    folder = save(tmp_path / "model", tiny_tokenizer, SinkhornForMaskedLM, "sortcut_attention", sort_assignment="hard")
    draw(monkeypatch, folder, tmp_path / "out", "--layer", "0", "--head", "0")
    assert len(re.findall(r"\| all, in place [01] \|", capsys.readouterr().out)) == 2


def test_long_text_is_cut_and_said(tmp_path, monkeypatch, tiny_tokenizer, capsys):
    folder = save(
        tmp_path / "model", tiny_tokenizer, SinkhornForMaskedLM, sort_net="linear", max_position_embeddings=24
    )
    draw(monkeypatch, folder, tmp_path / "out", "--layer", "0")
    assert "Reading the first 24 of" in capsys.readouterr().out


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--layer", "2"), r"--layer 2: the model has the layers 0, 1\."),
        (("--head", "0", "2"), r"--head 2: the model has the sorting heads 0, 1\."),
        (("--text_file", "nowhere.txt"), r"--text_file: there is no file nowhere\.txt\."),
        (("--checkpoints", "nowhere"), r"--checkpoints: there is no folder nowhere\."),
        (("--checkpoints", "."), r"--checkpoints: \. holds no config\.json and no checkpoint-\* folders\."),
        (("--num_pairs", "0"), r"--num_pairs must be at least 1, got 0\."),
        (("--tokenizer_name", "nowhere"), r"no tokenizer in nowhere .* name one with --tokenizer_name\."),
    ],
)
def test_wrong_flags(flags, message, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a name is refused without asking for it
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        draw(monkeypatch, folder, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_text_that_cannot_be_read(folder, tmp_path, monkeypatch):
    (tmp_path / "latin1.txt").write_bytes("Señor".encode("latin1"))
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    for name, message in (
        ("latin1.txt", r"not UTF-8 text \(byte 2\)"),
        ("empty.txt", "--text_file: the text is empty"),
    ):
        with pytest.raises(SystemExit, match=message):
            draw(monkeypatch, folder, tmp_path / "out", "--text_file", tmp_path / name)
    with pytest.raises(UserError, match="--text or --text_file, not both"):
        plot_sorting.PlotArguments("m", "o", text="a", text_file="b")


def test_models_that_do_not_sort(tmp_path, monkeypatch, tiny_tokenizer):
    local = save(tmp_path / "local", tiny_tokenizer, layer_type="local_attention")
    with pytest.raises(
        SystemExit, match=r"no layer of .* sorts \(its layer_types are \['local_attention'\]\); name a"
    ):
        draw(monkeypatch, local, tmp_path / "out")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(
        SystemExit, match=r"--model_name_or_path: .* is a bert model, which sorts nothing; name a Sink"
    ):
        draw(monkeypatch, tmp_path / "bert", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"--model_name_or_path: .*nowhere cannot be loaded"):
        draw(monkeypatch, tmp_path / "nowhere", tmp_path / "out")


def test_checkpoints_of_another_model(folder, tmp_path, monkeypatch, tiny_tokenizer):
    save(tmp_path / "run" / "checkpoint-1", tiny_tokenizer, block_size=8, is_decoder=False)
    with pytest.raises(
        SystemExit, match=r"--checkpoints: .*checkpoint-1 is of another model; its .* is not the model's"
    ):
        draw(monkeypatch, folder, tmp_path / "out", "--checkpoints", tmp_path / "run")
    save(tmp_path / "stepless", tiny_tokenizer)
    with pytest.raises(SystemExit, match=r"--checkpoints: .*stepless has no step; name it checkpoint-STEP"):
        draw(monkeypatch, folder, tmp_path / "out", "--checkpoints", tmp_path / "stepless")
    (tmp_path / "stepless" / "trainer_state.json").write_text('{"global_step": 7}', encoding="utf-8")
    assert plot_sorting.checkpoint_step(tmp_path / "stepless") == 7


def test_tokenizer_of_another_model(tmp_path, monkeypatch, tiny_tokenizer):
    folder = tmp_path / "model"
    SinkhornForMaskedLM(tiny_config(vocab_size=20)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit, match=r"--tokenizer_name: this tokenizer has more entries than the model's voc"):
        draw(monkeypatch, folder, tmp_path / "out")
