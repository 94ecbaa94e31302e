# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What a user meets when a file is bad: each a clear error that names the file, none a silent random initialisation. And
what must go on working beside that. An interrupted push is in `test_push_to_hub.py`.

The last part feeds damaged files of every kind to `from_pretrained` (hypothesis): a few, always the same, by default;
new ones for as long as you like with

    SINKHORN_FUZZ_SECONDS=1800 python -m pytest tests/test_safe_loading.py -k fuzz -s
"""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from helpers import tiny_config
from hub_server import Blob, HubServer, Repository
from loading_sinkhorn import WrongShapes, WrongWeights
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
)
from validation_sinkhorn import LARGEST


Classifier = SinkhornForSequenceClassification
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, not to be changed. The code beside it is left out: no test here runs it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    Classifier(tiny_config()).save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    model = Classifier.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@contextmanager
def quick(seconds: float = 20) -> Iterator[None]:
    """Bad files are refused before they take time or memory."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@contextmanager
def at_most_gigabytes(limit: int) -> Iterator[None]:
    """More memory than that is an error here, not the end of the machine."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + limit * 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(place: Path, *words: str, error: type[Exception] = OSError, cls: type = Classifier, **options) -> None:
    """`cls` does not load the folder, and says why, with the name of the file."""
    folder = place if place.is_dir() else place.parent
    with quick(), pytest.raises(error) as caught:
        cls.from_pretrained(folder, **options)
    for word in (str(place), *words):
        assert word in str(caught.value), str(caught.value)


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | changes), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


# --------------------------------------------------------------------------------------------------------------------
# Damaged files
# --------------------------------------------------------------------------------------------------------------------


def pickle_of(path: Path) -> bytes:
    torch.save(load_file(path), path.parent / "other")
    return (path.parent / "other").read_bytes()


DAMAGE: dict[str, tuple[Callable[[Path], bytes], list[str]]] = {
    "empty": (lambda path: b"", ["is empty", "force_download=True"]),
    "a few bytes": (lambda path: path.read_bytes()[:5], ["is cut off", "within its header"]),
    "cut in the header": (lambda path: path.read_bytes()[:200], ["is cut off", "within its header"]),
    "cut in the data": (lambda path: path.read_bytes()[:-100], ["is cut off", "bytes. Copy or download it again"]),
    "LFS pointer": (lambda path: Blob(b"x", True).pointer, ["is a Git LFS pointer", "git lfs pull"]),
    "web page": (lambda path: b"\n<!DOCTYPE html><html>404</html>", ["is a web page"]),
    "pickle": (pickle_of, ["is a pickle under a safetensors name"]),
    "noise": (lambda path: bytes(range(1, 250)) * 9, ["is damaged, or is no safetensors file (", "header"]),
    "dtype": (lambda path: path.read_bytes().replace(b'"F32"', b'"Q32"', 1), ["is damaged", "Q32"]),
    "too long": (lambda path: path.read_bytes() + b"more", ["is damaged"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights(folder, case):
    content, words = DAMAGE[case]
    (folder / WEIGHTS).write_bytes(content(folder / WEIGHTS))
    refused(folder / WEIGHTS, *words)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_damaged_weights_by_an_auto_class(folder, auto_class):
    (folder / WEIGHTS).write_bytes(b"")
    refused(folder / WEIGHTS, "is empty", cls=auto_class)


def test_damaged_weights_whose_dtype_is_looked_for(folder):
    """Then the library opens them before it builds the model."""
    edit_config(folder, dtype=None)
    (folder / WEIGHTS).write_bytes(b"")
    refused(folder / WEIGHTS, "is empty")


def edit_index(change: Callable[[dict], Any]) -> Callable[[Path], str]:
    def edit(folder: Path) -> str:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        (folder / INDEX).write_text(json.dumps(change(index)), encoding="utf-8")
        return INDEX

    return edit


def cut_shard(folder: Path) -> str:
    path = sorted(folder.glob("model-00002-of-*"))[0]
    path.write_bytes(path.read_bytes()[:-8])
    return path.name


def lose_shard(folder: Path) -> str:
    path = sorted(folder.glob("model-00002-of-*"))[0]
    path.unlink()
    return path.name


SHARD_DAMAGE = {
    "cut shard": (cut_shard, "is cut off"),
    "no shard": (lose_shard, "is missing, which model.safetensors.index.json names"),
    "index cut": (lambda folder: (folder / INDEX).write_text("{", encoding="utf-8") and INDEX, "is not JSON"),
    "index a list": (edit_index(lambda index: [index]), "has no `weight_map`"),
    "no weight_map": (edit_index(lambda index: {"metadata": {}}), "has no `weight_map`"),
    "numbers": (edit_index(lambda index: index | {"weight_map": {"x": 1}}), "has no `weight_map`"),
    "no metadata": (edit_index(lambda index: {"weight_map": index["weight_map"]}), "has no `metadata`"),
}


@pytest.mark.parametrize("case", SHARD_DAMAGE)
def test_damaged_shards(sharded, case):
    damage, words = SHARD_DAMAGE[case]
    place = sharded / damage(sharded)
    if place.exists():
        return refused(place, words)
    with pytest.raises(OSError, match=words) as caught:
        Classifier.from_pretrained(sharded)
    assert str(place) in str(caught.value)


def test_a_shard_less_in_the_index(sharded):
    """Its tensors would be random numbers."""
    edit_index(
        lambda index: (
            index
            | {"weight_map": {name: file for name, file in index["weight_map"].items() if "model-00002" not in file}}
        )
    )(sharded)
    refused(sharded, " files in ", "lacks ", "random numbers", error=WrongWeights)


# --------------------------------------------------------------------------------------------------------------------
# Missing tensors, shapes, numbers
# --------------------------------------------------------------------------------------------------------------------

NORM, HEAD, EMBEDDINGS = "model.layers.1.input_layernorm.weight", "score.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("cls", [Classifier, SinkhornModel, SinkhornForTokenClassification, SinkhornForMaskedLM])
def test_a_missing_tensor_of_the_body(folder, cls):
    edit_weights(folder / WEIGHTS, lambda weights: weights.pop(NORM))
    name = NORM.removeprefix("model.") if cls is SinkhornModel else NORM
    refused(folder / WEIGHTS, f"lacks {name}", cls.__name__, "random numbers", error=WrongWeights, cls=cls)


def test_a_missing_head_of_the_same_class(folder):
    edit_weights(folder / WEIGHTS, lambda weights: weights.pop(HEAD))
    refused(folder / WEIGHTS, f"lacks {HEAD}", error=WrongWeights)
    refused(folder / WEIGHTS, HEAD, error=WrongWeights, cls=AutoModelForSequenceClassification)


def test_a_missing_head_that_is_not_tied(tmp_path):
    SinkhornForMaskedLM(tiny_config(tie_word_embeddings=False)).save_pretrained(tmp_path)
    edit_weights(tmp_path / WEIGHTS, lambda weights: weights.pop("lm_head.weight"))
    refused(tmp_path / WEIGHTS, "lacks lm_head.weight", error=WrongWeights, cls=SinkhornForMaskedLM)


def test_many_missing_tensors(folder):
    edit_weights(folder / WEIGHTS, lambda weights: [weights.pop(name) for name in list(weights) if "mlp" in name])
    refused(folder / WEIGHTS, "model.layers.0.mlp.down_proj.weight", "and 3 more", error=WrongWeights)


def test_no_tensor_at_all(folder):
    save_file({}, folder / WEIGHTS)
    refused(folder / WEIGHTS, "lacks ", error=WrongWeights)


def test_wrong_shapes(folder):
    edit_config(folder, intermediate_size=32)
    words = ["model.layers.0.mlp.down_proj.weight is (16, 24), not (16, 32)", "ignore_mismatched_sizes"]
    refused(folder / WEIGHTS, *words, error=WrongShapes)
    assert issubclass(WrongShapes, RuntimeError)  # as the library's


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NORM, HEAD])
def test_not_a_number(folder, name, value):
    edit_weights(folder / WEIGHTS, lambda weights: weights[name].view(-1)[-1:].fill_(value))
    refused(folder / WEIGHTS, f"{name} holds NaN or infinity", error=WrongWeights)


def test_not_a_number_in_a_shard(sharded):
    where = json.loads((sharded / INDEX).read_text(encoding="utf-8"))["weight_map"]
    edit_weights(sharded / where[NORM], lambda weights: weights[NORM].fill_(float("nan")))
    refused(sharded / where[NORM], NORM, error=WrongWeights)
    refused(sharded / where[NORM], NORM.removeprefix("model."), error=WrongWeights, cls=SinkhornModel)


def test_too_large_for_the_dtype(folder):
    edit_weights(folder / WEIGHTS, lambda weights: weights[NORM].fill_(1e6))
    Classifier.from_pretrained(folder)
    refused(folder / WEIGHTS, NORM, "torch.float16", error=WrongWeights, dtype=torch.float16)


def test_integers_for_weights(folder):
    edit_weights(folder / WEIGHTS, lambda weights: weights.update({NORM: weights[NORM].view(torch.int32)}))
    refused(folder / WEIGHTS, f"{NORM} holds I32", error=WrongWeights)


# --------------------------------------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "There is no config.json in"),
        ("", "config.json"),
        ("{", "config.json"),
        ("<html>", "config.json"),
        ("[1, 2]", "config.json"),
        ("3", "config.json"),
        ("{}", "or it holds no fields"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "config.json"),
        ("[" * 100_000, "config.json"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_no_configuration(folder, content, words):
    """The library would take the defaults where there is no file."""
    (folder / CONFIG).unlink()
    if content is not None:
        (folder / CONFIG).write_text(content, encoding="utf-8")
    refused(folder, words)


HUGE = {"vocab_size": 10**12, "num_hidden_layers": 10**9, "block_size": 10**9, "num_labels": 10**10}
TAMPERED = {
    **{f"{name} huge": ({name: value}, f"`{name}` must be ") for name, value in HUGE.items()},
    **{f"{name} large": ({name: LARGEST[name] + 1}, f"`{name}` must be ") for name in LARGEST},
    "layers without types": ({"num_hidden_layers": 10**9, "layer_types": None}, "`num_hidden_layers` must be"),
    "block_size 0": ({"block_size": 0}, "`block_size` must be at least 1"),
    "block_size below 0": ({"block_size": -4}, "`block_size` must be at least 1"),
    "layer type": ({"layer_types": ["sinkhorn_attention", "magic"]}, "`layer_types` holds ['magic']"),
    "layer types": ({"layer_types": "magic"}, "'layer_types'"),
    "sort_net": ({"sort_net": "magic"}, "`sort_net` must be one of ["),
    "hidden_act": ({"hidden_act": "magic"}, "`hidden_act` must be one of ["),
    "string": ({"hidden_size": "16"}, "Field 'hidden_size' expected int, got str"),
    "fraction": ({"num_attention_heads": 4.5}, "Field 'num_attention_heads' expected int, got float"),
    "none": ({"vocab_size": None}, "Field 'vocab_size' expected int, got NoneType"),
    "truth": ({"block_size": True}, "Field 'block_size' expected int, got bool"),
    "eps": ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` must be above 0 and finite"),
    "initializer_range": ({"initializer_range": float("inf")}, "`initializer_range` must be 0 or more and finite"),
    "temperature": ({"sinkhorn_temperature": 1e-300}, "`sinkhorn_temperature` must be above 0"),
    "dtype": ({"dtype": "load"}, "`dtype` must be one of ["),
    "pad_token_id": ({"pad_token_id": 50}, "`pad_token_id` (50) is none of"),
    "num_labels": ({"id2label": None, "num_labels": "three"}, "`num_labels` must be a number"),
    "id2label": ({"id2label": {"first": "a"}}, "invalid literal for int"),
    "rope_type": ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}, "`rope_parameters` ("),
    "rope_theta": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "`rope_parameters` ("),
    "rope factor": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}},
        "`rope_parameters` (",
    ),
    "architectures": ({"architectures": 1}, "`architectures` must be a list"),
    "property": ({"max_num_blocks": 3}, "max_num_blocks"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_configuration(folder, case):
    changes, words = TAMPERED[case]
    edit_config(folder, **changes)
    refused(folder, words, error=ValueError)
    refused(folder, words, error=ValueError, cls=AutoConfig)


def test_maps_asked_for_in_the_configuration(folder):
    """Without the eager implementation there are none, as in the library's models; it loads all the same."""
    edit_config(folder, output_attentions=True)
    assert Classifier.from_pretrained(folder)(torch.arange(1, 10)[None]).attentions == ()
    eager = Classifier.from_pretrained(folder, attn_implementation="eager")
    assert len(eager(torch.arange(1, 10)[None]).attentions) == 2


