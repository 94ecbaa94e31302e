# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Block attention on a GPU, in Triton: one kernel forward and three backward, which rotate, gather and attend in
registers. Of the scores they keep no more than the logarithm of each softmax's denominator. What they compute is
defined by the torch path of `attention_sinkhorn.py`.

Shape letters as in `block_attention_sinkhorn.py`.
"""

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .triton_sinkhorn import is_triton_supported, on_its_device, tl, triton
except ImportError:  # flat modules, as installed
    from triton_sinkhorn import is_triton_supported, on_its_device, tl, triton


# Supported sizes: powers of two, so that tiles need no padding; half a head is a matrix unit's smallest size.
BLOCK_SIZES = (16, 32, 64, 128)
HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILES_IN_SHARED_MEMORY = 12  # tiles of a block of one head that it must have room for; less was not tried
MASKED_SCORE = tl.constexpr(-1e30)  # instead of minus infinity, so that a row that sees nothing is finite


def is_query_supported(query: Tensor) -> bool:
    """Whether `block_attention` runs here, and supports a query `(B, N, b, H, D)` of this dtype and these sizes."""
    block_size, width = query.shape[2], query.shape[4]
    if query.dtype not in DTYPES or block_size not in BLOCK_SIZES or width not in HEAD_DIMS:
        return False
    if not is_triton_supported(query):
        return False
    if torch.are_deterministic_algorithms_enabled():  # gradients of gathered blocks are summed in any order
        return False
    shared_memory = getattr(torch.cuda.get_device_properties(query.device), "shared_memory_per_block_optin", 0)
    return TILES_IN_SHARED_MEMORY * block_size * width * query.element_size() <= shared_memory


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: tuple[Tensor, Tensor],
    mixed: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None,
    gathered: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """
    Attention of every block to [what is sorted next to it ; itself] in one softmax, as
    `block_attention_sinkhorn.block_attention`.

    Args:
        query: `(B, N, b, H, D)`, not rotated yet; `b` of `BLOCK_SIZES`, `D` of `HEAD_DIMS`, of `DTYPES`.
        key, value: `(B, G, N, b, D)`, not rotated yet.
        tables: `(B or 1, N, b, D)`, whose second half of `D` repeats the first.
        mixed: blocks `(B, G, N, b, D)` next to each block, key and value, and their tables; or
        gathered: the numbers `(B, G, N, S)` of the blocks next to each block, and their weights, which are 1.
        mask: bool `(B or 1, N, 1 or G, 1 or b, (S + 1) * b)`, sorted keys first.

    Returns:
        `(B, N, b, H, D)`.
    """
    # As they were projected.
    key, value = (x.permute(0, 2, 3, 1, 4).to(query.dtype).contiguous() for x in (key, value))
    mixed_key, mixed_value, mixed_tables = mixed or (None, None, (None, None))
    if mixed is not None:
        mixed_key, mixed_value = (x.to(query.dtype).contiguous() for x in (mixed_key, mixed_value))
        mixed_tables = tuple(x.contiguous() for x in mixed_tables)
    index, weight = gathered or (None, None)
    if gathered is not None:
        index, weight = index.contiguous(), weight.contiguous()
    output, _ = _attend(
        query.contiguous(), key, value, mixed_key, mixed_value, weight, index, mask,
        *(x.contiguous() for x in tables), *mixed_tables, scaling,
    )  # fmt: skip
    return output


@torch.library.custom_op("sinkhorn::block_attention", mutates_args=())
@on_its_device
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_key: Tensor | None,
    mixed_value: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    mixed_cos: Tensor | None,
    mixed_sin: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """The output, and the softmax's log denominators `(B, N, H, b)`. `key` and `value` `(B, N, b, G, D)`."""
    output, denominators = torch.empty_like(query), _denominators_like(query)
    batch, num_blocks, _, heads, _ = query.shape
    tensors, sizes = _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin)
    _attend_forward[(num_blocks, heads, batch)](*tensors, output, denominators, scaling, **sizes)
    return output, denominators


