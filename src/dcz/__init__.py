"""dcz: small, safe, verifiable model files, and a registry for them.

    dcz.estimate(source)                                what convert would give
    dcz.convert(source, path, recipe="lossless")        a model -> .dcz
    dcz.decode(path, destination)                       .dcz -> safetensors, or the folder that it was
    dcz.compress(model, path, train=..., evaluate=...)  prune, share, train: Deep Compression in one call
    dcz.allocate_bits(model, size=..., evaluate=...)    a recipe with the bits of each weight, within a budget
    dcz.open(path), dcz.load(path)                      tensors
    dcz.save(tensors, path)
    dcz.load_model(path), dcz.load_tokenizer(path)      a transformers model that runs
    dcz.load_into(module, path)                         any module
    dcz.save_pretrained(source, folder)                 a folder of .dcz files, for the Hub and transformers
    dcz.push_to_hub(source, "org/name")                 such a folder, pushed
    dcz.hydrate(folder, destination)                    an ordinary folder of it
    dcz.verify(path, deep=True)

Importing dcz imports next to nothing; each name brings what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from dcz._version import __version__

if TYPE_CHECKING:
    from dcz import compression as compression
    from dcz import converters as converters
    from dcz import errors as errors
    from dcz import format as format
    from dcz import registry as registry
    from dcz import runtime as runtime
    from dcz import transformers as transformers
    from dcz.converters.bit_allocation import Allocation, allocate_bits
    from dcz.converters.conversion import Converted
    from dcz.converters.decoding import Decoded
    from dcz.converters.estimate import Estimate, Estimated, estimate
    from dcz.converters.folders import Hydrated, SavedFolder
    from dcz.errors import (
        AccessDenied,
        AssetNotFound,
        BaseNotFound,
        Conflict,
        CorruptStream,
        DczError,
        DigestMismatch,
        EncodingError,
        FormatError,
        Gated,
        InvalidReference,
        LimitExceeded,
        ManifestError,
        MissingDependency,
        ModelMismatch,
        NotADczFile,
        NotInRegistry,
        RateLimited,
        RecipeError,
        RegistryCorrupt,
        RegistryError,
        SourceError,
        TensorNotFound,
        TruncatedFile,
        Unreachable,
        UnsafePickle,
        UnsupportedVersion,
        UsageError,
        VersionExists,
        WrongBase,
    )
    from dcz.format.verify import VerifyReport
    from dcz.runtime.artifacts import decode, verify
    from dcz.runtime.files import TensorFile
    from dcz.runtime.folders import hydrate, save_pretrained
    from dcz.runtime.hub import push_to_hub
    from dcz.runtime.hub_mixin import DczModelHubMixin
    from dcz.runtime.loading import convert, load, load_into, open, save
    from dcz.runtime.pipeline import Compressed, compress
    from dcz.runtime.transformers import load_model, load_tokenizer

__all__ = [
    "AccessDenied",
    "Allocation",
    "AssetNotFound",
    "BaseNotFound",
    "Compressed",
    "Conflict",
    "Converted",
    "CorruptStream",
    "DczError",
    "DczModelHubMixin",
    "Decoded",
    "DigestMismatch",
    "EncodingError",
    "Estimate",
    "Estimated",
    "FormatError",
    "Gated",
    "Hydrated",
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
    "SavedFolder",
    "SourceError",
    "TensorFile",
    "TensorNotFound",
    "TruncatedFile",
    "Unreachable",
    "UnsafePickle",
    "UnsupportedVersion",
    "UsageError",
    "VerifyReport",
    "VersionExists",
    "WrongBase",
    "__version__",
    "allocate_bits",
    "compress",
    "convert",
    "decode",
    "estimate",
    "hydrate",
    "load",
    "load_into",
    "load_model",
    "load_tokenizer",
    "open",
    "push_to_hub",
    "save",
    "save_pretrained",
    "verify",
]

_MODULES: Final = {
    "Allocation": "dcz.converters.bit_allocation",
    "Compressed": "dcz.runtime.pipeline",
    "Converted": "dcz.converters.conversion",
    "Decoded": "dcz.converters.decoding",
    "DczModelHubMixin": "dcz.runtime.hub_mixin",
    "Estimate": "dcz.converters.estimate",
    "Estimated": "dcz.converters.estimate",
    "Hydrated": "dcz.converters.folders",
    "SavedFolder": "dcz.converters.folders",
    "TensorFile": "dcz.runtime.files",
    "VerifyReport": "dcz.format.verify",
    "allocate_bits": "dcz.converters.bit_allocation",
    "compress": "dcz.runtime.pipeline",
    "convert": "dcz.runtime.loading",
    "decode": "dcz.runtime.artifacts",
    "estimate": "dcz.converters.estimate",
    "hydrate": "dcz.runtime.folders",
    "load": "dcz.runtime.loading",
    "load_into": "dcz.runtime.loading",
    "load_model": "dcz.runtime.transformers",
    "load_tokenizer": "dcz.runtime.transformers",
    "open": "dcz.runtime.loading",
    "push_to_hub": "dcz.runtime.hub",
    "save": "dcz.runtime.loading",
    "save_pretrained": "dcz.runtime.folders",
    "verify": "dcz.runtime.artifacts",
}


_SUBMODULES: Final = frozenset(
    {"compression", "converters", "errors", "format", "registry", "runtime", "transformers"}
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"dcz.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'dcz' has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES.get(name, "dcz.errors"))
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        from dcz.errors import MissingDependency

        raise MissingDependency("torch", needed_for=f"dcz.{name}", extra="torch") from exc
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
