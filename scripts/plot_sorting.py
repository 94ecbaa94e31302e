# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Shows what a model sorts: for one text, the sort matrices of each layer and head before and after balancing, and over the
checkpoints of its training; the source-token attention maps; and the passages that were sorted beside each other, by name.

    python scripts/plot_sorting.py --model_name_or_path runs/sotu --output_dir runs/sotu-sorting
    python scripts/plot_sorting.py --model_name_or_path runs/clm --output_dir runs/clm-sorting --text_file speech.txt \\
        --checkpoints runs/clm/checkpoint-523 runs/clm/checkpoint-1046 --layer 0 3 --head 1

Writes `sorting-layerN.png`, `training-layerN.png` where there are checkpoints, `attention-layerN.png` and `passages.md`.
Any Sinkhorn model will do: encoder, causal model or classifier. Sort matrices and maps are the body's; heads on top of it
are not needed.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib


matplotlib.use("Agg")  # draws to a file, without a display

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.colors import PowerNorm  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoTokenizer, HfArgumentParser, PreTrainedModel  # noqa: E402
from transformers.utils import logging  # noqa: E402

import modeling_sinkhorn  # noqa: F401  registers the Sinkhorn classes with the Auto classes
from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance  # noqa: E402
from common.errors import UserError  # noqa: E402
from sorting_sinkhorn import hard_assignment  # noqa: E402


FIRST_WORDS = 8
MOST_CELLS = 256  # a side of a drawn attention map; longer texts are drawn in tiles of several tokens


