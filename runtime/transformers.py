"""A .dcz file that came from a Hugging Face folder, as a transformers model that runs.

transformers builds the model from the configuration in the file and gets the tensors as a state dict; so renamed keys,
tied weights and buffers that are not stored are its business, as with any checkpoint.

The configuration comes from a stranger like everything else. No code out of a file is run: what names code is taken out
first. Nothing is fetched: the Hub is offline for the process while transformers is at work. And a configuration cannot
ask for a model that is much larger than the tensors beside it.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcz.errors import AssetNotFound, DczError, LimitExceeded, MissingDependency, ModelMismatch
from dcz.runtime.loading import BasesLike, ModelLike, RegistryLike, load_tensors, open_parts, open_reader

if TYPE_CHECKING:
    import torch

    from dcz.format import Reader

__all__ = ["load_model", "load_tokenizer"]

_MAX_JSON: Final = 16 << 20
_MAX_TOKENIZER_FILE: Final = 256 << 20
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


def _check_size(reader: Reader, path: str, most: int) -> None:
    size = next(asset.size for asset in reader.manifest.assets if asset.path == path)
    if size > most:
        raise LimitExceeded(f"its {path} has {size} bytes, at most {most} are allowed", file=reader.name)


def _read_json(reader: Reader, path: str) -> dict[str, Any]:
    _check_size(reader, path, _MAX_JSON)
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
        with _HubOffline():
            yield
    except (DczError, MemoryError):
        raise
    except Exception as exc:
        raise ModelMismatch(f"{reader.name}: transformers cannot {doing}: {exc}") from exc


class _HubOffline:
    """While one of these is entered, huggingface_hub asks nobody. A configuration can name models of others in many ways,
    and ``local_files_only`` does not reach all of them."""

    _lock = threading.Lock()
    _entered = 0
    _before = False

    def __enter__(self) -> None:
        from huggingface_hub import constants

        with self._lock:
            if _HubOffline._entered == 0:
                _HubOffline._before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
            _HubOffline._entered += 1

    def __exit__(self, *_: object) -> None:
        from huggingface_hub import constants

        with self._lock:
            _HubOffline._entered -= 1
            if _HubOffline._entered == 0:
                constants.HF_HUB_OFFLINE = _HubOffline._before


_SPARE_PARAMETERS: Final = 4096
_SPARE_ELEMENTS: Final = 1 << 26


@contextmanager
def _no_larger_than(readers: Sequence[Reader]) -> Generator[None]:
    """Inside, this thread cannot build a module that has far more parameters, or elements, than the files.

    Twice as many are usual for a moment, before weights are tied; heads that the file does not have come on top.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    stored = [geometry.elements for reader in readers for geometry in reader.geometry.tensors.values()]
    parameters, elements = 4 * len(stored) + _SPARE_PARAMETERS, 4 * sum(stored) + _SPARE_ELEMENTS
    thread = threading.get_ident()

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal parameters, elements
        if parameter is not None and threading.get_ident() == thread:
            parameters -= 1
            elements -= parameter.numel()
            if min(parameters, elements) < 0:
                raise ModelMismatch(
                    f"{readers[0].name}: its {_CONFIG} describes a model that is far larger than its tensors"
                )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def load_model(
    source: ModelLike,
    *,
    dtype: torch.dtype | str = "auto",
    strict: bool = True,
    registry: RegistryLike = None,
    threads: int | None = None,
    base: BasesLike = None,
) -> Any:
    """The model in a file, ready to run: a ``transformers.PreTrainedModel`` in evaluation mode.

    ``source``: a path, a URL, bytes, a file object, or a reference such as ``minilm:1.0``; or a folder, or a repository, of
    several .dcz files with their index. ``dtype`` as in
    transformers; ``auto`` is what the configuration says. ``strict``: parameters that the file does not have are an
    error; otherwise transformers initializes them, at random. ``base``: as for dcz.open.

    A file without a configuration for transformers gives its state dict, ``dict[str, torch.Tensor]``; see also
    dcz.load_into.

    Raises ModelMismatch if model and tensors do not fit, MissingDependency without torch or transformers, and what
    dcz.open raises.
    """
    with open_parts(source, registry=registry, threads=threads, base=base) as readers:
        reader = readers[0]  # which has all that is no tensor
        config = _config(reader)
        if config is not None:
            _require_transformers("building the model")
        state = {name: tensor for each in readers for name, tensor in load_tensors(each).items()}
        if config is None:
            return state
        with _failures(reader, "build the model"), _no_larger_than(readers):
            return _build(reader, config, state, dtype, strict)


def _build(
    reader: Reader,
    content: dict[str, Any],
    state: dict[str, torch.Tensor],
    dtype: torch.dtype | str,
    strict: bool,
) -> Any:
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
    model, found = _model_class(reader, config).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        local_files_only=True,
        trust_remote_code=False,
    )
    if found["mismatched_keys"]:
        shapes = [
            f"{name} ({list(model)} in the model, {list(file)} in the file)"
            for name, file, model in sorted(found["mismatched_keys"])
        ]
        raise ModelMismatch(
            f"{reader.name}: {len(shapes)} tensors have another shape than its {_CONFIG} says: "
            f"{', '.join(shapes[:20])}{', ...' if len(shapes) > 20 else ''}"
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


def _model_class(reader: Reader, config: Any) -> Any:
    """The class that the configuration names; the plain model of its type if it names none."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if config.architectures:
        raise ModelMismatch(
            f"{reader.name}: its model is {config.architectures[0]}, which transformers does not have",
            hint="a model with code of its own is yours to build: dcz.load_into(model, file)",
        )
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
                _check_size(reader, name, _MAX_TOKENIZER_FILE)
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
