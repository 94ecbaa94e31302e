# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The card of a converted model: what it was made from, under which licence, how it reads and how it is used."""

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel

from common.errors import UserError


# What is said of the base model's weights and stays true of these.
KEPT = ("license", "license_name", "license_link", "language")
READS = {
    "sinkhorn_attention": "`{sink}` sink block(s), `{local}` local and `{chosen}` chosen blocks of {block} tokens",
    "local_attention": "`{sink}` sink block(s) and `{local}` local blocks of {block} tokens",
    "full_attention": "everything",
}
TEXT = """
# {title}

{base} with Sparse Sinkhorn Attention in the place of its own: {weights}. Each token reads
{reads}{scores}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True)
```

- Texts shorter than {exact:,} tokens are read whole, as by the base model. Longer ones are read in part, and answers can differ.
- What the base model's card says of its data, uses and limits holds here too.
- The weights are under the base model's licence. The code in this folder is under the Apache License, Version 2.0.
"""


def base_card(name: str, revision: str, token: str | None) -> ModelCardData | None:
    """The metadata of the base model's card, from its folder or the Hub; `None` where there is none."""
    folder = Path(name)
    try:
        if folder.is_dir():
            path = folder / "README.md"
            return ModelCard.load(path).data if path.is_file() else None
        from huggingface_hub import hf_hub_download

        return ModelCard.load(hf_hub_download(name, "README.md", revision=revision, token=token)).data
    except (HfHubHTTPError, OSError, ValueError):  # no network, no card, or none that can be read
        return None


def card(
    model: PreTrainedModel,
    name: str,
    base_model: str | None,
    base: ModelCardData | None,
    licence: str | None,
    again: bool = False,
) -> str:
    """
    Args:
        name: of the new model.
        base_model: its id on the Hub, where it has one.
        licence: given by the user, in the place of the base model's.
        again: whether it was made from a converted model, which may have been trained since.
    """
    kept = {field: base.get(field) for field in KEPT if base is not None and base.get(field)}
    if licence is not None:
        kept = {field: value for field, value in kept.items() if field == "language"} | {"license": licence}
    data = ModelCardData(
        **kept,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sinkhorn", "sparse-attention", "long-context", "custom_code"],
    )
    config = model.config
    kinds = list(dict.fromkeys(config.layer_types))
    numbers = {
        "sink": config.num_sink_blocks,
        "local": config.num_local_blocks,
        "chosen": config.num_sorted_blocks,
        "block": config.block_size,
    }
    reads = "; or, by layer, ".join(READS[kind].format(**numbers) for kind in kinds)
    scores = ""
    if "sinkhorn_attention" in kinds:
        way = f"an index of {config.index_head_dim} dimensions" if config.sort_net == "index" else "means of keys"
        scores = f", which it chooses by {way}"
    chosen = config.num_sorted_blocks if kinds == ["sinkhorn_attention"] else 0
    text = TEXT.format(
        title=name.rsplit("/", 1)[-1],
        base=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A pretrained model",
        weights="the weights of a converted model, and a new index" if again else "the same weights, without training",
        reads=reads,
        scores=scores,
        name=name,
        exact=(config.num_sink_blocks + config.num_local_blocks + chosen) * config.block_size,
    )
    return f"---\n{data.to_yaml()}\n---\n{text}"


def base_model_of(name: str, base: ModelCardData | None, given: str | None) -> str | None:
    """The base model's id on the Hub: given, what the card of a converted model says, or the name itself."""
    if given is not None:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given):
            raise UserError(f"--base_model must be an id on the Hub, NAME or OWNER/NAME, got {given}.")
        return given
    if base is not None and "sinkhorn" in (base.get("tags") or ()):
        return base.get("base_model")
    return None if Path(name).is_dir() else name