@dataclass
class PlotArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub model."})
    output_dir: str = field(metadata={"help": "Where figures and passages.md go; replaces those of an earlier call."})
    text: str | None = field(default=None, metadata={"help": "Text to read."})
    text_file: str | None = field(
        default=None,
        metadata={"help": "UTF-8 file with the text. Default: an address that the scripts' training left out."},
    )
    checkpoints: list[str] | None = field(
        default=None,
        metadata={
            "help": "Checkpoints of the training run, or folders of them; sorted by step. Default: the checkpoint-* in "
            "the model's folder."
        },
    )
    layer: list[int] | None = field(default=None, metadata={"help": "Layers to draw, from 0 on; default: all."})
    head: list[int] | None = field(
        default=None,
        metadata={"help": "Sorting (key/value) heads to draw, with the query heads that share them; default: all."},
    )
    num_pairs: int = field(default=5, metadata={"help": "Pairs of passages named for each layer and head."})
    max_seq_length: int = field(default=2048, metadata={"help": "Tokens read; a map takes the square of them."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, if not the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self) -> None:
        if self.text is not None and self.text_file is not None:
            raise UserError("give --text or --text_file, not both.")
        for name in ("num_pairs", "max_seq_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}.")


# --------------------------------------------------------------------------------------------------------------------
# What the model does
# --------------------------------------------------------------------------------------------------------------------


class LayerSorting(NamedTuple):
    """What one layer's SortNet did with one text. `G` sorting heads, `N` blocks; row `i` is a destination."""

    layer_type: str
    logits: Tensor  # (G, N, N) R, before the temperature
    before: Tensor  # (G, N, N) the row softmax of R / temperature: what no balancing would give
    after: Tensor  # (G, N, N) the balanced sort matrix
    neutral: Tensor  # (N, N) what balancing makes of equal logits: a causal one prefers the block before by itself
    allowed: Tensor | None  # (1, N, N) bool, pairs of blocks that may be joined; `None` for all
    candidates: Tensor | None  # (1, N, N) bool, those that a hard assignment chooses from; `None` where it is soft


class Pair(NamedTuple):
    """Block `source` was sorted beside block `destination`."""

    destination: int
    source: int
    weight: float  # of the sort matrix
    neutral: float  # what equal logits would give


@contextmanager
def watched(net: nn.Module) -> Iterator[dict[str, Any]]:
    """
    Fills a dict with what a SortNet reads and gives in its next pass: its `layout` and `matrix` by a forward hook, and
    the `logits`, which are no output of a module, by listening at `perturb`, its last step before balancing.
    """
    seen: dict[str, Any] = {}

    def perturb(logits: Tensor) -> Tensor:
        seen["logits"], seen["scaled"] = logits, type(net).perturb(net, logits)
        return seen["scaled"]

    def keep(_net: nn.Module, arguments: tuple, matrix: Tensor) -> None:
        seen.update(layout=arguments[1], matrix=matrix)

    net.perturb = perturb  # on this object alone, in front of the class's
    hook = net.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
        del net.perturb


@torch.no_grad()
def watch(
    model: PreTrainedModel, input_ids: Tensor, maps: bool = False
) -> tuple[dict[int, LayerSorting], list[Tensor] | None]:
    """
    Reads a text of `L` tokens, `(1, L)`, without noise.

    Returns:
        For each layer that sorts, by its number, what it did; and with `maps` (which needs eager attention) for every
        layer the source-token attention map `(H, L, L)`.
    """
    model.eval()
    with ExitStack() as stack:
        seen = {
            number: (layer.self_attn.layer_type, stack.enter_context(watched(layer.self_attn.sort_net)))
            for number, layer in enumerate(model.layers)
            if layer.self_attn.sorts
        }
        outputs = model(input_ids, use_cache=False, output_attentions=maps)
    layers = {}
    for number, (layer_type, found) in seen.items():
        layout = found["layout"]
        # No iteration of balancing leaves the row softmax, causal or not.
        before = sinkhorn_balance(found["scaled"], layout.balanced, 0)
        neutral = balance_equal_logits(before[:1, :1], layout.balanced, model.config)
        allowed = None if layout.balanced is None else layout.balanced[0]
        candidates = None
        if model.config.sort_assignment == "hard":
            candidates = layout.candidates[0]
            if layer_type == "sortcut_attention":  # it has no local blocks, so every block is one
                candidates = torch.ones_like(candidates) if allowed is None else allowed
        layers[number] = LayerSorting(
            layer_type, found["logits"][0], before[0], found["matrix"][0], neutral[0, 0], allowed, candidates
        )
    return layers, [attention[0] for attention in outputs.attentions] if maps else None


def balance_equal_logits(like: Tensor, allowed: Tensor | None, config: Any) -> Tensor:
    """What the balancing of a model makes of a SortNet that prefers nothing, in the shape of `like` `(1, 1, N, N)`."""
    if config.is_decoder:
        capacity = config.causal_balancing == "capacity"
        return causal_sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations, None, capacity)[0]
    return sinkhorn_balance(torch.zeros_like(like), allowed, config.sinkhorn_iterations)


def pairs(sorting: LayerSorting, head: int, config: Any) -> list[Pair]:
    """
    For each destination block that has a source, the block that counts most beside it (soft), or those gathered (hard).
    First those whose weight is furthest above what equal logits would give: what the SortNet chose, not what the mask left
    it. Of a SortCut layer, the destinations are the blocks kept for every query.
    """
    matrix = sorting.after[head]
    rows = config.sortcut_blocks if sorting.layer_type == "sortcut_attention" else len(matrix)
    matrix = matrix[:rows]
    if config.sort_assignment == "hard":
        candidates = sorting.candidates[None, :, :rows]
        choice = hard_assignment(matrix[None, None], candidates, config.num_sorted_blocks)
        found = [
            (row, int(source))
            for row in range(len(matrix))
            for source in choice.index[0, 0, row][choice.chosen[0, 0, row]]
        ]
    else:
        found = [(row, int(weights.argmax())) for row, weights in enumerate(matrix) if weights.sum() > 0]
    named = [Pair(*pair, float(matrix[pair]), float(sorting.neutral[pair])) for pair in found]
    return sorted(named, key=lambda pair: pair.neutral - pair.weight)


# --------------------------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------------------------


