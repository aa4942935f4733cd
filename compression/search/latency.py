"""What latency a choice of bits has, from tables that were measured (dcz.compression.search.timing).

The model is that of a network that is not in memory yet, up to its first output:

    seconds = open + rest(batch) + other bytes / bandwidth
              + sum over weights of  bytes / bandwidth + decode(option) + compute(precision, batch)

fetching, decoding and computing one after the other, on the threads that the table was measured with. ``bytes`` are those of the
encoded weight, ``decode`` goes from stored bytes to a dense weight in memory, and ``compute`` is all that the network does with the weight
in one forward pass. dcz decodes to the type that the weight had, so what runs today computes in f32 whatever the bits are;
bf16 and int8 say what a forward pass in these would take.

A table may come from a stranger: it is read as strictly as a recipe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcz.compression.search.costs import Choice, Costs
from dcz.errors import UsageError

__all__ = [
    "LatencyCheck",
    "LatencyModel",
    "LatencyTable",
    "Precision",
    "WeightLatency",
    "load_table",
    "save_table",
]

Precision: TypeAlias = Literal["f32", "bf16", "int8"]

Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]
_Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 40)]
_Batches: TypeAlias = Annotated[tuple[_Count, ...], Field(strict=False, min_length=1, max_length=100)]
_PerBatch: TypeAlias = Annotated[tuple[Seconds, ...], Field(strict=False, min_length=1, max_length=100)]

_MAX_BYTES: Final = 16 << 20  # of a table


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class WeightLatency(_Model):
    """One weight. ``decode``: seconds by the name of the option. ``compute``: seconds by precision, for each batch size of the table;
    without an entry if there is no kernel for what the network does with the weight."""

    name: _Name
    shape: Annotated[tuple[_Count, ...], Field(strict=False, max_length=64)]
    decode: Annotated[dict[_Name, Seconds], Field(max_length=1000)]
    compute: dict[Precision, _PerBatch]


class LatencyCheck(_Model):
    """All weights stored alike, from the closed file to the first output: what the table says, and what was measured.
    ``bandwidth``: bytes a second, at which the file came; None if it was in memory."""

    option: _Name
    batch: _Count
    bandwidth: _Count | None
    predicted: Seconds
    measured: Seconds


class LatencyTable(_Model):
    """What was measured of one network on one machine. ``open``: seconds to open a file and read what is no weight. ``rest``: of a forward pass
    in f32, beside what is done with the weights, for each batch size."""

    version: Literal[1]
    network: _Name
    processor: Annotated[str, Field(max_length=1000)]
    torch: Annotated[str, Field(max_length=100)]
    threads: Annotated[int, Field(ge=1, le=100_000)]
    batches: _Batches
    open: Seconds
    rest: _PerBatch
    weights: Annotated[tuple[WeightLatency, ...], Field(strict=False, max_length=100_000)]
    checks: Annotated[tuple[LatencyCheck, ...], Field(strict=False, max_length=10_000)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> LatencyTable:
        if list(self.batches) != sorted(set(self.batches)):
            raise ValueError("the batch sizes do not ascend")
        for what, row in [("rest", self.rest)] + [
            (f"the compute of {weight.name}", row)
            for weight in self.weights
            for row in weight.compute.values()
        ]:
            if len(row) != len(self.batches):
                raise ValueError(f"{what} has {len(row)} figures for {len(self.batches)} batch sizes")
        for weight in self.weights:
            if "f32" not in weight.compute:
                raise ValueError(f"the compute of {weight.name} has no f32")
        if len({weight.name for weight in self.weights}) < len(self.weights):
            raise ValueError("two weights have the same name")
        return self


@dataclass(frozen=True)
class LatencyModel:
    """A table and how the network is used: what the seconds of a choice are.

    ``bandwidth``: bytes a second at which the file is fetched, above 0; infinite if it is in memory. ``batch``: one of the table's.
    ``precision``: what a weight of at most 8 bits is computed with, where the table has a kernel for it; others are computed in f32.

    Raises UsageError if the table does not have the batch size, or the bandwidth is none.
    """

    table: LatencyTable
    bandwidth: float
    batch: int = 1
    precision: Precision = "f32"

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise UsageError(f"a bandwidth of {self.bandwidth} bytes a second: above 0 is possible")
        if self.batch not in self.table.batches:
            raise UsageError(
                f"the latency table has no batches of {self.batch}",
                hint=f"it has {', '.join(map(str, self.table.batches))}",
            )

    @property
    def _place(self) -> int:
        return self.table.batches.index(self.batch)

    def costs(self, costs: Costs) -> dict[str, tuple[Choice, ...]]:
        """The same choices with their seconds. Raises UsageError if the table does not have a weight or an option."""
        known = {weight.name: weight for weight in self.table.weights}
        found: dict[str, tuple[Choice, ...]] = {}
        for name, row in costs.items():
            if name not in known:
                raise UsageError(f"the latency table of {self.table.network!r} has no weight {name!r}")
            found[name] = tuple(replace(choice, seconds=self._seconds(known[name], choice)) for choice in row)
        return found

    def beside(self, other_bytes: float) -> float:
        """Seconds that do not depend on how weights are stored. ``other_bytes``: of the file, which belong to no weight."""
        return self.table.open + self.table.rest[self._place] + other_bytes / self.bandwidth

    def _seconds(self, weight: WeightLatency, choice: Choice) -> float:
        if choice.name not in weight.decode:
            raise UsageError(
                f"the latency table does not have {weight.name} stored as {choice.name!r}",
                hint=f"it has {', '.join(map(repr, weight.decode))}",
            )
        compute = weight.compute.get(self.precision if choice.bits <= 8 else "f32", weight.compute["f32"])
        return choice.bytes / self.bandwidth + weight.decode[choice.name] + compute[self._place]


def load_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Read a table. Raises UsageError if it is none, and says where; OSError if the file cannot be read."""
    with Path(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{os.fspath(path)}: more than {_MAX_BYTES} bytes are not a latency table")
    try:
        return LatencyTable.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{os.fspath(path)}: not a latency table: {where + ': ' if where else ''}{first['msg']}"
        ) from exc


def save_table(table: LatencyTable, path: str | os.PathLike[str]) -> None:
    """Write a table as JSON. Raises OSError."""
    Path(path).write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")
