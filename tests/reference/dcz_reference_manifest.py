"""The reference reader, part 2: the manifest (docs/format.md, sections 3, 4.2, 5 and 7: what a field may hold).

``parse_manifest`` gives the manifest with every default filled in, or refuses it. What one field says about another,
or about the data, is not checked here but in ``dcz_reference``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tests.reference.dcz_reference_streams import Refused

__all__ = ["DTYPES", "FLOAT_DTYPES", "Fields", "Limits", "check_path", "parse_manifest", "unpack"]


class Limits:
    """Section 9, with the defaults of dcz."""

    manifest = 256 << 20
    tensors = 262_144
    assets = 65_536
    chunks = 1 << 24
    streams = 1 << 24
    tensor_bytes = 1 << 40
    parameter_bytes = 1 << 30
    asset_bytes = 1 << 32
    chunk_bytes = 1 << 31
    chain = 8


# 3 Canonical MessagePack ------------------------------------------------------------------------------------------

MAX_DEPTH = 32

# The forms that begin with an unsigned integer: its size, and the smallest value for which no shorter form would do.
FORMS = {
    # bin
    0xC4: (1, 0),
    0xC5: (2, 1 << 8),
    0xC6: (4, 1 << 16),
    # int
    0xCC: (1, 1 << 7),
    0xCD: (2, 1 << 8),
    0xCE: (4, 1 << 16),
    0xCF: (8, 1 << 32),
    # str
    0xD9: (1, 1 << 5),
    0xDA: (2, 1 << 8),
    0xDB: (4, 1 << 16),
    # array
    0xDC: (2, 1 << 4),
    0xDD: (4, 1 << 16),
    # map
    0xDE: (2, 1 << 4),
    0xDF: (4, 1 << 16),
}


def unpack(data: bytes) -> Any:
    """The value of a canonical MessagePack document."""
    value, end = unpack_value(data, 0, 1)
    if end != len(data):
        raise Refused("3", "something stands behind the manifest's map")
    return value


def unpack_value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that starts at ``at``, and where it ends."""
    tag = take(data, at, 1)[0]
    at += 1
    if tag <= 0x7F:
        return tag, at
    if tag <= 0x8F:
        return unpack_map(data, at, tag & 0x0F, depth)
    if tag <= 0x9F:
        return unpack_array(data, at, tag & 0x0F, depth)
    if tag <= 0xBF:
        return unpack_str(data, at, tag & 0x1F)
    if tag >= 0xE0:
        return tag - 0x100, at
    if tag in (0xC2, 0xC3):
        return tag == 0xC3, at
    if tag == 0xCB:
        return struct.unpack(">d", take(data, at, 8))[0], at + 8
    if tag in (0xD0, 0xD1, 0xD2, 0xD3):
        size = 1 << (tag - 0xD0)
        value = int.from_bytes(take(data, at, size), "big", signed=True)
        if value >= (-32 if size == 1 else -(1 << (4 * size - 1))):
            raise Refused("3", f"the integer {value} is not in its shortest form")
        return value, at + size
    if tag in FORMS:
        size, smallest = FORMS[tag]
        value = int.from_bytes(take(data, at, size), "big")
        at += size
        if value < smallest:
            raise Refused("3", f"the number {value} is not in its shortest form")
        if tag <= 0xC6:
            return take(data, at, value), at + value
        if tag <= 0xCF:
            return value, at
        if tag <= 0xDB:
            return unpack_str(data, at, value)
        return (unpack_array if tag <= 0xDD else unpack_map)(data, at, value, depth)
    raise Refused("3", f"a MessagePack type that is not allowed ({tag:#04x})")


def take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Refused("3", "the manifest ends inside a value")
    return data[at : at + size]


def unpack_str(data: bytes, at: int, length: int) -> tuple[str, int]:
    try:
        return take(data, at, length).decode("utf-8"), at + length
    except UnicodeDecodeError as error:
        raise Refused("3", "a str is not UTF-8") from error


