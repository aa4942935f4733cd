"""Codes and parameters as a file holds them: the way back to what the writer was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dcz.errors import CorruptStream, EncodingError
from dcz.format.dtypes import DTYPES
from dcz.format.encodings import positions_of
from dcz.format.manifest import (
    AffineCoded,
    Codebook,
    CodebookCoded,
    Exact,
    PerIndex,
    ScaledCodebook,
    Vectors,
)
from dcz.format.tensors import (
    AffineParameters,
    AffineTensor,
    CodebookParameters,
    CodebookTensor,
    Indexed,
    ScaledCodebookTensor,
    VectorCodebookTensor,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dcz.format.geometry import TensorGeometry
    from dcz.format.manifest import Parameters, StoredGranularity
    from dcz.format.reader import Reader
    from dcz.format.tensors import GranularityLike, ParameterValues, TensorData

__all__ = ["stored_tensor"]


def stored_tensor(reader: Reader, name: str) -> TensorData:
    """A tensor as it is stored: its codes and their parameters, or if it has none, its elements.

    Memory holds a byte for each element. Raises TensorNotFound or FormatError, and BaseNotFound or WrongBase for elements.
    """
    geometry = reader.geometry.tensors[reader.stored_name(name)]
    if isinstance(geometry.tensor.values, Exact):
        return reader.read(name)
    parameters = reader.read_parameters(name)
    codes, mask = _codes(reader, name, geometry)
    try:
        return _assembled(geometry, parameters, codes, mask)
    except EncodingError as exc:  # what the format does not allow
        raise CorruptStream(exc.message, file=reader.name, tensor=geometry.tensor.name) from exc


def _codes(reader: Reader, name: str, geometry: TensorGeometry) -> tuple[np.ndarray, np.ndarray | None]:
    """The codes of all elements, and which elements have one unless all have."""
    values = geometry.tensor.values
    if isinstance(values, Vectors):
        symbols = [reader.read_symbols(name, segment)[0][2] for segment in range(geometry.segments)]
        return np.concatenate(symbols), None
    codes = np.zeros(geometry.elements, np.uint8)
    mask = np.zeros(geometry.elements, np.bool_) if geometry.position_streams else None
    for segment in range(geometry.segments):
        found = [symbols for _, _, symbols in reader.read_symbols(name, segment)]
        start = segment * geometry.tensor.segment
        if mask is None:
            codes[start : start + found[0].size] = found[0]
            continue
        positions = start + positions_of(geometry, segment, found[0]).astype(np.int64)
        mask[positions] = True
        codes[positions] = found[1]
    return codes, mask


def _assembled(
    geometry: TensorGeometry, parameters: Mapping[str, np.ndarray], codes: np.ndarray, mask: np.ndarray | None
) -> TensorData:
    tensor, values = geometry.tensor, geometry.tensor.values
    assert not isinstance(values, Exact)
    elements = geometry.dtype.numpy
    if isinstance(values, Vectors):
        words = parameters["codewords"].view(elements).reshape(-1, values.size, values.dimension)
        return VectorCodebookTensor(tensor.dtype, tensor.shape, values.bits, codes, words, values.per_place)
    granularity = _granularity(values.granularity, parameters)
    if isinstance(values, Codebook):
        centroids = parameters["centroids"].view(elements).reshape(-1, values.size)
        return CodebookTensor(tensor.dtype, tensor.shape, values.bits, codes, centroids, granularity, mask)
    scales = _values(parameters, "scales", values.scale_values, tensor.scale_dtype)
    if isinstance(values, ScaledCodebook):
        table = parameters["table"].view("<f8" if tensor.dtype == "f64" else "<f4")
        return ScaledCodebookTensor(
            tensor.dtype, tensor.shape, values.bits, codes, table, scales, granularity, mask
        )
    minimums = None
    if values.minimums:
        minimums = _values(parameters, "minimums", values.minimum_values, tensor.scale_dtype)
    return AffineTensor(
        tensor.dtype,
        tensor.shape,
        values.bits,
        codes,
        scales,
        granularity,
        parameters["zero points"] if values.zero_points else values.zero_point,
        mask,
        minimums,
    )


def _granularity(granularity: StoredGranularity, parameters: Mapping[str, np.ndarray]) -> GranularityLike:
    if isinstance(granularity, PerIndex):
        return Indexed(parameters["index"].view("<u2"), granularity.groups)
    return granularity


def _values(parameters: Mapping[str, np.ndarray], role: str, how: Parameters, dtype: str) -> ParameterValues:
    """Scales or minimums, as codes if they are."""
    if not isinstance(how, AffineCoded | CodebookCoded):
        return parameters[role].view(DTYPES[dtype].numpy)
    codes, scales = parameters[f"{role}.codes"], parameters[f"{role}.scales"].view(DTYPES[how.dtype].numpy)
    if isinstance(how, AffineCoded):
        return AffineParameters(codes, how.bits, scales, how.group, how.zero_point)
    offset = float(parameters[f"{role}.offset"].view("<f4")[0]) if how.offset else None
    table = parameters[f"{role}.table"].view("<f4")
    return CodebookParameters(codes, how.bits, table, scales, how.group, offset)
