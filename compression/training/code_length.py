"""How many bits the range coding takes for the codes of a tensor, and what each code costs at the margin.

The range coder learns the densities of rows and columns while it codes (docs/format.md, section 6.4). This model of it is
told them, but no more exactly than the coder comes to know them: each density is that of all codes with the weight of
``_SEEN`` decisions, plus what is in the row or column. Where a code is not zero its magnitude is taken as geometric.

The model is fitted to the codes as they are and then held, which is what makes a rate out of it that can be
differentiated: at the fit the derivatives by its own parameters vanish.
"""

from __future__ import annotations

import math
from typing import Final

import torch

__all__ = ["CodeLengthModel"]

_SEEN: Final = 12.0  # as many decisions as the coder's rows and columns start from
_SMALLEST: Final = 1e-6
_NEWTON_STEPS: Final = 4
# Above a density of 1/2 a zero costs more than a weight, and the rate would reward what it is there to remove. Dense rows
# stay dense then, also those that nothing depends on.
_LARGEST_DENSITY: Final = 0.15
# Codes of large magnitude in a row that nothing depends on would not come nearer to zero either.
_LEAST_BITS_PER_STEP: Final = 0.3


class CodeLengthModel:
    """The costs of a tensor's codes.

    ``codes``: integers as floats, (rows, columns); a tensor with one dimension has one row.
    """

    def __init__(self, codes: torch.Tensor) -> None:
        self.fit(codes)

    def fit(self, codes: torch.Tensor) -> None:
        """Fit the densities and the magnitudes to ``codes``, (rows, columns)."""
        with torch.no_grad():
            stored = codes != 0
            self._logits = _density_logits(stored.to(codes.dtype))
            # Bits that a weight costs more than a zero does, where it stands.
            ceiling = math.log(_LARGEST_DENSITY / (1 - _LARGEST_DENSITY))
            self._position = -self._logits.clamp(max=ceiling) / math.log(2)
            magnitudes = codes[stored].abs()
            mean = float(magnitudes.mean()) if magnitudes.numel() else 1.0
            further = -math.log2(1 - 1 / mean) if mean > 1 else math.inf
            self._bits_per_step = min(max(further, _LEAST_BITS_PER_STEP), 16.0)

    def bits(self, codes: torch.Tensor) -> float:
        """The code length of ``codes``, integers as floats, of the shape that the model was fitted to.

        Within a few percent of the stream's; too long by up to a quarter where less than 1 % of a small tensor is stored.
        """
        with torch.no_grad():
            stored = codes != 0
            cost = torch.where(
                stored,
                torch.nn.functional.softplus(-self._logits),
                torch.nn.functional.softplus(self._logits),
            )
            _, counts = torch.unique(codes[stored], return_counts=True)
            share = counts.double() / counts.sum()
            values = -float((counts * share.log2()).sum())
            return float(cost.double().sum()) / math.log(2) + values + _learning_bits(*codes.shape)

    def marginal_bits(self, steps: torch.Tensor) -> torch.Tensor:
        """What weights cost, beyond what a tensor of zeros does: a scalar that can be differentiated.

        ``steps``: the weights in units of the quantization step, of the shape that the model was fitted to. Between two
        codes the cost is interpolated, which is its expectation under stochastic rounding. Steeper than the code length
        itself where the density is above 0.15, and never without a slope, so that what nothing depends on goes to zero.
        """
        magnitudes = steps.abs()
        beyond = torch.relu(magnitudes - 1)  # the gradient of clamp is far slower
        return ((magnitudes - beyond) * self._position).sum() + self._bits_per_step * beyond.sum()


def _learning_bits(rows: int, columns: int) -> float:
    """What it takes to learn the densities: half the logarithm of how often each is asked for, in units of what it starts
    from (Rissanen, "A universal prior for integers and estimation by minimum description length", 1983)."""
    if rows == 1:
        return 0.0
    return rows / 2 * math.log2(1 + columns / _SEEN) + columns / 2 * math.log2(1 + rows / _SEEN)


def _logit(density: torch.Tensor) -> torch.Tensor:
    return torch.logit(density, eps=_SMALLEST)


def _density_logits(stored: torch.Tensor) -> torch.Tensor:
    """The log odds of each position to hold a weight: an effect of the row and one of the column, of the sum that is right.

    ``stored``: 1 where there is a weight, 0 elsewhere; (rows, columns).
    """
    rows, columns = stored.shape
    count = stored.sum()
    density = (count + 0.4) / (stored.numel() + 0.8)
    if rows == 1:
        return _logit(density).expand(1, columns)
    in_row = (stored.sum(1) + _SEEN * density) / (columns + _SEEN)
    in_column = (stored.sum(0) + _SEEN * density) / (rows + _SEEN)
    logits = _logit(in_row)[:, None] + _logit(in_column)[None, :] - _logit(density)
    for _ in range(_NEWTON_STEPS):
        odds = torch.sigmoid(logits)
        slope = (odds * (1 - odds)).sum().clamp(min=_SMALLEST)
        logits = logits + ((count - odds.sum()) / slope).clamp(-2, 2)
    return logits