def unpack_array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    check_depth(depth)
    items = []
    for _ in range(count):
        item, at = unpack_value(data, at, depth + 1)
        items.append(item)
    return items, at


def unpack_map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[str, Any], int]:
    check_depth(depth)
    items: dict[str, Any] = {}
    previous = None
    for _ in range(count):
        key, at = unpack_value(data, at, depth + 1)
        if not isinstance(key, str):
            raise Refused("3", "a key is not a str")
        if previous is not None and key.encode() <= previous:
            raise Refused("3", f"the key {key!r} is not in ascending order, or not there once")
        previous = key.encode()
        items[key], at = unpack_value(data, at, depth + 1)
    return items, at


def check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refused("3", f"maps and arrays are nested deeper than {MAX_DEPTH}")


# 3 Fields ---------------------------------------------------------------------------------------------------------

Check = Callable[[Any], Any]
"""Takes a value, refuses it if it is of the wrong type or out of range, and gives it back with its defaults."""

REQUIRED = object()
OPTIONAL = object()


def an_int(section: str, low: int = 0, high: int = (1 << 64) - 1) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Refused(section, f"{value!r} is not an int from {low} to {high}")
        return value

    return check


def a(kind: type, section: str) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise Refused(section, f"{value!r} is not a {kind.__name__}")
        return value

    return check


def a_digest(section: str) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) != 32:
            raise Refused(section, f"{value!r} is not a bin of 32")
        return value

    return check


