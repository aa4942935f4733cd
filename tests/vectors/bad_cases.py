"""The bad conformance vectors, part 1: the file and its chunks (sections 2, 4.2 and 8), and what the other parts need.

Each is a good file with one defect. Where the defect could be noticed in two ways, a list of errors is right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.reference.dcz_reference_writer import Affine, Codebook, Draft, Exact, asset, draft, tensor

__all__ = [
    "AFFINE",
    "ASSET",
    "CODEBOOK",
    "CORRUPT",
    "DELETE",
    "DIGEST",
    "EMPTY",
    "EXACT",
    "LIMIT",
    "MANIFEST",
    "NOT_DCZ",
    "PLANES",
    "TRUNCATED",
    "VERSION",
    "Case",
    "edited",
    "edited_model",
    "file_cases",
    "simple",
    "two_chunks",
]

NOT_DCZ = "NotADczFile"
VERSION = "UnsupportedVersion"
TRUNCATED = "TruncatedFile"
MANIFEST = "ManifestError"
DIGEST = "DigestMismatch"
CORRUPT = "CorruptStream"
LIMIT = "LimitExceeded"


@dataclass(frozen=True)
class Case:
    """``section`` of docs/format.md whose rule is broken, ``step`` of section 8 that notices, ``errors`` that are right."""

    name: str
    section: str
    step: int
    errors: tuple[str, ...]
    data: bytes


DELETE = object()


# Where the tensors and the first asset of the model stand in its manifest.
EXACT, PLANES, AFFINE, CODEBOOK, EMPTY = (("tensors", i) for i in range(5))
ASSET = ("assets", 0)


def edited(file: Draft, *path: str | int, to: Any) -> bytes:
    """A file whose manifest has another value at ``path``, or none."""
    file.manifest = copy.deepcopy(file.manifest)
    place: Any = file.manifest
    for step in path[:-1]:
        place = place[step]
    if to is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return file.build()


def edited_model(*path: str | int, to: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    """The model with another value at ``path``, or none, and without the tensors and assets that do not matter there."""
    file = model()
    match path:
        case ("tensors", int(i), *rest):
            return edited(draft([file.tensors[i]], version=version), "tensors", 0, *rest, to=to)
        case ("assets", int(i), *rest):
            return edited(draft([], [file.assets[i]], version=version), "assets", 0, *rest, to=to)
        case ("metadata" | "provenance" as field, *rest) if rest:
            return edited(draft(version=version, **{str(field): file.manifest[field]}), *path, to=to)
    return edited(file, *path, to=to)


def model() -> Draft:
    """A small file that has every field, and a tensor of every kind."""
    stored = [False, True, True, False, False, True]
    scale = b"\0\0\x80\x3f"
    return draft(
        [
            tensor("exact", "u8", [4], Exact(b"\1\2\3\4")),
            tensor("planes", "f16", [3], Exact(b"\0\x3c\0\x40\0\x44", "rotated")),
            tensor(
                "affine",
                "f32",
                [2, 3],
                Affine(4, [1, 2, 3], scale * 2, [7, 8], "f32", {"kind": "channel", "axis": 0}),
                layout={"kind": "relative-index", "bits": 2},
                stored=stored,
                segment=4,
            ),
            tensor(
                "codebook",
                "i16",
                [2, 3],
                Codebook(2, 3, [0, 1, 2], bytes(range(24)), {"kind": "group", "size": 2}),
                layout={"kind": "bitmap"},
                stored=stored,
                segment=6,
            ),
            tensor("empty", "bool", [0], Exact(b"")),
        ],
        [asset("config.json", b"{}\n"), asset("notes/a.txt", b"A note.\n")],
        aliases={"alias": "exact"},
        metadata={"licence": "none"},
        provenance={
            "source": "example",
            "revision": "1",
            "files": [{"path": "a", "size": 1, "sha256": bytes(32)}],
            "recipe": {"name": "x"},
            "metrics": {"accuracy": 0.5},
        },
    )


def simple() -> Draft:
    return draft([tensor("t", "u8", [4], Exact(b"\1\2\3\4"))])


def two_chunks(second: int = 7) -> Draft:
    return draft(
        [tensor("a", "u8", [5], Exact(b"\1\2\3\4\5")), tensor("b", "u8", [second], Exact(b"\7" * second))],
        chunk_parts=[1, 1],
    )


def file_cases() -> Iterator[Case]:
    """Sections 2, 4 and 8: the parts of the file and their places."""
    yield from header_cases()
    yield from footer_cases()
    yield from chunk_cases()


def header_cases() -> Iterator[Case]:
    good = simple().build()
    smallest = draft().build()

    def one(name: str, section: str, errors: tuple[str, ...], data: bytes, step: int = 1) -> Case:
        return Case(name, section, step, errors, data)

    yield one("file-empty", "8", (TRUNCATED, NOT_DCZ), b"")
    yield one("file-only-header", "8", (TRUNCATED,), good[:16])
    yield one("file-79-bytes", "8", (TRUNCATED,), good[:79])
    yield one("file-without-header", "2.1", (NOT_DCZ,), good[16:])
    yield one("file-all-zero", "2.1", (NOT_DCZ,), bytes(200))
    yield one("header-magic-of-text-mode", "2.1", (NOT_DCZ,), smallest.replace(b"\r\n", b"\n"))
    for i in range(8):
        flipped = bytes([*smallest[:i], smallest[i] ^ 0x20, *smallest[i + 1 :]])
        yield one(f"header-magic-byte-{i}", "2.1", (NOT_DCZ,), flipped)

    for major in (0, 2, 256, 65_535):
        yield one(f"header-major-{major}", "10", (VERSION,), draft(version=(major, 0)).build())
    for i in range(12, 16):
        flipped = bytes([*smallest[:i], 1, *smallest[i + 1 :]])
        yield one(f"header-not-zero-byte-{i}", "2.1", (MANIFEST, NOT_DCZ, VERSION), flipped)


def footer_cases() -> Iterator[Case]:
    good = simple().build()

    def one(name: str, section: str, errors: tuple[str, ...], data: bytes, step: int = 2) -> Case:
        return Case(name, section, step, errors, data)

    def footer(**fields: Any) -> bytes:
        file = simple()
        file.footer = fields
        return file.build()

    size = len(good)
    length = int.from_bytes(good[-56:-52], "little")
    offset = size - 64 - length
    place = (TRUNCATED, MANIFEST)

    yield one("file-trailing-byte", "2.2", place, good + b"\0")
    yield one("file-trailing-footer", "2.2", place, good + good[-64:])
    yield one("file-twice", "2.2", place, good + good)
    yield one("file-last-byte-missing", "2.2", place, good[:-1])
    yield one("file-footer-missing", "2.2", place, good[:-64])
    yield one("file-half", "2.2", place, good[: size // 2])
    yield one("file-byte-missing", "2.2", place, good[:20] + good[21:])
    yield one("file-byte-inserted", "2.2", place, good[:20] + b"\0" + good[20:])
    for i in range(8):
        at = size - 8 + i
        yield one(
            f"footer-magic-byte-{i}", "2.2", place, bytes([*good[:at], good[at] ^ 0x20, *good[at + 1 :]])
        )

    mismatch = (MANIFEST, VERSION, TRUNCATED, NOT_DCZ)
    yield one("footer-major", "2.2", mismatch, footer(major=2))
    yield one("footer-minor", "2.2", mismatch, footer(minor=1))
    file = simple()
    file.header = {"minor": 1}
    yield one("header-minor", "2.2", mismatch, file.build())
    for i in range(4):
        yield one(f"footer-not-zero-byte-{i}", "2.2", (MANIFEST, TRUNCATED), footer(zero=1 << 8 * i))

    yield one("footer-offset-zero", "2.2", place, footer(offset=0, length=length + offset))
    yield one("footer-offset-in-header", "2.2", place, footer(offset=15, length=size - 64 - 15))
    yield one("footer-offset-too-small", "2.2", place, footer(offset=offset - 1))
    yield one("footer-offset-too-large", "2.2", place, footer(offset=offset + 1))
    yield one("footer-offset-behind-file", "2.2", place, footer(offset=size))
    yield one("footer-offset-largest", "2.2", place, footer(offset=(1 << 64) - 1))
    wrapping = (1 << 64) + size - 64 - 0xFFFF_FFFF
    limits = (LIMIT, *place)
    yield one("footer-offset-wraps", "2.2", limits, footer(offset=wrapping % (1 << 64), length=0xFFFF_FFFF))
    yield one("footer-length-too-small", "2.2", place, footer(length=length - 1))
    yield one("footer-length-too-large", "2.2", place, footer(length=length + 1))
    yield one("footer-length-zero", "2.2", place, footer(length=0))
    yield one("footer-length-largest", "2.2", limits, footer(length=0xFFFF_FFFF))
    yield one("footer-decoded-length-above-limit", "9", (LIMIT,), footer(decoded=(256 << 20) + 1))
    yield one("footer-decoded-length-largest", "9", (LIMIT,), footer(decoded=0xFFFF_FFFF))

    yield one("footer-digest", "2.2", (DIGEST,), footer(digest=bytes(32)), step=3)
    at = offset + length // 2
    yield one("manifest-byte", "2.2", (DIGEST,), bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]), step=3)
    other = draft().build()
    same_length = good[: offset + length - 5] + bytes(5) + good[-64:]
    yield one("manifest-end-zero", "2.2", (DIGEST,), same_length, step=3)
    yield one("footer-of-other-file", "2.2", (DIGEST, *place), good[:-64] + other[-64:], step=2)


def chunk_cases() -> Iterator[Case]:
    def one(
        name: str, data: bytes, errors: tuple[str, ...] = (MANIFEST,), step: int = 5, section: str = "4.2"
    ) -> Case:
        return Case(name, section, step, errors, data)

    def changed(make: Callable[[], Draft] = two_chunks, **fields: Any) -> bytes:
        file = make()
        for name, value in fields.items():
            setattr(file, name, value)
        return file.build()

    place = (MANIFEST, TRUNCATED)
    big = (LIMIT, MANIFEST, TRUNCATED)
    yield one("chunk-length-zero", changed(two_chunks, lengths=[5, 0, 7], digests=bytes(96)), step=4)
    yield one("chunk-length-too-small", changed(lengths=[5, 6]))
    yield one("chunk-length-too-large", changed(lengths=[5, 8]), place)
    yield one("chunk-length-moved", changed(two_chunks, lengths=[6, 6]))
    yield one("chunk-length-largest", changed(lengths=[5, (1 << 64) - 1]), big)
    yield one("chunk-lengths-wrap", changed(lengths=[(1 << 64) - 1, 5 + 7 + 1]), big)
    yield one("chunk-missing", changed(lengths=[5], digests=bytes(32)))
    yield one("chunk-too-many", changed(lengths=[5, 7, 1], digests=bytes(96)))
    yield one("chunk-digests-too-short", changed(digests=bytes(63)))
    yield one("chunk-digests-too-long", changed(digests=bytes(65)))
    yield one("chunk-digests-empty", changed(digests=b""))
    yield one("chunks-without-parts", changed(draft, lengths=[1], digests=bytes(32), chunks=[b"x"]))
    yield one("parts-without-chunks", edited(two_chunks(), "chunks", to={"lengths": [], "digests": b""}))

    file = simple()
    file.chunks = [b"\1\2", b"\3\4"]
    yield one("chunk-crossed-by-part", file.build())
    file = draft([tensor("t", "u16", [4], Exact(b"\1\2\3\4\5\6\7\0", "bytes"))])
    file.chunks = [b"\1\3\5\7", b"\2\4\6\0"]
    yield one("chunk-crossed-by-part-between-streams", file.build())
    file = two_chunks()
    file.chunks = [file.chunks[0] + file.chunks[1][:2], file.chunks[1][2:]]
    yield one("chunk-crossed-by-second-part", file.build())

    yield one("chunk-not-aligned", changed(lambda: two_chunks(4096), align=False), place)
    file = two_chunks(4095)
    file.chunks[1] = b"\0" * (64 - 21) + file.chunks[1]
    yield one("chunk-aligned-though-small", changed(lambda: file, lengths=[5, 4095]), place)
    yield one("chunk-hole-before-manifest", hole(b"\0"), place)
    yield one("chunk-hole-of-64-bytes", hole(bytes(64)), place)
    file = draft()
    file.chunks = [b"x"]
    file.manifest["chunks"] = {"lengths": [], "digests": b""}
    yield one("chunk-hole-without-chunks", file.build(), place)
    yield one("chunk-overlaps-manifest", overlap(), place)

    yield one(
        "chunk-padding-not-zero",
        changed(lambda: two_chunks(4096), padding=b"\1"),
        (DIGEST, CORRUPT, MANIFEST),
        6,
    )
    yield one("chunk-digest", changed(digests=bytes(64)), (DIGEST,), 6)
    for name, at in {"first": 16, "last": 20}.items():
        good = two_chunks().build()
        yield one(f"chunk-byte-{name}", bytes([*good[:at], good[at] ^ 0x80, *good[at + 1 :]]), (DIGEST,), 6)
    file = draft([tensor(name, "u8", [3], Exact(name.encode() * 3)) for name in "ab"], chunk_parts=[1, 1])
    digests = file.digests_of_chunks()
    file.chunks.reverse()
    yield one("chunks-swapped", changed(lambda: file, digests=digests), (DIGEST,), 6)

    for name, length in {"above-limit": (1 << 31) + 1, "of-2-to-the-60": 1 << 60}.items():
        file = simple()
        file.manifest["tensors"][0]["lengths"] = [length]
        file.lengths = [length]
        yield one(f"chunk-length-{name}", file.build(), big, section="9")


def hole(content: bytes) -> bytes:
    """A file with something between the last chunk and the manifest."""
    file = two_chunks()
    lengths = [len(chunk) for chunk in file.chunks]
    digests = file.digests_of_chunks()
    file.chunks.append(content)
    file.manifest["chunks"] = {"lengths": lengths, "digests": digests}
    return file.build()


def overlap() -> bytes:
    """A file whose last chunk claims the first bytes of the manifest."""
    file = draft([tensor("t", "u8", [4], Exact(b"\1\2\3\4")), tensor("u", "u8", [8], Exact(bytes(8)))])
    file.chunks = [b"\1\2\3\4"]
    file.lengths = [12]
    return file.build()
