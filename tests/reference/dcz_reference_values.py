"""The reference reader, part 4: values with codes, granularity and parameters (docs/format.md, sections 5.3, 5.4 and 5.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from tests.reference.dcz_reference_manifest import DTYPES, FLOAT_DTYPES
from tests.reference.dcz_reference_streams import (
    FLOATS,
    Number,
    Refused,
    finite,
    integer,
    plus,
    rounded,
    scaled_element,
    times,
)

__all__ = [
    "Parameters",
    "check_values",
    "coded_parameters",
    "entry_size",
    "parameter_sizes",
    "read_parameters",
    "stored_entries",
    "widened",
]


def check_values(tensor: dict[str, Any]) -> None:
    """What section 5.3 and 5.4 demand of the element type and the shape."""
    values, dtype = tensor["values"], tensor["dtype"]
    kind = values["kind"]
    if kind == "exact":
        if values["split"] == "rotated" and dtype not in FLOAT_DTYPES:
            raise Refused("5.3", f"{dtype} elements cannot be rotated")
        narrower = {"f64": ["f32"], "f32": ["f16", "bf16"]}.get(dtype, [])
        if "stored_dtype" in values and values["stored_dtype"] not in narrower:
            raise Refused("5.3", f"{dtype} elements cannot be stored as {values['stored_dtype']}")
        if values["offset"] and (values["split"] != "rotated" or entry_size(tensor) == 1):
            raise Refused("5.3", "an offset is for rotated entries of several bytes")
        if "delta" in values:
            if "stored_dtype" in values:
                raise Refused("5.3", "differences are not of a narrower type")
            if values["split"] == "rotated":
                raise Refused("5.3", "differences cannot be rotated")
            if dtype == "bool" and values["delta"]["operation"] == "difference":
                raise Refused("5.5", "there is no difference of bool")
        return
    if "size" in values and values["size"] > 1 << values["bits"]:
        raise Refused("5.3", "a codebook is larger than its codes can say")
    if kind == "vectors":
        if tensor["layout"]["kind"] != "dense":
            raise Refused("5.3", "vectors are dense")
        if last_dimension(tensor) % values["dimension"] or tensor["segment"] % values["dimension"]:
            raise Refused("5.3", "rows or segments are not whole vectors")
        return
    if kind in ("affine", "scaled-codebook"):
        check_scaled(tensor)
    granularity = values["granularity"]
    if granularity["kind"] == "channel" and granularity["axis"] >= len(tensor["shape"]):
        raise Refused("5.4", "there is no such axis")


def entry_size(tensor: dict[str, Any]) -> int:
    """The bytes of an exact entry."""
    return DTYPES[tensor["values"].get("stored_dtype", tensor["dtype"])]


def scale_dtype(tensor: dict[str, Any]) -> str:
    return str(tensor["values"].get("scale_dtype", "f64" if tensor["dtype"] == "f64" else "f32"))


def stored_entries(
    tensor: dict[str, Any], indices: list[int], parameters: Parameters, symbols: list[list[int]]
) -> list[bytes]:
    """The elements at ``indices``, which number all elements of the tensor."""
    values, dtype, width = tensor["values"], tensor["dtype"], DTYPES[tensor["dtype"]]

    if values["kind"] == "exact":
        size = entry_size(tensor)
        if values["split"] == "whole":
            entries = [bytes(symbols[0][i * size : (i + 1) * size]) for i in range(len(indices))]
        else:
            entries = [bytes(planes) for planes in zip(*symbols, strict=True)]
        if values["split"] == "rotated":
            entries = [rotate_right(entry, values["offset"]) for entry in entries]
        if "stored_dtype" in values:
            entries = [widened(entry, values["stored_dtype"], dtype) for entry in entries]
        return entries

    codes, found = symbols[0], []
    if values["kind"] == "vectors":
        d, size = values["dimension"], values["size"]
        for index, code in zip(indices[::d], codes, strict=True):
            if code >= size:
                raise Refused("5.3", f"a code is not below {size}")
            table = index % last_dimension(tensor) // d if values["per_place"] else 0
            first = (table * size + code) * d
            found += parameters.elements[first : first + d]
        return [element.to_bytes(width, "little") for element in found]

    for index, code in zip(indices, codes, strict=True):
        group = group_of(tensor, index, parameters)
        if "size" in values and code >= values["size"]:
            raise Refused("5.3", f"a code is not below {values['size']}")
        if values["kind"] == "codebook":
            found.append(parameters.elements[group * values["size"] + code])
            continue
        level = (
            parameters.table[code]
            if values["kind"] == "scaled-codebook"
            else integer(code - parameters.zero_points[group])
        )
        minimum = parameters.minimums[group] if parameters.minimums else None
        found.append(scaled_element(dtype, parameters.scales[group], level, minimum))
    return [element.to_bytes(width, "little") for element in found]


def rotate_right(entry: bytes, offset: int) -> bytes:
    bits = 8 * len(entry)
    value = int.from_bytes(entry, "little")
    if offset:
        value = (value - offset * 2 ** (bits - 16)) % 2**bits
    return (value >> 1 | (value & 1) << (bits - 1)).to_bytes(len(entry), "little")


def widened(entry: bytes, narrow: str, wide: str) -> bytes:
    bits = int.from_bytes(entry, "little")
    source, target = FLOATS[narrow], FLOATS[wide]
    number = source.value(bits)
    if number is not None:
        result = target.round(*number)
    else:  # an infinity or a NaN
        sign = bits >> (source.exponent + source.mantissa)
        mantissa = bits % (1 << source.mantissa) << (target.mantissa - source.mantissa)
        result = sign << (target.exponent + target.mantissa) | target.overflow | mantissa
    return result.to_bytes(DTYPES[wide], "little")


def little_endian(data: list[int], width: int) -> list[int]:
    return [int.from_bytes(bytes(data[i : i + width]), "little") for i in range(0, len(data), width)]


# 5.4 Granularity --------------------------------------------------------------------------------------------------


def last_dimension(tensor: dict[str, Any]) -> int:
    return int(tensor["shape"][-1]) if tensor["shape"] else 1


def group_count(tensor: dict[str, Any]) -> int:
    granularity, shape = tensor["values"]["granularity"], tensor["shape"]
    kind, last, rows = granularity["kind"], last_dimension(tensor), prod(shape[:-1])
    if kind == "tensor":
        return 1
    if kind == "channel":
        return int(shape[granularity["axis"]])
    if kind == "group":
        return int(rows * -(-last // granularity["size"]))
    if kind == "flat":
        return int(-(-prod(shape) // granularity["size"]))
    return int(rows * granularity["groups"])


def group_of(tensor: dict[str, Any], number: int, parameters: Parameters) -> int:
    """The group of an element, by its number in C order."""
    granularity, shape = tensor["values"]["granularity"], tensor["shape"]
    kind, last = granularity["kind"], last_dimension(tensor)
    row, column = divmod(number, last)
    if kind == "tensor":
        return 0
    if kind == "channel":
        axis = granularity["axis"]
        return int(number // prod(shape[axis + 1 :]) % shape[axis])
    if kind == "group":
        return int(row * -(-last // granularity["size"]) + column // granularity["size"])
    if kind == "flat":
        return int(number // granularity["size"])
    return int(row * granularity["groups"] + parameters.index[column])


# 5.3 and 5.6 Parameters -------------------------------------------------------------------------------------------


@dataclass
class Parameters:
    """What the parameter streams of a tensor hold; empty is what there is not. ``elements``: the bits of centroids, or of the
    elements of codewords."""

    elements: list[int] = field(default_factory=list)
    scales: list[Number] = field(default_factory=list)
    minimums: list[Number] = field(default_factory=list)
    table: list[Number] = field(default_factory=list)
    zero_points: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)


def check_scaled(tensor: dict[str, Any]) -> None:
    values, dtype = tensor["values"], tensor["dtype"]
    if dtype not in FLOAT_DTYPES:
        raise Refused("5.3", f"{dtype} elements have no scales")
    if (scale_dtype(tensor) == "f64") != (dtype == "f64"):
        raise Refused("5.3", "scales are f64 exactly where the elements are")
    coded = [values["scale_values"]["kind"] != "exact"]
    if values["kind"] == "affine":
        if values["zero_points"] and "zero_point" in values:
            raise Refused("5.3", "a zero point for all, and one for each group")
        if not values["zero_points"] and "zero_point_bits" in values:
            raise Refused("5.3", "there are no zero points that could have bits")
        if not values["minimums"] and values["minimum_values"]["kind"] != "exact":
            raise Refused("5.6", "there are no minimums that could be codes")
        if values["minimums"]:
            coded.append(values["minimum_values"]["kind"] != "exact")
    if any(coded) and dtype == "f64":
        raise Refused("5.6", "scales of f64 elements are not codes")
    if all(coded) and "scale_dtype" in values:
        raise Refused("5.6", "no scales or minimums are stored as they are")
    for how in (values["scale_values"], values.get("minimum_values", {"kind": "exact"})):
        if how["kind"] == "codebook" and how["size"] > 1 << how["bits"]:
            raise Refused("5.6", "a table is larger than its codes can say")


def coded_parameters(tensor: dict[str, Any]) -> int:
    """How many scales and minimums are codes."""
    values = tensor["values"]
    hows = [values[name]["kind"] for name in ("scale_values", "minimum_values") if name in values]
    coded = sum(kind != "exact" for kind in hows)
    return coded * group_count(tensor) if coded else 0


def sizes_of(how: dict[str, Any], dtype: str, groups: int) -> list[tuple[int, int]]:
    """Number and width of the symbols of the streams of scales or minimums."""
    if how["kind"] == "exact":
        return [(groups * DTYPES[dtype], 8)]
    outer = (-(-groups // how["group"]) * DTYPES[how["dtype"]], 8)
    if how["kind"] == "affine":
        return [(groups, how["bits"]), outer]
    return [(groups, how["bits"]), (how["size"] * 4, 8), outer, *([(4, 8)] if how["offset"] else [])]


def parameter_sizes(tensor: dict[str, Any]) -> list[tuple[int, int]]:
    """Number and width of symbols of the parameter streams."""
    values, width = tensor["values"], DTYPES[tensor["dtype"]]
    kind = values["kind"]
    if kind == "exact":
        return []
    if kind == "vectors":
        tables = last_dimension(tensor) // values["dimension"] if values["per_place"] else 1
        return [(tables * values["size"] * values["dimension"] * width, 8)]
    groups = group_count(tensor)
    if kind == "codebook":
        sizes = [(groups * values["size"] * width, 8)]
    else:
        sizes = sizes_of(values["scale_values"], scale_dtype(tensor), groups)
    if kind == "scaled-codebook":
        sizes.append((values["size"] * (8 if tensor["dtype"] == "f64" else 4), 8))
    if kind == "affine" and values["zero_points"]:
        sizes.append((groups, values.get("zero_point_bits", values["bits"])))
    if kind == "affine" and values["minimums"]:
        sizes += sizes_of(values["minimum_values"], scale_dtype(tensor), groups)
    if values["granularity"]["kind"] == "indexed":
        sizes.append((2 * last_dimension(tensor), 8))
    return sizes


def numbers_of(symbols: list[int], dtype: str, section: str, what: str) -> list[Number]:
    return [finite(dtype, bits, section, what) for bits in little_endian(symbols, DTYPES[dtype])]


def read_values(how: dict[str, Any], dtype: str, streams: Iterator[list[int]], what: str) -> list[Number]:
    """Scales or minimums, from their streams."""
    if how["kind"] == "exact":
        return numbers_of(next(streams), dtype, "5.3", what)
    codes = next(streams)
    table: list[Number] = []
    if how["kind"] == "codebook":
        table = numbers_of(next(streams), "f32", "5.6", "a value of a table")
        if any(code >= how["size"] for code in codes):
            raise Refused("5.6", "a code is not below the size of its table")
    outer = numbers_of(next(streams), how["dtype"], "5.6", "an outer scale")
    offset = numbers_of(next(streams), "f32", "5.6", "an offset")[0] if how.get("offset") else None
    found = []
    for i, code in enumerate(codes):
        level = table[code] if table else integer(code - how["zero_point"])
        number = rounded("f32", times(outer[i // how["group"]], level))
        if offset is not None:
            number = rounded("f32", plus(number, offset))
        if number[1] is None:
            raise Refused("5.6", f"{what} that follows from a code is not finite")
        found.append(number)
    return found


def read_parameters(tensor: dict[str, Any], symbols: Sequence[Sequence[int]]) -> Parameters:
    """From the symbols of the parameter streams, in their order."""
    values, dtype = tensor["values"], tensor["dtype"]
    streams = iter([list(stream) for stream in symbols])
    found = Parameters()
    if values["kind"] in ("codebook", "vectors"):
        found.elements = little_endian(next(streams), DTYPES[dtype])
    if values["kind"] in ("affine", "scaled-codebook"):
        found.scales = read_values(values["scale_values"], scale_dtype(tensor), streams, "a scale")
    if values["kind"] == "scaled-codebook":
        wide = "f64" if dtype == "f64" else "f32"
        found.table = numbers_of(next(streams), wide, "5.3", "a value of the table")
    if values["kind"] == "affine":
        if values["zero_points"]:
            found.zero_points = next(streams)
        else:
            found.zero_points = [values.get("zero_point", 1 << (values["bits"] - 1))] * len(found.scales)
        if values["minimums"]:
            found.minimums = read_values(values["minimum_values"], scale_dtype(tensor), streams, "a minimum")
    if values.get("granularity", {}).get("kind") == "indexed":
        found.index = little_endian(next(streams), 2)
        if any(group >= values["granularity"]["groups"] for group in found.index):
            raise Refused("5.4", "a column is of a group that is not there")
    return found
