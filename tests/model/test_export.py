# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
One graph for every length and batch: ONNX from the library's own exporter run by ONNX Runtime, `torch.export` with a
dynamic batch, and how many graphs `torch.compile` makes. `test_modeling.py` compares what compiled models compute.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import StaticCache
from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

from compatibility_sinkhorn import CACHE_NAME, cache_of, is_exporting
from helpers import assert_close, layer_cases, padding_masks, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
)


# Rows and tokens, in blocks of 4: part of a block, one, the first token of a second one, full blocks, an odd length.
SHAPES = [(1, 3), (5, 4), (5, 5), (1, 24), (5, 37), (5, 101)]
MASKED = ("input_ids", "attention_mask")
HARD = {"sort_assignment": "hard", "num_sorted_blocks": 3}


def make(model_class, layer_type="sinkhorn_attention", implementation="sdpa", **overrides):
    """One layer and few iterations, unless overridden: what a graph has twice, it has to be made twice for."""
    torch.manual_seed(0)
    settings = {"num_hidden_layers": 1, "sinkhorn_iterations": 2} | overrides
    return model_class(tiny_config(layer_type, attn_implementation=implementation, **settings)).eval()


def name_of(parameter) -> str:
    return getattr(parameter, "__name__", str(parameter))


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(length))


def inputs_of(rows: int, length: int, *names: str) -> dict[str, torch.Tensor]:
    """The inputs of these names. Padding is of every kind; for a single row on the left."""
    inputs = {
        "input_ids": tokens(rows, length),
        "attention_mask": padding_masks(length)[1:2] if rows == 1 else padding_masks(length)[:rows],
        "position_ids": torch.arange(0, 2 * length, 2).repeat(rows, 1),
    }
    return {name: inputs[name] for name in names}


# ONNX ----------------------------------------------------------------------------------------------------------------


HAS_EXPORTER = Version(torch.__version__) >= Version("2.11")


def skip_without_an_exporter() -> None:
    if not HAS_EXPORTER:
        pytest.skip(f"the library's exporter to ONNX needs torch 2.11, not {torch.__version__}")


@pytest.fixture
def to_onnx(tmp_path: Path) -> Callable:
    """
    Exports a model with inputs of some names and with flags, to a file, and opens it: gives a function from inputs to
    outputs by name.
    """
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    def export(model, *names: str, by_torch: bool = False, length: int = 22, **flags: bool) -> Callable:
        # Two rows and several blocks: of what has size 1, torch makes a graph of its own.
        sample, path = inputs_of(2, length, *names), tmp_path / "model.onnx"
        if by_torch:
            shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
            torch.onnx.export(model, (), path, kwargs=sample, dynamic_shapes=shapes, output_names=["logits"])
        else:
            skip_without_an_exporter()
            OnnxExporter().export(model, sample | flags, OnnxConfig(dynamic=True)).save_pretrained(tmp_path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        output_names = [output.name for output in session.get_outputs()]

        def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = session.run(output_names, {name: tensor.numpy() for name, tensor in inputs.items()})
            return {name: torch.from_numpy(output) for name, output in zip(output_names, outputs)}

        return run

    return export


@torch.no_grad()
def check_onnx(run: Callable, model, *names: str, output: str = "logits") -> None:
    for rows, length in SHAPES:
        inputs = inputs_of(rows, length, *names)
        assert_close(run(**inputs)[output], model(**inputs)[output], 1e-4)


@pytest.mark.ci
@pytest.mark.slow  # half a minute of export
def test_onnx_classifies_any_length_and_padding(to_onnx):
    """From a sample of whole blocks: nothing of them may be a constant of the graph."""
    model = make(SinkhornForSequenceClassification, sinkhorn_iterations=1)
    check_onnx(to_onnx(model, *MASKED, length=24), model, *MASKED)


@pytest.mark.slow  # as the one above
def test_onnx_predicts_tokens_at_any_length_and_padding(to_onnx):
    model = make(SinkhornForCausalLM)
    check_onnx(to_onnx(model, *MASKED, use_cache=False), model, *MASKED)


@pytest.mark.slow  # five minutes of export
@pytest.mark.parametrize("names", [MASKED, ("input_ids",)], ids=str)
@pytest.mark.parametrize("layer_type, assignment, is_decoder", layer_cases())
def test_onnx_of_every_layer(layer_type, assignment, is_decoder, names, to_onnx):
    model = make(SinkhornModel, layer_type, sort_assignment=assignment, is_decoder=is_decoder)
    check_onnx(to_onnx(model, *names, use_cache=False), model, *names, output="last_hidden_state")


@pytest.mark.slow  # a minute of export
@pytest.mark.parametrize(
    "model_class, output, overrides",
    [
        (SinkhornForMaskedLM, "logits", {}),
        (SinkhornForTokenClassification, "logits", {"attention_bias": True, "sort_pooling": "sum"}),
        (SinkhornForQuestionAnswering, "end_logits", {"num_local_blocks": 2, "implementation": "eager"}),
        (SinkhornForSequenceClassification, "logits", {"classifier_pooling": "last", "num_hidden_layers": 2}),
        (SinkhornModel, "last_hidden_state", {"sort_assignment": "hard", "num_sorted_blocks": 3}),
        (SinkhornModel, "last_hidden_state", {"sort_net": "mlp", "max_position_embeddings": 128}),
    ],
    ids=name_of,
)
def test_onnx_of_every_head(model_class, output, overrides, to_onnx):
    model = make(model_class, **overrides)
    check_onnx(to_onnx(model, *MASKED), model, *MASKED, output=output)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [SinkhornForCausalLM, SinkhornForSequenceClassification], ids=name_of)
