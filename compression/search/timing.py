"""Measuring a latency table (dcz.compression.search.latency) on this machine.

*Compute.* One forward pass is watched: every function of torch that gets a weight is noted with its arguments, be it called by a layer
or by the network itself. Each call is then repeated alone, in f32, in bf16, and, if it is a linear map, in int8: the inputs
quantized row by row as they come, torch._int_mm on integers, and the scales multiplied in. Times are the least of several rounds.

*Decode.* A file with one tensor, in memory, opened anew each time; the time of reading the tensor into memory that is there already.

One measurement after the other on the threads that torch and the reader have, so nothing else should run.
"""

# torch has no public product of int8 matrices.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dcz.compression.search.costs import Option
from dcz.compression.search.latency import LatencyTable, Precision, WeightLatency
from dcz.compression.torch_tensors import check_tensor, to_numpy
from dcz.compression.training.weights import Weight
from dcz.errors import UsageError
from dcz.format import Reader, Writer

__all__ = ["int8_linear", "measure_latency", "seconds_of"]

_ROUNDS: Final = 10
_SHORT: Final = 2e-3  # calls that are quicker are repeated more often
_MORE_ROUNDS: Final = 50


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of torch with weights among its arguments. ``weights``: their first names."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    options: Mapping[str, Any]
    weights: Sequence[str]


class _Watch(TorchFunctionMode):
    """Notes the calls that get weights."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._names = {id(weight.parameter): weight.name for weight in weights}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [
            self._names[key]
            for key in map(id, _tensors([*args, *(kwargs or {}).values()]))
            if key in self._names
        ]
        if found and _computes(result):
            self.calls.append(_Call(func, args, kwargs or {}, found))
        return result


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [
        tensor
        for value in values
        for tensor in (
            [value]
            if isinstance(value, torch.Tensor)
            else _tensors(value)
            if isinstance(value, list | tuple)
            else []
        )
    ]


def _computes(result: Any) -> bool:
    """Not a question about a shape or a type."""
    return isinstance(result, torch.Tensor) or (isinstance(result, tuple) and bool(_tensors(result)))


def measure_latency(
    module: nn.Module,
    weights: Sequence[Weight],
    options: Mapping[str, Sequence[Option]],
    run: Callable[[int], object],
    batches: Sequence[int],
    *,
    network: str,
    processor: str = "",
) -> LatencyTable:
    """Measure a network on this machine.

    ``run(batch)``: one forward pass of the module, of a batch of so many. ``options``: how each weight may be stored, by its first
    name. ``network``, ``processor``: how they are called in the table.

    Raises UsageError if the forward pass does not depend on a weight in a way that can be seen, EncodingError if an option does not
    fit a weight.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            compute: dict[str, dict[Precision, list[float]]] = {weight.name: {} for weight in weights}
            rest = [_measure_batch(weights, run, batch, compute) for batch in batches]
        decode = {weight.name: _decode_times(weight, options[weight.name]) for weight in weights}
        opening = _open_time(module, weights)
    finally:
        module.train(was_training)
    return LatencyTable(
        version=1,
        network=network,
        processor=processor,
        torch=str(torch.__version__),
        threads=torch.get_num_threads(),
        batches=tuple(batches),
        open=opening,
        rest=tuple(rest),
        weights=tuple(
            WeightLatency(
                name=weight.name,
                shape=tuple(weight.parameter.shape),
                decode=decode[weight.name],
                compute={
                    precision: tuple(row)
                    for precision, row in compute[weight.name].items()
                    if len(row) == len(batches)
                },
            )
            for weight in weights
        ),
    )


def _measure_batch(
    weights: Sequence[Weight],
    run: Callable[[int], object],
    batch: int,
    compute: dict[str, dict[Precision, list[float]]],
) -> float:
    """Adds a figure for each weight and precision; returns what the rest of the pass takes."""
    watch = _Watch(weights)
    with watch:
        run(batch)
    sizes = {weight.name: weight.parameter.numel() for weight in weights}
    sums: dict[str, dict[Precision, float]] = {weight.name: {} for weight in weights}
    missing: set[tuple[str, Precision]] = set()
    for call in watch.calls:
        together = sum(sizes[name] for name in call.weights)
        for precision, action in _ways(call).items():
            for name in call.weights:
                if action is None:
                    missing.add((name, precision))
                else:
                    share = seconds_of(action) * sizes[name] / together
                    sums[name][precision] = sums[name].get(precision, 0.0) + share
    for name, row in sums.items():
        if "f32" not in row:
            raise UsageError(f"the forward pass was not seen to use {name}")
        for precision, value in row.items():
            if (name, precision) not in missing:
                compute[name].setdefault(precision, []).append(value)
    whole = seconds_of(lambda: run(batch))
    return max(0.0, whole - sum(row["f32"] for row in sums.values()))


