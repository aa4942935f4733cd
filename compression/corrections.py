"""Post-training corrections of a layer and of neighbours, as functions of arrays (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", 2019).

    equalization      ranges of the channels between two layers are made equal, which changes nothing before quantization
    bias correction   the mean change of the outputs goes into the bias
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dcz.errors import EncodingError

__all__ = ["absorb_scales", "bias_correction", "equalizing_scales"]


def equalizing_scales(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """s_i = sqrt(r1_i / r2_i), where r are the largest magnitudes of channel i: out of one layer, into the next.

    ``first``: (channels, ...). ``second``: (out, channels, ...); of a depthwise convolution (channels, 1, ...). Between them
    there may be nothing but functions f with f(s x) = s f(x), like ReLU. float64 (channels,); 1 where a channel has no
    weights but zeros on one side. Raises EncodingError if the channels do not fit together.
    """
    channels = first.shape[0]
    into = _inputs(second, channels)
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.abs(first.astype(np.float64)).reshape(channels, -1).max(axis=1, initial=0.0)
        after = np.abs(into.astype(np.float64)).reshape(channels, -1).max(axis=1, initial=0.0)
        scales = np.sqrt(before) / np.sqrt(after)
    return np.where((before > 0) & (after > 0), scales, 1.0)


def absorb_scales(
    first: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    second: npt.NDArray[Any],
    scales: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any]]:
    """W1 / s, b1 / s and W2 s, of their own types: the same function, other ranges between the layers.

    ``first``, ``second``: as in `equalizing_scales`. ``bias``: (channels,) or None. ``scales``: positive (channels,). With the
    scales of activations instead, these are SmoothQuant's and AWQ's transformations. Raises EncodingError if the channels do
    not fit together.
    """
    channels = first.shape[0]
    if scales.shape != (channels,) or (bias is not None and bias.shape != (channels,)):
        raise EncodingError(f"scales of shape {scales.shape} for {channels} channels")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise EncodingError("scales have to be positive")
    into = _inputs(second, channels)
    scaled = into * scales.reshape(-1, *[1] * (into.ndim - 1))
    back = scaled if _is_depthwise(second, channels) else scaled.swapaxes(0, 1)
    return (
        (first / scales.reshape(-1, *[1] * (first.ndim - 1))).astype(first.dtype),
        None if bias is None else (bias / scales).astype(bias.dtype),
        back.astype(second.dtype),
    )


def bias_correction(
    weights: npt.NDArray[Any], quantized: npt.NDArray[Any], mean_input: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """What to add to the bias so that the mean output stays: -(W^ - W) E[x].

    ``weights``, ``quantized``: (out, in, ...), before and after; of a convolution, the kernel behind. ``mean_input``:
    (in,), the mean of each input, of a convolution over all places; or of one with padding, or to be exact, (in, ...): the
    mean at each place of the kernel. float64 (out,). Raises EncodingError if the shapes do not fit together.
    """
    if weights.shape != quantized.shape or weights.ndim < 2:
        raise EncodingError(f"weights of shape {weights.shape}, quantized {quantized.shape}")
    inputs = weights.shape[1:]
    if mean_input.shape not in (inputs, inputs[:1]):
        raise EncodingError(f"mean inputs of shape {mean_input.shape} for weights of shape {weights.shape}")
    change = weights.astype(np.float64) - quantized.astype(np.float64)
    if mean_input.shape == inputs[:1]:
        change = change.reshape(*weights.shape[:2], -1).sum(axis=2)
    return np.asarray(change.reshape(len(weights), -1) @ mean_input.astype(np.float64).reshape(-1))


def _is_depthwise(second: npt.NDArray[Any], channels: int) -> bool:
    return second.ndim > 2 and second.shape[0] == channels and second.shape[1] == 1


def _inputs(second: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """The weights of the next layer with its input channels in front."""
    if _is_depthwise(second, channels):
        return second
    if second.ndim < 2 or second.shape[1] != channels:
        raise EncodingError(f"weights of shape {second.shape} behind {channels} channels")
    return second.swapaxes(0, 1)
