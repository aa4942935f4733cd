"""Latency tables: what is read from them, what is refused, and what is measured (not how long it takes)."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dcz.compression.quantizers import quantize_affine
from dcz.compression.search import timing
from dcz.compression.search.costs import Choice, Option
from dcz.compression.search.latency import LatencyModel, LatencyTable, load_table, save_table
from dcz.compression.search.timing import int8_linear, measure_latency
from dcz.compression.training.weights import find_weights
from dcz.errors import UsageError

TABLE: dict[str, Any] = {
    "version": 1,
    "network": "n",
    "processor": "p",
    "torch": "2",
    "threads": 1,
    "batches": [1, 16],
    "open": 0.5,
    "rest": [1.0, 2.0],
    "weights": [
        {
            "name": "a",
            "shape": [4, 4],
            "decode": {"4": 0.25, "exact": 0.125},
            "compute": {"f32": [8.0, 64.0], "int8": [4.0, 16.0]},
        },
        {"name": "b", "shape": [2], "decode": {"4": 0.5}, "compute": {"f32": [1.0, 32.0]}},
    ],
    "checks": [{"option": "4", "batch": 1, "bandwidth": None, "predicted": 1.0, "measured": 1.1}],
}
COSTS = {"a": [Choice("4", 4, 1000, 1.0), Choice("exact", 32, 4000, 0.0)], "b": [Choice("4", 4, 500, 1.0)]}


def table() -> LatencyTable:
    return LatencyTable.model_validate_json(json.dumps(TABLE))


def test_seconds_are_fetching_decoding_and_computing() -> None:
    found = LatencyModel(table(), batch=16, bandwidth=1000).costs(COSTS)
    assert [choice.seconds for choice in found["a"]] == [1 + 0.25 + 64, 4 + 0.125 + 64]
    assert found["b"][0].seconds == 0.5 + 0.5 + 32
    found = LatencyModel(table(), bandwidth=math.inf, precision="int8").costs(COSTS)
    # What is not quantized, and what has no kernel, is computed in f32.
    assert [choice.seconds for choice in found["a"]] == [0.25 + 4, 0.125 + 8]
    assert found["b"][0].seconds == 0.5 + 1
    assert [choice.loss for choice in found["a"]] == [1.0, 0.0]
    assert LatencyModel(table(), batch=16, bandwidth=1000).beside(250) == 2.75


def test_what_the_table_does_not_have() -> None:
    model = LatencyModel(table(), bandwidth=1.0)
    with pytest.raises(UsageError, match="of 'n' has no weight 'c'"):
        model.costs({"c": []})
    with pytest.raises(UsageError, match="does not have b stored as '3'"):
        model.costs({"b": [Choice("3", 3, 1, 1.0)]})
    with pytest.raises(UsageError, match="no batches of 2"):
        LatencyModel(table(), bandwidth=1.0, batch=2)
    for bandwidth in (0.0, math.nan):
        with pytest.raises(UsageError, match=f"a bandwidth of {bandwidth}"):
            LatencyModel(table(), bandwidth=bandwidth)


def test_a_table_comes_back(tmp_path: Path) -> None:
    save_table(table(), tmp_path / "t.json")
    assert load_table(tmp_path / "t.json") == table()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["version"], 2, "version"),
        (["batches"], [16, 1], "do not ascend"),
        (["batches"], [1], "2 figures for 1 batch"),
        (["rest"], [1.0], "rest has 1 figures"),
        (["open"], -1.0, "open: .*greater than or equal to 0"),
        (["open"], "1", "open"),
        (["rest", 0], 1e300, "rest.0"),
        (["weights", 0, "compute", "f32"], [1.0], "the compute of a has 1"),
        (["weights", 0, "compute", "f16"], [1.0, 1.0], "compute.f16"),
        (["weights", 1, "compute"], {}, "the compute of b has no f32"),
        (["weights", 1, "name"], "a", "two weights"),
        (["weights", 1, "shape"], [0], "shape.0"),
        (["extra"], 1, "extra"),
    ],
)
def test_wrong_tables(where: list[Any], value: Any, message: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(TABLE))
    place = content
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"t.json: not a latency table: .*{message}"):
        load_table(tmp_path / "t.json")


def test_tables_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text in ("", "[", "[" * 100_000, json.dumps(TABLE).replace("0.5", "NaN"), "\x80", "null"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UsageError, match="not a latency table"):
            load_table(path)
    path.write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(UsageError, match="more than 16777216 bytes"):
        load_table(path)


@given(data=st.data())
def test_damaged_tables_are_read_or_refused(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray(json.dumps(TABLE).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 8)))
        content[start:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"-", b"1e999", b"{}", b"[", b"null"])
        )
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    try:
        found = load_table(path)
    except UsageError:
        return
    assert all(math.isfinite(one) for one in found.rest)


class Network(nn.Module):
    """Weights that are used once, twice, in one call with another, and in calls that have several."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.twice = nn.Linear(8, 8)
        self.table = nn.Linear(8, 24, bias=False)
        self.rnn = nn.GRU(8, 8)
        self.convolution = nn.Conv1d(8, 8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inputs = nn.functional.linear(self.embedding.weight, self.table.weight)
        states = self.twice(self.twice(self.embedding(tokens))) + inputs[0, :8]
        assert self.twice.weight.shape == (8, 8)
        outputs: torch.Tensor = self.convolution(self.rnn(states)[0].transpose(1, 2))
        return outputs


def options(*bits: int) -> tuple[Option, ...]:
    return tuple(Option(str(one), one, functools.partial(quantize_affine, bits=one)) for one in bits)


def test_each_use_of_a_weight_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_second(action: Any) -> float:
        action()
        return 1.0

    monkeypatch.setattr(timing, "seconds_of", one_second)
    module = Network()
    weights = find_weights(module)
    batches: list[int] = []

    def run(batch: int) -> None:
        batches.append(batch)
        module(torch.zeros(batch, 6, dtype=torch.long))

    found = measure_latency(
        module,
        weights,
        dict.fromkeys([weight.name for weight in weights], options(4, 8)),
        run,
        [1, 3],
        network="n",
    )
    assert set(batches) == {1, 3}
    compute = {weight.name: weight.compute for weight in found.weights}
    together = 10 * 8 + 24 * 8
    assert compute["twice.weight"] == dict.fromkeys(("f32", "bf16", "int8"), (2.0, 2.0))
    assert compute["convolution.weight"] == dict.fromkeys(("f32", "bf16"), (1.0, 1.0))
    assert compute["table.weight"]["int8"] == pytest.approx([192 / together] * 2)
    assert compute["embedding.weight"]["f32"] == pytest.approx([1 + 80 / together] * 2)
    assert "int8" not in compute["embedding.weight"]
    assert compute["rnn.weight_ih_l0"]["f32"] == pytest.approx((0.5, 0.5))
    assert all(
        set(weight.decode) == {"4", "8"} and min(weight.decode.values()) > 0 for weight in found.weights
    )
    assert module.training


def test_a_weight_that_is_not_used() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="not seen to use weight"):
        measure_latency(
            module, find_weights(module), {"weight": options(4)}, lambda _: None, [1], network="n"
        )


@pytest.mark.parametrize("shape", [(1, 32), (3, 5, 32)])
def test_linear_maps_on_integers(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((24, 32)).astype(np.float32)
    inputs = random.standard_normal(shape).astype(np.float32)
    inputs.reshape(-1, 32)[0, 0] = 50
    scales = np.abs(matrix).max(1, keepdims=True) / np.float32(127)
    codes = np.rint(matrix / scales).astype(np.int8)
    bias = random.standard_normal(24).astype(np.float32)
    found = int8_linear(*map(torch.from_numpy, (inputs, codes, scales, bias)))
    factors = np.abs(inputs).max(-1, keepdims=True) / np.float32(127)
    exact = (
        np.rint(inputs / factors).astype(np.int64) @ codes.T.astype(np.int64) * (factors * scales.T) + bias
    )
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-5, atol=1e-5)
    # Half a step of the inputs and of the matrix, for each product.
    bound = (
        factors / 2 * np.abs(matrix).sum(1)
        + scales.T / 2 * np.abs(inputs).sum(-1, keepdims=True)
        + 32 * factors * scales.T / 4
    )
    assert (np.abs(found.numpy() - (inputs @ matrix.T + bias)) <= bound * 1.001).all()
