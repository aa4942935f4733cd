"""The networks of the paper's Tables 2 and 3, as in Caffe's examples."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LeNet5", "LeNet300"]


class LeNet300(nn.Module):
    """LeNet-300-100: 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(images.flatten(1)))))
        outputs: torch.Tensor = self.fc3(hidden)
        return outputs


class LeNet5(nn.Module):
    """Caffe's LeNet-5: 431,080 parameters. Nothing but the pooling stands between the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # With one channel, images and weights look contiguous and channels-last alike; contiguous features are slow to pool.
        images = images.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
        features = torch.max_pool2d(self.conv1(images), 2)
        features = torch.max_pool2d(self.conv2(features), 2)
        outputs: torch.Tensor = self.fc2(torch.relu(self.fc1(features.flatten(1))))
        return outputs
