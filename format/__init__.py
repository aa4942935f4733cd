"""The container: bytes to tensors and back (docs/format.md). numpy in, numpy out; no framework, no network."""

from __future__ import annotations

from dcz.format.atomic import atomic_file, sync_folder
from dcz.format.bases import BaseLike, BaseReference, BaseResolver
from dcz.format.dtypes import DTYPES, DType, dtype_of
from dcz.format.layout import DEFAULT_LIMITS, Limits
from dcz.format.manifest import Bitmap, Dense, Manifest, Provenance, RelativeIndex, SourceFile
from dcz.format.reader import LazyTensor, Reader
from dcz.format.sparse import CompressedSparse
from dcz.format.tensors import (
    AffineTensor,
    CodebookTensor,
    PerChannel,
    PerGroup,
    PerTensor,
    TensorBase,
    TensorData,
)
from dcz.format.verify import VerifyReport, verify
from dcz.format.writer import Writer

__all__ = [
    "DEFAULT_LIMITS",
    "DTYPES",
    "AffineTensor",
    "BaseLike",
    "BaseReference",
    "BaseResolver",
    "Bitmap",
    "CodebookTensor",
    "CompressedSparse",
    "DType",
    "Dense",
    "LazyTensor",
    "Limits",
    "Manifest",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Provenance",
    "Reader",
    "RelativeIndex",
    "SourceFile",
    "TensorBase",
    "TensorData",
    "VerifyReport",
    "Writer",
    "atomic_file",
    "dtype_of",
    "sync_folder",
    "verify",
]
