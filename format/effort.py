"""How hard to try: what a byte that is saved may cost when the file is read (docs/decisions/0013-effort.md).

Reading takes the time of fetching the stored bytes and that of decoding them. At a given speed of fetching, a
nanosecond of decoding is worth a number of bytes, and every choice of the encoder weighs both. An effort is such a speed:
``fast`` for files in memory or on a fast disk, ``balanced`` for a network, ``small`` where only size counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from dcz.errors import UsageError

__all__ = ["EFFORTS", "Effort", "EffortName", "effort_of"]

EffortName: TypeAlias = Literal["fast", "balanced", "small"]

# Measured on one core with AVX-512, on symbols of 2 to 7.8 bits: nanoseconds to decode one bit of a Huffman
# code (each is a step of a merge: 0.041 to 0.064), one symbol on one level of a cascade (0.024 to 0.05, where it also pays
# for what a level costs by itself), and one byte of a zstd frame that holds few repetitions (0.8 to 1.0).
_NS_PER_HUFFMAN_BIT: Final = 0.05
_NS_PER_CASCADE_LEVEL: Final = 0.05
_NS_PER_ZSTD_BYTE: Final = 0.9


@dataclass(frozen=True)
class Effort:
    """``bytes_per_ns``: stored bytes that may be spent to save a nanosecond of decoding, which is the speed in GB/s at
    which they are fetched. ``zstd_level``: at which zstd is tried where there is repetition."""

    name: EffortName
    bytes_per_ns: float
    zstd_level: int

    @property
    def huffman_price(self) -> int:
        """What decoding a bit of a Huffman code is worth, in 1/1024 bytes."""
        return round(1024 * self.bytes_per_ns * _NS_PER_HUFFMAN_BIT)

    @property
    def cascade_price(self) -> int:
        """What decoding a symbol on a level of a cascade is worth, in 1/1024 bits."""
        return round(8192 * self.bytes_per_ns * _NS_PER_CASCADE_LEVEL)

    @property
    def zstd_price(self) -> float:
        """The bytes that decoding a byte of a zstd frame is worth."""
        return self.bytes_per_ns * _NS_PER_ZSTD_BYTE


EFFORTS: Final[dict[str, Effort]] = {
    effort.name: effort
    for effort in (
        Effort("fast", bytes_per_ns=0.5, zstd_level=3),
        Effort("balanced", bytes_per_ns=0.1, zstd_level=3),
        Effort("small", bytes_per_ns=0.0, zstd_level=19),
    )
}


def effort_of(name: str) -> Effort:
    """Raises UsageError, which says which there are."""
    given: Any = name
    effort = EFFORTS.get(name) if isinstance(given, str) else None
    if effort is None:
        raise UsageError(f"{name!r} is not an effort", hint=f"allowed: {', '.join(EFFORTS)}")
    return effort
