"""``AutoModel.from_pretrained`` of transformers, for folders and repositories whose weights are .dcz files.

Such a folder has a ``config.json`` whose ``quantization_config`` says ``"quant_method": "dcz"``, and a
``model.safetensors.index.json`` whose ``weight_map`` names .dcz files. transformers finds and fetches those as it does
with any shards, and builds the model. Then it calls the quantizer that is registered here:

1. before the weights are loaded, the quantizer puts one small safetensors file in the place of the .dcz files in the list
   ``checkpoint_files``. It has the names and types of the tensors, and no data: tensor number i has the shape (0, i);
2. for each tensor that the model wants, ``get_new_dtype`` is asked. It puts an operation that decodes in front of whatever
   transformers does to that tensor: renaming, merging experts, transposing;
3. that operation gets the empty tensors, on the device and of the type that the model wants, reads off their shapes
   which ones they are, and decodes those, straight into the memory that the model keeps.

So no decoded copy ever stands on a disk, and memory holds the model, and what is being merged. An empty tensor that
would get past the operation has the wrong shape for any parameter, which transformers refuses; tests/runtime pins each of
these assumptions. Why this way: docs/decisions/0018.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dcz.compression.torch_tensors import to_torch
from dcz.converters.safetensors import INDEX_SUFFIX, read_weight_map
from dcz.converters.safetensors_header import load_json
from dcz.errors import (
    DigestMismatch,
    ManifestError,
    ModelMismatch,
    SourceError,
    UnsupportedVersion,
    UsageError,
)
from dcz.format import DTYPES, Reader
from dcz.runtime.loading import open_reader, populating_threads
from dcz.runtime.slabs import allocate

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["DczConfig", "DczQuantizer"]

METHOD: Final = "dcz"
FORMAT_VERSION: Final = 1
_AHEAD: Final = 64 << 20
_HYDRATE: Final = "dcz.hydrate makes a folder of ordinary safetensors, which can"


@register_quantization_config(METHOD)
class DczConfig(QuantizationConfigMixin):
    """The ``quantization_config`` in a ``config.json``.

    ``shards``: the digest of each .dcz file that belongs to the model; others, or fewer, are refused.
    """

    def __init__(
        self, format_version: int = FORMAT_VERSION, shards: Mapping[str, str] | None = None, **_: Any
    ) -> None:
        """Raises UnsupportedVersion for a folder that a newer dcz wrote, ManifestError for other things than digests."""
        if type(format_version) is not int:
            raise ManifestError("the format_version of the quantization_config is not a whole number")
        if format_version != FORMAT_VERSION:
            raise UnsupportedVersion(
                f"the quantization_config has the version {format_version}, this dcz reads version {FORMAT_VERSION}",
                hint="a newer dcz reads it",
            )
        self.quant_method = METHOD  # type: ignore[assignment]  # theirs is an enum, and takes text as well
        self.format_version = format_version
        given: Any = shards
        if given is not None and not (
            isinstance(given, Mapping) and all(isinstance(digest, str) for digest in given.values())
        ):
            raise ManifestError("the shards of the quantization_config are not an object of digests")
        self.shards = None if given is None else dict(given)
        # What tells transformers that the loaded model is an ordinary one, which is saved as such.
        self.dequantize = True


class _Decode(ConversionOps):
    """Decodes what one parameter is made of. Comes before all other operations on it."""

    def __init__(self, weights: _Weights, converter: Any) -> None:
        self._weights, self._converter = weights, converter

    def convert(
        self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", **__: Any
    ) -> dict[str, Any]:
        """``input_dict``: the empty tensors by pattern, each a list. The same with tensors that are full."""
        try:
            self._weights.prepare(
                [self._weights.number(tensor) for found in input_dict.values() for tensor in found]
            )
            return {
                pattern: [self._weights.take(tensor) for tensor in found]
                for pattern, found in input_dict.items()
            }
        except Exception as exc:  # noqa: BLE001
            # transformers would note this exception and go on. It raises by itself for an empty tensor, of the wrong
            # shape, if no operation comes after this one, and asks the quantizer first, which raises what happened.
            self._weights.failure = self._weights.failure or exc
            if isinstance(self._converter, WeightConverter):
                del self._converter.operations[1:]
            outline = next(iter(input_dict.values()))[0]
            return {full_layer_name.replace("*.", "0."): outline}


class _Weights:
    """The tensors of some .dcz files, numbered, decoded as they are asked for."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        """Raises ManifestError if two files hold the same tensor."""
        self._tensors = [(reader, name) for reader in readers for name in reader]
        self._populate = min(map(populating_threads, readers), default=0)
        self.failure: Exception | None = None
        self._wanted: dict[
            int, bool
        ] = {}  # in the order in which they will be asked for; whether as they are
        self._ready: dict[int, torch.Tensor] = {}
        self._asked = False
        owners: dict[str, Reader] = {}
        for reader, name in self._tensors:
            if owners.setdefault(name, reader) is not reader:
                raise ManifestError(
                    f"the tensor {name!r} stands in {Path(owners[name].name).name}, too", file=reader.name
                )

    def write_outline(self, path: Path) -> None:
        header = {
            name: {
                "dtype": DTYPES[reader.dtype(name)].safetensors,
                "shape": [0, number],
                "data_offsets": [0, 0],
            }
            for number, (reader, name) in enumerate(self._tensors)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text)

    def number(self, tensor: torch.Tensor) -> int:
        if tensor.dim() != 2 or tensor.shape[0] != 0 or tensor.shape[1] >= len(self._tensors):
            raise ModelMismatch(
                f"transformers hands on a tensor of shape {list(tensor.shape)} where an empty one was given to it",
                hint="this version of transformers is not one that dcz knows",
            )
        return tensor.shape[1]

    def want(self, number: int, *, merged: bool) -> None:
        self._wanted[number] = not merged
        self._asked = True

    def prepare(self, numbers: Sequence[int]) -> None:
        """Decode these, and some of those that are going to be asked for next, if they are small.

        One call of the decoder for many tensors keeps its threads busy. What is only merged into others does not get
        memory together with what stays: a tensor that stays would keep all of it.
        """
        if self.failure is not None:
            raise self.failure
        missing = [number for number in numbers if number not in self._ready]
        if not missing:
            return
        for number in missing:
            self._wanted.pop(number, None)
        room = _AHEAD
        ahead: list[int] = []
        for number, as_it_is in list(self._wanted.items()):
            if not as_it_is:
                continue
            room -= self._nbytes(number)
            if room < 0:
                break
            del self._wanted[number]
            ahead.append(number)
        self._decode([list(dict.fromkeys(missing)), ahead])

    def _decode(self, groups: Sequence[Sequence[int]]) -> None:
        arrays: dict[int, np.ndarray] = {}
        by_reader: dict[Reader, dict[str, np.ndarray]] = {}
        for group in groups:
            outlines = {str(number): self._tensors[number] for number in group}
            memory = allocate(
                (
                    (key, DTYPES[reader.dtype(name)], reader.shape(name))
                    for key, (reader, name) in outlines.items()
                ),
                populate=self._populate,
            )
            for key, (reader, name) in outlines.items():
                arrays[int(key)] = by_reader.setdefault(reader, {})[name] = memory[key]
        for reader, wanted in by_reader.items():
            reader.read_into(wanted)
        for number, array in arrays.items():
            reader, name = self._tensors[number]
            self._ready[number] = to_torch(array, DTYPES[reader.dtype(name)])

    def _nbytes(self, number: int) -> int:
        reader, name = self._tensors[number]
        return reader.tensor(name).nbytes

    def take(self, outline: torch.Tensor) -> torch.Tensor:
        """The tensor that an empty one stands for, of its type and on its device. Once."""
        return self._ready.pop(self.number(outline)).to(device=outline.device, dtype=outline.dtype)

    def check_done(self) -> None:
        """Raises what went wrong, and ModelMismatch if transformers left out what it had announced."""
        if self.failure is not None:
            raise self.failure
        left = [*self._ready, *self._wanted] if self._asked else range(len(self._tensors))
        if left:
            raise ModelMismatch(
                f"transformers has not loaded {len(left)} tensors, among them {self._tensors[left[0]][1]!r}",
                hint=f"this version of transformers is not one that dcz knows; {_HYDRATE} be loaded",
            )


def _close(readers: list[Reader], folder: str) -> None:
    for reader in readers:
        reader.close()
    shutil.rmtree(folder, ignore_errors=True)


def _is_dcz(path: Any) -> bool:
    return isinstance(path, str) and path.endswith(".dcz")


@register_quantizer(METHOD)
class DczQuantizer(HfQuantizer):
    """Decodes .dcz files while transformers loads a model. What is loaded is a model like any other."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        # transformers takes a configuration that was handed to from_pretrained for a wish to quantize something.
        super().__init__(quantization_config, **kwargs | {"pre_quantized": True})
        self._weights: _Weights | None = None
        self._release: Any = None

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            self._refuse_disk()

    def update_attn_implementation(self, config: Any) -> Any:
        """Called before transformers reads the index, in which it looks for nothing that could be wrong.

        Raises SourceError if that of a folder is no index of shards.
        """
        index = Path(str(config.name_or_path), f"model{INDEX_SUFFIX}")
        if index.is_file():
            data, _ = read_weight_map(index)
            if not isinstance(load_json(data).get("metadata"), dict):
                raise SourceError(f"{index}: not a valid index of shards: it has no metadata")
        return config

    def _refuse_disk(self) -> None:
        raise UsageError(
            "weights cannot stay on the disk as they are in .dcz files, which device_map asks for",
            hint=f"{_HYDRATE} be offloaded",
        )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        """Raises DigestMismatch if the files are not those that belong to the configuration, and what dcz.open raises."""
        if checkpoint_files is None:  # a state dict was given
            return model
        if getattr(model.config, "distributed_config", None) is not None:
            raise UsageError(
                "a model in .dcz files is not split over several devices while it is loaded",
                hint=f"{_HYDRATE} be split",
            )
        paths = [path for path in checkpoint_files if _is_dcz(path)]
        if not paths:
            raise UsageError(
                f"the quantization_config asks for .dcz files, and {model.config.name_or_path!r} has none",
                hint="dcz.save_pretrained makes them",
            )
        config: Any = self.quantization_config
        shards = config.shards
        given = {os.path.basename(path) for path in paths}
        if shards is not None and given != set(shards):
            odd = min(given ^ set(shards))
            raise DigestMismatch(
                f"config.json and the index of shards do not belong together: only one of them has {odd!r}",
                file=str(model.config.name_or_path),
            )
        readers: list[Reader] = []
        folder = tempfile.mkdtemp(prefix="dcz-")
        self._release = weakref.finalize(self, _close, readers, folder)
        for path in paths:
            reader = open_reader(os.path.abspath(path))
            readers.append(reader)
            if shards is not None and reader.digest != shards[os.path.basename(path)]:
                raise DigestMismatch(
                    f"its digest is {reader.digest}, and config.json asks for {shards[os.path.basename(path)]}",
                    file=path,
                )
        self._weights = _Weights(readers)
        outline = Path(folder, "outline.safetensors")
        self._weights.write_outline(outline)
        checkpoint_files[:] = [str(outline), *(path for path in checkpoint_files if not _is_dcz(path))]
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Called for each tensor that the model wants, before it is read."""
        wanted = super().get_new_dtype(converter, param, dtype)
        shape = list(param.get_shape() if hasattr(param, "get_shape") else param.shape)
        if self._weights is None or len(shape) != 2 or shape[0] != 0:
            return wanted
        merged = isinstance(converter, WeightConverter)
        self._weights.want(shape[1], merged=merged)
        if not merged:
            converter.quantization_operation = _Decode(self._weights, converter)
        elif not isinstance(converter.operations[0], _Decode):
            converter.operations.insert(0, _Decode(self._weights, converter))
        return wanted

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Asked for a parameter that does not fit, too: the first moment at which an error reaches the caller."""
        if self._weights is not None and self._weights.failure is not None:
            raise self._weights.failure
        return False

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        weights, self._weights = self._weights, None
        if weights is not None:
            self._release()
            weights.check_done()
        if "disk" in getattr(model, "hf_device_map", {}).values():
            self._refuse_disk()
        return model


def _refuse_to_unpickle() -> None:
    """Let transformers say what is missing where it would take a .dcz file for a pickle: that is, without a quantizer.

    Nothing depends on it. If transformers has no function of this name any more, its own error is what one sees.
    """
    from transformers import modeling_utils

    load: Any = getattr(modeling_utils, "load_state_dict", None)
    if load is None:
        return

    @functools.wraps(load)
    def load_state_dict(checkpoint_file: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_dcz(os.fspath(checkpoint_file)):
            raise UsageError(
                f"the configuration of the model has no quantization_config, without which {checkpoint_file!r} is not read",
                hint="from_pretrained(..., quantization_config=dcz.transformers.DczConfig()), or no config= of your own",
            )
        return load(checkpoint_file, *args, **kwargs)

    modeling_utils.load_state_dict = load_state_dict


_refuse_to_unpickle()
