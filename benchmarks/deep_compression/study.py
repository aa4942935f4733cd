"""What the studies share: a network that is compressed step by step, and the size of what comes of it as a file."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from dcz.compression.torch_tensors import check_tensor, to_numpy
from dcz.compression.training.weights import find_weights
from dcz.format.writer import Writer

if TYPE_CHECKING:
    from dcz.format.tensors import TensorData


RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Subject:
    """A network to compress.

    ``network``: the dense one. ``train(module, epochs)`` trains what the module gives as parameters, the learning rate
    falling to nothing; ``error(module)``: in per cent, of words or images that ``train`` never sees.
    """

    name: str
    what: str
    network: nn.Module
    train: Callable[[Any, float], None]
    error: Callable[[Any], float]

    @property
    def bytes(self) -> int:
        """Of the dense parameters in fp32: what sizes are compared with."""
        return 4 * sum(parameter.numel() for parameter in self.network.parameters())

    def fresh(self) -> Any:
        """A copy of the dense network."""
        return copy.deepcopy(self.network)


@dataclass(frozen=True)
class Point:
    """One operating point: which, the bytes of the complete file, the dense bytes over them, and the error, per cent."""

    method: str
    setting: float
    bytes: int
    ratio: float
    error: float


def measured(subject: Subject, method: str, setting: float, module: nn.Module) -> Point:
    """Where a module stands now: its file, and its error."""
    size = file_size(tensors_of(module))
    return Point(method, setting, size, round(subject.bytes / size, 2), round(subject.error(module), 3))


def tensors_of(module: nn.Module) -> dict[str, TensorData]:
    """The parameters as plain arrays; that few values are shared and many are zero, the writer finds by itself."""
    weights = find_weights(module)
    compressed = {id(weight.parameter) for weight in weights}
    values = {weight.name: weight.value() for weight in weights}
    rest = {name: value.detach() for name, value in module.named_parameters() if id(value) not in compressed}
    return {name: to_numpy(value, check_tensor(name, value)) for name, value in (values | rest).items()}


def file_size(tensors: Mapping[str, TensorData]) -> int:
    """Bytes of a complete .dcz file with these tensors."""
    with tempfile.TemporaryDirectory() as folder:
        return write_file(Path(folder, "model.dcz"), tensors)


def write_file(path: Path, tensors: Mapping[str, TensorData]) -> int:
    """Write a .dcz file, effort ``small``; returns its bytes."""
    with Writer(path, effort="small") as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
    return path.stat().st_size


def write_json(path: Path, command: str, results: Mapping[str, Any]) -> None:
    """Results as JSON, and the command that made them."""
    text = json.dumps({**results, "command": command}, indent=1, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Points out of JSON."""
    return [Point(**row) for row in rows]


def curve(rows: Sequence[Point], method: str, dense: int) -> list[tuple[float, float]]:
    """What to plot: size in per cent of the dense one, and the error."""
    return sorted((100 * row.bytes / dense, row.error) for row in rows if row.method == method)


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not for JSON")
