"""Quantized checkpoints of Hugging Face folders: the tensors that a module was stored as become its weight again, as codes.

    quant_method         read by                           its tensors
    gptq                 checkpoint_gptq                   qweight, qzeros, scales, g_idx
    awq                  checkpoint_gptq                   qweight, qzeros, scales
    compressed-tensors   checkpoint_compressed_tensors     weight_packed or weight, weight_scale, ...
    bitsandbytes         checkpoint_bitsandbytes           weight, absmax, quant_map, quant_state, ...

What comes out is an ordinary model: each weight of its logical shape, in the type that the library decodes to. So
``quantization_config`` leaves config.json, and is kept in the metadata.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcz.converters.base import AssetData, TensorOutline, TensorSource
from dcz.converters.checkpoint_bitsandbytes import bitsandbytes_tensors
from dcz.converters.checkpoint_compressed_tensors import compressed_tensors
from dcz.converters.checkpoint_gptq import awq_tensors, gptq_tensors
from dcz.converters.checkpoint_parts import Outlines, QuantizedTensor, Unread
from dcz.converters.safetensors_header import load_json
from dcz.errors import EncodingError, SourceError

if TYPE_CHECKING:
    from dcz.format.manifest import Provenance
    from dcz.format.tensors import TensorData

__all__ = ["CONFIG", "QuantizedSource", "unpacked"]

CONFIG: Final = "config.json"
_FIELD: Final = "quantization_config"
_MAX_CONFIG: Final = 16 << 20  # bytes
_METHODS: Final[dict[str, Callable[[Mapping[str, Any], Outlines], Iterator[QuantizedTensor]]]] = {
    "gptq": gptq_tensors,
    "awq": awq_tensors,
    "compressed-tensors": compressed_tensors,
    "bitsandbytes": bitsandbytes_tensors,
}


def unpacked(folder: Path, weights: TensorSource, notes: list[str]) -> TensorSource:
    """The tensors of a checkpoint whose stored ones are ``weights``, and which ``config.json`` in ``folder`` describes: a
    QuantizedSource if that says how they were quantized, and dcz reads it; otherwise ``weights``, and perhaps a note.

    Raises SourceError if the tensors are not what it says.
    """
    config = _configuration(folder / CONFIG)
    given = None if config is None else config.get(_FIELD)
    method = given.get("quant_method") if isinstance(given, dict) else None
    if config is None or not isinstance(method, str) or method not in _METHODS:
        return weights
    try:
        return QuantizedSource(weights, config)
    except Unread as exc:
        notes.append(
            f"the quantized weights are stored as they lie there, for the library that made them: {exc}"
        )
        return weights


def _configuration(path: Path) -> dict[str, Any] | None:
    """What stands in a config.json; None if there is none, or another file of that name."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
        fields = load_json(data) if len(data) <= _MAX_CONFIG else None
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


class QuantizedSource:
    """A source whose quantized modules are one tensor each; the others are as they are. ``config`` is what config.json is to be
    for what comes out."""

    def __init__(self, weights: TensorSource, config: Mapping[str, Any]) -> None:
        """``config``: the content of config.json. Raises SourceError, Unread."""
        self._weights, self._given = weights, dict(config[_FIELD])
        rest = {name: value for name, value in config.items() if name != _FIELD}
        self.config = json.dumps(rest, indent=2).encode() + b"\n"
        stored = {outline.name: outline for outline in weights.outlines()}
        given = dict(weights.aliases())
        # A part may be shared by several modules.
        stored |= {alias: replace(stored[target], name=alias) for alias, target in given.items()}
        method = self._given["quant_method"]
        self._quantized = list(_METHODS[method](self._given, stored))
        if not self._quantized:
            raise Unread(f"no tensor of it is one that dcz knows of {method}")
        place = {name: number for number, name in enumerate(stored)}
        first: dict[str, QuantizedTensor] = {}
        used: set[str] = set()
        for tensor in self._quantized:
            for part in (*tensor.parts, *tensor.left_out):
                if part in used:
                    raise SourceError(f"the tensor {part!r} is part of two quantized tensors")
                used.add(part)
            first[min(tensor.parts, key=place.__getitem__)] = tensor
        self._aliases = {alias: target for alias, target in given.items() if not {alias, target} & used}
        self._outlines: list[TensorOutline] = []
        for name, outline in stored.items():
            if name in first:
                found = first[name]
                read = functools.partial(_read, found)
                self._outlines.append(TensorOutline(found.name, found.dtype, found.shape, read))
            elif name not in used and name not in self._aliases:
                self._outlines.append(outline)

    @property
    def tensor_bytes(self) -> int:
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self._outlines)

    @property
    def metadata(self) -> Mapping[str, str]:
        config = json.dumps(self._given, sort_keys=True)
        return {**self._weights.metadata, _FIELD: config}

    @property
    def notes(self) -> tuple[str, ...]:
        made = f"{len(self._quantized)} tensors are stored as the codes that {self._given['quant_method']} gave them; "
        notes = [made + f"{_FIELD} is kept in the metadata, as what is loaded are plain weights"]
        left_out = [name for tensor in self._quantized for name in tensor.left_out]
        if left_out:
            notes.append(
                f"left out: {len(left_out)} tensors about activations, which plain weights do not have, such as {left_out[0]}"
            )
        return (*self._weights.notes, *notes)

    def tensors(self) -> Iterator[tuple[str, TensorData]]:
        for outline in self._outlines:
            yield outline.name, outline.read(0, outline.shape[0] if outline.shape else 1)

    def outlines(self) -> Iterator[TensorOutline]:
        return iter(self._outlines)

    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def assets(self) -> Iterator[AssetData]:
        """None: headers and index of the stored tensors are not those of the weights."""
        return iter(())

    def provenance(self) -> Provenance:
        return self._weights.provenance()

    def close(self) -> None:
        self._weights.close()


def _read(tensor: QuantizedTensor, start: int, stop: int) -> TensorData:
    try:
        return tensor.read(start, stop)
    except EncodingError as exc:  # a scale that is not finite, say
        raise SourceError(f"the quantized tensor {tensor.name!r}: {exc.message}") from exc
