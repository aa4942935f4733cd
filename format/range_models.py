"""The range coder's models (docs/format.md, section 6.4): what they may look at, and which of them the encoder takes."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from dcz import _native

__all__ = ["NOTHING", "NO_CONTEXT", "Beside", "RangeContext", "encode_range"]

_BITS: Final = 0
_NEIGHBOURS: Final = 1
_PLANES: Final = 2
_SIGNED: Final = 3
_SAMPLE: Final = 1 << 16  # symbols on which the models of a plane are compared
# The mean of a row or column in so many eighths, 8 to 1 of them for a symbol: fine for exponents and short codes, of
# which few are in use, coarse for long codes.
_FINE: Final = 1
_COARSE: Final = 3
_LONG_CODE: Final = 7  # bits


class Beside(NamedTuple):
    """What a decoder knows when it comes to a stream, in the order in which the native coder takes it.

    ``start``: the tensor's element at which the segment starts. ``positions``: uint32, those of the entries, counted from
    there; None: all elements. ``step``: symbols of an entry. ``bits``: elements of a bitmap, 0 if the stream is not one.
    ``next`` and ``last``: for plane j of exact values plane j + 1 and the last one, uint8, one symbol for each of j's.
    """

    start: int = 0
    positions: np.ndarray | None = None
    step: int = 1
    bits: int = 0
    next: np.ndarray | None = None
    last: np.ndarray | None = None

    def first(self, count: int) -> Beside:
        """For the first ``count`` symbols of a plane."""
        assert self.step == 1
        assert self.next is not None
        assert self.last is not None
        positions = None if self.positions is None else self.positions[:count]
        return self._replace(positions=positions, next=self.next[:count], last=self.last[:count])


NOTHING: Final = Beside()


class RangeContext(NamedTuple):
    """What an encoder's choice of a model goes by: what is known ``beside`` the stream, the symbols of a row, and whether
    the lowest bit of each symbol is the sign of a float."""

    beside: Beside = NOTHING
    columns: int = 1
    signs: bool = False


NO_CONTEXT: Final = RangeContext()


def encode_range(symbols: np.ndarray, width: int, context: RangeContext = NO_CONTEXT) -> bytes:
    """The stream of the best model."""
    beside, signs = context.beside, context.signs
    columns = min(max(1, context.columns), (1 << 32) - 1)
    if beside.bits:
        return _native.range_encode(symbols, width, (_BITS, 0, 0, columns), *beside)
    if beside.last is None:
        resolution = _COARSE if width >= _LONG_CODE and beside.positions is not None else _FINE
        return _native.range_encode(symbols, width, (_NEIGHBOURS, resolution, 0, columns), *beside)
    # All bits of a plane above the sign, or the upper half of them, or none.
    models = [(_SIGNED, 0, raw, columns) for raw in (1, 4, 8)] if signs else []
    models += [(_PLANES, 0, raw, columns) for raw in (0, 4)]
    if symbols.size > 2 * _SAMPLE:
        sample, head = symbols[:_SAMPLE], beside.first(_SAMPLE)
        models = [min(models, key=lambda model: len(_native.range_encode(sample, width, model, *head)))]
    return min((_native.range_encode(symbols, width, model, *beside) for model in models), key=len)