@pytest.mark.parametrize("sizes", [{"vocab_size": 2**30}, {"hidden_size": 2**30}, {"num_hidden_layers": 200}], ids=str)
def test_sizes_that_are_not_those_of_the_weights(folder, sizes):
    """No memory is taken for what the file does not have."""
    edit_config(folder, **sizes, attention_types=None)
    with at_most_gigabytes(4):
        refused(folder / WEIGHTS, error=(WrongShapes, WrongWeights))


def test_a_setting_that_the_library_does_not_understand(folder):
    edit_config(folder, transformers_weights=5)
    refused(folder, "no model can be made of its config.json (AttributeError", error=ValueError)


def test_what_the_library_refuses_has_the_name_too(folder):
    with pytest.raises(ValueError) as caught:
        Classifier.from_pretrained(folder, attn_implementation="magic")
    assert caught.value.__notes__ == [f"(while loading {folder})"]


def test_a_wrong_argument_is_the_callers(folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'magic'"):
        Classifier.from_pretrained(folder, magic=True)


# --------------------------------------------------------------------------------------------------------------------
# Pickles, downloads
# --------------------------------------------------------------------------------------------------------------------


def test_a_pickle_is_opened_on_demand_only(folder):
    expected = load_file(folder / WEIGHTS)
    torch.save(expected, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    refused(folder / "pytorch_model.bin", "use_safetensors=False", "save_pretrained")
    model = Classifier.from_pretrained(folder, use_safetensors=False)
    assert torch.equal(model.score.weight, expected[HEAD])
    expected.pop(NORM)
    torch.save(expected, folder / "pytorch_model.bin")
    refused(folder / "pytorch_model.bin", f"lacks {NORM}", error=WrongWeights, use_safetensors=False)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, "no file named model.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path) -> Iterator[tuple[HubServer, Repository]]:
    """A Hub that this process asks, and a repository there with the classifier."""
    name = f"mary/{tmp_path.name}"  # one of its own: the library remembers for a while where "main" is
    with HubServer() as server:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        for constant, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, constant, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        repo = server.repos[name] = Repository(name, private=False)
        files = {path.name: Blob(path.read_bytes(), path.suffix == ".safetensors") for path in saved.iterdir()}
        repo.add_commit("refs/heads/main", None, "first", files)
        server.objects[files[WEIGHTS].sha256] = files[WEIGHTS].content
        yield server, repo


def test_an_interrupted_download(hub, saved, tmp_path):
    """The file is not taken into the cache, and the next try gets all of it."""
    server, repo = hub
    weights = repo.head.files[WEIGHTS]
    server.objects[weights.sha256] = weights.content[:-1000]
    with pytest.raises(OSError, match=f"The download of {repo.id} broke off.*Try again.*Consistency check failed"):
        Classifier.from_pretrained(repo.id, cache_dir=tmp_path)
    server.objects[weights.sha256] = weights.content
    assert_body(Classifier.from_pretrained(repo.id, cache_dir=tmp_path), saved)


@pytest.mark.parametrize("case", ["web page", "LFS pointer", "cut in the data"])
def test_damaged_on_the_hub(hub, saved, tmp_path, case):
    """Whole as downloads go, so that only a look at the file tells. The file named is the one in the cache."""
    change, words = DAMAGE[case]
    server, repo = hub
    blob = Blob(change(saved / WEIGHTS), lfs=True)
    repo.add_commit("refs/heads/main", repo.head, "second", repo.head.files | {WEIGHTS: blob})
    server.objects[blob.sha256] = blob.content
    with pytest.raises(OSError) as caught:
        Classifier.from_pretrained(repo.id, cache_dir=tmp_path)
    for word in (f"{tmp_path}", f"{repo.head.oid}/{WEIGHTS}", *words):
        assert word in str(caught.value)


def test_a_pickle_on_the_hub(hub, tmp_path):
    server, repo = hub
    files = {"config.json": repo.head.files["config.json"], "pytorch_model.bin": Blob(b"pickled", True)}
    repo.add_commit("refs/heads/main", repo.head, "second", files)
    with pytest.raises(OSError, match=f"{repo.id} has no weights in safetensors.*use_safetensors=False"):
        Classifier.from_pretrained(repo.id, cache_dir=tmp_path)
    assert not any("pytorch_model.bin" in path for method, path, _ in server.log if method == "GET")


# --------------------------------------------------------------------------------------------------------------------
# What goes on working
# --------------------------------------------------------------------------------------------------------------------


def assert_body(model: transformers.PreTrainedModel, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(tensor, weights[f"model.{name}"]), name


@pytest.mark.parametrize("cls", [SinkhornForTokenClassification, SinkhornForMaskedLM, SinkhornForCausalLM])
def test_a_new_head_on_the_body_of_another(folder, cls):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert_body(model, folder)
    expected = {"score.bias"} if cls is SinkhornForTokenClassification else set()  # the others' is tied
    assert set(info["missing_keys"]) == expected
    model, info = cls.from_pretrained(folder, tie_word_embeddings=False, output_loading_info=True)
    assert_body(model, folder)
    assert set(info["missing_keys"]) == (expected or {"lm_head.weight"})


def test_a_new_head_on_a_bare_body(folder, tmp_path):
    SinkhornModel.from_pretrained(folder).save_pretrained(tmp_path / "body")
    for cls in (Classifier, AutoModelForTokenClassification):
        model, info = cls.from_pretrained(tmp_path / "body", num_labels=7, output_loading_info=True)
        assert_body(model, folder)
        assert set(info["missing_keys"]) == {name for name, _ in model.named_parameters() if "score" in name}


def test_another_number_of_labels(folder):
    refused(folder / WEIGHTS, HEAD, error=WrongShapes, num_labels=7)
    model, info = Classifier.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert_body(model, folder)
    assert model.score.weight.shape == (7, 16) and model.score.weight.isfinite().all()
    assert [name for name, *_ in info["mismatched_keys"]] == [HEAD]


def test_sharded(sharded, saved):
    assert_body(Classifier.from_pretrained(sharded), saved)


def test_dtype_and_device(folder):
    model = Classifier.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
    assert torch.equal(model.score.weight, load_file(folder / WEIGHTS)[HEAD].bfloat16())


def test_offloaded_to_disk(folder, tmp_path):
    """Weights that are not in memory cannot be looked at, and are not."""
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "score": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.dropout": "cpu", "dropout": "cpu"}
    model = Classifier.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offload")
    expected = Classifier.from_pretrained(folder)
    ids = torch.arange(1, 10)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_tensors_in_hand(folder):
    """Given tensors are taken as they are: there is no file to blame."""
    model = Classifier.from_pretrained(None, config=tiny_config(), state_dict=load_file(folder / WEIGHTS))
    assert_body(model, folder)
    model, info = Classifier.from_pretrained(None, config=tiny_config(), state_dict={}, output_loading_info=True)
    assert NORM in info["missing_keys"] and all(tensor.isfinite().all() for tensor in model.parameters())


def test_tied_weights(tmp_path):
    model = SinkhornForCausalLM(tiny_config(is_decoder=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    loaded, info = SinkhornForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and loaded.lm_head.weight is loaded.model.embed_tokens.weight
    table = load_file(tmp_path / WEIGHTS)[EMBEDDINGS]
    edit_weights(tmp_path / WEIGHTS, lambda weights: weights.update({"lm_head.weight": weights.pop(EMBEDDINGS)}))
    assert torch.equal(SinkhornForCausalLM.from_pretrained(tmp_path).model.embed_tokens.weight, table)
    edit_weights(tmp_path / WEIGHTS, lambda weights: weights.pop("lm_head.weight"))
    refused(tmp_path / WEIGHTS, f"lacks {EMBEDDINGS}, which", error=WrongWeights, cls=SinkhornForCausalLM)


def test_an_adapter(folder, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    model = peft.get_peft_model(Classifier.from_pretrained(folder), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(1, 10)[None]
    expected = model(input_ids=ids).logits
    for place in ("base elsewhere", "base beside"):
        loaded = Classifier.from_pretrained(tmp_path / "adapter")
        assert torch.equal(loaded(ids).logits, expected), place
        shutil.copytree(folder, tmp_path / "adapter", dirs_exist_ok=True)


def test_quantized(folder):
    torchao = pytest.importorskip("torchao.quantization")
    options = {"quantization_config": transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig()), "device_map": "cpu"}
    assert Classifier.from_pretrained(folder, **options)(torch.arange(1, 10)[None]).logits.isfinite().all()
    edit_weights(folder / WEIGHTS, lambda weights: weights.pop(NORM))
    refused(folder / WEIGHTS, f"lacks {NORM}", error=WrongWeights, **options)


# --------------------------------------------------------------------------------------------------------------------
# Fuzz
# --------------------------------------------------------------------------------------------------------------------


SECONDS = float(os.environ.get("SINKHORN_FUZZ_SECONDS", 0))
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 2**14, 2**20, 2**30, 2**31, 2**63, -(2**63), 10**12, 10**400, 0.5, 1e300]
)
NUMBERS |= st.sampled_from([float("nan"), float("inf"), -0.0, 1e-300]) | st.integers(-100, 100) | st.floats()
WORDS = st.sampled_from("soft hard linear mlp bilinear mean sum cls last silu gelu relu sinkhorn bert float16".split())
WORDS |= st.sampled_from(
    "bfloat16 int8 load auto default yarn llama3 dynamic longrope eager flash_attention_2".split()
)
WORDS |= st.sampled_from(["sinkhorn_attention", "sortcut_attention", "local_attention", "../x", ""]) | st.text(
    max_size=9
)
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS
KEYS = "rope_type rope_theta factor quant_method 0 1 10 AutoConfig load_in_8bit low_freq_factor short_factor".split()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | WORDS, SCALARS, max_size=3)
FIELDS = """
    num_labels torch_dtype attn_implementation rope_scaling rope_theta quantization_config per_layer_config pruned_heads
    transformers_weights num_experts output_attentions use_return_dict name_or_path head_dim max_num_blocks pooling
    configuration_files fusion_config experts_implementation trust_remote_code text_config base_model_tp_plan extra_files
    attribute_map num_return_sequences return_dict is_encoder_decoder tokenizer_class _name_or_path _commit_hash
""".split()


class Campaign:
    """Feeds folders to `from_pretrained`, and counts what came of them."""

    def __init__(self, saved: Path, folder: Path):
        self.saved, self.folder = saved, folder
        self.counts: dict[str, int] = {}
        for name in (CONFIG, WEIGHTS):
            shutil.copy(saved / name, folder / name)

    def check(self, name: str, content: bytes) -> None:
        """With that content in one of the files, loading is refused in words, or gives the weights of the file."""
        (self.folder / name).write_bytes(content)
        try:
            with quick(60), at_most_gigabytes(4):
                outcome = self.outcome()
        finally:
            shutil.copy(self.saved / name, self.folder / name)
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def outcome(self) -> str:
        try:
            model, info = Classifier.from_pretrained(self.folder, output_loading_info=True)
        except (OSError, ValueError, ImportError, WrongShapes) as error:
            assert str(self.folder) in "".join([str(error), *getattr(error, "__notes__", ())]), error
            return type(error).__name__
        assert not info["missing_keys"] and not info["mismatched_keys"]
        weights = load_file(self.folder / WEIGHTS)
        for key, tensor in model.state_dict().items():
            names = (key, f"model.{key}", key.removeprefix("model."))  # the library finds a body under each
            expected = next(weights[name] for name in names if name in weights)
            assert torch.equal(tensor, expected.to(tensor.dtype)), key
        config = model.config
        window = config.block_size * max(config.num_local_blocks, config.num_sorted_blocks, config.sortcut_blocks)
        if window <= 4096:  # a longer one is sound as such, and would take long here
            config.return_dict = True  # `False` in a configuration breaks every head of the library's models too
            assert model(torch.arange(1, 10)[None]).logits.isfinite().all()
        return "loaded"


@pytest.fixture(scope="module")
def campaign(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    campaign = Campaign(saved, tmp_path_factory.mktemp("fuzz"))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield campaign
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def fuzz(campaign: Campaign, strategy: st.SearchStrategy[bytes], name: str) -> None:
    """Some cases, always the same; or others until `SECONDS` are over."""
    began = time.monotonic()
    campaign.counts.clear()

    def run(**more) -> None:
        options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)} | more

        @settings(**options)
        @given(strategy)
        def check(content: bytes) -> None:
            campaign.check(name, content)

        check()

    run(max_examples=60, derandomize=True)
    while time.monotonic() - began < SECONDS / 4:
        run(max_examples=500)
    print(f"{name}: {sum(campaign.counts.values())} cases, {campaign.counts}")
    assert len(campaign.counts) > 1  # not all of one kind


@st.composite
def changed_fields(draw, saved: Path) -> bytes:
    """Of config.json: wrong types, extreme numbers, known words in the wrong place, missing and further fields."""
    config = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.sampled_from([*config, *FIELDS, "layer_types"]) | st.text(max_size=5))
        if draw(st.integers(0, 4)):
            config[field] = draw(VALUES)
        else:
            config.pop(field, None)
    return json.dumps(config).encode()


@st.composite
def changed_bytes(draw, content: bytes, start: int = 0, end: int | None = None) -> bytes:
    """Bytes replaced, put in, taken out, or the rest cut off, between two places."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(start, max(start, min(end or len(data), len(data)) - 1)))
        kind = draw(st.sampled_from(["flip", "flip", "replace", "digit", "insert", "delete", "cut"]))
        if kind == "cut":
            del data[place:]
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 9))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif place < len(data):
            digit = draw(st.sampled_from(b"0123456789"))
            new = {"flip": data[place] ^ 1 << draw(st.integers(0, 7)), "digit": digit}
            data[place] = new.get(kind, draw(st.integers(0, 255)))
    return bytes(data)


@st.composite
def changed_header(draw, content: bytes) -> bytes:
    """Of a safetensors file: dtype, shape, offsets, names, further entries, and the length of the header."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        kind = draw(
            st.sampled_from(["dtype", "shape", "offsets", "rename", "swap", "remove", "value", "add", "metadata"])
        )
        entry = header[name] if isinstance(header[name], dict) else {}
        if kind == "dtype":
            entry["dtype"] = draw(
                st.sampled_from("F32 F16 BF16 F64 I32 U32 I64 BOOL C64 F8_E4M3 f32".split()) | SCALARS
            )
        elif kind == "shape":
            shape = entry.get("shape") if isinstance(entry.get("shape"), list) else []
            entry["shape"] = draw(st.permutations(shape) | st.lists(NUMBERS, max_size=3) | SCALARS)
        elif kind == "offsets":
            entry["data_offsets"] = draw(st.lists(NUMBERS | st.integers(0, len(data)), max_size=3) | SCALARS)
        elif kind == "rename":
            header[draw(st.text(max_size=9) | st.just(f"model.{name}") | st.just(name[:-1]))] = header.pop(name)
        elif kind == "swap":
            other = draw(st.sampled_from(sorted(header)))
            header[name], header[other] = header[other], header[name]
        elif kind == "remove":
            del header[name]
        elif kind == "value":
            header[name] = draw(VALUES)
        elif kind == "add":
            header[draw(st.text(max_size=9))] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        else:
            header["__metadata__"] = draw(VALUES)
        if not header:
            break
    text = json.dumps(header).encode()
    said = draw(st.just(len(text)) | st.integers(0, 2**64 - 1) | st.integers(0, 2 * len(text)))
    cut = draw(st.none() | st.integers(0, 8 + len(text) + len(data)))
    return (said.to_bytes(8, "little") + text + data)[:cut]


def test_fuzz_fields_of_the_configuration(campaign):
    fuzz(campaign, changed_fields(campaign.saved), CONFIG)


def test_fuzz_bytes_of_the_configuration(campaign):
    fuzz(campaign, changed_bytes((campaign.saved / CONFIG).read_bytes()), CONFIG)


def test_fuzz_the_header(campaign):
    fuzz(campaign, changed_header((campaign.saved / WEIGHTS).read_bytes()), WEIGHTS)


def test_fuzz_bytes_of_the_weights(campaign):
    content = (campaign.saved / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    fuzz(campaign, changed_bytes(content, 0, header) | changed_bytes(content, 0, 8) | changed_bytes(content), WEIGHTS)
