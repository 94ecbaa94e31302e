# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Slow reference of Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296), the oracle of the tests.

Plain Python loops over rows, heads, blocks and tokens; torch only for small differentiable vectors, so autograd gives the
gradient of the input and of every weight. The dtype follows the input. It shares no code with the model.

Letters: B rows, L tokens, b block size, N = ceil(L / b) blocks, H query heads, G key/value heads, D head dimension;
i destination (query) block, j source block, t slot inside a block, g key/value head.

`weights` is a dict named like the state dict of the attention module: `q_proj.weight` (H*D, hidden), `k_proj.weight` and
`v_proj.weight` (G*D, hidden), `o_proj.weight` (hidden, H*D), each with an optional `.bias`, `sort_net.*`, of which
`sort_net.index_proj` is (G, D, r), `sort_net.index_query_proj` of merged query heads (G, H / G * D, r), and perhaps `q_norm.weight` and `k_norm.weight` (D,).

With `sort_granularity="token"` a sort matrix has a row for each token, (B, G, L, N), and none for blocks.
"""

import math
from functools import partial
from typing import NamedTuple

import torch


class Result(NamedTuple):
    """output (B, L, hidden); sort_matrix P (B, G, N or L, N) or None; attention_map (B, H, L, L): [query, source token]."""

    output: torch.Tensor
    sort_matrix: torch.Tensor | None
    attention_map: torch.Tensor


class HeadView(NamedTuple):
    """What the queries of one row of the batch may read through one key/value head."""

    keys: torch.Tensor  # (L, D), not rotated
    rotated_keys: torch.Tensor  # (L, D), rotated at the tokens' own positions
    values: torch.Tensor  # (L, D)
    blocks: list  # N lists of token indices; blocks without real tokens are empty lists
    positions: list  # L ints, the position of each token
    sort_matrix: torch.Tensor | None  # (N, N), or (L, N) where every token chooses


class Entry(NamedTuple):
    """One thing a query can attend to."""

    key: torch.Tensor  # (D,), rotated
    value: torch.Tensor  # (D,)
    sources: torch.Tensor  # (L,), how much of each source token it is made of; sums to 1


# ---------------------------------------------------------------------------------------------------------------- grid


def block_grid(attention_mask, block_size):
    """attention_mask (B, L), nonzero = real -> for each row N lists: the token indices of each block in slot order.

    The slot of a token is its rank among the real tokens of its row; its block is rank // b. Padding has no slot.
    """
    num_rows, length = attention_mask.shape
    num_blocks = math.ceil(length / block_size)
    grid = []
    for row in range(num_rows):
        blocks = [[] for _ in range(num_blocks)]
        rank = 0
        for token in range(length):
            if attention_mask[row, token]:
                blocks[rank // block_size].append(token)
                rank += 1
        grid.append(blocks)
    return grid


def real_tokens(blocks):
    """Blocks of one row -> its real tokens in order of rank."""
    return [token for block in blocks for token in block]


def count_real_blocks(blocks):
    """Blocks of one row -> how many hold a real token. They are always the first ones."""
    return sum(1 for block in blocks if block)


def token_positions(grid, length, position_ids=None):
    """-> for each row L ints: the given position_ids (B or 1, L), or else the rank. Padding without given positions: 0."""
    positions = []
    for row, blocks in enumerate(grid):
        if position_ids is not None:
            given = position_ids[row if position_ids.shape[0] > 1 else 0]
            positions.append([int(position) for position in given])
        else:
            ranks = [0] * length
            for rank, token in enumerate(real_tokens(blocks)):
                ranks[token] = rank
            positions.append(ranks)
    return positions


# ------------------------------------------------------------------------------------------------- projections and RoPE


def project(x, weights, name, num_heads):
    """x (B, L, hidden) -> (B, num_heads, L, D): head h is rows h*D .. (h+1)*D - 1 of the weight."""
    projected = x @ weights[name + ".weight"].T
    if weights.get(name + ".bias") is not None:
        projected = projected + weights[name + ".bias"]
    return torch.stack(projected.chunk(num_heads, dim=-1), dim=1)


def head_norm(x, weights, name, eps):
    """RMS norm of each head's vector, x (B, heads, L, D) -> the same shape; x itself where there is no such weight."""
    weight = weights.get(name + ".weight")
    if weight is None:
        return x
    return weight * x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def rotate(vector, position, theta):
    """RoPE as in Llama: vector (D,) at an integer position -> (D,). Pair k is (k, k + D/2), angle position * theta^(-2k/D)."""
    half = vector.shape[0] // 2
    exponents = torch.arange(half, dtype=vector.dtype, device=vector.device) * 2 / vector.shape[0]
    angles = position * theta**-exponents
    first, second = vector[:half], vector[half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def rotate_all(vectors, positions, theta):
    """vectors (L, D), positions L ints -> (L, D)."""
    return torch.stack([rotate(vector, position, theta) for vector, position in zip(vectors, positions)])


def normed_heads(x, weights, name, num_heads, config):
    """As project, of queries or keys, with the norm of each head where there is one."""
    return head_norm(project(x, weights, name, num_heads), weights, name[0] + "_norm", config.rms_norm_eps)


def rotated_heads(x, weights, name, num_heads, positions, config):
    """As normed_heads, each vector rotated at its token's position."""
    heads, theta = normed_heads(x, weights, name, num_heads, config), config.rope_theta
    return torch.stack(
        [torch.stack([rotate_all(head, positions[row], theta) for head in heads[row]]) for row in range(x.shape[0])]
    )


# ---------------------------------------------------------------------------------------------- descriptors and SortNet


def pool(x_row, tokens, pooling):
    """x_row (L, hidden), a list of tokens -> (hidden,): their "mean" or "sum"; zeros for no tokens; of one token, itself."""
    if not tokens:
        return x_row.new_zeros(x_row.shape[-1])
    total = x_row[tokens].sum(dim=0)
    return total / len(tokens) if pooling == "mean" else total


def tokens_described(blocks, i, pooling, causal):
    """Which tokens p_i summarises: block i; causal: every real token from the start to the first token of block i."""
    if pooling == "first":
        return blocks[i][:1]
    if not causal or not blocks[i]:
        return blocks[i]
    return real_tokens(blocks[:i]) + blocks[i][:1]


def descriptors(x, grid, pooling, causal):
    """x (B, L, hidden) -> p (B, N, hidden)."""
    return torch.stack(
        [
            torch.stack(
                [pool(x_row, tokens_described(blocks, i, pooling, causal), pooling) for i in range(len(blocks))]
            )
            for x_row, blocks in zip(x, grid)
        ]
    )


def block_means(x, grid):
    """x (B, L, hidden) -> c (B, N, hidden): the mean of each block's real tokens, whatever the pooling."""
    return descriptors(x, grid, "mean", causal=False)


def sort_logits(p, c, weights, config):
    """p, c (B, N, hidden) -> R (B, G, N, N)."""
    if config.sort_net == "bilinear":
        return bilinear_logits(p, c, weights, config)
    num_rows, num_blocks, _ = p.shape
    max_blocks = config.max_position_embeddings // config.block_size
    if num_blocks > max_blocks:
        raise ValueError(f"the input has {num_blocks} blocks but this SortNet knows only {max_blocks}")
    if config.sort_net == "mlp":
        p = torch.relu(p @ weights["sort_net.hidden_proj.weight"].T)
    weight = weights["sort_net.proj.weight"]
    logits = p.new_zeros(num_rows, config.num_key_value_heads, num_blocks, num_blocks)
    for row in range(num_rows):
        for g in range(config.num_key_value_heads):
            for i in range(num_blocks):
                for j in range(num_blocks):
                    logits[row, g, i, j] = weight[g * max_blocks + j] @ p[row, i]
    return logits


def bilinear_logits(p, c, weights, config):
    """R[g, i, j] = <(A p_i)_g, (C c_j)_g> / sqrt(D); p (B, M, hidden), c (B, N, hidden) -> (B, G, M, N)."""
    rows = project(p, weights, "sort_net.row_proj", config.num_key_value_heads)  # (B, G, M, D)
    columns = project(c, weights, "sort_net.column_proj", config.num_key_value_heads)  # (B, G, N, D)
    return rows @ columns.transpose(-1, -2) / math.sqrt(config.head_dim)


# ------------------------------------------------------------------- "keys" and "index": shares of attention as logits


def seen_blocks(blocks, token, config):
    """The blocks of which the token sees something: whole ones; in a decoder without the tokens after it."""
    tokens = real_tokens(blocks)
    if config.is_decoder:
        tokens = tokens[: tokens.index(token) + 1]
    return [tokens[start : start + config.block_size] for start in range(0, len(tokens), config.block_size)]


SMALLEST_SHARE = 1e-30  # smaller ones count as equal


def log_shares(query, keys, seen, piece_size, scaling):
    """query (r,), keys (L, r), n seen blocks -> (n,) logarithms of how much of all weight falls on each block.

    A piece of m tokens has the weight m exp(scaling <query, their mean key>).
    """
    blocks = []
    for block in seen:
        pieces = [block[start : start + piece_size] for start in range(0, len(block), piece_size)]
        weights = [math.log(len(piece)) + scaling * (keys[piece].mean(dim=0) @ query) for piece in pieces]
        blocks.append(torch.logsumexp(torch.stack(weights), dim=0))
    return normalise(torch.stack(blocks))


def share_logits(x, weights, config, grid, positions):
    """-> R (B, G, L, N): the logarithm of the mean share over the compared queries of a group; 0 where a token sees nothing."""
    num_groups = config.num_key_value_heads
    per_group = config.num_attention_heads // num_groups
    q = rotated_heads(x, weights, "q_proj", config.num_attention_heads, positions, config)
    k = rotated_heads(x, weights, "k_proj", num_groups, positions, config)
    piece_size = config.key_piece_size if config.sort_net == "keys" else 1
    logits = x.new_zeros(x.shape[0], num_groups, x.shape[1], len(grid[0]))
    for row, blocks in enumerate(grid):
        for g in range(num_groups):
            queries, keys = q[row, g * per_group : (g + 1) * per_group], k[row, g]
            if config.sort_net == "index":
                keys = keys @ weights["sort_net.index_proj"][g]
                if config.num_index_heads in (None, config.num_attention_heads):
                    queries = queries @ weights["sort_net.index_proj"][g]
                else:  # the query heads of the group, one after the other, become one
                    merged = torch.cat(list(queries), dim=-1) @ weights["sort_net.index_query_proj"][g]
                    queries = merged.unsqueeze(0)
            for token in real_tokens(blocks):
                seen = seen_blocks(blocks, token, config)
                heads = [log_shares(head[token], keys, seen, piece_size, config.head_dim**-0.5) for head in queries]
                mean = torch.logsumexp(torch.stack(heads), dim=0) - math.log(len(queries))
                logits[row, g, token, : len(seen)] = mean.clamp(min=math.log(SMALLEST_SHARE))
    return logits.detach() if config.sort_net == "keys" else logits


def block_share_logits(token_logits, grid, config):
    """R of tokens (B, G, L, N) -> of blocks (B, G, N, N): the mean share of a block's tokens; causal: of its first one."""
    num_rows, num_groups, _, num_blocks = token_logits.shape
    logits = token_logits.new_zeros(num_rows, num_groups, num_blocks, num_blocks)
    for row, blocks in enumerate(grid):
        for i in range(count_real_blocks(blocks)):
            readers = blocks[i][:1] if config.is_decoder else blocks[i]
            mean = torch.logsumexp(token_logits[row, :, readers], dim=1) - math.log(len(readers))
            logits[row, :, i] = mean
    return logits


# ----------------------------------------------------------------------------------------------------------- balancing


def normalise(vector):
    """Log weights (n,) -> log weights (n,) whose exponentials sum to 1."""
    return vector - torch.logsumexp(vector, dim=0)


def balance(z, iterations):
    """Bidirectional: z (n, n), the scaled logits of the n non-empty blocks -> P (n, n), rows sum to 1."""
    n = z.shape[0]
    for _ in range(iterations):
        z = torch.stack([normalise(z[i]) for i in range(n)])
        z = torch.stack([normalise(z[:, j]) for j in range(n)], dim=1)
    return torch.stack([normalise(z[i]) for i in range(n)]).exp()


def balance_causal(z, iterations, capacity=False):
    """Causal: z (n, n) -> P (n, n). Row i sees only j < i; row 0 is zeros.

    Column normaliser of row i: C_j = logsumexp over rows j < i' <= i of this iteration's row-normalised z[i', j].
    With capacity, a column whose sum is below 1 (its logarithm below 0) is left as it is.
    """
    n = z.shape[0]
    rows = [z[i, :i] for i in range(n)]  # row i has i entries; row 0 has none and stays empty
    for _ in range(iterations):
        rows = [rows[0]] + [normalise(rows[i]) for i in range(1, n)]
        columns = [column_prefix(rows, i) for i in range(1, n)]
        if capacity:
            columns = [torch.where(column > 0, column, 0) for column in columns]
        rows = [rows[0]] + [row - column for row, column in zip(rows[1:], columns)]
    matrix = z.new_zeros(n, n)
    for i in range(1, n):
        matrix[i, :i] = normalise(rows[i]).exp()
    return matrix


def column_prefix(rows, i):
    """C (i,) of row i: for each j < i the logsumexp of column j over the rows j + 1 .. i."""
    columns = [torch.stack([rows[other][j] for other in range(j + 1, i + 1)]) for j in range(i)]
    return torch.stack([torch.logsumexp(column, dim=0) for column in columns])


def balance_all(logits, grid, config, noise=None):
    """logits R, noise (B, G, N, N) -> P (B, G, N, N); rows and columns of blocks without real tokens are 0."""
    z = (logits if noise is None else logits + noise) / config.sinkhorn_temperature
    method = balance
    if config.is_decoder:
        method = partial(balance_causal, capacity=config.causal_balancing == "capacity")
    matrix = torch.zeros_like(z)
    for row, blocks in enumerate(grid):
        n = count_real_blocks(blocks)
        for g in range(z.shape[1]):
            if n > 0:
                matrix[row, g, :n, :n] = method(z[row, g, :n, :n], config.sinkhorn_iterations)
    return matrix


def balance_tokens(z, blocks, config):
    """z (L, N) of one row and head -> P (L, N): each token over the candidates of its block, no block above its capacity.

    Rows of tokens without candidates, and of padding, are 0.
    """
    candidates = {token: candidate_blocks(blocks, i, config) for i, block in enumerate(blocks) for token in block}
    tokens = [token for token in real_tokens(blocks) if candidates[token]]
    rows = {token: torch.full_like(z[token], -math.inf) for token in tokens}
    for token in tokens:
        rows[token][candidates[token]] = z[token, candidates[token]]
    for _ in range(config.sinkhorn_iterations):
        rows = {token: normalise(rows[token]) for token in tokens}
        rows = fit_capacity(rows, candidates, config)
    matrix = torch.zeros_like(z)
    for token in tokens:
        matrix[token] = normalise(rows[token]).exp()
    return matrix


def fit_capacity(rows, candidates, config):
    """One column step. rows {token: log P[t] (N,)} in order of rank -> the same, P[t, j] times min(1, capacity / used).

    Used is the sum of P[t', j] over the tokens that may choose j, the capacity `sort_capacity` times what it would be
    if all of them chose evenly; causal: over those up to token t.
    """
    tokens = list(rows)
    fitted = {}
    for place, token in enumerate(tokens):
        excess = torch.zeros_like(rows[token])
        for j in candidates[token]:
            users = [user for user in (tokens[: place + 1] if config.is_decoder else tokens) if j in candidates[user]]
            used = torch.logsumexp(torch.stack([rows[user] for user in users])[:, j], dim=0)
            capacity = config.sort_capacity * sum(1 / len(candidates[user]) for user in users)
            excess[j] = (used - math.log(capacity)).clamp(min=0)
        fitted[token] = rows[token] - excess
    return fitted


def balance_all_tokens(logits, grid, config, noise=None):
    """logits R, noise (B, G, L, N) -> P (B, G, L, N)."""
    z = (logits if noise is None else logits + noise) / config.sinkhorn_temperature
    return torch.stack(
        [torch.stack([balance_tokens(head, blocks, config) for head in row]) for row, blocks in zip(z, grid)]
    )


def compute_sort_matrix(x, weights, config, grid, positions, noise=None):
    """x (B, L, hidden) -> P (B, G, N, N), or (B, G, L, N) where every token chooses."""
    by_token = config.sort_granularity == "token"
    if config.sort_net in ("keys", "index"):
        logits = share_logits(x, weights, config, grid, positions)
        logits = logits if by_token else block_share_logits(logits, grid, config)
    else:
        p = x if by_token else descriptors(x, grid, config.sort_pooling, config.is_decoder)
        logits = sort_logits(p, block_means(x, grid), weights, config)
    return (balance_all_tokens if by_token else balance_all)(logits, grid, config, noise)


# ---------------------------------------------------------------------------------------------- what a query can attend to


def allowed_blocks(blocks, i, config):
    """The source blocks that may have a weight in P[i]."""
    return list(range(i)) if config.is_decoder else list(range(count_real_blocks(blocks)))


def local_blocks(blocks, i, config):
    """The non-empty blocks local to block i, itself included."""
    reach = config.num_local_blocks - 1
    last = i if config.is_decoder else i + reach
    return [j for j in range(len(blocks)) if i - reach <= j <= last and blocks[j]]


def sink_blocks(blocks, i, config):
    """The first blocks, which block i reads besides its local ones: those that hold a token and, causal, are before it."""
    local = local_blocks(blocks, i, config)
    sinks = [j for j in range(config.num_sink_blocks) if j < count_real_blocks(blocks) and j not in local]
    return [j for j in sinks if j < i or not config.is_decoder]


def is_global(i, config):
    """Whether the queries of block i read everything that they may: a setting of `interface_sinkhorn.py` alone."""
    return i < getattr(config, "num_global_blocks", 0)


def candidate_blocks(blocks, i, config):
    """The blocks that block i, or a token of it, may choose: neither local nor among the first, which are read anyway."""
    local = local_blocks(blocks, i, config)
    return [j for j in allowed_blocks(blocks, i, config) if j not in local and j >= config.num_sink_blocks]


def one_hot(token, like):
    """-> (L,): 1 at the token, where like is (L, D)."""
    sources = like.new_zeros(like.shape[0])
    sources[token] = 1
    return sources


def token_entries(view, tokens):
    """Tokens as they are, rotated at their own positions -> list of Entry."""
    return [Entry(view.rotated_keys[token], view.values[token], one_hot(token, view.keys)) for token in tokens]


def visible_tokens(view, tokens, query_token, config):
    """Drop the tokens after the query if the model is causal."""
    rank = {token: rank for rank, token in enumerate(real_tokens(view.blocks))}
    return [token for token in tokens if not config.is_decoder or rank[token] <= rank[query_token]]


def soft_sort(view, i, config):
    """Sorted block i of the soft assignment -> list of Entry, one for each slot that an allowed block fills.

    Slot t holds sum_j share_j k[j, t] with share_j = P[i, j] / (sum of P[i, j'] over the blocks j' with a token in slot t).
    """
    start = view.positions[view.blocks[i][0]]
    if config.is_decoder:
        start = start - config.num_local_blocks * config.block_size
    entries = []
    for t in range(config.block_size):
        holders = [j for j in allowed_blocks(view.blocks, i, config) if t < len(view.blocks[j])]
        if not holders:
            continue
        tokens = [view.blocks[j][t] for j in holders]
        share = view.sort_matrix[i, holders] / view.sort_matrix[i, holders].sum()
        sources = view.keys.new_zeros(view.keys.shape[0])
        sources[tokens] = share
        key = rotate(share @ view.keys[tokens], start + t, config.rope_theta)
        entries.append(Entry(key, share @ view.values[tokens], sources))
    return entries


def hard_choice(weights, candidates, config):
    """The num_sorted_blocks candidates j of largest weights[j]; among equals (to 1e-4 of it) the lower j first."""
    weight = {j: float(weights[j].detach()) for j in sorted(candidates)}
    ranked = []
    while weight and len(ranked) < config.num_sorted_blocks:
        best = max(weight.values())
        ranked.append(next(j for j in weight if weight[j] >= best * (1 - 1e-4)))
        del weight[ranked[-1]]
    return ranked


def hard_sort(view, row, candidates, config):
    """Blocks that row `row` of P chooses: whole blocks, straight-through gradient -> list of Entry."""
    entries = []
    for j in hard_choice(view.sort_matrix[row], candidates, config):
        weight = view.sort_matrix[row, j]
        weight = 1 + (weight - weight.detach())  # exactly 1 forward, gradient 1 to P[row, j]
        for entry in token_entries(view, view.blocks[j]):
            entries.append(Entry(entry.key * weight, entry.value * weight, entry.sources))
    return entries


def sortcut_entries(view, config):
    """The sorted blocks of the first rows, the same for every query -> list of Entry."""
    entries = []
    for i in range(min(config.sortcut_blocks, count_real_blocks(view.blocks))):
        if config.sort_assignment == "soft":
            entries += soft_sort(view, i, config)
        else:
            entries += hard_sort(view, i, allowed_blocks(view.blocks, i, config), config)
    return entries


def sorted_entries(view, i, row, layer_type, config):
    """The sorted part of a query in block i, by row `row` of P: i, or the query's token -> list of Entry."""
    if layer_type == "sortcut_attention":
        return sortcut_entries(view, config)
    if layer_type != "sinkhorn_attention" or is_global(i, config):
        return []
    if config.sort_assignment == "soft":
        return soft_sort(view, i, config)
    return hard_sort(view, row, candidate_blocks(view.blocks, i, config), config)


def plain_tokens(view, i, query_token, layer_type, config):
    """The unsorted part: the tokens that a query of block i sees as they are."""
    if layer_type == "sortcut_attention":
        return []
    if layer_type == "full_attention" or is_global(i, config):
        tokens = real_tokens(view.blocks)
    else:
        readable = sink_blocks(view.blocks, i, config) + local_blocks(view.blocks, i, config)
        tokens = [token for j in readable for token in view.blocks[j]]
    return visible_tokens(view, tokens, query_token, config)


# ----------------------------------------------------------------------------------------------------------- attention


def attend(query, entries):
    """query (D,) rotated, list of S Entry -> output (D,), weight of each source token (L,). One softmax over all entries."""
    keys = torch.stack([entry.key for entry in entries])  # (S, D)
    values = torch.stack([entry.value for entry in entries])  # (S, D)
    sources = torch.stack([entry.sources for entry in entries])  # (S, L)
    attention = torch.softmax(keys @ query / math.sqrt(query.shape[0]), dim=0)  # (S,)
    return attention @ values, attention @ sources


def attend_group(queries, view, layer_type, config):
    """Queries (H/G, L, D), rotated, that share one key/value head -> output (H/G, L, D), map (H/G, L, L); padding 0."""
    group, length, head_dim = queries.shape
    outputs = [[queries.new_zeros(head_dim)] * length for _ in range(group)]
    maps = [[queries.new_zeros(length)] * length for _ in range(group)]
    by_token = config.sort_granularity == "token"
    for i, block in enumerate(view.blocks):
        chosen = [] if by_token or not block else sorted_entries(view, i, i, layer_type, config)
        for token in block:
            if by_token:
                chosen = sorted_entries(view, i, token, layer_type, config)
            entries = chosen + token_entries(view, plain_tokens(view, i, token, layer_type, config))
            for h in range(group):
                outputs[h][token], maps[h][token] = attend(queries[h, token], entries)
    return torch.stack([torch.stack(o) for o in outputs]), torch.stack([torch.stack(m) for m in maps])


def attend_heads(x, weights, config, layer_type, grid, positions, sort_matrix):
    """One kind of attention before o_proj: x (B, L, hidden) -> output (B, L, H*D), map (B, H, L, L)."""
    num_groups = config.num_key_value_heads
    per_group = config.num_attention_heads // num_groups  # query head h reads key/value head h // per_group
    q = rotated_heads(x, weights, "q_proj", config.num_attention_heads, positions, config)
    rotated_k = rotated_heads(x, weights, "k_proj", num_groups, positions, config)
    k = normed_heads(x, weights, "k_proj", num_groups, config)
    v = project(x, weights, "v_proj", num_groups)
    outputs, maps = [], []
    for row in range(x.shape[0]):
        row_outputs, row_maps = [], []
        for g in range(num_groups):
            queries = q[row, g * per_group : (g + 1) * per_group]
            matrix = None if sort_matrix is None else sort_matrix[row, g]
            view = HeadView(k[row, g], rotated_k[row, g], v[row, g], grid[row], positions[row], matrix)
            output, attention_map = attend_group(queries, view, layer_type, config)
            row_outputs.extend(output)
            row_maps.extend(attention_map)
        outputs.append(torch.cat(row_outputs, dim=-1))
        maps.append(torch.stack(row_maps))
    return torch.stack(outputs), torch.stack(maps)


def reference_attention(x, weights, config, layer_type, attention_mask=None, position_ids=None, noise=None):
    """The whole attention module.

    x (B, L, hidden), attention_mask (B, L) nonzero = real, position_ids (B or 1, L), noise (B, G, N or L, N) added to
    the sorting logits -> Result. Output and map are 0 at padding tokens, the output even where o_proj has a bias.
    Mixture: the output is the sum of Sinkhorn and full attention, the map the mean of their maps.
    """
    if attention_mask is None:
        attention_mask = torch.ones(x.shape[:2], dtype=torch.long)
    grid = block_grid(attention_mask, config.block_size)
    positions = token_positions(grid, x.shape[1], position_ids)
    sort_matrix = None
    if layer_type in ("sinkhorn_attention", "mixture_attention", "sortcut_attention"):
        sort_matrix = compute_sort_matrix(x, weights, config, grid, positions, noise)
    parts = [layer_type] if layer_type != "mixture_attention" else ["sinkhorn_attention", "full_attention"]
    results = [attend_heads(x, weights, config, part, grid, positions, sort_matrix) for part in parts]
    heads = sum(output for output, _ in results)
    attention_map = sum(part_map for _, part_map in results) / len(results)
    output = project(heads, weights, "o_proj", 1)[:, 0]
    real = (attention_mask != 0).to(device=x.device)[:, :, None]
    return Result(torch.where(real, output, torch.zeros_like(output)), sort_matrix, attention_map)