def draw_sorting(states: dict[str, LayerSorting], heads: list[int], title: str) -> plt.Figure:
    """
    One row of panels for each head. With one state (its key is not shown), before and after balancing side by side; with
    several, such as checkpoints, two rows for each head and a column for each state.
    """
    kinds = {"before": "before balancing", "after": "after"}
    columns = (
        [(name, kind) for name in states for kind in kinds] if len(states) == 1 else [(name, "") for name in states]
    )
    rows = [(head, "") for head in heads] if len(states) == 1 else [(head, kind) for head in heads for kind in kinds]
    figure, panels = plt.subplots(
        len(rows),
        len(columns),
        figsize=(0.9 + 2.3 * len(columns), 0.7 + 2.3 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for line, (head, row_kind) in zip(panels, rows):
        highest = max(float(getattr(state, kind)[head].max()) for state in states.values() for kind in kinds)
        for panel, (name, column_kind) in zip(line, columns):
            kind = row_kind or column_kind
            image = panel.imshow(
                getattr(states[name], kind)[head].numpy(), vmin=0, vmax=highest or 1, cmap="viridis", aspect="equal"
            )
            panel.set_title(kinds[kind] if len(states) == 1 else f"{name}, {kinds[kind]}", fontsize=8)
            panel.tick_params(labelsize=6)
        line[0].set_ylabel(f"head {head}: block", fontsize=8)
        figure.colorbar(image, ax=list(line)).ax.tick_params(labelsize=6)
    for panel in panels[-1]:
        panel.set_xlabel("source block", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def in_tiles(attention: Tensor, most: int = MOST_CELLS) -> Tensor:
    """A map `(L, L)` of at most `most` rows and columns: the share that the queries of a tile give to those of another."""
    size = -(-len(attention) // most)
    if size == 1:
        return attention
    short = -len(attention) % size
    padded = nn.functional.pad(attention, (0, short, 0, short))
    tiles = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).sum((1, 3))
    queries = torch.full((len(tiles),), float(size))
    queries[-1] -= short
    return tiles / queries.unsqueeze(-1)


def draw_attention(attention: Tensor, heads: list[int], block_size: int, title: str) -> plt.Figure:
    """`attention` `(H, L, L)`, a panel for each query head; lines between blocks where there are few."""
    columns = min(len(heads), 4)
    rows = -(-len(heads) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(0.7 + 2.9 * columns, 0.7 + 2.9 * rows), squeeze=False, layout="constrained"
    )
    length = attention.shape[-1]
    for panel, head in zip(panels.flat, heads):
        tiles = in_tiles(attention[head])
        panel.imshow(
            tiles.numpy(), norm=PowerNorm(0.5, vmin=0), cmap="magma", extent=(0, length, length, 0), aspect="equal"
        )
        if length <= 16 * block_size:
            for edge in range(block_size, length, block_size):
                panel.axhline(edge, color="white", linewidth=0.3, alpha=0.5)
                panel.axvline(edge, color="white", linewidth=0.3, alpha=0.5)
        panel.set_title(f"query head {head}", fontsize=8)
        panel.tick_params(labelsize=6)
    for panel in panels.flat[len(heads) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("query token", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("source token", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def save(figure: plt.Figure, path: Path) -> str:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path.name


# --------------------------------------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------------------------------------


def first_words(tokenizer: Any, input_ids: Tensor, block_size: int) -> list[str]:
    """The first words of each block of `(1, L)` tokens."""
    blocks = input_ids[0].split(block_size)
    texts = [tokenizer.decode(block, skip_special_tokens=True).split() for block in blocks]
    return [" ".join(words[:FIRST_WORDS]) + (" ..." if len(words) > FIRST_WORDS else "") for words in texts]


def name_passages(
    layers: dict[int, LayerSorting], heads: list[int], config: Any, passages: list[str], num_pairs: int
) -> str:
    """Markdown: for each layer and head the strongest pairs, with the first words of both blocks."""
    lines = []
    for number, sorting in layers.items():
        for head in heads:
            found = pairs(sorting, head, config)
            lines += [f"## Layer {number} (`{sorting.layer_type}`), head {head}", ""]
            if not found:
                lines += ["No block was sorted beside another.", ""]
                continue
            weight, neutral = (np.mean([getattr(pair, name) for pair in found]) for name in ("weight", "neutral"))
            lines += [
                f"All {len(found)} pairs: mean weight {weight:.3f}; with equal logits {neutral:.3f}.",
                "",
                "| block | begins | reads block | begins | weight | with equal logits |",
                "|---|---|---|---|---|---|",
            ]
            for pair in found[:num_pairs]:
                destination, begins = str(pair.destination), _cell(passages[pair.destination])
                if sorting.layer_type == "sortcut_attention":
                    destination, begins = f"all, in place {pair.destination}", ""
                lines.append(
                    f"| {destination} | {begins} | {pair.source} | {_cell(passages[pair.source])} | {pair.weight:.3f} | "
                    f"{pair.neutral:.3f} |"
                )
            lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


def read_text(args: PlotArguments) -> str:
    if args.text is not None:
        text = args.text
    elif args.text_file is not None:
        try:
            text = Path(args.text_file).read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"--text_file: there is no file {args.text_file}.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"--text_file: {args.text_file} is not UTF-8 text (byte {error.start}).") from None
    else:
        from training.shipped_data import load_address_splits  # needs the packages of `[train]`

        text = load_address_splits(0)["test"][0]["text"]
    if not text.strip():
        raise UserError("--text or --text_file: the text is empty; give one with words in it.")
    return text


def step_of(folder: Path) -> int:
    """The training step of a checkpoint, from its name or the Trainer's record."""
    if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
        return int(match[1])
    try:
        return int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--checkpoints: {folder} tells no step; name it checkpoint-STEP, or keep its trainer_state.json."
        ) from None


def find_checkpoints(args: PlotArguments) -> dict[int, Path]:
    """By step, lowest first. Those that the flag names must be there; those in the model's folder are a bonus."""
    found: list[Path] = []
    for name in args.checkpoints or ():
        folder = Path(name)
        inside = sorted(folder.glob("checkpoint-*/config.json"))
        if not folder.is_dir():
            raise UserError(f"--checkpoints: there is no folder {name}.")
        if not (folder / "config.json").is_file() and not inside:
            raise UserError(f"--checkpoints: {name} holds no config.json and no checkpoint-* folders.")
        is_checkpoint = folder.name.startswith("checkpoint-") or not inside
        found += [folder] if is_checkpoint else [file.parent for file in inside]
    if args.checkpoints is None:
        found = [file.parent for file in Path(args.model_name_or_path).glob("checkpoint-*/config.json")]
    return dict(sorted((step_of(folder), folder) for folder in found))


def load_model(name: str, flag: str, args: PlotArguments, implementation: str) -> PreTrainedModel:
    """The body of any Sinkhorn model."""
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **hub)
        if config.model_type != "sinkhorn":
            raise UserError(
                f"{flag}: {name} is a {config.model_type} model, which sorts nothing; name a Sinkhorn model."
            )
        return AutoModel.from_pretrained(name, attn_implementation=implementation, dtype=torch.float32, **hub).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{flag}: {name} cannot be loaded: {' '.join(str(error).split())}") from None


def chosen(wanted: list[int] | None, available: list[int], flag: str, what: str) -> list[int]:
    if wanted is None:
        return available
    if unknown := sorted(set(wanted) - set(available)):
        raise UserError(f"--{flag} {' '.join(map(str, unknown))}: {what} {', '.join(map(str, available))}.")
    return sorted(set(wanted))


def tokens_of(text: str, tokenizer: Any, config: Any, max_seq_length: int) -> Tensor:
    """The first tokens of the text, `(1, L)`, as many as model and flag allow; says what was left out."""
    limit = max_seq_length
    if config.sort_net != "bilinear":
        limit = min(limit, config.max_num_blocks * config.block_size)
    input_ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    if input_ids.shape[1] == 0:
        raise UserError("--text or --text_file: the tokenizer makes no token of it; give a text with words in it.")
    if int(input_ids.max()) >= config.vocab_size:
        raise UserError(
            f"--tokenizer_name: this tokenizer has more entries than the model's vocabulary of {config.vocab_size}; name "
            "the one that the model was trained with."
        )
    if input_ids.shape[1] > limit:
        print(f"Reading the first {limit:,} of {input_ids.shape[1]:,} tokens (--max_seq_length {max_seq_length}).")
    return input_ids[:, :limit]


def main() -> None:
    (args,) = HfArgumentParser(PlotArguments).parse_args_into_dataclasses()
    logging.set_verbosity_error()  # no reports of heads that are not loaded
    logging.disable_progress_bar()
    text, checkpoints = read_text(args), find_checkpoints(args)
    model = load_model(args.model_name_or_path, "--model_name_or_path", args, "eager")
    config = model.config
    sorting_layers = [number for number, layer in enumerate(model.layers) if layer.self_attn.sorts]
    if not sorting_layers:
        raise UserError(
            f"--model_name_or_path: no layer of {args.model_name_or_path} sorts (its layer_types are "
            f"{sorted(set(config.layer_types))}); name a model with sinkhorn, sortcut or mixture attention."
        )
    numbers = chosen(args.layer, list(range(config.num_hidden_layers)), "layer", "the model has the layers")
    heads = chosen(args.head, list(range(config.num_key_value_heads)), "head", "the model has the sorting heads")
    name = args.tokenizer_name or args.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=args.model_revision if name == args.model_name_or_path else "main",
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer in {name} ({' '.join(str(error).split())[:200]}); name one with --tokenizer_name."
        ) from None
    input_ids = tokens_of(text, tokenizer, config, args.max_seq_length)

    layers, maps = watch(model, input_ids, maps=True)
    states: dict[str, dict[int, LayerSorting]] = {}
    for step, folder in checkpoints.items():
        earlier = load_model(str(folder), "--checkpoints", args, config._attn_implementation)
        for setting in ("layer_types", "num_key_value_heads", "block_size", "is_decoder"):
            if getattr(earlier.config, setting) != getattr(config, setting):
                raise UserError(f"--checkpoints: {folder} is of another model; its {setting} is not the model's.")
        states[f"step {step}"] = watch(earlier, input_ids)[0]
    states["model"] = layers

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    groups = config.num_attention_heads // config.num_key_value_heads
    query_heads = [head * groups + member for head in heads for member in range(groups)]
    written = []
    for number in numbers:
        title = f"layer {number}, {config.layer_types[number]}"
        if number in layers:
            figure = draw_sorting({"model": layers[number]}, heads, title)
            written.append(save(figure, output / f"sorting-layer{number}.png"))
            if checkpoints:
                over_time = {state: found[number] for state, found in states.items()}
                written.append(save(draw_sorting(over_time, heads, title), output / f"training-layer{number}.png"))
        figure = draw_attention(maps[number], query_heads, config.block_size, f"{title}: source-token attention map")
        written.append(save(figure, output / f"attention-layer{number}.png"))
    shown = {number: sorting for number, sorting in layers.items() if number in numbers}
    passages = first_words(tokenizer, input_ids, config.block_size)
    named = name_passages(shown, heads, config, passages, args.num_pairs)
    head = f"# Passages sorted beside each other\n\n{input_ids.shape[1]:,} tokens in {len(passages)} blocks of "
    (output / "passages.md").write_text(f"{head}{config.block_size}.\n\n{named}", encoding="utf-8")
    print(named)
    print(f"In {output}: {', '.join([*written, 'passages.md'])}")


if __name__ == "__main__":
    main()
