# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The flags of `explore_sorting.py`, and what it does with them."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from common.errors import UserError
from exploring.page import write_page
from exploring.reading import read_document, tokenize_document
from plotting.inputs import (
    ModelSource,
    load_sinkhorn_config,
    load_sinkhorn_model,
    load_tokenizer,
    read_text,
    select_numbers,
    sorting_layers,
)


@dataclass
class ExploreArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model."})
    output: str = field(metadata={"help": "The page to write, such as explorer.html; replaces an earlier one."})
    text_file: str | None = field(default=None, metadata={"help": "UTF-8 file with the document."})
    text: str | None = field(default=None, metadata={"help": "The document itself, in place of --text_file."})
    title: str | None = field(default=None, metadata={"help": "Name of the document; default: that of the file."})
    layer: list[int] | None = field(default=None, metadata={"help": "Sorting layers, from 0 on; default: all."})
    head: list[int] | None = field(default=None, metadata={"help": "Sorting (key/value) heads; default: all."})
    max_seq_length: int = field(default=16_384, metadata={"help": "Tokens read."})
    max_passes: int = field(
        default=64,
        metadata={
            "help": "Passes of a classifier over the document without one passage; a long document is cut into as "
            "many. 0: none."
        },
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self) -> None:
        if self.text is not None and self.text_file is not None:
            raise UserError("give --text or --text_file, not both.")
        if self.text is None and self.text_file is None:
            raise UserError("give the document with --text_file (or --text).")
        for name, least in (("max_seq_length", 1), ("max_passes", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if Path(self.output).is_dir():
            raise UserError(f"--output: {self.output} is a folder; name a file, such as {self.output}/explorer.html.")


def load_with_head(source: ModelSource) -> PreTrainedModel:
    """A classifier or a language model with its head, of any other model the body."""
    config = load_sinkhorn_config(source)
    saved = (config.architectures or [""])[0]
    heads = {
        "SinkhornForSequenceClassification": AutoModelForSequenceClassification,
        "SinkhornForCausalLM": AutoModelForCausalLM,
    }
    return load_sinkhorn_model(source, "sdpa", heads.get(saved, AutoModel))


def explore(args: ExploreArguments) -> int:
    """Writes the page, says what is in it, and returns its bytes."""
    logging.set_verbosity_error()  # no reports of heads that are not loaded
    logging.disable_progress_bar()
    text = read_text(args.text, args.text_file)
    source = ModelSource(
        args.model_name_or_path, revision=args.model_revision, trust_remote_code=args.trust_remote_code
    )
    model = load_with_head(source)
    config = model.config
    layers = select_numbers(args.layer, sorting_layers(model, source), "layer", "the sorting layers are")
    heads = select_numbers(
        args.head, list(range(config.num_key_value_heads)), "head", "the model has the sorting heads"
    )
    tokenizer = load_tokenizer(source, args.tokenizer_name)
    document = tokenize_document(text, tokenizer, config, args.max_seq_length)
    page = {
        "model": Path(args.model_name_or_path).name,
        "text": args.title or (Path(args.text_file).name if args.text_file else "text of the command line"),
        **read_document(model, tokenizer, document, layers, heads, args.max_passes),
    }
    try:
        size = write_page(page, Path(args.output))
    except OSError as error:
        raise UserError(f"--output: {args.output} cannot be written: {error.strerror or error}.") from None
    counts = (("token", document.tokens), ("block", range(page["num_blocks"])), ("layer", layers), ("head", heads))
    told = ", ".join(f"{len(found):,} {name}{'' if len(found) == 1 else 's'}" for name, found in counts)
    print(f"{args.output}: {told}, {size / 1e6:.2f} MB. Open it in a browser.")
    return size