@torch.library.custom_op("sinkhorn::block_attention_backward", mutates_args=())
@on_its_device
def _attend_backward(
    grad: Tensor,
    output: Tensor,
    denominators: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_key: Tensor | None,
    mixed_value: Tensor | None,
    weight: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    mixed_cos: Tensor | None,
    mixed_sin: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, mixed key and value, and weight; without entries for what was not given."""
    batch, num_blocks, _, heads, _ = query.shape
    groups = key.shape[3]
    tensors, sizes = _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin)
    grad_query, deltas = torch.empty_like(query), torch.empty_like(denominators)
    _attend_query_grad[(num_blocks, heads, batch)](
        *tensors, output, denominators, grad, grad_query, deltas, scaling, **sizes
    )
    if index is None:
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    else:  # several blocks may read one, and half precision would round each partial sum
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
    *grad_mixed, grad_weight = (_empty_like(x, query) for x in (mixed_key, mixed_value, weight))
    grads = (grad_key, grad_value, *grad_mixed, grad_weight)
    for own, tiles in ((True, 1), (False, sizes["NUM_SORTED"])):
        if tiles:
            _attend_key_grad[(num_blocks * tiles, groups, batch)](
                *tensors, denominators, grad, deltas, *grads, scaling, **sizes, OWN=own
            )
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), *grad_mixed, grad_weight


@_attend.register_fake
def _(query, *_):
    return torch.empty_like(query), _denominators_like(query)


@_attend_backward.register_fake
def _(grad, output, denominators, query, key, value, mixed_key, mixed_value, weight, *_):
    given = (_empty_like(x, query) for x in (mixed_key, mixed_value, weight))
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *given


def _keep_inputs(ctx, inputs, output):
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*output, *tensors)


def _through_attention(ctx, grad, _):
    saved = ctx.saved_tensors  # once: under activation checkpointing they cannot be unpacked again
    _, _, _, _, _, mixed_key, mixed_value, weight, *_ = saved
    query, key, value, *others = _attend_backward(grad.contiguous(), *saved, ctx.scaling)
    given = (None if x is None else g for x, g in zip((mixed_key, mixed_value, weight), others))
    return query, key, value, *given, *[None] * 7


_attend.register_autograd(_through_attention, setup_context=_keep_inputs)


def _empty_like(x: Tensor | None, query: Tensor) -> Tensor:
    """Without entries for what was not given: an op must return tensors, and no tensor twice."""
    return query.new_empty(0) if x is None else torch.empty_like(x)


def _denominators_like(query: Tensor) -> Tensor:
    batch, num_blocks, block_size, heads, _ = query.shape
    return query.new_empty(batch, num_blocks, heads, block_size, dtype=torch.float32)


def _arguments(query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin):
    """The first arguments of every kernel, and its sizes. For what is not given, a pointer that is not read."""
    batch, num_blocks, block_size, heads, width = query.shape
    groups = key.shape[3]
    num_sorted = index.shape[-1] if index is not None else int(mixed_key is not None)
    strides = (0,) * 5
    if mask is not None:
        num_keys = (num_sorted + 1) * block_size
        strides = mask.expand(batch, num_blocks, groups, block_size, num_keys).stride()
        mask = mask.view(torch.uint8)
    tensors = [query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin]
    tensors = [query if x is None else x for x in tensors]
    table_strides = (_row_stride(cos), 0 if mixed_cos is None else _row_stride(mixed_cos))
    sizes = {
        "GATHERED": index is not None,
        "NUM_SORTED": num_sorted,
        "MASKED": mask is not None,
        "HEADS": heads,
        "GROUPS": groups,
        "SIZE": block_size,
        "WIDTH": width,
        "num_warps": 8 if block_size * width > 64 * 64 else 4,
    }
    return (*tensors, num_blocks, *table_strides, *strides), sizes


def _row_stride(table: Tensor) -> int:
    """0 for a table that all rows of the batch share."""
    return table.stride(0) if len(table) > 1 else 0


@triton.jit
def _load_rotated(x, token_stride, cos, sin, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """The two halves `(b, D / 2)` of a block of one head, rotated."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.arange(0, SIZE)[:, None]
    place = tl.arange(0, HALF)[None, :]
    first = tl.load(x + token * token_stride + place)
    second = tl.load(x + token * token_stride + HALF + place)
    c = tl.load(cos + token * WIDTH + place).to(tl.float32)
    s = tl.load(sin + token * WIDTH + place).to(tl.float32)
    rotated = first.to(tl.float32) * c - second.to(tl.float32) * s
    rotated_second = second.to(tl.float32) * c + first.to(tl.float32) * s
    return rotated.to(first.dtype), rotated_second.to(first.dtype)


@triton.jit
def _load_tile(x, token_stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    return tl.load(x + tl.arange(0, SIZE)[:, None] * token_stride + tl.arange(0, WIDTH)[None, :])


@triton.jit
def _rotate_back(first, second, cos, sin, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """The transpose of the rotation."""
    token = tl.arange(0, SIZE)[:, None]
    place = tl.arange(0, WIDTH // 2)[None, :]
    c = tl.load(cos + token * WIDTH + place).to(tl.float32)
    s = tl.load(sin + token * WIDTH + place).to(tl.float32)
    return first * c + second * s, second * c - first * s


@triton.jit
def _product(a, b):
    """Of matrices; in float32 without rounding to tf32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_keys(
    key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
    row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
    OWN: tl.constexpr, GATHERED: tl.constexpr, NUM_SORTED: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """
    Rotated keys, in halves, and values of the sorted block in place `tile` next to a block, or of the block itself
    (`OWN`); its offset in its tensor; and the tables that it was rotated by.
    """
    if OWN or GATHERED:
        source = block
        if not OWN:
            source = tl.load(index + ((row * GROUPS + group) * num_blocks + block) * NUM_SORTED + tile)
        offset = ((row * num_blocks + source) * SIZE * GROUPS + group) * WIDTH
        c = cos + row * table_stride + source * SIZE * WIDTH
        s = sin + row * table_stride + source * SIZE * WIDTH
        first, second = _load_rotated(key + offset, GROUPS * WIDTH, c, s, SIZE, WIDTH)
        values = _load_tile(value + offset, GROUPS * WIDTH, SIZE, WIDTH)
    else:
        offset = ((row * GROUPS + group) * num_blocks + block) * SIZE * WIDTH
        c = mixed_cos + row * mixed_table_stride + block * SIZE * WIDTH
        s = mixed_sin + row * mixed_table_stride + block * SIZE * WIDTH
        first, second = _load_rotated(mixed_key + offset, WIDTH, c, s, SIZE, WIDTH)
        values = _load_tile(mixed_value + offset, WIDTH, SIZE, WIDTH)
    return first, second, values, offset, c, s


@triton.jit
def _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE: tl.constexpr):
    """`(b, b)` bool."""
    query = tl.arange(0, SIZE)[:, None]
    place = tile * SIZE + tl.arange(0, SIZE)[None, :]
    return tl.load(mask + row * m0 + block * m1 + group * m2 + query * m3 + place * m4) != 0


@triton.jit
def _attend_forward(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4, output, denominators, scaling,
    GATHERED: tl.constexpr, NUM_SORTED: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per block and query head."""
    block, head, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // (HEADS // GROUPS)
    own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
    table = row * table_stride + block * SIZE * WIDTH
    q, q_second = _load_rotated(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
    highest = tl.full([SIZE], float("-inf"), tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    attended = tl.zeros([SIZE, WIDTH], tl.float32)
    for tile in tl.static_range(NUM_SORTED + 1):
        k, k_second, values, _, _, _ = _load_keys(
            key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
            row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
            tile == NUM_SORTED, GATHERED, NUM_SORTED, GROUPS, SIZE, WIDTH,
        )  # fmt: skip
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        if MASKED:
            visible = _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE)
            scores = tl.where(visible, scores, MASKED_SCORE)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        before = tl.exp(highest - higher)
        total = total * before + tl.sum(weights, 1)
        attended = attended * before[:, None] + _product(weights.to(values.dtype), values)
        highest = higher
    token = tl.arange(0, SIZE)
    attended = attended / total[:, None]
    place = token[:, None] * HEADS * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(output + own + place, attended.to(output.dtype.element_ty))
    line = ((row * num_blocks + block) * HEADS + head) * SIZE + token
    tl.store(denominators + line, highest + tl.log(total))


@triton.jit
def _attend_query_grad(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4,
    output, denominators, grad, grad_query, deltas, scaling,
    GATHERED: tl.constexpr, NUM_SORTED: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per block and query head; leaves the sums of grad * output, `deltas` `(B, N, H, b)`."""
    block, head, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = head // (HEADS // GROUPS)
    own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
    table = row * table_stride + block * SIZE * WIDTH
    q, q_second = _load_rotated(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
    upstream = _load_tile(grad + own, HEADS * WIDTH, SIZE, WIDTH)
    attended = _load_tile(output + own, HEADS * WIDTH, SIZE, WIDTH)
    delta = tl.sum(upstream.to(tl.float32) * attended.to(tl.float32), 1)
    line = ((row * num_blocks + block) * HEADS + head) * SIZE + tl.arange(0, SIZE)
    tl.store(deltas + line, delta)
    denominator = tl.load(denominators + line)
    first = tl.zeros([SIZE, WIDTH // 2], tl.float32)
    second = tl.zeros([SIZE, WIDTH // 2], tl.float32)
    for tile in tl.static_range(NUM_SORTED + 1):
        k, k_second, values, _, _, _ = _load_keys(
            key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
            row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
            tile == NUM_SORTED, GATHERED, NUM_SORTED, GROUPS, SIZE, WIDTH,
        )  # fmt: skip
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        weights = tl.exp(scores - denominator[:, None])
        if MASKED:
            visible = _load_visible(mask, row, block, group, tile, m0, m1, m2, m3, m4, SIZE)
            weights = tl.where(visible, weights, 0.0)
        grad_scores = weights * (_product(upstream, tl.trans(values)) - delta[:, None]) * scaling
        grad_scores = grad_scores.to(k.dtype)
        first += _product(grad_scores, k)
        second += _product(grad_scores, k_second)
    first, second = _rotate_back(first, second, cos + table, sin + table, SIZE, WIDTH)
    place = own + tl.arange(0, SIZE)[:, None] * HEADS * WIDTH + tl.arange(0, WIDTH // 2)[None, :]
    tl.store(grad_query + place, first.to(grad_query.dtype.element_ty))
    tl.store(grad_query + place + WIDTH // 2, second.to(grad_query.dtype.element_ty))


@triton.jit
def _attend_key_grad(
    query, key, value, mixed_key, mixed_value, index, mask, cos, sin, mixed_cos, mixed_sin,
    num_blocks, table_stride, mixed_table_stride, m0, m1, m2, m3, m4,
    denominators, grad, deltas, grad_key, grad_value, grad_mixed_key, grad_mixed_value, grad_weight, scaling,
    GATHERED: tl.constexpr, NUM_SORTED: tl.constexpr, MASKED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """One program per block and key/value head: of its own keys and values, or those of one of its sorted blocks."""
    HALF: tl.constexpr = WIDTH // 2
    TILES: tl.constexpr = 1 if OWN else NUM_SORTED
    REPEATS: tl.constexpr = HEADS // GROUPS
    group, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    block = tl.program_id(0).to(tl.int64) // TILES
    tile = tl.program_id(0) % TILES
    k, k_second, values, offset, key_cos, key_sin = _load_keys(
        key, value, mixed_key, mixed_value, index, cos, sin, mixed_cos, mixed_sin,
        row, block, group, tile, num_blocks, table_stride, mixed_table_stride,
        OWN, GATHERED, NUM_SORTED, GROUPS, SIZE, WIDTH,
    )  # fmt: skip
    first = tl.zeros([SIZE, HALF], tl.float32)
    second = tl.zeros([SIZE, HALF], tl.float32)
    of_values = tl.zeros([SIZE, WIDTH], tl.float32)
    table = row * table_stride + block * SIZE * WIDTH
    for repeat in range(REPEATS):
        head = group * REPEATS + repeat
        own = (row * num_blocks + block) * SIZE * HEADS * WIDTH + head * WIDTH
        q, q_second = _load_rotated(query + own, HEADS * WIDTH, cos + table, sin + table, SIZE, WIDTH)
        upstream = _load_tile(grad + own, HEADS * WIDTH, SIZE, WIDTH)
        line = ((row * num_blocks + block) * HEADS + head) * SIZE + tl.arange(0, SIZE)
        scores = (_product(q, tl.trans(k)) + _product(q_second, tl.trans(k_second))) * scaling
        weights = tl.exp(scores - tl.load(denominators + line)[:, None])
        if MASKED:
            place = NUM_SORTED if OWN else tile
            visible = _load_visible(mask, row, block, group, place, m0, m1, m2, m3, m4, SIZE)
            weights = tl.where(visible, weights, 0.0)
        of_values += _product(tl.trans(weights.to(upstream.dtype)), upstream)
        delta = tl.load(deltas + line)
        grad_scores = weights * (_product(upstream, tl.trans(values)) - delta[:, None]) * scaling
        grad_scores = tl.trans(grad_scores.to(q.dtype))
        first += _product(grad_scores, q)
        second += _product(grad_scores, q_second)
    token = tl.arange(0, SIZE)[:, None]
    if GATHERED and not OWN:
        # The weight multiplied the values, and the keys, whose products a rotation does not change.
        products = tl.sum(first * k.to(tl.float32)) + tl.sum(second * k_second.to(tl.float32))
        products += tl.sum(of_values * values.to(tl.float32))
        tl.store(grad_weight + ((row * GROUPS + group) * num_blocks + block) * NUM_SORTED + tile, products)
    first, second = _rotate_back(first, second, key_cos, key_sin, SIZE, WIDTH)
    if OWN or GATHERED:
        place = offset + token * GROUPS * WIDTH + tl.arange(0, WIDTH)[None, :]
        half = offset + token * GROUPS * WIDTH + tl.arange(0, HALF)[None, :]
        if GATHERED:
            tl.atomic_add(grad_key + half, first)
            tl.atomic_add(grad_key + half + HALF, second)
            tl.atomic_add(grad_value + place, of_values)
        else:
            tl.store(grad_key + half, first.to(grad_key.dtype.element_ty))
            tl.store(grad_key + half + HALF, second.to(grad_key.dtype.element_ty))
            tl.store(grad_value + place, of_values.to(grad_value.dtype.element_ty))
    else:
        place = offset + token * WIDTH + tl.arange(0, WIDTH)[None, :]
        half = offset + token * WIDTH + tl.arange(0, HALF)[None, :]
        tl.store(grad_mixed_key + half, first.to(grad_mixed_key.dtype.element_ty))
        tl.store(grad_mixed_key + half + HALF, second.to(grad_mixed_key.dtype.element_ty))
        tl.store(grad_mixed_value + place, of_values.to(grad_mixed_value.dtype.element_ty))
