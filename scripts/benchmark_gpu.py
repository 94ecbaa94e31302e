# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What a GPU does with the model: whether half precision and the kernels in Triton compute what float64 does,
how much of the time the card works, and how near attention and balancing come to what the card can do at all.

    python scripts/benchmark_gpu.py --results results/benchmarks/h100_kernels.json      # about 3 minutes on an H100

`benchmark.py` measures time and memory of whole models, on a GPU too. Weights and tokens are random. The file is written
after each part. Without kernels means: by torch's own operations alone.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import attention_sinkhorn
import balancing_sinkhorn
from balancing_sinkhorn import sinkhorn_balance
from benchmarking.models import BLOCK, FLOOR, FULL, HEADS, HIDDEN, MAIN, OURS, make, sinkhorn_config
from benchmarking.passes import BOTH, FORWARD, PASSES, prepare, ragged_batch, run, single_row
from block_attention_sinkhorn import GatheredBlocks, MixedBlocks, block_attention
from common.run_record import command, provenance, write_json
from modeling_sinkhorn import SinkhornModel
from rotary_sinkhorn import RotaryTables, apply_rotary
from sorting_sinkhorn import gather_blocks


LENGTHS = (4096, 16384, 65536, 131072)
SINGLE_LIMIT = 1e-4  # of float32, relative to float64, in the norm
HALF_LIMIT = 1.5  # of bfloat16 by the kernels, as a multiple of torch's own error
WIDTH = HIDDEN // HEADS
ITERATIONS = 8
FLEX_TILES = {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK}  # its own choice is larger than a block, which it then refuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="In tokens.")
    parser.add_argument("--seconds", type=float, default=0.3, help="For the rounds of each measurement.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="What to measure.")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: benchmark_gpu.py measures a GPU, and torch sees none.")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    record = {**provenance(), "command": command(), "seeds": {"weights": 0, "tokens": 0}, "seconds_of_part": {}}
    for part in arguments.parts:
        start = time.perf_counter()
        try:
            record[part] = PARTS[part](arguments)
        except RuntimeError as error:  # the other parts are worth having
            record[part] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        record["seconds_of_part"][part] = time.perf_counter() - start
        write_json(arguments.results, record)
        print(f"{part} ({record['seconds_of_part'][part]:.0f} s): {record[part]}\n", flush=True)


@contextlib.contextmanager
def kernels(used: bool) -> Iterator[None]:
    """With the kernels for a GPU, or with torch's operations alone."""
    before = attention_sinkhorn.is_block_attention_supported, balancing_sinkhorn.is_triton_supported
    if not used:
        attention_sinkhorn.is_block_attention_supported = balancing_sinkhorn.is_triton_supported = lambda x: False
    try:
        yield
    finally:
        attention_sinkhorn.is_block_attention_supported, balancing_sinkhorn.is_triton_supported = before


def milliseconds(call: Callable[[], Any], seconds: float) -> float:
    """The median over rounds, each timed by events on the device."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start, times = time.perf_counter(), []
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 100):
        events = [torch.cuda.Event(enable_timing=True) for _ in "se"]
        events[0].record()
        call()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    return statistics.median(times)


# The card ------------------------------------------------------------------------------------------------------------


def ceilings(arguments: argparse.Namespace) -> dict[str, float]:
    """What the card can do: a large copy, bytes read and written, and a large product of matrices in bfloat16."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), arguments.seconds)
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "lr")
    multiplied = milliseconds(lambda: left @ right, arguments.seconds)
    return {
        "bytes_per_second": 2 * source.numel() * source.element_size() / copied * 1e3,
        "flops_per_second": 2 * size**3 / multiplied * 1e3,
    }


# Parity --------------------------------------------------------------------------------------------------------------


def parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Relative errors `|actual - expected| / |expected|` of hidden states and of the gradients of all parameters, against
    float64 on the CPU, in a padded batch, for each variant, with the kernels and without.
    """
    batch, found = ragged_batch(3, 1000), {}
    for name in OURS:
        expected = _outputs(name, batch, torch.float64, "cpu")
        found[name] = {
            f"{dtype}, {'kernels' if used else 'torch'}": _errors(name, batch, dtype, used, expected)
            for dtype in ("float32", "bfloat16")
            for used in (True, False)
        }
    return {"errors": found, "wrong": _wrong(found)}


def _outputs(name: str, batch, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    config = sinkhorn_config(name, max_position_embeddings=1024, initializer_range=0.05)
    model = SinkhornModel(config).to(device, dtype).eval()
    placed = batch.to(device)
    hidden_states = model(**placed.inputs()).last_hidden_state
    real = placed.attention_mask.unsqueeze(-1)
    weights = torch.linspace(-1, 1, HIDDEN, dtype=dtype, device=device)  # the norm's gradient alone would be 0
    weighted = (hidden_states * real * weights).to(torch.promote_types(dtype, torch.float32))
    weighted.square().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return (hidden_states * real).detach().double().cpu(), torch.cat(gradients).double().cpu()


def _errors(name: str, batch, dtype: str, used: bool, expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    with kernels(used):
        actual = _outputs(name, batch, getattr(torch, dtype), "cuda")
    pairs = zip(("hidden_states", "gradients"), actual, expected)
    return {kind: ((a - e).norm() / e.norm()).item() for kind, a, e in pairs}


def _wrong(found: dict[str, Any]) -> list[str]:
    """What is above the limits. NaN is."""
    wrong = []
    for name, errors in found.items():
        for kind in ("hidden_states", "gradients"):
            if not errors["float32, kernels"][kind] <= SINGLE_LIMIT:
                wrong.append(f"{name}: {kind} in float32")
            if not errors["bfloat16, kernels"][kind] <= HALF_LIMIT * errors["bfloat16, torch"][kind]:
                wrong.append(f"{name}: {kind} in bfloat16")
    return wrong


# How much of the time the card works ---------------------------------------------------------------------------------

WORKED = {  # model of `benchmark.py`, and whether the kernels are used
    FLOOR: (FLOOR, True),
    "soft": (MAIN, True),
    "soft, without kernels": (MAIN, False),
    "hard": ("sinkhorn hard", True),
    "hard, without kernels": ("sinkhorn hard", False),
    "causal soft": ("causal sinkhorn soft", True),
    "causal soft, without kernels": ("causal sinkhorn soft", False),
    "causal full attention": ("causal full attention", True),
    "local": ("local", True),
    "local, without kernels": ("local", False),
    FULL: (FULL, True),
}


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Of a forward and of a forward and backward in bfloat16: milliseconds, those in which the card worked, and how many
    kernels were launched.
    """
    return {str(length): _work_at(length, arguments.seconds) for length in arguments.lengths}


def _work_at(length: int, seconds: float) -> dict[str, Any]:
    batch, found = single_row(length).to("cuda"), {}
    for label, (name, used) in WORKED.items():
        contestant = make(name, length, "cuda", torch.bfloat16)
        with kernels(used):
            found[label] = {kind: _work_of(contestant, batch, kind, seconds) for kind in PASSES}
    for kind in PASSES:
        for cells in found.values():
            cells[kind]["ratio_to_floor"] = cells[kind]["milliseconds"] / found[FLOOR][kind]["milliseconds"]
            cells[kind]["busy_ratio_to_floor"] = cells[kind]["busy"] / found[FLOOR][kind]["busy"]
    return found


