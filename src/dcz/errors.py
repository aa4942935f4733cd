"""Every error that dcz raises on purpose.

    DczError
    +-- FormatError            the bytes are at fault: the file is damaged, hostile or from the future
    |   +-- NotADczFile        the magic is missing
    |   +-- UnsupportedVersion the file needs a newer reader
    |   +-- TruncatedFile      the file ends before its content does
    |   +-- ManifestError      the manifest breaks a rule of docs/format.md
    |   +-- DigestMismatch     stored or decoded bytes are not those that were published
    |   +-- CorruptStream      a coded stream breaks a rule of docs/format.md
    |   +-- LimitExceeded      the file asks for more than the reader's limits allow
    +-- UsageError             the caller is at fault
    |   +-- TensorNotFound     (also a KeyError)
    |   +-- AssetNotFound      (also a KeyError)
    |   +-- BaseNotFound       the base of a file that holds differences is not there
    |   +-- WrongBase          what was given as the base is another artifact
    |   +-- EncodingError      a tensor cannot be stored in the way that was asked for
    |   +-- RecipeError        a recipe is not valid
    |   +-- InvalidReference   a reference to an artifact cannot be parsed
    |   +-- ModelMismatch      tensors and module do not fit together
    +-- SourceError            a model that is to be converted cannot be read
    |   +-- UnsafePickle       it holds code, and dcz never runs code from a file
    +-- RegistryError          a registry refused, or holds something broken
    |   +-- NotInRegistry      no such name, version or alias
    |   +-- VersionExists      versions are immutable
    |   +-- RegistryCorrupt    a blob or an index is not what its digest says
    |   +-- Conflict           somebody else changed it meanwhile
    |   +-- AccessDenied       the registry does not know us, or does not let us
    |   |   +-- Gated          its terms have to be accepted first
    |   +-- Unreachable        the registry does not answer, or not as it should
    |       +-- RateLimited    it has been asked too often
    +-- MissingDependency      an optional package is not installed (also an ImportError)

``FormatError`` says where the fault is, as far as it is known: the file, the tensor and the byte offset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

__all__ = [
    "AccessDenied",
    "AssetNotFound",
    "BaseNotFound",
    "Conflict",
    "CorruptStream",
    "DczError",
    "DigestMismatch",
    "EncodingError",
    "FormatError",
    "Gated",
    "InvalidReference",
    "LimitExceeded",
    "ManifestError",
    "MissingDependency",
    "ModelMismatch",
    "NotADczFile",
    "NotInRegistry",
    "RateLimited",
    "RecipeError",
    "RegistryCorrupt",
    "RegistryError",
    "SourceError",
    "TensorNotFound",
    "TruncatedFile",
    "Unreachable",
    "UnsafePickle",
    "UnsupportedVersion",
    "UsageError",
    "VersionExists",
    "WrongBase",
]


class DczError(Exception):
    """The base of all errors of dcz.

    ``code`` is stable and meant for programs; ``hint``, where there is one, says what to do. ``exit_code`` is that of the
    command line.
    """

    code = "dcz"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class FormatError(DczError):
    """The bytes of a file break a rule of the format."""

    code = "format"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.tensor = tensor
        self.offset = offset

    def locate(
        self, *, file: str | None = None, tensor: str | None = None, offset: int | None = None
    ) -> None:
        """Add what an outer layer knows of the place; what an inner one already said stays."""
        self.file = self.file if self.file is not None else file
        self.tensor = self.tensor if self.tensor is not None else tensor
        self.offset = self.offset if self.offset is not None else offset

    def __str__(self) -> str:
        where = [self.file] if self.file is not None else []
        if self.tensor is not None:
            where.append(f"tensor {self.tensor!r}")
        if self.offset is not None:
            where.append(f"offset {self.offset}")
        text = super().__str__()
        return f"{', '.join(where)}: {text}" if where else text


class NotADczFile(FormatError):
    code = "not-a-dcz-file"


class UnsupportedVersion(FormatError):
    code = "unsupported-version"


class TruncatedFile(FormatError):
    code = "truncated"


class ManifestError(FormatError):
    code = "manifest"


class DigestMismatch(FormatError):
    code = "digest-mismatch"


class CorruptStream(FormatError):
    code = "corrupt-stream"


class LimitExceeded(FormatError):
    code = "limit-exceeded"


class UsageError(DczError):
    code = "usage"


class TensorNotFound(UsageError, KeyError):
    code = "tensor-not-found"


class AssetNotFound(UsageError, KeyError):
    code = "asset-not-found"


class BaseNotFound(UsageError):
    code = "base-not-found"


class WrongBase(UsageError):
    code = "wrong-base"


class EncodingError(UsageError):
    code = "encoding"


class RecipeError(UsageError):
    code = "recipe"


class InvalidReference(UsageError):
    code = "invalid-reference"
    exit_code = 2


class ModelMismatch(UsageError):
    code = "model-mismatch"


class SourceError(DczError):
    code = "source"


class UnsafePickle(SourceError):
    code = "unsafe-pickle"


class RegistryError(DczError):
    code = "registry"


class NotInRegistry(RegistryError):
    code = "not-in-registry"
    exit_code = 3


class AccessDenied(RegistryError):
    code = "access-denied"
    exit_code = 4


class Gated(AccessDenied):
    code = "gated"


class RegistryCorrupt(RegistryError):
    code = "registry-corrupt"
    exit_code = 5


class VersionExists(RegistryError):
    code = "version-exists"
    exit_code = 6


class Conflict(RegistryError):
    code = "conflict"
    exit_code = 6


class Unreachable(RegistryError):
    code = "unreachable"
    exit_code = 7


class RateLimited(Unreachable):
    code = "rate-limited"


class MissingDependency(DczError, ImportError):
    code = "missing-dependency"

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        DczError.__init__(
            self,
            f"{needed_for} needs the package {package!r}, which is not installed",
            hint=f"pip install 'dcz[{extra}]'",
        )
        self._again = functools.partial(MissingDependency, package, needed_for=needed_for, extra=extra)

    def __reduce__(self) -> tuple[Callable[[], MissingDependency], tuple[()]]:
        return self._again, ()
