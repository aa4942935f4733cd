"""An open .dcz file in the manner of ``safetensors.safe_open``, giving torch tensors or numpy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np

from dcz.compression.torch_tensors import require_torch, to_torch
from dcz.errors import UsageError
from dcz.format import DTYPES, dtype_of
from dcz.runtime.slabs import allocate

if TYPE_CHECKING:
    import os

    from dcz.format import LazyTensor, Reader

__all__ = ["Framework", "TensorFile", "TensorSlice", "known_framework"]

Framework: TypeAlias = Literal["torch", "pt", "numpy", "np"]
_FRAMEWORKS: Final = {"torch": True, "pt": True, "numpy": False, "np": False}


def known_framework(framework: str) -> bool:
    """Whether it is torch and not numpy. Raises UsageError for others, MissingDependency if torch is not there."""
    if framework not in _FRAMEWORKS:
        raise UsageError(f"no framework {framework!r}", hint="torch (or pt) and numpy (or np) are possible")
    if _FRAMEWORKS[framework]:
        require_torch('framework="torch"')
    return _FRAMEWORKS[framework]


class TensorSlice:
    """A tensor of which nothing is read yet. Indexing decodes the segments that are touched, and no others."""

    def __init__(self, lazy: LazyTensor, torch: bool) -> None:
        self._lazy = lazy
        self._torch = torch
        self.name = lazy.name
        self.dtype = lazy.dtype
        self.shape = lazy.shape
        self.nbytes = lazy.nbytes

    def __repr__(self) -> str:
        return f"TensorSlice({self.name!r}, {self.dtype}, {list(self.shape)})"

    def __len__(self) -> int:
        return len(self._lazy)

    def get_shape(self) -> list[int]:
        """As in safetensors."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """As in safetensors, with its name of the type, such as ``BF16``."""
        return DTYPES[self.dtype].safetensors

    def __getitem__(self, index: Any) -> Any:
        """Integers, slices and ``...``, as in numpy.

        Raises IndexError, UsageError for other kinds of index, or FormatError.
        """
        array = self._lazy[index]
        if not self._torch:
            return array
        return to_torch(
            np.array(array, order="C", copy=None if array.flags.writeable else True), dtype_of(array)
        )

    def csr(self) -> Any:
        """A 2-D tensor as a torch.sparse_csr tensor or a scipy.sparse.csr_array, never dense on the way.

        bf16 and fp8 become float32 in scipy, which lacks them. Raises UsageError unless there are two dimensions.
        """
        return self._sparse("csr")

    def csc(self) -> Any:
        """A 2-D tensor as a torch.sparse_csc tensor or a scipy.sparse.csc_array; see csr."""
        return self._sparse("csc")

    def _sparse(self, kind: Literal["csr", "csc"]) -> Any:
        parts = self._lazy.csr() if kind == "csr" else self._lazy.csc()
        if not self._torch:
            return parts.scipy()
        import torch

        make = torch.sparse_csr_tensor if kind == "csr" else torch.sparse_csc_tensor
        values = to_torch(parts.data, dtype_of(parts.data))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CS[RC] tensor support is in beta")
            return make(
                torch.from_numpy(parts.indptr),
                torch.from_numpy(parts.indices),
                values,
                parts.shape,
                check_invariants=False,  # the reader built the indices itself
            )


class TensorFile:
    """What ``dcz.open`` gives: the tensors of a file by name, each read when it is asked for.

    A mapping of names to tensors, with the methods of ``safetensors.safe_open`` besides.
    """

    def __init__(self, reader: Reader, framework: Framework = "torch") -> None:
        """Takes over ``reader``, and closes it. Raises UsageError for an unknown framework."""
        self._torch = known_framework(framework)
        self.reader = reader
        """The file itself: manifest, digest, aliases."""

    def keys(self) -> list[str]:
        """The names of all tensors, further names of tied ones included."""
        return self.reader.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader)

    def __len__(self) -> int:
        return len(self.reader)

    def __contains__(self, name: object) -> bool:
        return name in self.reader

    def get_tensor(self, name: str) -> Any:
        """A whole tensor. Raises TensorNotFound or FormatError."""
        dtype = DTYPES[self.reader.dtype(name)]
        array = allocate([(name, dtype, self.reader.shape(name))])[name]
        self.reader.read(name, array)
        return to_torch(array, dtype) if self._torch else array

    __getitem__ = get_tensor

    def tensor(self, name: str) -> TensorSlice:
        """A tensor of which nothing is read yet. Raises TensorNotFound."""
        return TensorSlice(self.reader.tensor(name), self._torch)

    get_slice = tensor

    def metadata(self) -> Mapping[str, str]:
        """Free text of the model's authors."""
        return dict(self.reader.metadata)

    def assets(self) -> list[str]:
        """The paths of the files that travel with the tensors."""
        return self.reader.assets()

    def read_asset(self, path: str | os.PathLike[str]) -> bytes:
        """The content of such a file. Raises AssetNotFound or FormatError."""
        return self.reader.read_asset(str(path))

    @property
    def digest(self) -> str:
        """The identity of the artifact: ``blake3:`` and 64 hexadecimal digits."""
        return self.reader.digest

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
