"""The container: bytes to tensors and back (docs/format.md). numpy in, numpy out; no framework, no network."""

from __future__ import annotations

from dcz.format.atomic import atomic_file, sync_folder
from dcz.format.bases import BaseLike, BaseReference, BaseResolver
from dcz.format.decoded import decoded
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.layout import DEFAULT_LIMITS, Limits
from dcz.format.manifest import Bitmap, Dense, Manifest, Provenance, RelativeIndex, SourceFile
from dcz.format.reader import LazyTensor, Reader
from dcz.format.sparse import CompressedSparse
from dcz.format.tensors import (
    AffineParameters,
    AffineTensor,
    CodebookParameters,
    CodebookTensor,
    CodedTensor,
    Indexed,
    PerChannel,
    PerFlat,
    PerGroup,
    PerTensor,
    ScaledCodebookTensor,
    TensorBase,
    TensorData,
    UniformTensor,
    VectorCodebookTensor,
)
from dcz.format.verify import VerifyReport, verify
from dcz.format.writer import Writer

__all__ = [
    "DEFAULT_LIMITS",
    "DTYPES",
    "AffineParameters",
    "AffineTensor",
    "BaseLike",
    "BaseReference",
    "BaseResolver",
    "Bitmap",
    "CodebookParameters",
    "CodebookTensor",
    "CodedTensor",
    "CompressedSparse",
    "DType",
    "Dense",
    "Indexed",
    "LazyTensor",
    "Limits",
    "Manifest",
    "PerChannel",
    "PerFlat",
    "PerGroup",
    "PerTensor",
    "Provenance",
    "Reader",
    "RelativeIndex",
    "ScaledCodebookTensor",
    "SourceFile",
    "TensorBase",
    "TensorData",
    "UniformTensor",
    "VectorCodebookTensor",
    "VerifyReport",
    "Writer",
    "atomic_file",
    "decoded",
    "dtype_of",
    "sync_folder",
    "verify",
]