def _ways(call: _Call) -> dict[Precision, Callable[[], object] | None]:
    """The call in each precision; None if there is no kernel for it."""

    def plain() -> object:
        return call.function(*call.arguments, **call.options)

    halves, half_options = _halved(list(call.arguments)), _halved(dict(call.options))

    def in_halves() -> object:
        return call.function(*halves, **half_options)

    ways: dict[Precision, Callable[[], object] | None] = {"f32": plain, "bf16": in_halves, "int8": None}
    try:
        in_halves()
    except RuntimeError:
        ways["bf16"] = None
    if call.function is nn.functional.linear:
        inputs, weight = call.arguments[:2]
        bias = call.arguments[2] if len(call.arguments) > 2 else call.options.get("bias")
        codes, scales = _rows_as_int8(weight)
        ways["int8"] = lambda: int8_linear(inputs, codes, scales, bias)
    return ways


def _halved(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.bfloat16) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(map(_halved, value))
    if isinstance(value, dict):
        return {key: _halved(item) for key, item in value.items()}
    return value


def _rows_as_int8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, (rows, columns), -127 to 127, and scales, (rows, 1): symmetric, one scale for each row."""
    scales = matrix.detach().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (matrix.detach() / scales).round_().to(torch.int8), scales


def int8_linear(
    inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """A linear map on integers: inputs (..., columns) get a scale for each row as they come, ``codes`` are int8 (rows, columns) with
    ``scales`` (rows, 1). Returns (..., rows), f32."""
    quantized, factors = _rows_as_int8(inputs.reshape(-1, inputs.shape[-1]))
    outputs = torch._int_mm(quantized, codes.t()).float().mul_(factors).mul_(scales.t())
    return (outputs if bias is None else outputs.add_(bias)).reshape(*inputs.shape[:-1], -1)


def seconds_of(action: Callable[[], object]) -> float:
    """The least wall time of several calls, after one that is not counted."""

    def once() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    action()
    return _least(once)


def _least(once: Callable[[], float]) -> float:
    times: list[float] = []
    while len(times) < _ROUNDS or (min(times) < _SHORT and len(times) < _MORE_ROUNDS):
        times.append(once())
    return min(times)


def _decode_times(weight: Weight, options: Sequence[Option]) -> dict[str, float]:
    value = weight.value()
    array = to_numpy(value, check_tensor(weight.name, value))
    out = np.empty(array.shape, array.dtype)
    found: dict[str, float] = {}
    for option in options:
        data = _file({weight.name: option.quantize(array)})
        found[option.name] = _least(functools.partial(_read_time, data, weight.name, out))
    return found


def _read_time(data: bytes, name: str, out: np.ndarray) -> float:
    with Reader(data, threads=1) as reader:
        start = time.perf_counter()
        reader.read(name, out)
        return time.perf_counter() - start


def _open_time(module: nn.Module, weights: Sequence[Weight]) -> float:
    """Of a file with as many tensors, and the reading of those that are no weights. What is in weights does not matter."""
    arrays = {name: to_numpy(value, check_tensor(name, value)) for name, value in module.state_dict().items()}
    searched = {name for weight in weights for name in weight.names}
    data = _file(
        {name: np.zeros_like(array) if name in searched else array for name, array in arrays.items()}
    )
    others = {name: np.empty_like(array) for name, array in arrays.items() if name not in searched}

    def open_it() -> None:
        with Reader(data, threads=1) as reader:
            for name, out in others.items():
                reader.read(name, out)

    return seconds_of(open_it)


def _file(tensors: Mapping[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="dcz-search-") as folder:
        path = Path(folder) / "model.dcz"
        with Writer(path, threads=1) as writer:
            for name, tensor in tensors.items():
                writer.add_tensor(name, tensor)
        return path.read_bytes()
