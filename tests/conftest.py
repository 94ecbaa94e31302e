# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What every test starts from: no network, an empty Hugging Face home, one thread, a fixed seed."""

import atexit
import gc
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from elsewhere import Elsewhere
    from hub_server import HubServer


# Read when the libraries are imported, so they are set before that. A test that asks the Hub for anything fails at
# once, instead of passing on a machine that happens to have a cache.
_hf_home = tempfile.mkdtemp(prefix="sinkhorn-hf-home-")
atexit.register(shutil.rmtree, _hf_home, ignore_errors=True)
for _name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)
os.environ.update(
    HF_HOME=_hf_home,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_DISABLED="true",
    CUDA_VISIBLE_DEVICES=os.environ.get("SINKHORN_TEST_DEVICES", ""),  # the tests' numbers are for the CPU
)
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    # The kernels for a GPU run on the CPU. Triton's own functions ask for it, too, when they are imported.
    os.environ["TRITON_INTERPRET"] = "1"

# The libraries are imported where they are used: the process that hands tests to others needs none of them.


def pytest_collection_finish() -> None:
    """What was imported stays. The Trainer and others ask for garbage to be collected, a third of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The models are tiny: a second thread costs more than it gives."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _seeds_of_devices_that_are_there() -> None:
    """For each other one torch keeps a traceback of every seed, until it starts: a millisecond a time."""
    import torch

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    """Every test draws the same numbers, whichever tests ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE of some 300 entries: writes any text, and has the special tokens that the tasks ask for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the state of the union", "peace and friendship with all mankind"] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **special)


@pytest.fixture(autouse=True)
def same_verbosity():
    """Scripts change how much the library tells; later tests read what it tells."""
    import transformers

    before = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def hub() -> Iterator["HubServer"]:
    """A Hub on the loopback interface."""
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def elsewhere(hub: "HubServer", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Elsewhere"]:
    """A machine without this package, from which the Hub can be reached."""
    from elsewhere import started

    with started(tmp_path_factory.mktemp("elsewhere"), hub.url) as there:
        yield there
