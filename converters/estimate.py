"""estimate: what each recipe would make of a model, from samples of its tensors, before any work.

Of each tensor some rows are read, prepared by the recipe and encoded as the writer would, and the streams are counted. Of
many tensors that are called alike but for a number, and have the same type and shape, as the layers of a network, only
a few are looked at.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dcz.converters.base import decoded_bytes
from dcz.converters.conversion import open_source
from dcz.converters.recipes import BUILTIN_RECIPES, recipe_of_rules
from dcz.errors import EncodingError
from dcz.format import Reader
from dcz.format.coding import encode_zstd
from dcz.format.effort import EFFORTS, Effort, effort_of
from dcz.format.encoder import TensorEncoder
from dcz.format.manifest import Exact, PerChannel, PerTensor, Vectors

if TYPE_CHECKING:
    from dcz.converters.base import AssetData, TensorOutline, TensorSource
    from dcz.converters.conversion import RecipeLike, SourceLike
    from dcz.converters.recipes import Recipe
    from dcz.format.dtypes import DType
    from dcz.format.effort import EffortName
    from dcz.format.tensors import TensorData

__all__ = ["Estimate", "Estimated", "estimate"]

_ALIKE: Final = 4  # tensors that are looked at of those that are alike
_ELEMENTS: Final = 1 << 17  # of a tensor that are looked at
_BLOCKS: Final = 8  # in so many pieces
_ASSET_SAMPLE: Final = 1 << 20
_ASSET_LEVEL: Final = 12  # as the writer
_TENSOR_BYTES: Final = 75  # in the manifest, the name aside: digest, type, shape, values, lengths
_CHUNK_BYTES: Final = 75  # digest, lengths, and half of the largest padding
_FILE_BYTES: Final = 200  # header, footer, provenance
_CHUNK: Final = 1 << 20
_NARROW: Final = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
_HELD: Final = {
    "affine": "what a quantizer made",
    "scaled-codebook": "what a quantizer made",
    "vectors": "what a quantizer made",
    "codebook": "few different values",
}
_INCOMPRESSIBLE: Final = {
    "f64": "its 52 bits of mantissa do not compress",
    "f32": "its 23 bits of mantissa do not compress",
    "f16": "its mantissa does not compress, and is two thirds of it",
    "bf16": "its exponents compress to a third, sign and mantissa do not",
}


@dataclass(frozen=True)
class Estimate:
    """What one recipe would give, at one effort. ``file_bytes``: of the whole file, assets included; ``weight_bytes``: of
    the tensors alone."""

    recipe: str
    effort: str
    file_bytes: int
    weight_bytes: int
    tensor_bytes: int
    elements: int
    problem: str | None = None
    """Why the recipe cannot be applied to this model; then the sizes say nothing."""

    @property
    def ratio(self) -> float:
        """The file's bytes for each byte of the tensors; 1 if there are none."""
        return self.file_bytes / self.tensor_bytes if self.tensor_bytes else 1.0

    @property
    def bits_per_weight(self) -> float:
        """Bits that the tensors take, for each of their elements; 0 if there are none."""
        return 8 * self.weight_bytes / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Estimated:
    """The estimates for a model. ``sampled_bytes`` of its ``tensor_bytes`` were looked at, in ``seconds`` of wall clock."""

    tensors: int
    elements: int
    tensor_bytes: int
    sampled_bytes: int
    seconds: float
    estimates: tuple[Estimate, ...]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class _Sample:
    """Rows of a tensor, and for how many tensors they stand. ``rows``: of the tensor's type and the shape (rows, ...)."""

    outline: TensorOutline
    rows: TensorData
    count: float

    @property
    def elements(self) -> int:
        return math.prod(self.outline.shape)

    @property
    def share(self) -> float:
        """Elements of the tensor for each one that was read."""
        read = math.prod(self.rows.shape)
        return self.elements / read if read else 1.0


