"""The good conformance vectors: what every reader must read. ``generate.py`` writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import zstandard
from tests.reference.dcz_reference_coders import Block, Coder, fixed, huffman, pack_bits, raw, zstd
from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, Tensor, asset, draft, tensor
from tests.vectors.good_values import (
    BITMAP,
    affine,
    codebooks,
    f32,
    layouts,
    numbers,
    product,
    relative,
    shapes_and_types,
)

__all__ = ["bytes_tensor", "good_files"]


def good_files() -> Iterator[tuple[str, Draft]]:
    """Name and file of each vector."""
    yield from shapes_and_types()
    yield from product()
    yield from layouts()
    yield from affine()
    yield from codebooks()
    yield from huffman_streams()
    yield from zstd_streams()
    yield from segments_and_chunks()
    yield from names_and_assets()
    yield from manifests()


def bytes_tensor(symbols: Sequence[int], coder: Coder, name: str = "t", bits: int = 8) -> Tensor:
    """A tensor with one stream of 8 bits, or, through a codebook that changes nothing, of fewer."""
    if bits == 8:
        return tensor(name, "u8", [len(symbols)], Exact(bytes(symbols)), coders=coder)
    identity = Codebook(bits, 1 << bits, symbols, bytes(range(1 << bits)))
    return tensor(name, "u8", [len(symbols)], identity, coders=[raw, coder])


def huffman_streams() -> Iterator[tuple[str, Draft]]:
    # Each length twice as rare: the code lengths are 1 to 15.
    skewed = [min(15, (number & -number).bit_length() - 1) for number in numbers(500, 1 << 16)] + list(
        range(16)
    )
    lengths = {symbol: min(symbol + 1, 15) for symbol in range(16)}
    scattered = {3: 2, 4: 2, 9: 3, 10: 4, 12: 4, 200: 3, 255: 3}
    few = numbers(40, 5)
    spread = [sorted(scattered)[number] for number in numbers(60, 7)]
    rare = [int(number == 0) for number in numbers(65_536, 300)]
    ones = [1] * 65_536

    for packed in (False, True):
        name = "packed" if packed else "aligned"

        def one(*lengths: dict[int, int] | None, packed: bool = packed) -> Coder:
            return huffman(*(Block("new", packed, each) for each in lengths))

        yield (
            f"huffman-{name}-one-symbol",
            draft([bytes_tensor([7] * 9, one(None)), bytes_tensor([0], one(None), "u")]),
        )
        yield f"huffman-{name}-two-symbols", draft([bytes_tensor([7, 7, 9, 7, 9], one(None))])
        yield f"huffman-{name}-fifteen-bits", draft([bytes_tensor(skewed, one(lengths))])
        yield f"huffman-{name}-scattered-symbols", draft([bytes_tensor(spread, one(scattered))])
        yield f"huffman-{name}-unused-symbols", draft([bytes_tensor([3, 255, 255], one(scattered))])
        yield (
            f"huffman-{name}-all-symbols",
            draft([bytes_tensor(numbers(256, 256), one(dict.fromkeys(range(256), 8)))]),
        )
        yield (
            f"huffman-{name}-blocks",
            draft([bytes_tensor([*ones, *few], huffman(Block("new", packed), Block("new", packed)))]),
        )
        same = [Block("new", packed, {0: 1, 1: 2, 2: 3, 3: 4, 4: 4}), Block("same", not packed)]
        yield f"huffman-{name}-same-table", draft([bytes_tensor([*rare, *few], huffman(*same))])

    yield "huffman-stored-block", draft([bytes_tensor(few, huffman(Block("stored")))])
    yield "huffman-stored-block-of-3-bits", draft([bytes_tensor(few, huffman(Block("stored")), bits=3)])
    yield (
        "huffman-widths",
        draft(
            [
                bytes_tensor(
                    numbers(33, 1 << bits, seed=bits), huffman(packed=bool(bits & 1)), f"bits-{bits}", bits
                )
                for bits in range(1, 9)
            ]
        ),
    )
    modes = [Block("new"), Block("stored"), Block("same"), Block("same", True), Block("new", True)]
    yield (
        "huffman-block-modes",
        draft([bytes_tensor([*ones, *rare, *ones, *ones, 0, 1, 1, 1], huffman(*modes), bits=1)]),
    )
    yield "huffman-one-full-block", draft([bytes_tensor(ones, huffman())])
    # Symbols 5, 6, 8 and 9 with two bits each, all four given in full, where one bit would do for three of them. The root
    # has 0 0 1 1, its children 0 1 and 1 1.
    full = [1, 1, 1, 0, 1, 0, 0]
    table = bytes([5, 9]) + pack_bits([0, 1, 0, 0, *full, 1, 1, 0, *full, *full])
    stream = bytes([1 + len(table), 1]) + table + bytes([0b1100, 0b10, 0b11])
    yield "huffman-long-table", draft([bytes_tensor([5, 6, 9, 9], fixed(1, stream))])


# Made by zstd 1.5.7, level 19, with and without checksum; the generator compares their content.
TEXT = b"".join(b"The weights of layer %d are shared with layer %d.\n" % (i, i * i) for i in range(40))
TEXT_FRAME = bytes.fromhex(
    "28b52ffd64e806e50500128b1d1690ab0d6bcdab703380a87f812412d93b1594fe7d700240e0e722a25abda47bcddf79369e"
    "f9eee65b6db67646b5a8d43e254d9ad7d484fb3c5437da0cedd6c59f5a953435ffd4c5d543bc6f33db6a51d562d2d37caa71"
    "0f6f03c1d1200e22d6321c0c5acb800c2deb1912542888690e03590e5a87104fa811f0ddb6ff1bb0a3163a119c10fc0a015b"
    "3f8864c9c12dd6387ff63533031ad02749aff36e18737d0af8bc9fb8ffd16cabfa68b94f2054473110ccb6925ec0560153f9"
    "ac2c"
)
MANIFEST_FRAME = bytes.fromhex(
    "28b52ffd6023031d0700b2cb2422902b1dffbf267ef0c645741306b4f1f358955716ffbbeca4dc52ca9d6c8e3677e5db8000"
    "8511211cad23972630bab5a15ba6350152885a03f3dc32a3ee3232a64b359fa9871be4b570ff65ffd9cff4d79fe5fffc177f"
    "c41f7ffc4f99f16b9797314dd5fc33951159d742fcef774a298eb23c77f7a8e440a464885243145024f561a05149d2898a00"
    "d0811e50017af402330958a811d0ee95fd3bd053ab01118048a74d7c720fa8512a548954a2a21c51d848407521e891c92c4a"
    "290b7964328b520dc61210d618505e75a202e921cb4c669d4622eb8cf30e2e10723586912a"
)


def zstd_streams() -> Iterator[tuple[str, Draft]]:
    if zstandard.ZstdDecompressor().decompress(TEXT_FRAME) != TEXT:
        raise AssertionError("TEXT_FRAME does not hold TEXT")
    yield (
        "zstd-compressed",
        draft([bytes_tensor(TEXT, fixed(2, TEXT_FRAME))], [asset("a", TEXT, coder=fixed(2, TEXT_FRAME))]),
    )
    yield (
        "zstd-widths",
        draft([bytes_tensor(numbers(21, 1 << bits), zstd, f"bits-{bits}", bits) for bits in range(1, 9)]),
    )
    yield "zstd-runs", draft([bytes_tensor([5] * 1000, zstd)])

    file = draft(metadata={f"key {i}": f"The value of key {i} is {i * i}." for i in range(30)})
    file.stored = MANIFEST_FRAME
    if zstandard.ZstdDecompressor().decompress(MANIFEST_FRAME) != file.pack():
        raise AssertionError("MANIFEST_FRAME does not hold the manifest")
    yield "manifest-compressed", file


def segments_and_chunks() -> Iterator[tuple[str, Draft]]:
    content = bytes(numbers(20, 256))
    yield "segments", draft([tensor("t", "u16", [10], Exact(content, "bytes"), segment=4)])
    yield "segments-of-one", draft([tensor("t", "u16", [10], Exact(content), segment=1)])
    yield "segment-longer-than-tensor", draft([tensor("t", "f64", [2], Exact(content[:16]), segment=1 << 24)])
    mixed = [raw, huffman(packed=True), zstd, huffman(), zstd, raw]
    yield (
        "segments-of-different-codings",
        draft([tensor("t", "u16", [10], Exact(content, "bytes"), segment=4, coders=mixed)]),
    )

    def plain(name: str, size: int, byte: int) -> Tensor:
        return tensor(name, "u8", [size], Exact(bytes([byte]) * size))

    small = [plain("a", 3, 1), plain("b", 5, 2), plain("c", 7, 3)]
    yield "chunk-shared", draft(small)
    yield "chunk-each", draft(small, chunk_parts=[1, 1, 1])
    yield (
        "chunk-of-parts-of-one-tensor",
        draft(
            [tensor("t", "f32", [6], Affine(4, range(6), f32(1.0)), segment=2), plain("u", 1, 1)],
            chunk_parts=[2, 3],
        ),
    )
    yield (
        "chunk-aligned",
        draft([plain("a", 3, 1), plain("b", 4096, 2), plain("c", 1, 3)], chunk_parts=[1, 1, 1]),
    )
    yield "chunk-aligned-already", draft([plain("a", 48, 1), plain("b", 4096, 2)], chunk_parts=[1, 1])
    yield "chunk-below-alignment", draft([plain("a", 3, 1), plain("b", 4095, 2)], chunk_parts=[1, 1])
    nothing = tensor("nothing", "i8", [3], Exact(bytes(3)), layout=relative(1))
    none = tensor("none", "i8", [0], Exact(b""))
    yield (
        "parts-of-length-zero",
        draft(
            [
                nothing,
                plain("a", 2, 1),
                nothing_as(nothing, "again"),
                none,
                plain("b", 2, 2),
                nothing_as(nothing, "last"),
            ],
            [asset("empty", b""), asset("file", b"x")],
            chunk_parts=[2, 3, 1],
        ),
    )
    yield "parts-all-of-length-zero", draft([nothing, none], [asset("empty", b"")])


def nothing_as(other: Tensor, name: str) -> Tensor:
    return Tensor(other.fields | {"name": name}, other.parts, other.content)


def names_and_assets() -> Iterator[tuple[str, Draft]]:
    one = tensor("embedding.weight", "u8", [2, 2], Exact(b"abcd"))
    two = tensor("other", "u8", [1], Exact(b"x"))
    aliases = {"lm_head.weight": "embedding.weight", "a": "other", "ä": "embedding.weight"}
    yield "aliases", draft([one, two], aliases=aliases)
    names = [
        "ä",
        "日本語.重み",
        "e\u0301",
        "\u00e9",
        "🙂",
        " ",
        "a/b\\c:d..",
        "../x",
        "\u200b",
        "\x7f\n",
        "A",
        "a",
        "n" * 4096,
    ]
    yield "names", draft([tensor(name, "u8", [1], Exact(bytes([i]))) for i, name in enumerate(names)])

    files = [
        asset("config.json", b'{"a": 1}\n'),
        asset("tokenizer/vocab.txt", b"one\ntwo\n", coder=huffman(packed=True)),
        asset("empty.txt", b""),
        asset("größe/日本.txt", b"\xff\x00", coder=zstd),
        asset("with space/.hidden", b"1"),
        asset("...a", b"2"),
        asset("con", b"3"),
        asset("straße", b"4"),
        asset("p" * 1024, b"5"),
    ]
    yield "assets", draft([one], files)
    runs = b"\x01" * (1 << 20) + b"\x02" * 5
    yield "asset-two-segments", draft([], [asset("runs", runs, coder=zstd)])
    yield "asset-one-full-segment", draft([], [asset("runs", runs[: 1 << 20], coder=huffman())])
    content = b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   '
    header = struct.pack("<Q", len(content)) + content
    yield (
        "asset-safetensors-header",
        draft(
            [tensor("t", "u8", [1], Exact(b"x"))],
            [
                asset("model.safetensors", header, role="safetensors-header"),
                asset("README.md", b"A model.\n"),
            ],
        ),
    )


def manifests() -> Iterator[tuple[str, Draft]]:
    deep: Any = 1
    for _ in range(29):  # below the manifest, the provenance and the recipe
        deep = [deep]
    integers = [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1]
    integers += [-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)]
    provenance = {
        "source": "example/model",
        "revision": "0123456789abcdef",
        "files": [{"path": "model.safetensors", "size": 1 << 33, "sha256": bytes(range(32))}],
        "recipe": {
            "integers": integers,
            "float": -0.0,
            "yes": True,
            "no": False,
            "deep": deep,
            "map": {"a": {}, "b": []},
        },
        "metrics": {"perplexity": 12.25, "accuracy": 1.0},
    }
    yield "provenance", draft(provenance=provenance)
    lengths = {f"{n:05}": "x" * n for n in (0, 31, 32, 255, 256, 65_535, 65_536)}
    yield "metadata-lengths", draft(metadata=lengths)
    yield (
        "metadata-counts",
        draft(
            metadata={f"{i:02}": "" for i in range(16)},
            provenance={"recipe": {"15": [0] * 15, "16": [0] * 16, "65536": [0] * 65_536}},
        ),
    )
    yield (
        "metadata-order",
        draft(metadata={"": "empty", "a": "", "aa": "", "b": "", "é": "", "\uffff": "", "🙂": ""}),
    )

    one = tensor(
        "t",
        "f32",
        [2],
        Affine(4, [1, 9], f32(0.5), granularity={"kind": "group", "size": 2}),
        layout=BITMAP,
        stored=[True] * 2,
    )
    yield "minor-version-unknown", draft([one], [asset("a", b"x")], version=(1, 7))
    yield "minor-version-largest", draft(version=(1, 65_535))
    file = draft([one], [asset("a", b"x")], version=(1, 1), provenance={"unknown": {"any": [1, b"x"]}})
    entry = file.manifest["tensors"][0]
    for place in (
        file.manifest,
        entry,
        entry["layout"],
        entry["values"],
        entry["values"]["granularity"],
        file.manifest["assets"][0],
    ):
        place["unknown field"] = {"any": [-1, 1.5, b"bytes", True]}
    file.manifest["chunks"] = {
        "lengths": [len(chunk) for chunk in file.chunks],
        "digests": file.digests_of_chunks(),
        "unknown field": 1,
    }
    yield "minor-version-unknown-fields", file
