"""Calibration data for a network whose own data are not at hand (survey, section III-G: zero-shot quantization).

    distilled   inputs that give each BatchNorm the statistics that it has seen in training (ZeroQ: Cai et al. 2020): from
    noise, by
                gradient descent on the sum over all norms of ||mean - running mean||^2 + ||deviation - running deviation||^2
    noise       for networks without BatchNorm: all that is known is the distribution of single inputs, and, of images,
    that neighbours
                are alike: amplitudes that fall as 1 / frequency, as those of photographs do (Field 1987)

What noise shows is how far inputs of that kind reach on their way through the network. Real inputs excite the features
that the network has learned, and noise does not, so ranges from noise are too small wherever a layer looks for something
rare, and nothing tells by how much. It serves as calibration where there is nothing better. Equalization, and ranges of
weights, need no data at all (dcz.compression.networks.equalization).

Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from dcz.errors import UsageError

__all__ = ["Distilled", "Spectrum", "distill", "noise"]

Spectrum: TypeAlias = Literal["white", "natural"]

_Norm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True, eq=False)
class Distilled:
    """``inputs``: float32 (count, ...). ``losses``: before each step, and at the end."""

    inputs: torch.Tensor
    losses: tuple[float, ...]


def distill(
    module: nn.Module,
    shape: Sequence[int],
    *,
    count: int = 64,
    steps: int = 300,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Distilled:
    """Inputs that match the statistics of a network's BatchNorms, and a mean of 0 and deviation of 1 of their own channels.

    ``module``: with its norms as they were trained, not folded. ``shape``: of one input, (channels, ...). ``seed``: of
    the noise from which it starts; torch's own generator is not touched. The learning rate falls with a cosine. The
    module is used in evaluation mode, and afterwards as it was, without gradients.

    Raises UsageError if no BatchNorm with running statistics takes part, or if there is nothing to do.
    """
    norms = [part for part in module.modules() if isinstance(part, _Norm) and part.running_mean is not None]
    if not norms:
        raise UsageError(
            "the module has no BatchNorm with running statistics",
            hint="dcz.compression.zero_shot.noise needs none",
        )
    if count < 2 or steps < 1:
        raise UsageError(f"{count} inputs in {steps} steps: at least 2 and 1 are needed")
    generator = torch.Generator().manual_seed(seed)
    device = next(norm.running_mean.device for norm in norms if norm.running_mean is not None)
    inputs = torch.randn(count, *shape, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    terms: list[torch.Tensor] = []

    def watch(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, _Norm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, deviation = _moments(args[0])
        terms.append((mean - norm.running_mean).square().sum())
        terms.append((deviation - (norm.running_var + norm.eps).sqrt()).square().sum())

    losses = []
    training = {part: part.training for part in module.modules()}
    required = {parameter: parameter.requires_grad for parameter in module.parameters()}
    handles = [norm.register_forward_pre_hook(watch) for norm in norms]
    try:
        module.eval()
        module.requires_grad_(False)
        for step in range(steps + 1):
            terms.clear()
            with torch.enable_grad():
                module(inputs)
                if not terms:
                    raise UsageError("no BatchNorm took part in the forward pass")
                mean, deviation = _moments(inputs)
                loss = torch.stack(terms).sum() + mean.square().sum() + (deviation - 1).square().sum()
            losses.append(float(loss.detach()))
            if step == steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in training.items():
            part.training = mode
        for parameter, mode in required.items():
            parameter.requires_grad_(mode)
    return Distilled(inputs.detach(), tuple(losses))


def noise(
    shape: Sequence[int],
    *,
    count: int = 64,
    mean: float = 0.0,
    deviation: float = 1.0,
    spectrum: Spectrum = "white",
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Normal noise: float32 (count, \\*shape).

    ``shape``: of one input. ``mean``, ``deviation``: of all its values. ``spectrum``: ``white``; or ``natural``,
    amplitudes that fall as 1 / frequency along all axes but the first, that of the channels. ``low``, ``high``: what real
    inputs never pass.

    Raises UsageError for what does not exist.
    """
    if spectrum not in get_args(Spectrum):
        raise UsageError(f"unknown spectrum {spectrum!r}", hint=f"allowed: {', '.join(get_args(Spectrum))}")
    if count < 1 or not deviation > 0:
        raise UsageError(f"{count} inputs with a deviation of {deviation}: both have to be positive")
    values = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    if spectrum == "natural":
        if len(shape) < 2:
            raise UsageError("natural noise has places: a shape (channels, ...) is needed")
        axes = tuple(range(2, values.ndim))
        grids = torch.meshgrid([torch.fft.fftfreq(size) for size in shape[1:]], indexing="ij")
        frequency = torch.stack(grids).square().sum(0).sqrt()
        # The mean has no frequency: it varies from image to image as much as the slowest wave does.
        frequency = frequency.clamp(min=1 / max(shape[1:]))
        values = torch.fft.ifftn(torch.fft.fftn(values, dim=axes) / frequency, dim=axes).real
        values = (values - values.mean()) / values.std()
    values = values * deviation + mean
    return values if low is None and high is None else values.clamp(low, high)


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel (axis 1)."""
    rows = values.transpose(0, 1).flatten(1)
    return rows.mean(1), (rows.var(1, correction=0) + 1e-12).sqrt()
