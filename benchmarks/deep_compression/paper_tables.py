"""Tables 4 and 5 of Han, Mao and Dally, "Deep Compression", ICLR 2016 (arXiv 1510.00149v5): AlexNet and VGG-16.

The cells are as printed; shapes are those of the networks (Krizhevsky et al. 2012 in two groups; Simonyan and Zisserman 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A layer. ``density`` and the rates are per cent, as printed: of the weights, and of 32 bits for each of them. Bits are for
    each stored entry."""

    name: str
    shape: tuple[int, ...]
    density: int
    weight_bits: int
    coded_weight_bits: float
    coded_index_bits: float
    rate: float
    coded_rate: float

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def codebook(self) -> float:
        """Bits of 2^bits shared values of 32 bits, for each weight."""
        return 32 * (1 << self.weight_bits) / self.weights


@dataclass(frozen=True)
class Network:
    """``claimed``: how many times smaller the paper says that it is; ``index_bits``: the width of its relative index."""

    name: str
    index_bits: int
    claimed: int
    rows: tuple[Row, ...]

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def rate(self) -> float:
        """The printed rates of the rows, weighed by their weights, per cent: P+Q."""
        return sum(row.rate * row.weights for row in self.rows) / self.weights

    @property
    def coded_rate(self) -> float:
        """The same: P+Q+H."""
        return sum(row.coded_rate * row.weights for row in self.rows) / self.weights


ALEXNET = Network(
    "AlexNet",
    index_bits=4,
    claimed=35,
    rows=(
        Row("conv1", (96, 3, 11, 11), 84, 8, 6.3, 1.2, 32.6, 20.53),
        Row("conv2", (256, 48, 5, 5), 38, 8, 5.5, 2.3, 14.5, 9.43),
        Row("conv3", (384, 256, 3, 3), 35, 8, 5.1, 2.6, 13.1, 8.44),
        Row("conv4", (384, 192, 3, 3), 37, 8, 5.2, 2.5, 14.1, 9.11),
        Row("conv5", (256, 192, 3, 3), 37, 8, 5.6, 2.5, 14.0, 9.43),
        Row("fc6", (4096, 9216), 9, 5, 3.9, 3.2, 3.0, 2.39),
        Row("fc7", (4096, 4096), 9, 5, 3.6, 3.7, 3.0, 2.46),
        Row("fc8", (1000, 4096), 25, 5, 4.0, 3.2, 7.3, 5.85),
    ),
)

VGG16 = Network(
    "VGG-16",
    index_bits=5,
    claimed=49,
    rows=(
        Row("conv1_1", (64, 3, 3, 3), 58, 8, 6.8, 1.7, 40.0, 29.97),
        Row("conv1_2", (64, 64, 3, 3), 22, 8, 6.5, 2.6, 9.8, 6.99),
        Row("conv2_1", (128, 64, 3, 3), 34, 8, 5.6, 2.4, 14.3, 8.91),
        Row("conv2_2", (128, 128, 3, 3), 36, 8, 5.9, 2.3, 14.7, 9.31),
        Row("conv3_1", (256, 128, 3, 3), 53, 8, 4.8, 1.8, 21.7, 11.15),
        Row("conv3_2", (256, 256, 3, 3), 24, 8, 4.6, 2.9, 9.7, 5.67),
        Row("conv3_3", (256, 256, 3, 3), 42, 8, 4.6, 2.2, 17.0, 8.96),
        Row("conv4_1", (512, 256, 3, 3), 32, 8, 4.6, 2.6, 13.1, 7.29),
        Row("conv4_2", (512, 512, 3, 3), 27, 8, 4.2, 2.9, 10.9, 5.93),
        Row("conv4_3", (512, 512, 3, 3), 34, 8, 4.4, 2.5, 14.0, 7.47),
        Row("conv5_1", (512, 512, 3, 3), 35, 8, 4.7, 2.5, 14.3, 8.00),
        Row("conv5_2", (512, 512, 3, 3), 29, 8, 4.6, 2.7, 11.7, 6.52),
        Row("conv5_3", (512, 512, 3, 3), 36, 8, 4.6, 2.3, 14.8, 7.79),
        Row("fc6", (4096, 25088), 4, 5, 3.6, 3.5, 1.6, 1.10),
        Row("fc7", (4096, 4096), 4, 5, 4.0, 4.3, 1.5, 1.25),
        Row("fc8", (1000, 4096), 23, 5, 4.0, 3.4, 7.1, 5.24),
    ),
)
