"""A .dcz file that came from a Hugging Face folder, as a transformers model that runs.

transformers builds the model from the configuration in the file and gets the tensors as a state dict; so renamed keys,
tied weights and buffers that are not stored are its business, as with any checkpoint. Nothing is fetched, and no code
out of a file is run: what in a configuration could make transformers do either is taken out first.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcz.errors import AssetNotFound, MissingDependency, ModelMismatch
from dcz.runtime.loading import ModelLike, RegistryLike, load_tensors, open_reader

if TYPE_CHECKING:
    import torch

    from dcz.format import Reader

__all__ = ["load_model", "load_tokenizer"]

_CONFIG: Final = "config.json"
_GENERATION: Final = "generation_config.json"
# What names code, kernels or files somewhere else.
_ELSEWHERE: Final = frozenset(
    {
        "_attn_implementation",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "transformers_weights",
    }
    | {
        "_attn_implementation_internal",
        "_experts_implementation",
        "fusion_config",
        "kernel_config",
        "use_kernels",
    }
)


def _require_transformers(needed_for: str) -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as exc:
        raise MissingDependency("transformers", needed_for=needed_for, extra="transformers") from exc


def _without_elsewhere(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_elsewhere(item) for key, item in value.items() if key not in _ELSEWHERE}
    return [_without_elsewhere(item) for item in value] if isinstance(value, list) else value


def _read_json(reader: Reader, path: str) -> dict[str, Any]:
    try:
        content = json.loads(reader.read_asset(path))
    except (ValueError, RecursionError) as exc:
        raise ModelMismatch(f"{reader.name}: its {path} is not valid JSON") from exc
    if not isinstance(content, dict):
        raise ModelMismatch(f"{reader.name}: its {path} is not a JSON object")
    return content


def _config(reader: Reader) -> dict[str, Any] | None:
    """The configuration, if it is one of transformers."""
    content = _read_json(reader, _CONFIG) if _CONFIG in reader.assets() else {}
    return content if "model_type" in content else None


@contextmanager
def _failures(reader: Reader, doing: str) -> Generator[None]:
    """transformers raises exceptions of every kind for a configuration that it cannot use."""
    try:
        yield
    except (ModelMismatch, MissingDependency, MemoryError):
        raise
    except Exception as exc:
        raise ModelMismatch(f"{reader.name}: transformers cannot {doing}: {exc}") from exc


def load_model(
    source: ModelLike,
    *,
    dtype: torch.dtype | str = "auto",
    strict: bool = True,
    registry: RegistryLike = None,
    threads: int | None = None,
) -> Any:
    """The model in a file, ready to run: a ``transformers.PreTrainedModel`` in evaluation mode.

    ``source``: a path, a URL, bytes, a file object, or a reference such as ``minilm:1.0``. ``dtype`` as in
    transformers; ``auto`` is what the configuration says. ``strict``: parameters that the file does not have are an
    error; otherwise transformers initializes them, at random.

    A file without a configuration for transformers gives its state dict, ``dict[str, torch.Tensor]``; see also
    dcz.load_into.

    Raises ModelMismatch if model and tensors do not fit, MissingDependency without torch or transformers, and what
    dcz.open raises.
    """
    with open_reader(source, registry=registry, threads=threads) as reader:
        config = _config(reader)
        if config is None:
            return load_tensors(reader)
        _require_transformers("building the model")
        with _failures(reader, "build the model"):
            return _build(reader, config, dtype, strict)


def _build(reader: Reader, content: dict[str, Any], dtype: torch.dtype | str, strict: bool) -> Any:
    import transformers

    with tempfile.TemporaryDirectory(prefix="dcz-") as folder:
        Path(folder, _CONFIG).write_text(json.dumps(_without_elsewhere(content)), encoding="utf-8")
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        generation = None
        if _GENERATION in reader.assets():
            Path(folder, _GENERATION).write_text(
                json.dumps(_read_json(reader, _GENERATION)), encoding="utf-8"
            )
            generation = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    model, found = _model_class(config).from_pretrained(
        None,
        config=config,
        state_dict=load_tensors(reader),
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if strict and found["missing_keys"]:
        names = sorted(found["missing_keys"])
        raise ModelMismatch(
            f"{reader.name}: {len(names)} parameters of {type(model).__name__} are not in the file: "
            f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}",
            hint="strict=False initializes them at random",
        )
    if generation is not None and model.can_generate():
        model.generation_config = generation
    return model


def _model_class(config: Any) -> Any:
    """The class that the configuration names, if it is one of transformers, else the plain model of its type."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.MODEL_MAPPING[type(config)]


def load_tokenizer(source: ModelLike, *, registry: RegistryLike = None) -> Any:
    """The tokenizer in a file, as a ``transformers.PreTrainedTokenizerBase``.

    Raises AssetNotFound if the file has none, ModelMismatch if transformers cannot use it, and what dcz.open raises.
    """
    with open_reader(source, registry=registry) as reader:
        names = [
            path for path in reader.assets() if "/" not in path and not path.endswith((".py", ".safetensors"))
        ]
        if not any("token" in path or path.startswith(("vocab", "spiece")) for path in names):
            raise AssetNotFound(f"{reader.name} has no tokenizer")
        _require_transformers("building the tokenizer")
        import transformers

        # Some tokenizers go back to their files when they are saved, so the folder lives as long as the tokenizer.
        folder = tempfile.mkdtemp(prefix="dcz-")
        try:
            for name in names:
                Path(folder, name).write_bytes(reader.read_asset(name))
            with _failures(reader, "build the tokenizer"):
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(tokenizer, shutil.rmtree, folder, ignore_errors=True)
        return tokenizer