def _rows(outline: TensorOutline) -> TensorData:
    """Blocks of consecutive rows, spread evenly; all of a small tensor; of codes, one block from the middle."""
    shape, elements = outline.shape, math.prod(outline.shape)
    if elements <= _ELEMENTS or not shape:
        return outline.read(0, shape[0] if shape else 1)
    row = elements // shape[0]
    wanted = max(1, _ELEMENTS // row)
    blocks = min(_BLOCKS, wanted, shape[0])
    size = wanted // blocks
    pieces: list[np.ndarray] = []
    for i in range(blocks):
        start = i * shape[0] // blocks
        piece = outline.read(start, min(start + size, shape[0]))
        if not isinstance(piece, np.ndarray):
            start = (shape[0] - min(wanted, shape[0])) // 2
            return outline.read(start, start + min(wanted, shape[0]))
        pieces.append(piece)
    return np.concatenate(pieces)


def _samples(outlines: Iterable[TensorOutline]) -> Iterator[_Sample]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[TensorOutline]] = {}
    for outline in outlines:
        alike = re.sub(r"\d+", "#", outline.name), outline.dtype.name, outline.shape
        groups.setdefault(alike, []).append(outline)
    for members in groups.values():
        taken = (
            members
            if len(members) <= _ALIKE
            else [members[i * len(members) // _ALIKE] for i in range(_ALIKE)]
        )
        for outline in taken:
            yield _Sample(outline, _rows(outline), len(members) / len(taken))


def _stored(
    sample: _Sample, tensor: TensorData, how: dict[str, Any], effort: Effort
) -> tuple[float, str | None]:
    """The bytes that the streams of the whole tensor would take, and what it was recognized as."""
    encoder = TensorEncoder(tensor, effort=effort, **how)
    values = 0
    for segment in range(encoder.segments):
        values += sum(len(data) for _, data in encoder.encode(segment).streams)
    parameters = sum(len(data) for _, data in encoder.parameter_streams()) if encoder.elements else 0
    described, share = encoder.values, sample.share
    narrow = described.stored_dtype if isinstance(described, Exact) else described.kind
    granularity = PerTensor() if isinstance(described, Exact | Vectors) else described.granularity
    if granularity == PerTensor() or (isinstance(granularity, PerChannel) and granularity.axis > 0):
        return values * share + parameters, narrow
    return (values + parameters) * share, narrow


class _Total:
    """Adds up what a recipe makes of the tensors."""

    def __init__(self, recipe: Recipe, effort: Effort) -> None:
        self.recipe, self.effort = recipe, effort
        self.bytes = self.overhead = 0.0
        self.problem: str | None = None
        self.by_type: dict[str, list[float]] = {}
        self.narrow: dict[tuple[str, str], float] = {}

    def add(self, sample: _Sample) -> None:
        if self.problem is not None:
            return
        outline = sample.outline
        content = sample.elements * outline.dtype.itemsize
        stored = 0.0
        if sample.elements:
            rule = self.recipe.rule_for(outline.name, outline.dtype, outline.shape)
            try:
                prepared = None if rule is None else rule.apply(sample.rows, self.effort.name)
                how = {} if prepared is None else {"layout": prepared.layout, "coding": prepared.coding}
                tensor = sample.rows if prepared is None else prepared.tensor
                stored, narrow = _stored(sample, tensor, how, self.effort)
            except EncodingError as exc:
                self.problem = f"{outline.name}: {exc.message}"
                return
            if narrow is not None:
                key = outline.dtype.name, narrow
                self.narrow[key] = self.narrow.get(key, 0) + content * sample.count
        self.bytes += stored * sample.count
        chunks = stored / min(_CHUNK, max(1.0, stored / max(1, content) * _CHUNK)) if stored else 0
        named = len(outline.name.encode()) / 3
        self.overhead += (_TENSOR_BYTES + named + chunks * _CHUNK_BYTES) * sample.count
        total = self.by_type.setdefault(outline.dtype.name, [0.0, 0.0])
        total[0] += content * sample.count
        total[1] += stored * sample.count


def _asset_bytes(assets: Iterable[AssetData]) -> float:
    total = 0.0
    for asset in assets:
        content = asset.read()
        piece = content[:_ASSET_SAMPLE]
        if piece:
            stored = min(len(piece), len(encode_zstd(piece, _ASSET_LEVEL)))
            total += stored * len(content) / len(piece) + _TENSOR_BYTES
    return total


def _hints(lossless: _Total) -> Iterator[str]:
    for (dtype, narrow), size in sorted(lossless.narrow.items(), key=lambda item: -item[1]):
        content = lossless.by_type[dtype][0]
        if size >= 0.01 * content:
            held = f"the values of {_NARROW[narrow]}" if narrow in _NARROW else _HELD[narrow]
            yield f"{dtype}: {100 * size / content:.0f} % of its bytes hold {held}, and take no more than that"
    for dtype, (content, stored) in sorted(lossless.by_type.items(), key=lambda item: -item[1][0]):
        saved = 100 * (1 - stored / content) if content else 0.0
        if content < 0.01 * sum(size for size, _ in lossless.by_type.values()):
            continue
        why = f"{_INCOMPRESSIBLE[dtype]}; " if dtype in _INCOMPRESSIBLE and saved < 45 else ""
        yield f"{dtype}: {why}lossless saves about {saved:.0f} %"


def _plans(recipes: Sequence[RecipeLike] | None, efforts: Sequence[EffortName] | None) -> list[_Total]:
    chosen = [recipe_of_rules(recipe) for recipe in (BUILTIN_RECIPES if recipes is None else recipes)]
    given = None if efforts is None else [effort_of(name) for name in efforts]
    plans: list[_Total] = []
    for recipe in chosen:
        changes = any(rule.changes_weights for rule in recipe.rules)
        usual = [EFFORTS["balanced"]] if changes else list(EFFORTS.values())
        plans += [_Total(recipe, effort) for effort in given or usual]
    return plans


def estimate(
    source: SourceLike,
    *,
    recipes: Sequence[RecipeLike] | None = None,
    efforts: Sequence[EffortName] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimated:
    """Say what dcz.convert would make of a model, without doing it: from samples, in seconds, and without writing a file.

    ``source`` and the members of ``recipes`` (default: all that are built in) as for dcz.convert. ``efforts``: which to
    estimate (default: all for recipes that keep the weights, ``balanced`` for others). ``progress`` is called with the
    tensor bytes that were dealt with and those that there are.

    Sizes are mostly within two percent of what convert makes. Raises what dcz.convert raises for the source, the recipes
    and the efforts; a recipe that cannot be applied is no error but has a ``problem``.
    """
    start = time.perf_counter()
    plans = _plans(recipes, efforts)
    lossless = _Total(recipe_of_rules("lossless"), EFFORTS["balanced"])
    opened: TensorSource = open_source(source)
    try:
        outlines = list(opened.outlines())
        total = sum(_nbytes(outline.dtype, outline.shape) for outline in outlines)
        sampled = done = 0.0
        for sample in _samples(outlines):
            for plan in (*plans, lossless):
                plan.add(sample)
            sampled += decoded_bytes(sample.rows)
            done += sample.count * sample.elements * sample.outline.dtype.itemsize
            if progress is not None:
                progress(round(done), total)
        assets = _asset_bytes(opened.assets())
    finally:
        if not isinstance(source, Reader):
            opened.close()
    elements = sum(math.prod(outline.shape) for outline in outlines)
    return Estimated(
        tensors=len(outlines),
        elements=elements,
        tensor_bytes=total,
        sampled_bytes=round(sampled),
        seconds=time.perf_counter() - start,
        estimates=tuple(
            Estimate(
                recipe=plan.recipe.name,
                effort=plan.effort.name,
                file_bytes=round(plan.bytes + plan.overhead + assets) + _FILE_BYTES,
                weight_bytes=round(plan.bytes),
                tensor_bytes=total,
                elements=elements,
                problem=plan.problem,
            )
            for plan in plans
        ),
        hints=tuple(_hints(lossless)),
    )


def _nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
