"""MNIST in memory, its validation split, and the teacher whose outputs the compressed networks learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["Lessons", "Mnist", "error_percent", "lessons", "load_mnist", "logits_of", "normalized"]

# The last images of the training set, as in the usual split of MNIST into 50,000, 10,000 and 10,000.
HELD_OUT = 10_000
COPIES = 4
TEACHER_EPOCHS = 6
TEACHER_BATCH = 128


@dataclass(frozen=True)
class Mnist:
    """Images uint8 (n, 28, 28) and labels int64 (n,): to learn from, to choose by, and to report once."""

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Lessons:
    """Copies of the training set, the first one as it is and the others distorted, and what the teacher makes of them.

    ``images``: uint8 (copies, n, 28, 28). ``logits``: float16 (copies, n, 10).
    """

    images: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    teacher_validation_error: float


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
def logits_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """float32 (n, 10), in evaluation mode."""
    training = network.training
    network.eval()
    outputs = torch.cat([network(normalized(part)) for part in images.split(1000)])
    network.train(training)
    return outputs


def error_percent(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of images that are not recognized, in percent."""
    wrong = int((logits_of(network, images).argmax(1) != labels).sum())
    return 100 * wrong / len(labels)


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


class Teacher(nn.Module):
    """Two convolutions with batch normalization and dropout: larger than what is compressed, and never stored."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Dropout(0.4), nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.4), nn.Linear(256, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.features(images))
        return outputs


def lessons(data: Mnist, cache: Path) -> Lessons:
    """Train the teacher, and let it look at all copies of the training set. Kept in ``cache``, a file."""
    if cache.exists():
        kept = torch.load(cache, weights_only=True)
        return Lessons(kept["images"], kept["logits"], data.train[1], kept["error"])
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = data.train
    copies = torch.stack([images, *(distorted(images, generator) for _ in range(COPIES))])
    teacher = Teacher()
    optimizer = torch.optim.AdamW(teacher.parameters(), weight_decay=0.01)
    batches = len(images) // TEACHER_BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=TEACHER_EPOCHS * batches)
    for epoch in range(TEACHER_EPOCHS):
        which = torch.randint(len(copies), (len(images),), generator=generator)
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: batches * TEACHER_BATCH].split(TEACHER_BATCH):
            outputs = teacher(normalized(copies[which[batch], batch]))
            loss = functional.cross_entropy(outputs, labels[batch], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"teacher, epoch {epoch + 1}: validation error {error_percent(teacher, *data.validation):.2f} %",
            flush=True,
        )
    logits = torch.stack([logits_of(teacher, copy) for copy in copies]).half()
    error = error_percent(teacher, *data.validation)
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"images": copies, "logits": logits, "error": error}, cache)
    return Lessons(copies, logits, labels, error)
