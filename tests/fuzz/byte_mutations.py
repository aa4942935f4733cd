"""Mutations of a sequence of bytes that know nothing of what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, TypeAlias

__all__ = ["BYTE_MUTATIONS", "ByteMutation", "random_bytes"]

ByteMutation: TypeAlias = Callable[[Random, bytes, bytes], bytes]
"""Takes the source of chance, what to change, and other data of the same kind."""

_EDGE: Final = 80  # where header, footer and tables are


def random_bytes(random: Random, most: int) -> bytes:
    """A few bytes, of any value, or all the same."""
    size = random.randint(1, most)
    return random.choice([random.randbytes(size), bytes(size), b"\xff" * size, random.randbytes(1) * size])


def _place(random: Random, size: int) -> int:
    """Anywhere, but the first and the last bytes more often."""
    edge = min(size, _EDGE)
    if edge == 0:
        return 0
    return random.choice([random.randrange(size), random.randrange(edge), size - 1 - random.randrange(edge)])


def _range(random: Random, size: int) -> tuple[int, int]:
    start = _place(random, size)
    longest = random.choice([1, 4, 16, 64, size])
    return start, min(size, start + random.randint(1, max(1, longest)))


def _flip_bit(random: Random, data: bytes, donor: bytes) -> bytes:
    return _change(random, data, lambda byte: byte ^ 1 << random.randrange(8))


def _set_byte(random: Random, data: bytes, donor: bytes) -> bytes:
    def near(byte: int) -> int:
        return random.choice([0, 0xFF, 0x80, 0x7F, byte + 1, byte - 1, random.randrange(256)])

    return _change(random, data, near)


def _change(random: Random, data: bytes, change: Callable[[int], int]) -> bytes:
    if not data:
        return random_bytes(random, 4)
    at = _place(random, len(data))
    return data[:at] + bytes([change(data[at]) & 0xFF]) + data[at + 1 :]


def _truncate(random: Random, data: bytes, donor: bytes) -> bytes:
    at = _place(random, len(data))
    return data[at:] if random.randrange(8) == 0 else data[:at]


def _extend(random: Random, data: bytes, donor: bytes) -> bytes:
    more = random.choice([random_bytes(random, 200), data[-64:], data, donor])
    return more + data if random.randrange(8) == 0 else data + more


def _insert(random: Random, data: bytes, donor: bytes) -> bytes:
    at = _place(random, len(data))
    return data[:at] + random_bytes(random, 40) + data[at:]


def _delete(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _range(random, len(data))
    return data[:start] + data[stop:]


def _zero(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _range(random, len(data))
    return data[:start] + bytes(stop - start) + data[stop:]


def _fill(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _range(random, len(data))
    return (
        data[:start] + random.choice([random.randbytes(stop - start), b"\xff" * (stop - start)]) + data[stop:]
    )


def _swap(random: Random, data: bytes, donor: bytes) -> bytes:
    a, b, c, d = sorted(_place(random, len(data)) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _range(random, len(data))
    return data[:stop] + data[start:stop] * random.randint(1, 3) + data[stop:]


def _splice(random: Random, data: bytes, donor: bytes) -> bytes:
    start, stop = _range(random, len(data))
    first, last = _range(random, len(donor))
    piece = donor[first:last]
    return random.choice(
        [
            data[:start] + piece + data[stop:],
            data[:start] + piece + data[start + len(piece) :],
            data[:start] + donor[first:],
            donor[:last] + data[start:],
        ]
    )


BYTE_MUTATIONS: Final[Mapping[str, ByteMutation]] = {
    "flip-bit": _flip_bit,
    "set-byte": _set_byte,
    "truncate": _truncate,
    "extend": _extend,
    "insert": _insert,
    "delete": _delete,
    "zero": _zero,
    "fill": _fill,
    "swap": _swap,
    "repeat": _repeat,
    "splice": _splice,
}
