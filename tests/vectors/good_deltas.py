"""The good conformance vectors, part 3: tensors that are differences to those of a base (sections 3.2 and 5.5).

The files whose names begin with ``base-`` are the bases of the others, and of bad vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blake3 import blake3
from tests.reference.dcz_reference_coders import Coder, huffman, raw, zstd
from tests.reference.dcz_reference_manifest import DTYPES, FLOAT_DTYPES
from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, Tensor, draft, tensor
from tests.vectors.good_values import BITMAP, DENSE, ELEMENTS, f32, numbers, relative

__all__ = ["base_types", "delta_files", "delta_tensor", "digest_of"]

LONG = "f16"


def digest_of(file: Draft) -> bytes:
    """The identity of a file."""
    data = file.build()
    length = int.from_bytes(data[-56:-52], "little")
    return blake3(data[-64 - length : -64]).digest()


def elements(dtype: str) -> bytes:
    """All that is strange about a type, and then the integers around the borders of its bits."""
    width = DTYPES[dtype]
    if dtype == "bool":
        return bytes([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0])
    top = 1 << (8 * width - 1)
    strange = list(ELEMENTS[dtype][1]) if dtype in FLOAT_DTYPES else []
    integers = [
        *strange,
        0,
        1,
        2,
        top - 1,
        top,
        top + 1,
        2 * top - 2,
        2 * top - 1,
        100,
        top - 100,
        top + 100,
        7,
    ]
    return b"".join(one.to_bytes(width, "little") for one in integers)


def other_elements(dtype: str) -> bytes:
    """The same in another order, so that each meets several; a third of them as they were."""
    width, data = DTYPES[dtype], elements(dtype)
    ones = [data[at : at + width] for at in range(0, len(data), width)]
    return b"".join(one if i % 3 == 0 else ones[(i * 5 + 2) % len(ones)] for i, one in enumerate(ones))


def base_types() -> Draft:
    """A tensor of each type, one with many elements, one in a codebook, an affine one, and an alias."""
    tensors = [
        tensor(dtype, dtype, [len(elements(dtype)) // width], Exact(elements(dtype)))
        for dtype, width in DTYPES.items()
    ]
    tensors.append(tensor("long", LONG, [20, 50], Exact(long_data(1)), segment=300, coders=zstd))
    tensors.append(tensor("scalar", "f32", [], Exact(f32(1.5))))
    tensors.append(tensor("codebook", "f32", [4], Codebook(2, 3, [0, 1, 2, 1], f32(-1, 0, 1))))
    tensors.append(tensor("affine", "f32", [4], Affine(4, [0, 8, 9, 15], f32(0.5))))
    return draft(tensors, aliases={"alias": "f32"})


def long_data(seed: int) -> bytes:
    return b"".join(number.to_bytes(2, "little") for number in numbers(1000, 1 << 16, seed))


def near(data: bytes, every: int) -> bytes:
    """Elements of 16 bits of which each so-many-th is another, a little."""
    ones = [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]
    changed = [one ^ (1 + i % 5) if i % every == 0 else one for i, one in enumerate(ones)]
    return b"".join(one.to_bytes(2, "little") for one in changed)


def delta_tensor(
    name: str,
    dtype: str,
    data: bytes,
    base: bytes,
    operation: str,
    *,
    shape: list[int] | None = None,
    split: str = "whole",
    coders: Coder = raw,
    layout: dict[str, Any] | None = None,
    segment: int | None = None,
    index: int = 0,
    of: str | None = None,
) -> Tensor:
    delta = {"operation": operation} | ({"base": index} if index else {}) | ({"tensor": of} if of else {})
    values = Exact(data, split, delta=delta, base=base)
    shape = [len(data) // DTYPES[dtype]] if shape is None else shape
    return tensor(name, dtype, shape, values, layout=layout, coders=coders, segment=segment)


def delta_files() -> Iterator[tuple[str, Draft]]:
    types = base_types()
    yield "base-types", types
    bases = [{"digest": digest_of(types), "hint": "types:1.0"}]

    for operation in ("xor", "difference"):
        for number, layout in enumerate((DENSE, BITMAP, relative(1), relative(8))):
            words = layout["kind"] + (f"-{layout['bits']}" if "bits" in layout else "")
            tensors = [
                delta_tensor(
                    dtype,
                    dtype,
                    other_elements(dtype),
                    elements(dtype),
                    operation,
                    split=("whole", "bytes")[(i + number) % 2],
                    layout=layout,
                )
                for i, dtype in enumerate(DTYPES)
                if (dtype, operation) != ("bool", "difference")
            ]
            yield f"delta-{operation}-{words}", draft(tensors, bases=bases)
        coded = [
            delta_tensor(
                f"{words}-{split}",
                LONG,
                near(long_data(1), 4),
                long_data(1),
                operation,
                shape=[20, 50],
                split=split,
                layout=layout,
                coders=coder,
                segment=segment,
                of="long",
            )
            for words, coder in (("huffman", huffman(packed=True)), ("zstd", zstd))
            for split, layout, segment in (("whole", DENSE, 1000), ("bytes", relative(4), 170))
        ]
        yield f"delta-{operation}-codings-and-segments", draft(coded, bases=bases)

    same = elements("f32")
    yield (
        "delta-identical",
        draft(
            [
                delta_tensor("f32", "f32", same, same, "xor", layout=relative(8)),
                delta_tensor("alias", "f32", same, same, "difference", layout=BITMAP),
                delta_tensor("f64", "f64", elements("f64"), elements("f64"), "difference"),
                delta_tensor("scalar", "f32", f32(1.5), f32(1.5), "xor", shape=[], layout=relative(8)),
            ],
            bases=[{"digest": digest_of(types)}],
        ),
    )
    yield (
        "delta-of-quantized",
        draft(
            [
                delta_tensor("codebook", "f32", f32(-1, 0, 1.5, 0), f32(-1, 0, 1, 0), "difference"),
                delta_tensor("affine", "f32", f32(-4, 0, 0.5, 3), f32(-4, 0, 0.5, 3.5), "xor"),
                tensor("plain", "f32", [2], Exact(f32(-0.0, 0.0))),
                tensor("empty", "f32", [0, 3], Exact(b"")),
            ],
            bases=bases,
        ),
    )
    # Behind each other: the second is a difference to the first, and so on. Segments differ from file to file.
    first = draft(
        [delta_tensor("t", LONG, near(long_data(1), 7), long_data(1), "xor", shape=[20, 50], of="long")],
        bases=bases,
    )
    yield "base-chain-1", first
    second = draft(
        [
            delta_tensor(
                "u",
                LONG,
                near(near(long_data(1), 7), 3),
                near(long_data(1), 7),
                "difference",
                shape=[20, 50],
                layout=BITMAP,
                segment=64,
                of="t",
            ),
            tensor("v", "u8", [3], Exact(b"abc")),
        ],
        bases=[{"digest": digest_of(first)}],
    )
    yield "base-chain-2", second
    third = near(near(near(long_data(1), 7), 3), 2)
    yield (
        "delta-chain-and-two-bases",
        draft(
            [
                delta_tensor(
                    "w",
                    LONG,
                    third,
                    near(near(long_data(1), 7), 3),
                    "xor",
                    shape=[20, 50],
                    layout=relative(2),
                    segment=333,
                    index=1,
                    of="u",
                ),
                delta_tensor("f32", "f32", other_elements("f32"), elements("f32"), "difference"),
                delta_tensor("v", "u8", b"abd", b"abc", "difference", index=1),
            ],
            bases=[{"digest": digest_of(types)}, {"digest": digest_of(second), "hint": "ü" * 512}],
            aliases={"x": "w"},
        ),
    )