def one_of(section: str, *names: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in names:
            raise Refused(section, f"{value!r} is not known")
        return value

    return check


def an_array(section: str, item: Check) -> Check:
    def check(value: Any) -> list[Any]:
        return [item(one) for one in a(list, section)(value)]

    return check


def a_map(section: str, item: Check) -> Check:
    def check(value: Any) -> dict[str, Any]:
        return {key: item(one) for key, one in a(dict, section)(value).items()}

    return check


class Fields:
    """The fields that section 3, 4, 5 or 7 defines for a minor version, and whether a reader ignores others (section 10).
    ``used`` are the features of section 10.2 that were seen."""

    def __init__(self, minor: int, known_minor: bool) -> None:
        self.minor = minor
        self.known_minor = known_minor
        self.used: set[str] = set()

    def of(self, section: str, value: Any, fields: dict[str, tuple[Check, Any]]) -> dict[str, Any]:
        if type(value) is not dict:
            raise Refused(section, f"{value!r} is not a map")
        unknown = sorted(set(value) - set(fields))
        if unknown and self.known_minor:
            raise Refused("10", f"unknown field {unknown[0]!r}")
        result = {}
        for name, (check, default) in fields.items():
            if name in value:
                result[name] = check(value[name])
            elif default is REQUIRED:
                raise Refused("3", f"the field {name!r} is missing")
            elif default is not OPTIONAL:
                result[name] = default
        return result

    # 3 Manifest

    def manifest(self, value: Any) -> dict[str, Any]:
        return self.of(
            "3",
            value,
            {
                "version": (an_array("3", an_int("3")), REQUIRED),
                "requires": (an_array("3", a(str, "3")), []),
                "producer": (a(str, "3"), REQUIRED),
                "tensors": (an_array("3", self.tensor), []),
                "aliases": (a_map("3", a(str, "3")), {}),
                "assets": (an_array("3", self.asset), []),
                "bases": (an_array("3.2", self.base), []),
                "chunks": (self.chunks, {"lengths": [], "digests": b""}),
                "metadata": (a_map("3", a(str, "3")), {}),
                "provenance": (self.provenance, {}),
            },
        )

    def provenance(self, value: Any) -> dict[str, Any]:
        section = "3.1"

        def file(value: Any) -> dict[str, Any]:
            fields = {"path": a(str, section), "size": an_int(section), "sha256": a_digest(section)}
            return self.of(section, value, {name: (check, REQUIRED) for name, check in fields.items()})

        def recipe(value: Any) -> Any:
            if isinstance(value, bytes):
                raise Refused(section, "a recipe does not hold a bin")
            if isinstance(value, list):
                return [recipe(item) for item in value]
            if isinstance(value, dict):
                return {key: recipe(item) for key, item in value.items()}
            return value

        fields: dict[str, Check] = {
            "source": a(str, section),
            "revision": a(str, section),
            "files": an_array(section, file),
            "recipe": lambda value: recipe(a(dict, section)(value)),
            "effort": a(str, section),
            "metrics": a_map(section, a(float, section)),
        }
        return self.of(section, value, {name: (check, OPTIONAL) for name, check in fields.items()})

    # 3.2 Bases

    def base(self, value: Any) -> dict[str, Any]:
        def hint(value: Any) -> str:
            if not 1 <= len(a(str, "3.2")(value).encode()) <= 1024:
                raise Refused("3.2", "a hint is too long or too short")
            return str(value)

        return self.of("3.2", value, {"digest": (a_digest("3.2"), REQUIRED), "hint": (hint, OPTIONAL)})

    # 4.2 Chunks

    def chunks(self, value: Any) -> dict[str, Any]:
        fields = {"lengths": an_array("4.2", an_int("4.2", low=1)), "digests": a(bytes, "4.2")}
        return self.of("4.2", value, {name: (check, REQUIRED) for name, check in fields.items()})

    # 5 Tensors

    def tensor(self, value: Any) -> dict[str, Any]:
        tensor = self.of(
            "5",
            value,
            {
                "name": (check_name, REQUIRED),
                "dtype": (one_of("5.1", *DTYPES), REQUIRED),
                "shape": (an_array("5", an_int("5")), REQUIRED),
                "digest": (a_digest("5"), REQUIRED),
                "layout": (self.layout, {"kind": "dense"}),
                "values": (self.values, {"kind": "exact", "split": "whole", "offset": 0}),
                "segment": (an_int("5", 1, 1 << 24), 1),
                "entries": (an_array("5", an_int("5")), []),
                "gaps": (an_array("5", an_int("5")), []),
                "codings": (a(bytes, "5"), b""),
                "lengths": (an_array("5", an_int("5")), []),
            },
        )
        if len(tensor["shape"]) > 64:
            raise Refused("5", "a tensor has more than 64 dimensions")
        return tensor

    def layout(self, value: Any) -> dict[str, Any]:
        further: dict[str, dict[str, tuple[Check, Any]]] = {
            "dense": {},
            "relative-index": {"bits": (an_int("5.2", 1, 8), REQUIRED)},
            "bitmap": {},
        }
        return self.kind("5.2", value, further)

    def values(self, value: Any) -> dict[str, Any]:
        bits = (an_int("5.3", 1, 8), REQUIRED)
        size = (an_int("5.3", 1, 256), REQUIRED)
        granularity = (self.granularity, {"kind": "tensor"})
        scale_dtype = (one_of("5.3", "f32", "f16", "bf16", "f64"), OPTIONAL)
        parameters = (self.parameters, {"kind": "exact"})
        further: dict[str, dict[str, tuple[Check, Any]]] = {
            "exact": {
                "split": (one_of("5.3", "whole", "bytes", "rotated"), REQUIRED),
                "offset": (an_int("5.3", 0, 255), 0),
                "stored_dtype": (one_of("5.3", "f32", "f16", "bf16"), OPTIONAL),
                "delta": (self.delta, OPTIONAL),
            },
            "affine": {
                "bits": bits,
                "granularity": granularity,
                "zero_points": (a(bool, "5.3"), False),
                "scale_dtype": scale_dtype,
                **(
                    {
                        "zero_point_bits": (an_int("5.3", 1, 8), OPTIONAL),
                        "zero_point": (an_int("5.3", 0, 255), OPTIONAL),
                        "minimums": (a(bool, "5.3"), False),
                        "scale_values": parameters,
                        "minimum_values": parameters,
                    }
                    if self.minor
                    else {}
                ),
            },
            "codebook": {"bits": bits, "size": size, "granularity": granularity},
        }
        if self.minor:
            further["scaled-codebook"] = {
                "bits": bits,
                "size": size,
                "granularity": granularity,
                "scale_dtype": scale_dtype,
                "scale_values": parameters,
            }
            further["vectors"] = {
                "bits": bits,
                "size": size,
                "dimension": (an_int("5.3", 1, 65_536), REQUIRED),
                "per_place": (a(bool, "5.3"), False),
            }
        values = self.kind("5.3", value, further)
        if values["kind"] in ("affine", "scaled-codebook"):
            # In version 1.0 as if they were there.
            self.use("parameter-codes", value, "scale_values", "minimum_values")
            self.use("minimums", value, "minimums")
            self.use("zero-points", value, "zero_point", "zero_point_bits")
            exact = {"kind": "exact"}
            values = {"scale_values": exact, "minimum_values": exact, "minimums": False} | values
        if values["kind"] in ("scaled-codebook", "vectors"):
            self.used.add(values["kind"])
        return values

    def use(self, feature: str, value: dict[str, Any], *names: str) -> None:
        if any(name in value for name in names):
            self.used.add(feature)

    def parameters(self, value: Any) -> dict[str, Any]:
        bits = (an_int("5.6", 1, 8), REQUIRED)
        group = (an_int("5.6", 1, 1 << 24), REQUIRED)
        dtype = (one_of("5.6", "f32", "f16", "bf16"), "f32")
        return self.kind(
            "5.6",
            value,
            {
                "exact": {},
                "affine": {
                    "bits": bits,
                    "group": group,
                    "zero_point": (an_int("5.6", 0, 255), 0),
                    "dtype": dtype,
                },
                "codebook": {
                    "bits": bits,
                    "size": (an_int("5.6", 1, 256), REQUIRED),
                    "group": group,
                    "offset": (a(bool, "5.6"), False),
                    "dtype": dtype,
                },
            },
        )

    def delta(self, value: Any) -> dict[str, Any]:
        return self.of(
            "5.5",
            value,
            {
                "base": (an_int("5.5"), 0),
                "tensor": (check_name, OPTIONAL),
                "operation": (one_of("5.5", "xor", "difference"), REQUIRED),
            },
        )

    def granularity(self, value: Any) -> dict[str, Any]:
        further: dict[str, dict[str, tuple[Check, Any]]] = {
            "tensor": {},
            "channel": {"axis": (an_int("5.4"), REQUIRED)},
            "group": {"size": (an_int("5.4", 1, 1 << 24), REQUIRED)},
        }
        if self.minor:
            further["flat"] = {"size": (an_int("5.4", 1, 1 << 24), REQUIRED)}
            further["indexed"] = {"groups": (an_int("5.4", 1, 65_536), REQUIRED)}
        granularity = self.kind("5.4", value, further)
        if granularity["kind"] in ("flat", "indexed"):
            self.used.add(f"{granularity['kind']}-groups")
        return granularity

    def kind(
        self, section: str, value: Any, further: dict[str, dict[str, tuple[Check, Any]]]
    ) -> dict[str, Any]:
        """A map whose field ``kind`` says which other fields it has."""
        if type(value) is not dict:
            raise Refused(section, f"{value!r} is not a map")
        if "kind" not in value:
            raise Refused("3", "the field 'kind' is missing")
        kind = one_of(section, *further)
        return self.of(section, value, {"kind": (kind, REQUIRED), **further[kind(value["kind"])]})

    # 7 Assets

    def asset(self, value: Any) -> dict[str, Any]:
        return self.of(
            "7",
            value,
            {
                "path": (check_path, REQUIRED),
                "size": (an_int("7"), REQUIRED),
                "digest": (a_digest("7"), REQUIRED),
                "role": (one_of("7", "file", "safetensors-header"), "file"),
                "codings": (a(bytes, "7"), b""),
                "lengths": (an_array("7", an_int("7")), []),
            },
        )


# 5.1 Element types

DTYPES = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8_e4m3fn": 1,
    "f8_e5m2": 1,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "bool": 1,
}
FLOAT_DTYPES = ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")


