"""Networks of integers (dcz.compression.integer) in a .dcz file, and back to what runs.

The weights are affine values, so that any reader decodes them to floats; all other tensors are integers, but for the
scales. The steps are the asset ``integer_network.json``. Nothing in a file is code or names code: what is loaded is
checked as untrusted input is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from dcz.compression.integer.description import MAX_BYTES, Description, decode_description, encode_description
from dcz.compression.integer.network import IntegerNetwork, tensor_names
from dcz.compression.torch_tensors import to_torch
from dcz.errors import EncodingError, FormatError, UsageError
from dcz.format import DEFAULT_LIMITS, DTYPES, Limits, Reader, Writer
from dcz.format.effort import EffortName
from dcz.format.manifest import PerChannel
from dcz.format.tensors import AffineTensor
from dcz.runtime.loading import ModelLike, RegistryLike, open_reader

__all__ = ["DESCRIPTION", "load_integer_network", "save_integer_network"]

DESCRIPTION: Final = "integer_network.json"


def save_integer_network(
    network: IntegerNetwork,
    path: str | os.PathLike[str],
    *,
    effort: EffortName = "balanced",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network. Raises OSError if the disk does not take it."""
    with Writer(path, metadata=metadata, effort=effort) as writer:
        writer.add_asset(DESCRIPTION, encode_description(network.description))
        for name in tensor_names(network.description):
            tensor = network.tensors[name].cpu().contiguous().numpy()
            step, _, part = name.rpartition(".")
            if part == "weight":
                scales = network.weight_scales[step].numpy()
                writer.add_tensor(name, _as_affine(tensor, scales))
                writer.add_tensor(f"{name}_scale", scales)
            else:
                writer.add_tensor(name, tensor)


def load_integer_network(
    source: ModelLike, *, registry: RegistryLike = None, limits: Limits = DEFAULT_LIMITS
) -> IntegerNetwork:
    """The network in a file that `save_integer_network` wrote: it runs with the same codes, to the bit.

    ``source`` and ``registry``: as for dcz.open. Raises UsageError if the file is not of an integer network, FormatError
    if it is damaged or does not fit together, and what dcz.open raises.
    """
    with open_reader(source, registry=registry, limits=limits) as reader:
        description = _read_description(reader)
        try:
            return _read_network(reader, description)
        except EncodingError as exc:
            raise FormatError(f"not an integer network: {exc.message}", file=reader.name) from exc


def _read_description(reader: Reader) -> Description:
    asset = next((asset for asset in reader.manifest.assets if asset.path == DESCRIPTION), None)
    if asset is None:
        raise UsageError(
            f"{reader.name} is not an integer network: it has no {DESCRIPTION}",
            hint="dcz.load reads the tensors of any file",
        )
    if asset.size > MAX_BYTES:
        raise FormatError(f"{DESCRIPTION} has {asset.size} bytes, more than {MAX_BYTES}", file=reader.name)
    try:
        return decode_description(reader.read_asset(DESCRIPTION))
    except EncodingError as exc:
        raise FormatError(f"{DESCRIPTION}: {exc.message}", file=reader.name) from exc


def _read_network(reader: Reader, description: Description) -> IntegerNetwork:
    tensors: dict[str, torch.Tensor] = {}
    scales: dict[str, torch.Tensor] = {}
    for name in tensor_names(description):
        array = _read(reader, name)
        step, _, part = name.rpartition(".")
        if part == "weight":
            scale = _read(reader, f"{name}_scale")
            array = _codes(name, array, scale)
            scales[step] = to_torch(scale, DTYPES["f32"])
        tensors[name] = torch.from_numpy(array)
    return IntegerNetwork(description, tensors, scales)


def _read(reader: Reader, name: str) -> np.ndarray:
    if name not in reader:
        raise EncodingError(f"the tensor {name!r} is missing")
    array = reader.read(name)
    if reader.dtype(name) not in ("f32", "i32", "i8", "u8"):
        raise EncodingError(f"{name} is of {reader.dtype(name)}")
    return array


def _as_affine(codes: np.ndarray, scales: np.ndarray) -> AffineTensor:
    bits = max(2, int(np.abs(codes.astype(np.int16)).max()).bit_length() + 1)
    return AffineTensor(
        dtype="f32",
        shape=codes.shape,
        bits=bits,
        codes=(codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8),
        scales=scales,
        granularity=PerChannel(axis=0),
    )


def _codes(name: str, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The int8 codes that scale x code gives these float32 values of, which are exact: |code| is far below 2^23."""
    if values.dtype != np.float32 or scales.dtype != np.float32 or values.ndim < 2:
        raise EncodingError(f"{name} and its scales must be float32")
    if scales.shape != values.shape[:1] or not (np.isfinite(scales) & (scales > 0)).all():
        raise EncodingError(f"the scales of {name} are not positive, one for each output")
    factors = scales.reshape(-1, *[1] * (values.ndim - 1))
    with np.errstate(all="ignore"):
        codes = np.rint(values / factors)
        exact = (np.abs(codes) <= 127) & (codes * factors == values)
    if not exact.all():
        raise EncodingError(f"{name} holds something else than multiples of its scales")
    return np.asarray(codes, dtype=np.int8)
