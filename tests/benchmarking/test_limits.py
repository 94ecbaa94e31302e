# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The products that limits are made of are those that the models compute."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.limits import LIMITED, limits, limits_tables, products
from benchmarking.models import FLOOR, SIZES, SMALL, make_model


LENGTH = 256


def operations(name: str, train: bool) -> int:
    benchmark_model = make_model(name, LENGTH)
    benchmark_model.model.train(train)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        output = benchmark_model(torch.randint(5, 8000, (1, LENGTH)))
        if train:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", LIMITED)
def test_products_are_those_of_the_model(name):
    """A pass backward computes the scores once more than it must: it does not keep them."""
    counted = [operations(name, train) - operations(FLOOR, train) for train in (False, True)]
    of_layer = products(name, LENGTH)
    forward, backward = (
        sum(2 * p.count * p.m * p.k * p.n for p in some)
        for some in (of_layer, [b for product in of_layer for b in product.backward()])
    )
    scores = of_layer[0]
    again = 2 * scores.count * scores.m * scores.k * scores.n
    assert counted[0] == pytest.approx(SIZES[SMALL].num_hidden_layers * forward, rel=1e-3)
    assert counted[1] == pytest.approx(SIZES[SMALL].num_hidden_layers * (forward + backward + again), rel=1e-3)


def test_limits_are_told_beside_the_models_time():
    cell = {kind: {"seconds": 1e-9, "ratio_to_floor": 2e6} for kind in ("forward", "forward_backward")}
    rows = {FLOOR: {"256": cell}, "local": {"256": cell}, "sinkhorn hard": {}}
    found = limits(rows, [256])
    assert (
        found.keys() == {"local"} and found["local"]["256"]["forward_backward"] > found["local"]["256"]["forward"] > 1
    )
    of_products, of_all = (
        cells["forward_backward"] for cells in (found["local"]["256"], found["local"]["256"]["with_passes"])
    )
    assert of_all > of_products
    alone, with_passes = limits_tables(found, rows, [256]).split("\n\nlimit")
    for limit, table in ((of_products, alone), (of_all, with_passes)):
        assert f"{limit:.2f} ({2e6 / limit:.2f})" in table


def test_products_are_measured_in_the_type_of_the_models(monkeypatch):
    seen = set()
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *factors, out: seen.add(out.dtype) or bmm(*factors, out=out))
    rows = {FLOOR: {"256": {kind: {"seconds": 1.0} for kind in ("forward", "forward_backward")}}, "local": {"256": {}}}
    limits(rows, [256], dtype=torch.bfloat16)
    assert seen == {torch.bfloat16}