def _work_of(contestant, batch, kind: str, seconds: float) -> dict[str, float]:
    prepare(contestant, kind)

    def once() -> None:
        contestant.model.zero_grad(set_to_none=True)
        run(contestant, batch, kind)

    total = milliseconds(once, seconds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        once()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e3
    slowest = sorted(profile.key_averages(), key=lambda row: row.self_device_time_total, reverse=True)[:8]
    return {
        "milliseconds": total,
        "busy": busy,
        "idle_share": max(0.0, 1 - busy / total),
        "launches": len(events),
        "slowest": {row.key[:60]: [row.count, row.self_device_time_total / 1e3] for row in slowest},
    }


# Attention and balancing alone ---------------------------------------------------------------------------------------


def attention(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Attention of one layer alone, queries and keys to be rotated first, in bfloat16: milliseconds, and what is achieved of
    the card's bytes and operations per second. Counted are the fewest bytes, each tensor once, and the products.
    """
    ceiling = ceilings(arguments)
    return {str(length): _attention_at(length, ceiling, arguments.seconds) for length in arguments.lengths}


def _attention_at(length: int, ceiling: dict[str, float], seconds: float) -> dict[str, Any]:
    blocks, size = length // BLOCK, (length // BLOCK, BLOCK)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()

    query = random(1, *size, HEADS, WIDTH)
    key, value = (random(1, *size, HEADS, WIDTH) for _ in "kv")
    own = [x.permute(0, 3, 1, 2, 4) for x in (key, value)]
    mixed = [random(1, HEADS, *size, WIDTH) for _ in "kv"]
    angles = torch.rand(1, *size, WIDTH // 2, device="cuda").repeat(1, 1, 1, 2)
    tables = RotaryTables(angles.cos().bfloat16(), angles.sin().bfloat16())
    index = torch.stack([_other_blocks(blocks) for _ in range(HEADS)]).view(1, HEADS, blocks, 1).to("cuda")
    weight = torch.ones(index.shape, device="cuda").requires_grad_()
    scaling = WIDTH**-0.5

    def turned(x: Tensor) -> Tensor:
        """`(B, N, b, H, D)` to `(B, H, L, D)`, rotated."""
        x = apply_rotary(x, tables.cos.unsqueeze(3), tables.sin.unsqueeze(3))
        return x.flatten(1, 2).transpose(1, 2)

    def by_blocks(sorted_blocks: MixedBlocks | GatheredBlocks) -> Tensor:
        """As `SinkhornAttention` does without kernels."""
        local_key = apply_rotary(own[0], tables.cos.unsqueeze(1), tables.sin.unsqueeze(1))
        if isinstance(sorted_blocks, MixedBlocks):
            keys = apply_rotary(mixed[0], tables.cos.unsqueeze(1), tables.sin.unsqueeze(1))
            values = mixed[1]
        else:
            gathered = (
                gather_blocks(sorted_blocks.index, x) * sorted_blocks.weight[..., None, None]
                for x in (local_key, own[1])
            )
            keys, values = (x.flatten(3, 4).to(x.dtype) for x in gathered)
        keys, values = (
            torch.cat((x, y), dim=3).transpose(1, 2).flatten(0, 1).to(query.dtype)
            for x, y in ((keys, local_key), (values, own[1]))
        )
        queries = apply_rotary(query, tables.cos.unsqueeze(3), tables.sin.unsqueeze(3)).flatten(0, 1).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)

    def full() -> Tensor:
        values = value.flatten(1, 2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(turned(query), turned(key), values, scale=scaling)

    torch._dynamo.reset()  # or it stops compiling after some lengths, and attends unfused
    compiled = torch.compile(flex_attention, dynamic=False)
    seen = torch.zeros(1, HEADS, blocks, blocks, device="cuda", dtype=torch.int32)  # of which the first two count
    seen[..., 0], seen[..., 1] = index.squeeze(-1), torch.arange(blocks, device="cuda")
    how_many = torch.full((1, HEADS, blocks), 2, device="cuda", dtype=torch.int32)
    pattern = BlockMask.from_kv_blocks(how_many, seen, BLOCK_SIZE=BLOCK)

    def flex() -> Tensor:
        """The pattern of hard sorting, each query to its own block and to the chosen one."""
        values = value.flatten(1, 2).transpose(1, 2)
        return compiled(
            turned(query), turned(key), values, block_mask=pattern, scale=scaling, kernel_options=FLEX_TILES
        )

    def full_flex() -> Tensor:
        values = value.flatten(1, 2).transpose(1, 2)
        return compiled(turned(query), turned(key), values, scale=scaling)

    soft, hard = MixedBlocks(*mixed, tables), GatheredBlocks(index, weight)
    calls = {
        "soft": (lambda: block_attention(query, *own, tables, soft, None, scaling), [query, key, value, *mixed], 2),
        "soft, without kernels": (lambda: by_blocks(soft), [query, key, value, *mixed], 2),
        "hard": (lambda: block_attention(query, *own, tables, hard, None, scaling), [query, key, value, weight], 2),
        "hard, without kernels": (lambda: by_blocks(hard), [query, key, value, weight], 2),
        "hard pattern, FlexAttention": (flex, [query, key, value], 2),
        "full, SDPA": (full, [query, key, value], blocks),
        "full, FlexAttention": (full_flex, [query, key, value], blocks),
    }
    return {label: _measure(*call, ceiling, seconds) for label, call in calls.items()}


def _other_blocks(blocks: int) -> Tensor:
    """`(blocks,)`: for each one another, each once: the next one on a random tour."""
    tour = torch.randperm(blocks)
    return torch.empty_like(tour).scatter_(0, tour, tour.roll(-1))


def _measure(
    call: Callable[[], Tensor], inputs: list[Tensor], blocks_seen: int, ceiling: dict[str, float], seconds: float
) -> dict[str, Any]:
    try:
        with torch.no_grad():
            output = call()
    except Exception as error:  # noqa: BLE001  a compiler may raise anything
        return {"failed": _told(error)}
    upstream = torch.randn_like(output)
    tokens = inputs[0].shape[1] * inputs[0].shape[2]
    products = 4 * tokens * blocks_seen * BLOCK * HEADS * WIDTH
    bytes_of_inputs = sum(x.numel() * x.element_size() for x in inputs)
    bytes_of_output = output.numel() * output.element_size()

    def forward() -> None:
        with torch.no_grad():
            call()

    costs = {
        FORWARD: (forward, products, bytes_of_inputs + bytes_of_output),
        # Backward: two and a half times the products; it reads inputs, output and its gradient, and writes gradients.
        BOTH: (
            lambda: torch.autograd.grad(call(), inputs, upstream),
            3.5 * products,
            3 * bytes_of_inputs + 3 * bytes_of_output,
        ),
    }
    found = {}
    for kind, (timed, operations, moved) in costs.items():
        try:
            took = milliseconds(timed, seconds)
        except Exception as error:  # noqa: BLE001
            found[kind] = {"failed": _told(error)}
            continue
        found[kind] = {
            "milliseconds": took,
            "bytes": moved,
            "flops": operations,
            "share_of_bytes_per_second": moved / took * 1e3 / ceiling["bytes_per_second"],
            "share_of_flops_per_second": operations / took * 1e3 / ceiling["flops_per_second"],
        }
    return found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def balancing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Balancing of one layer's matrices alone, 8 iterations: milliseconds with kernels and without."""
    found: dict[str, Any] = {}
    for length in arguments.lengths:
        blocks = length // BLOCK
        logits = torch.randn(1, HEADS, blocks, blocks, device="cuda").requires_grad_()
        upstream = torch.randn_like(logits)
        found[str(length)] = {"blocks": blocks}
        for label, used in (("kernels", True), ("without kernels", False)):
            with kernels(used):
                forward = milliseconds(
                    lambda logits=logits: sinkhorn_balance(logits.detach(), None, ITERATIONS), arguments.seconds
                )
                both = milliseconds(
                    lambda logits=logits, upstream=upstream: torch.autograd.grad(
                        sinkhorn_balance(logits, None, ITERATIONS), logits, upstream
                    ),
                    arguments.seconds,
                )
            found[str(length)][label] = {FORWARD: forward, BOTH: both}
    return found


# Compiled ------------------------------------------------------------------------------------------------------------


def compiled(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    `torch.compile(fullgraph=True, mode="reduce-overhead")`, which replays all launches at once, of the soft encoder, the
    floor and full attention: forward and backward against eager ones, at the two shortest lengths.
    """
    # Before 2.13, torch says that it exports whenever it compiles.
    torch.compiler.is_exporting = lambda: False
    return {
        str(length): {name: _compiled_at(name, length, arguments.seconds) for name in (FLOOR, MAIN, FULL)}
        for length in sorted(arguments.lengths)[:2]
    }


def _compiled_at(name: str, length: int, seconds: float) -> dict[str, float]:
    torch._dynamo.reset()
    batch = single_row(length).to("cuda")
    contestant = make(name, length, "cuda", torch.bfloat16)
    prepare(contestant, FORWARD)  # no noise, so that both compute the same
    together = torch.compile(contestant.model, fullgraph=True, mode="reduce-overhead")

    def pass_of(model) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        contestant.model.zero_grad(set_to_none=True)
        output = model(batch.input_ids).last_hidden_state
        output.float().square().mean().backward()
        return output.detach().clone()

    expected, actual = pass_of(contestant.model), pass_of(together)
    return {
        "error": ((actual - expected).float().norm() / expected.float().norm()).item(),
        "eager_milliseconds": milliseconds(lambda: pass_of(contestant.model), seconds),
        "compiled_milliseconds": milliseconds(lambda: pass_of(together), seconds),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ceilings": ceilings,
    "balancing": balancing,
    "attention": attention,
    "parity": parity,
    "work": work,
    "compiled": compiled,
}


if __name__ == "__main__":
    main()
