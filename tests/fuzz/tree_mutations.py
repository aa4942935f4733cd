"""Mutations of the manifest as a tree, and of the MessagePack that it is written in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias

import msgpack

__all__ = ["TREE_MUTATIONS", "CannotApply", "TreeMutation", "Verbatim", "mutated_int", "pack"]

TreeMutation: TypeAlias = Callable[[Random, dict[str, Any]], None]
_Node: TypeAlias = tuple[Any, Any]
"""A map or an array, and a key or an index in it."""

_REPEATED: Final = 600 << 10  # bytes: more than the limits allow


class CannotApply(Exception):
    """The mutation needs something that the file does not have."""


@dataclass(frozen=True)
class Verbatim:
    """Bytes that stand in the MessagePack as they are."""

    data: bytes


def pack(value: Any) -> bytes:
    """Canonical MessagePack, but for what is Verbatim."""
    match value:
        case Verbatim(data=data):
            return data
        case dict():
            items = sorted(value.items(), key=lambda item: str(item[0]).encode())
            return _map_header(len(items)) + b"".join(pack(key) + pack(item) for key, item in items)
        case list():
            return _array_header(len(value)) + b"".join(map(pack, value))
        case _:
            packed: bytes = msgpack.packb(value)
            return packed


def _map_header(count: int) -> bytes:
    header: bytes = msgpack.Packer(autoreset=True).pack_map_header(count)
    return header


def _array_header(count: int) -> bytes:
    header: bytes = msgpack.Packer(autoreset=True).pack_array_header(count)
    return header


# Where


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []


def _node(random: Random, tree: dict[str, Any], wanted: type | tuple[type, ...] = object) -> _Node:
    """Any field, item or map entry: at each step, one of the children. Half of the walks begin at a tensor."""
    for _ in range(30):
        at: Any = tree
        tensors = tree.get("tensors")
        if random.random() < 0.5 and isinstance(tensors, list) and tensors:
            at = random.choice(tensors)
        while children := _children(at):
            key = random.choice(children)
            last = not _children(at[key]) or random.random() < 0.2
            if last and isinstance(at[key], wanted):
                return at, key
            at = at[key]
    raise CannotApply


# What


def mutated_int(random: Random, value: int) -> int:
    """A neighbour, a multiple or a number at the edge of some type or limit."""
    power = 1 << random.choice([0, 1, 3, 4, 7, 8, 15, 16, 20, 24, 31, 32, 40, 60, 62, 63, 64])
    near = random.choice([value - 1, value + 1, 2 * value, value // 2, value + 8, -value, ~value, value ^ 1])
    edge = power + random.choice([-1, 0, 0, 1])
    return max(-(1 << 63), min((1 << 64) - 1, random.choice([near, near, edge, 0])))


def _mutated_str(random: Random, value: str) -> str:
    others = [
        "",
        value + "x",
        value[1:],
        value.upper(),
        value * 2,
        value + "\0",
        f"../{value}",
        "/",
        "é" * 300,
    ]
    others += [
        "dense",
        "bitmap",
        "relative-index",
        "exact",
        "affine",
        "codebook",
        "scaled-codebook",
        "vectors",
        "flat",
        "indexed",
        "minimums",
        "whole",
        "bytes",
        "rotated",
    ]
    others += ["tensor", "channel", "group", "f32", "f64", "bf16", "u8", "bool", "i64", "f8_e4m3fn"]
    others += ["\x1b[31m", "a" * 5000, "\u0130", "\N{SNOWMAN}", "safetensors-header", "tied"]
    return random.choice(others)


def _mutated_bytes(random: Random, value: bytes) -> bytes:
    if value and random.random() < 0.5:
        at = random.randrange(len(value))
        return value[:at] + bytes([random.choice([0, 1, 2, 3, 255, random.randrange(256)])]) + value[at + 1 :]
    return random.choice([b"", value[:-1], value + b"\0", value * 2, bytes(32), value[::-1]])


def _mutated(random: Random, value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return mutated_int(random, value)
        case float():
            return random.choice([0.0, -value, 1e308 * 10, float("nan"), 5e-324])
        case str():
            return _mutated_str(random, value)
        case bytes():
            return _mutated_bytes(random, value)
        case list():
            return random.choice([[], value[:-1], value[::-1], [*value, *value], [value]])
        case dict():
            return random.choice([{}, {"kind": "tensor"}, {"": value}])
        case _:
            return 0


def _field(random: Random, tree: dict[str, Any]) -> None:
    place, key = _node(random, tree)
    place[key] = _mutated(random, place[key])


def _number(random: Random, tree: dict[str, Any]) -> None:
    place, key = _node(random, tree, int)
    place[key] = mutated_int(random, int(place[key]))


def _type(random: Random, tree: dict[str, Any]) -> None:
    place, key = _node(random, tree)
    value = place[key]
    others = [0, 1, -1, "", "1", b"", bytes(32), 1.0, 0.0, True, False, [], {}, [value], {"kind": value}]
    others += [list(value.values()) if isinstance(value, dict) else str(value)[:50]]
    place[key] = random.choice(others)


def _key(random: Random, tree: dict[str, Any]) -> None:
    """Leave a field out, rename it, give it to another map, or add one."""
    place, key = _node(random, tree)
    if not isinstance(place, dict):
        raise CannotApply
    match random.randrange(4):
        case 0:
            del place[key]
        case 1:
            place[random.choice([key + "s", key[:-1], key.upper(), "", "kind", "name"])] = place.pop(key)
        case 2:
            other, there = _node(random, tree)
            other[key if isinstance(other, dict) else there] = deepcopy(place[key])
        case _:
            place[random.choice(["zzz", "A", "bits", "size", "axis", "split", "granularity", "\x1b[0m"])] = 1


def _item(random: Random, tree: dict[str, Any]) -> None:
    """Leave an item of an array out, double it, exchange it, or repeat it very often."""
    place, key = _node(random, tree, list)
    items = place[key]
    if not items:
        raise CannotApply
    at, other = random.randrange(len(items)), random.randrange(len(items))
    match random.randrange(5):
        case 0:
            del items[at]
        case 1:
            items.insert(at, items[other])
        case 2:
            items[at], items[other] = items[other], items[at]
        case 3:
            del items[at:]
        case _:
            packed = pack(items[at])
            count = random.choice([2, 15, 16, 300, 501, 4097, 70_000])
            count = min(count, 1 + _REPEATED // len(packed))
            place[key] = Verbatim(_array_header(count) + packed * count)


_DTYPES = [
    "f64",
    "f32",
    "f16",
    "bf16",
    "f8_e4m3fn",
    "f8_e5m2",
    "i8",
    "i16",
    "i32",
    "i64",
    "u8",
    "u64",
    "bool",
]


def _granularity(random: Random) -> dict[str, Any]:
    return random.choice(
        [
            {"kind": "tensor"},
            {"kind": "channel", "axis": random.randrange(3)},
            {"kind": "group", "size": random.choice([1, 2, 3, 7, 60, 1 << 24])},
            {"kind": "flat", "size": random.choice([1, 2, 3, 7, 60, 1 << 24])},
            {"kind": "indexed", "groups": random.choice([1, 2, 3, 7, 1 << 16])},
        ]
    )


def _parameters(random: Random) -> dict[str, Any]:
    """How scales or minimums are stored."""
    coded = {"bits": random.randint(1, 8), "group": random.choice([1, 2, 3, 7, 1 << 24])}
    return random.choice(
        [
            {"kind": "exact"},
            {"kind": "affine", "zero_point": random.choice([0, 1, 255]), **coded},
            {
                "kind": "codebook",
                "size": random.choice([1, 2, 3, 256]),
                "offset": random.random() < 0.5,
                **coded,
            },
        ]
    )


def _kind(random: Random, tree: dict[str, Any]) -> None:
    """Another valid element type, layout, kind of values or segment."""
    tensors = tree.get("tensors")
    if not isinstance(tensors, list) or not tensors:
        raise CannotApply
    tensor = random.choice(tensors)
    if not isinstance(tensor, dict):
        raise CannotApply
    bits = random.randint(1, 8)
    match random.randrange(5):
        case 0:
            tensor["dtype"] = random.choice(_DTYPES)
        case 1:
            relative = {"kind": "relative-index", "bits": bits}
            tensor["layout"] = random.choice([{"kind": "dense"}, {"kind": "bitmap"}, relative])
        case 2:
            shape = random.choice([[], [0], [60], [6, 10], [3, 4, 5], [1, 1, 1], [65], [1 << 20, 0], [0, 7]])
            tensor["shape"] = shape
        case 3:
            tensor["segment"] = random.choice([1, 2, 7, 8, 25, 60, 64, 1 << 24])
        case _:
            exact = {"kind": "exact", "split": random.choice(["whole", "bytes", "rotated"])}
            affine = {"kind": "affine", "bits": bits, "granularity": _granularity(random)}
            affine |= random.choice(
                [
                    {},
                    {"zero_points": True},
                    {"zero_points": True, "zero_point_bits": random.randint(1, 8)},
                    {"zero_point": random.choice([0, 3, 255])},
                    {"scale_dtype": "f16"},
                    {"minimums": True},
                    {"minimums": True, "minimum_values": _parameters(random)},
                    {"scale_values": _parameters(random)},
                ]
            )
            size = random.randint(1, 1 << bits)
            codebook = {"kind": "codebook", "bits": bits, "size": size, "granularity": _granularity(random)}
            scaled = codebook | {"kind": "scaled-codebook", "scale_values": _parameters(random)}
            vectors = {
                "kind": "vectors",
                "bits": bits,
                "size": size,
                "dimension": random.choice([1, 2, 5, 10]),
            }
            tensor["values"] = random.choice([exact, affine, codebook, scaled, vectors])


def _form(random: Random, tree: dict[str, Any]) -> None:
    """A form of MessagePack that is not canonical, or not allowed at all."""
    place, key = _node(random, tree)
    value, packed = place[key], pack(place[key])
    forms: list[bytes] = [
        b"\xc0",
        b"\xc1",
        b"\xd4\x05x",
        b"\xd6\xff\0\0\0\1",
        b"\xc7\0\x05",
        b"\x91" * random.choice([10, 30, 32, 40, 600, 3000]) + packed,
        b"\x81\xa1a" * random.choice([30, 600]) + packed,
        b"\xca" + struct.pack(">f", 1.5),
        b"",
        packed * 2,
        random.choice([b"\xdd", b"\xdf", b"\xdb", b"\xc6"])
        + random.choice([b"\xff", b"\0\1\0", b"\x7f"]) * 4,
        b"\x81" + random.choice([b"\1", b"\xc4\1a", b"\xc0", b"\x90", b"\xa1\xff"]) + packed,
    ]
    match value:
        case bool():
            forms.append(bytes([value]))
        case int() if value >= 0:
            forms += [b"\xcf" + struct.pack(">Q", value), b"\xd3" + struct.pack(">q", value >> 1)]
            forms += [b"\xcd" + struct.pack(">H", value & 0xFFFF), b"\xcb" + struct.pack(">d", value)]
        case str():
            text = value.encode()
            forms += [b"\xdb" + struct.pack(">I", len(text)) + text, msgpack.packb(text)]
            forms += [b"\xa3a\xed\xa0", b"\xa3\xed\xa0\x80", b"\xa2\xc0\x80"]
        case bytes():
            forms += [b"\xc6" + struct.pack(">I", len(value)) + value]
            forms += [b"\xdb" + struct.pack(">I", len(value)) + value]
        case list():
            body = b"".join(map(pack, value))
            forms += [b"\xdd" + struct.pack(">I", len(value) + more) + body for more in (-1, 0, 1) if value]
        case dict() if value:
            items = [pack(one) + pack(item) for one, item in sorted(value.items())]
            forms += [_map_header(len(items)) + b"".join(items[::-1])]
            forms += [_map_header(len(items) + 1) + b"".join([*items, items[-1]])]
            forms += [b"\xdf" + struct.pack(">I", len(items)) + b"".join(items)]
        case _:
            pass
    place[key] = Verbatim(random.choice(forms))


TREE_MUTATIONS: Final[Mapping[str, TreeMutation]] = {
    "field": _field,
    "number": _number,
    "type": _type,
    "key": _key,
    "item": _item,
    "kind": _kind,
    "form": _form,
}
