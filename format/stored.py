"""Codes and parameters as a file holds them: the way back to what the writer was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dcz.format.dtypes import DTYPES
from dcz.format.encodings import positions_of
from dcz.format.manifest import Affine, Codebook, Exact
from dcz.format.tensors import AffineTensor, CodebookTensor

if TYPE_CHECKING:
    from dcz.format.reader import Reader
    from dcz.format.tensors import TensorData

__all__ = ["stored_tensor"]


def stored_tensor(reader: Reader, name: str) -> TensorData:
    """A tensor as it is stored: its codes and their parameters, or if it has none, its elements.

    Memory holds a byte for each element. Raises TensorNotFound or FormatError, and BaseNotFound or WrongBase for elements.
    """
    geometry = reader.geometry.tensors[reader.stored_name(name)]
    tensor, values = geometry.tensor, geometry.tensor.values
    if isinstance(values, Exact):
        return reader.read(name)
    parameters = reader.read_parameters(name)
    codes = np.empty(geometry.elements, np.uint8)
    mask = np.zeros(geometry.elements, np.bool_) if geometry.position_streams else None
    for segment in range(geometry.segments):
        symbols = [found for _, _, found in reader.read_symbols(name, segment)]
        start, stop = segment * tensor.segment, segment * tensor.segment + geometry.segment_elements(segment)
        if mask is None:
            codes[start:stop] = symbols[0]
            continue
        positions = start + positions_of(geometry, segment, symbols[0])
        mask[positions] = True
        codes[start:stop] = 0
        codes[positions] = symbols[1]
    match values:
        case Codebook():
            centroids = parameters[0].view(geometry.dtype.numpy).reshape(-1, values.size)
            return CodebookTensor(
                tensor.dtype, tensor.shape, values.bits, codes, centroids, values.granularity, mask
            )
        case Affine():
            return AffineTensor(
                tensor.dtype,
                tensor.shape,
                values.bits,
                codes,
                parameters[0].view(DTYPES[tensor.scale_dtype].numpy),
                values.granularity,
                parameters[1] if values.zero_points else None,
                mask,
            )
