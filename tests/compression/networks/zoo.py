"""Small networks with everything that the graphs of dcz.compression.networks know."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

Shape = tuple[int, ...]
Net = TypeVar("Net", bound=nn.Module)


def seeded(module: Net, seed: int = 0) -> Net:
    """Weights with uneven channels, and norms with statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
                )
                if name == "weight" and parameter.ndim > 1:
                    spread = torch.exp(torch.randn(parameter.shape[0], generator=generator))
                    parameter.mul_(spread.reshape(-1, *[1] * (parameter.ndim - 1)))
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.3, 3, generator=generator)
                if part.affine:
                    part.weight.add_(1.5)
    module.eval()
    return module


def part(module: nn.Module, name: str) -> Any:
    """A module by its name: a layer, a norm."""
    return module.get_submodule(name)


class Residual(nn.Module):
    """Two branches, a sum, a concatenation, functions and methods instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 4, 1)
        self.fc1 = nn.Linear(12, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.bn1(self.conv1(images)))
        second = torch.relu(self.bn2(self.conv2(first)) + first)
        both = torch.cat([second, self.side(first).relu()], dim=1)
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(both, 2), 1)
        outputs: torch.Tensor = self.fc2(F.relu(self.fc1(torch.flatten(pooled, 1))))
        return outputs


def mobile(activation: type[nn.Module] = nn.ReLU6, *, bias: bool = False, padding: int = 1) -> nn.Sequential:
    """1 x 1, depthwise, 1 x 1; each with a norm."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=bias),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 8, 3, padding=padding, stride=2, groups=8, bias=bias),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 6, 1, bias=bias),
        nn.BatchNorm2d(6),
        activation(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 7),
        nn.BatchNorm1d(7, affine=False),
    )


def networks() -> dict[str, tuple[nn.Module, Shape]]:
    """By name: a network with seeded weights, and the shape of an input."""
    found: dict[str, tuple[nn.Module, Shape]] = {
        "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3, dilation=2), nn.BatchNorm1d(4), nn.ReLU()), (3, 12)),
        "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 2, bias=False), nn.BatchNorm3d(4)), (2, 4, 4, 4)),
        "linear": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (4, 5, 5)),
        "transposed, grouped": (
            nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)),
            (4, 5),
        ),
        "mobile": (mobile(), (3, 8, 8)),
        "residual": (Residual(), (2, 8, 8)),
    }
    return {name: (seeded(module), shape) for name, (module, shape) in found.items()}


def batch(shape: Shape, count: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