# 3 and 7 Names and paths


def check_name(value: Any) -> str:
    name = a(str, "3")(value)
    if not 1 <= len(name.encode()) <= 4096 or "\0" in name:
        raise Refused("3", f"{name[:40]!r} is not a valid name")
    return str(name)


def check_path(value: Any) -> str:
    path = a(str, "7")(value)
    if not 1 <= len(path.encode()) <= 1024:
        raise Refused("7", f"{path[:40]!r} is too long or too short for a path")
    for name in path.split("/"):
        if name in ("", ".", "..") or name[-1] in " .":
            raise Refused("7", f"{path!r} is not a valid path")
        if any(ord(character) < 0x20 or character in "\x7f\\:" for character in name):
            raise Refused("7", f"{path!r} holds a character that is not allowed")
    return str(path)


def check_names(manifest: dict[str, Any]) -> None:
    stored = [tensor["name"] for tensor in manifest["tensors"]]
    names = [*stored, *(check_name(alias) for alias in manifest["aliases"])]
    if len(set(names)) != len(names):
        raise Refused("3", "two tensors or aliases have the same name")
    targets = set(stored)
    for alias, target in manifest["aliases"].items():
        if target not in targets:
            raise Refused("3", f"the alias {alias!r} does not name a stored tensor")


def check_bases(manifest: dict[str, Any]) -> None:
    bases = manifest["bases"]
    if len(bases) > 16:
        raise Refused("3.2", "there are more than 16 bases")
    if len({base["digest"] for base in bases}) < len(bases):
        raise Refused("3.2", "two bases have the same digest")
    deltas = [tensor["values"].get("delta") for tensor in manifest["tensors"]]
    used = {delta["base"] for delta in deltas if delta is not None}
    if any(number >= len(bases) for number in used):
        raise Refused("5.5", "there is no base of that number")
    if len(used) < len(bases):
        raise Refused("3.2", "a base is the base of no tensor")