def test_onnx_gives_the_cache_that_a_decoder_starts(model_class, to_onnx):
    names = (*MASKED, "position_ids")
    model = make(model_class, is_decoder=True, classifier_pooling="last")
    run = to_onnx(model, *names)
    check_onnx(run, model, *names)
    inputs = inputs_of(5, 37, *names)
    outputs, layer = run(**inputs), cache_of(model(**inputs)).layers[0]
    for state in ("stored_keys", "stored_values", "columns", "sorted_key"):
        assert_close(outputs[f"{CACHE_NAME}.layers.0.{state}"], getattr(layer, state), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("is_decoder", [False, True])
@torch.no_grad()
def test_onnx_gives_attention_maps_and_sort_matrices(is_decoder, to_onnx):
    model = make(SinkhornModel, implementation="eager", is_decoder=is_decoder)
    flags = {"output_attentions": True, "output_sort_matrices": True, "use_cache": False}
    run = to_onnx(model, *MASKED, **flags)
    for rows, length in SHAPES:
        inputs = inputs_of(rows, length, *MASKED)
        actual, expected = run(**inputs), model(**inputs, **flags)
        assert_close(actual["attentions.0"], expected.attentions[0], 1e-4)
        assert_close(actual["sort_matrices.0"], expected.sort_matrices[0], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [SinkhornForCausalLM, SinkhornForSequenceClassification], ids=name_of)
def test_onnx_by_torch_alone(model_class, to_onnx):
    model = make(model_class, use_cache=False)
    check_onnx(to_onnx(model, *MASKED, by_torch=True), model, *MASKED)


@pytest.mark.slow  # two minutes of export each
@pytest.mark.parametrize(
    "layer_types, overrides",
    [
        pytest.param(["sinkhorn_attention"], {}, marks=pytest.mark.ci),
        (["mixture_attention", "full_attention"], {"sort_assignment": "hard"}),
        (["local_attention", "sinkhorn_attention"], {"causal_balancing": "capacity", "num_local_blocks": 2}),
    ],
    ids=str,
)
@torch.no_grad()
def test_onnx_goes_on_from_a_static_cache(layer_types, overrides, tmp_path):
    """A graph of one step: tokens, mask and cache to logits and cache, for any batch, from any point of the text on."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    torch.manual_seed(0)
    config = tiny_config(is_decoder=True, num_hidden_layers=len(layer_types), sinkhorn_iterations=2, **overrides)
    config.layer_types = layer_types
    model, length = SinkhornForCausalLM(config).eval(), 31

    def begin(rows: int, read: int):
        ids, mask = tokens(rows, length), torch.ones(rows, length + 1, dtype=torch.long)
        mask[1, :3] = 0
        cache = StaticCache(config=config, max_cache_len=length + 1)
        model(ids[:, :read], attention_mask=mask[:, :read], cache=cache)
        return ids, mask, cache

    ids, mask, cache = begin(2, 7)
    step = {"input_ids": ids[:, 7:8], "attention_mask": mask, CACHE_NAME: cache}
    skip_without_an_exporter()
    OnnxExporter().export(model, step, OnnxConfig(dynamic=True)).save_pretrained(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    states = [value.name for value in session.get_inputs() if CACHE_NAME in value.name]
    for rows, read in ((3, 1), (3, 7), (2, 20)):
        ids, mask, cache = begin(rows, read)
        expected = model(ids, attention_mask=mask[:, :length], use_cache=False).logits
        feed = {"attention_mask": mask.numpy()}
        for name in states:
            *_, number, state = name.split(".")
            feed[name] = getattr(cache.layers[int(number)], state).numpy()
        for token in range(read, length):
            feed["input_ids"] = ids[:, token : token + 1].numpy()
            outputs = dict(zip((value.name for value in session.get_outputs()), session.run(None, feed)))
            real = mask[:, token].bool()
            assert_close(torch.from_numpy(outputs["logits"])[real, 0], expected[real, token], 1e-4)
            feed |= {name: outputs[name.replace("input.", "output.")] for name in states}


# torch.export --------------------------------------------------------------------------------------------------------


LAST = {"classifier_pooling": "last"}


@pytest.mark.parametrize(
    "model_class, overrides, names, traced",
    [
        (SinkhornForSequenceClassification, LAST, ("input_ids",), 22),
        (SinkhornForCausalLM, {"use_cache": False, **HARD}, ("input_ids", "position_ids"), 22),
        # The library's exporter to ONNX begins with `torch.export`: above it does so with a mask.
        pytest.param(
            SinkhornForSequenceClassification, LAST, MASKED, 24, marks=pytest.mark.slow if HAS_EXPORTER else ()
        ),
        # Seconds of export each, of what those above and `torch.compile` below take in other pairs.
        pytest.param(SinkhornForSequenceClassification, LAST, MASKED, 22, marks=pytest.mark.slow),
        pytest.param(SinkhornForSequenceClassification, LAST, ("input_ids",), 24, marks=pytest.mark.slow),
        pytest.param(
            SinkhornForCausalLM, {"use_cache": False}, ("input_ids", "position_ids"), 22, marks=pytest.mark.slow
        ),
        pytest.param(SinkhornForCausalLM, {"use_cache": False, **HARD}, MASKED, 22, marks=pytest.mark.slow),
    ],
    ids=name_of,
)
def test_exports_with_a_dynamic_batch_and_length(model_class, overrides, names, traced):
    """Traced with whole blocks and with part of one."""
    model = make(model_class, **overrides)
    shapes = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in names}
    exported = torch.export.export(model, (), inputs_of(2, traced, *names), dynamic_shapes=shapes).module()
    for rows, length in SHAPES[2:]:  # torch makes a graph of its own for a single block, and refuses it here
        inputs = inputs_of(rows, length, *names)
        assert_close(exported(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_a_cache_that_grows_is_no_input_of_an_exported_graph():
    model = make(SinkhornForCausalLM)
    inputs = inputs_of(2, 22, *MASKED)
    step = {"input_ids": tokens(2, 1), "cache": cache_of(model(**inputs))}
    register_cache_pytrees_for_model(model)
    with pytest.raises(Exception, match="make the cache with `StaticCache"):
        torch.export.export(model, (), step, strict=False)


# torch.compile -------------------------------------------------------------------------------------------------------


def graphs_over_lengths(model: SinkhornModel, lengths: tuple[int, ...], dynamic: bool | None) -> list[int]:
    """
    How many graphs there are after each length, each with a backward pass. A model of several graphs raises. The first
    graph is run as it is, others are traced with their gradients: that is what takes time, and adds to what a graph asks
    of its inputs.
    """
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager" if dynamic is None else "aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counter)
    counts = []
    for length in lengths:
        compiled(tokens(2, length)).last_hidden_state.pow(2).sum().backward()
        counts.append(counter.frame_count)
        counter.backend = "aot_eager"
    return counts


CAUSAL_HARD = {"is_decoder": True, **HARD}


@pytest.mark.parametrize("strict", [False, True])
def test_a_compiled_graph_is_not_taken_for_an_exported_one(strict):
    class Tell(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + is_exporting()

    x = torch.zeros(1)
    assert torch.compile(Tell(), backend="eager", fullgraph=True)(x) == 0 == Tell()(x)
    assert torch.export.export(Tell(), (x,), strict=strict).module()(x) == 1


@pytest.mark.slow  # a quarter of a minute of compilation each
@pytest.mark.parametrize("overrides", [pytest.param({}, marks=pytest.mark.ci), CAUSAL_HARD], ids=str)
def test_compiles_once_more_for_a_second_length_and_never_again(overrides):
    model = make(SinkhornModel, gumbel_noise=False, **overrides).train()
    assert graphs_over_lengths(model, (37, 64, 5, 12, 101), dynamic=None) == [1, 2, 2, 2, 2]


@pytest.mark.slow  # two minutes of compilation
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_compiles_once_for_all_lengths_if_told_that_they_vary(is_decoder, assignment):
    model = make(SinkhornModel, gumbel_noise=False, is_decoder=is_decoder, sort_assignment=assignment).train()
    first, *later, one_block = graphs_over_lengths(model, (37, 64, 100, 129, 5, 3), dynamic=True)
    assert first > 0  # torch begins the first graph twice: it turns the floats in it to constants
    assert later == [first] * 4
    assert one_block == first + 1
