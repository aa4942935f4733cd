"""MNIST in memory: its validation split, and distorted copies of the images to learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["Lessons", "Mnist", "error_percent", "lessons", "load_mnist", "normalized"]

# The last images of the training set, as in the usual split of MNIST into 50,000, 10,000 and 10,000.
HELD_OUT = 10_000
COPIES = 3


@dataclass(frozen=True)
class Mnist:
    """Images uint8 (n, 28, 28) and labels int64 (n,): to learn from, to choose by, and to report once."""

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Lessons:
    """Copies of the training set, the first one as it is and the others distorted.

    ``images``: uint8 (copies, n, 28, 28). ``labels``: int64 (n,).
    """

    images: torch.Tensor
    labels: torch.Tensor


def load_mnist(path: Path | None) -> Mnist:
    """From an .npz with x_train, y_train, x_test and y_test; None fetches the data set `ylecun/mnist` from the Hub."""
    arrays = _from_hub() if path is None else dict(np.load(path, allow_pickle=False))
    images = torch.from_numpy(arrays["x_train"].astype(np.uint8))
    labels = torch.from_numpy(arrays["y_train"].astype(np.int64))
    cut = len(images) - HELD_OUT
    return Mnist(
        (images[:cut], labels[:cut]),
        (images[cut:], labels[cut:]),
        (
            torch.from_numpy(arrays["x_test"].astype(np.uint8)),
            torch.from_numpy(arrays["y_test"].astype(np.int64)),
        ),
    )


def _from_hub() -> dict[str, np.ndarray]:
    import io

    from huggingface_hub import hf_hub_download
    from PIL import Image
    from pyarrow import parquet

    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        file = hf_hub_download("ylecun/mnist", f"mnist/{part}-00000-of-00001.parquet", repo_type="dataset")
        rows = parquet.read_table(file).to_pydict()
        pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows["image"]]
        arrays[f"x_{part}"] = np.stack(pictures)
        arrays[f"y_{part}"] = np.asarray(rows["label"])
    return arrays


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 28, 28) -> float32 (n, 1, 28, 28), mean 0 and deviation 1 over the training set."""
    return (images.float().unsqueeze(1) / 255 - 0.1307) / 0.3081


@torch.no_grad()
def error_percent(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of images that are not recognized, in percent."""
    network.eval()
    outputs = torch.cat([network(normalized(part)) for part in images.split(1000)])
    return 100 * int((outputs.argmax(1) != labels).sum()) / len(labels)


def distorted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by up to 12 degrees, sheared, scaled by up to 12 %, moved by up to 2 pixels, and slightly bent."""
    parts = []
    for part in images.split(5000):
        count = len(part)

        def uniform(reach: float, count: int = count) -> torch.Tensor:
            return (torch.rand(count, generator=generator) * 2 - 1) * reach

        angle, across, down = uniform(12 * math.pi / 180), 1 + uniform(0.12), 1 + uniform(0.12)
        first = torch.stack([angle.cos() * across, uniform(0.15) - angle.sin() * down, uniform(2 / 14)], 1)
        second = torch.stack([angle.sin() * across, angle.cos() * down, uniform(2 / 14)], 1)
        grid = functional.affine_grid(
            torch.stack([first, second], 1), [count, 1, 28, 28], align_corners=False
        )
        bend = torch.randn(count, 2, 7, 7, generator=generator) / 14
        bend = functional.interpolate(bend, size=(28, 28), mode="bicubic", align_corners=False)
        moved = functional.grid_sample(
            part.float().unsqueeze(1), grid + bend.permute(0, 2, 3, 1), align_corners=False
        )
        parts.append(moved[:, 0].clamp(0, 255).round().to(torch.uint8))
    return torch.cat(parts)


def lessons(data: Mnist, cache: Path) -> Lessons:
    """Make the distorted copies, or take them from ``cache``, a file in which they are kept."""
    images, labels = data.train
    if cache.exists():
        return Lessons(torch.from_numpy(np.load(cache, allow_pickle=False)), labels)
    generator = torch.Generator().manual_seed(0)
    copies = torch.stack([images, *(distorted(images, generator) for _ in range(COPIES))])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, copies.numpy())
    return Lessons(copies, labels)