def check_paths(paths: list[str]) -> None:
    folded = {path.casefold() for path in paths}
    if len(folded) != len(paths):
        raise Refused("7", "a path is given twice")
    for path in folded:
        names = path.split("/")
        for i in range(1, len(names)):
            if "/".join(names[:i]) in folded:
                raise Refused("7", f"a file is the folder of {path!r}")


# 10.2 Features

FEATURES = (
    "flat-groups",
    "indexed-groups",
    "minimums",
    "parameter-codes",
    "scaled-codebook",
    "vectors",
    "zero-points",
)


# 8 Verification, the second half of step 4


def parse_manifest(content: bytes, version: tuple[int, int], limits: type[Limits]) -> dict[str, Any]:
    """The manifest with its defaults, in which every field has the right type and range."""
    raw = unpack(content)
    # Version and requirements come before everything that they could explain.
    if a(dict, "3")(raw).get("version") != list(version):
        raise Refused("3", "the version is not that of header and footer")
    requires = an_array("3", a(str, "3"))(raw.get("requires", []))
    if any(one.encode() >= other.encode() for one, other in pairwise(requires)):
        raise Refused("3", "the required features are not in ascending order")
    unknown = [feature for feature in requires if version == (1, 0) or feature not in FEATURES]
    if unknown:
        raise Refused("10", f"unknown features are required: {unknown}")
    fields = Fields(version[1], known_minor=version == (1, 0) or (version == (1, 1) and requires != []))

    for name, limit in (("tensors", limits.tensors), ("assets", limits.assets)):
        if type(raw.get(name)) is list and len(raw[name]) > limit:
            raise Refused("9", f"there are more than {limit} {name}")
    manifest = fields.manifest(raw)
    if len(manifest["tensors"]) + len(manifest["aliases"]) > limits.tensors:
        raise Refused("9", f"there are more than {limits.tensors} tensors")
    check_names(manifest)
    check_bases(manifest)
    check_paths([asset["path"] for asset in manifest["assets"]])
    if fields.used != set(requires):
        raise Refused("10.2", f"the tensors have {sorted(fields.used)}, the file requires {requires}")
    return manifest
