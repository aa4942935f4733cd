"""The bad conformance vectors, part 2: the manifest as bytes, and its versions (sections 3 and 10, step 4 of section 8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.reference.dcz_reference_coders import zstd_frame
from tests.reference.dcz_reference_writer import (
    draft,
    pack_manifest,
)
from tests.vectors.bad_cases import (
    CORRUPT,
    LIMIT,
    MANIFEST,
    VERSION,
    Case,
    simple,
)

__all__ = ["manifest_cases"]


def manifest_cases() -> Iterator[Case]:
    yield from frame_cases()
    yield from messagepack_cases()
    yield from version_cases()


# 3 The frame ------------------------------------------------------------------------------------------------------


def frame_cases() -> Iterator[Case]:
    content = simple().pack()
    frame = zstd_frame(content)
    size = len(content)

    def one(name: str, stored: bytes, **footer: Any) -> Case:
        file = simple()
        file.stored, file.footer = stored, footer
        return Case(f"manifest-{name}", "3", 4, (MANIFEST, CORRUPT), file.build())

    def header(descriptor: int, fields: bytes) -> bytes:
        return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + frame[6:]

    yield one("empty", b"", decoded=0)
    yield one("of-no-bytes", zstd_frame(b"") + b"\x01\0\0", decoded=0)
    yield one("not-compressed", content)
    yield one("frame-magic", b"\x27" + frame[1:])
    yield one("frame-skippable-before", b"\x50\x2a\x4d\x18\x01\0\0\0x" + frame)
    yield one("frame-skippable-behind", frame + b"\x50\x2a\x4d\x18\x01\0\0\0x")
    yield one("frame-twice", frame + frame)
    yield one("frame-trailing-byte", frame + b"\0")
    yield one("frame-truncated", frame[:-1])
    yield one("frame-without-content-size", header(0x00, b"\x00"))
    yield one("frame-with-dictionary", header(0x21, bytes([7, size])))
    yield one("frame-reserved-bit", header(0x28, bytes([size])))
    yield one("frame-reserved-block", frame[:6] + bytes([frame[6] | 6]) + frame[7:])
    yield one("frame-checksum", header(0x24, bytes([size])) + bytes(4))
    yield one("frame-holds-less", frame[:5] + bytes([size + 1]) + frame[6:], decoded=size + 1)
    yield one("frame-holds-more", frame[:5] + bytes([size - 1]) + frame[6:], decoded=size - 1)
    yield one("decoded-length-too-small", frame, decoded=size - 1)
    yield one("decoded-length-too-large", frame, decoded=size + 1)
    # 64 MiB of run-length blocks in a frame that promises as much as the footer does.
    bomb = b"".join((1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"\xc0" for _ in range(512))
    yield one("frame-bomb", frame[:6] + bomb + frame[6:])


# 3 Canonical MessagePack ------------------------------------------------------------------------------------------


def messagepack_cases() -> Iterator[Case]:
    def one(name: str, content: bytes, errors: tuple[str, ...] = (MANIFEST,)) -> Case:
        file = draft()
        file.content = content
        return Case(f"manifest-{name}", "3", 4, errors, file.build())

    def value(name: str, packed: bytes, errors: tuple[str, ...] = (MANIFEST,)) -> Case:
        """``packed`` where any value may stand: in the recipe."""
        content = draft(provenance={"recipe": {"x": "@@"}}).pack()
        return one(f"value-{name}", content.replace(pack_manifest("@@"), packed), errors)

    def metadata(name: str, packed: bytes) -> Case:
        content = draft(metadata={"x": "@@"}).pack()
        return one(name, content.replace(pack_manifest({"x": "@@"}), packed))

    good = draft().pack()
    yield one("of-no-map", pack_manifest([good]))
    yield one("int", b"\x01")
    yield one("trailing-value", good + b"\xc0")
    yield one("truncated", good[:-1])

    yield value("nil", b"\xc0")
    yield value("never-used", b"\xc1")
    yield value("float-32", b"\xca\0\0\0\0")
    yield value("ext", b"\xd4\x01\0")
    yield value("ext-8", b"\xc7\x01\x01\0")
    yield value("timestamp", b"\xd6\xff\0\0\0\0")
    yield value("not-utf-8", b"\xa1\xff")
    yield value("utf-8-surrogate", b"\xa3\xed\xa0\x80")
    yield value("utf-8-overlong", b"\xa2\xc0\xaf")

    for bits, tag in {8: 0xCC, 16: 0xCD, 32: 0xCE, 64: 0xCF}.items():
        largest = {8: 0x7F, 16: 0xFF, 32: 0xFFFF, 64: 0xFFFF_FFFF}[bits]
        yield value(f"long-uint-{bits}", bytes([tag]) + largest.to_bytes(bits // 8, "big"))
    for bits, tag in {8: 0xD0, 16: 0xD1, 32: 0xD2, 64: 0xD3}.items():
        smallest = {8: -32, 16: -128, 32: -(1 << 15), 64: -(1 << 31)}[bits]
        yield value(f"long-int-{bits}", bytes([tag]) + smallest.to_bytes(bits // 8, "big", signed=True))
        yield value(f"signed-int-{bits}", bytes([tag, 0x7F]) + b"\xff" * (bits // 8 - 1))
    for name, tag in {"str": 0xD9, "bin": 0xC4}.items():
        for i, size in ((0, 31), (1, 255), (2, 65_535)):
            if name == "str" or i > 0:
                packed = bytes([tag + i]) + size.to_bytes(1 << i, "big") + b"x" * size
                yield value(f"long-{name}-{8 << i}", packed)
    for name, tag, item in (("array", 0xDC, b"\xc2"), ("map", 0xDE, b"")):
        for i, size in ((1, 15), (2, 65_535)):
            items = item * size or b"".join(pack_manifest(f"{key:05}") + b"\xc2" for key in range(size))
            if name == "array" or i == 1:
                yield value(
                    f"long-{name}-{8 << i}", bytes([tag + i - 1]) + size.to_bytes(1 << i, "big") + items
                )
    yield value("long-map-32", b"\xdf\0\0\0\x01\xa1a\xc2")

    hostile = (MANIFEST, LIMIT)
    yield value("array-without-items", b"\xdd\xff\xff\xff\xff", hostile)
    yield value("map-without-items", b"\xdf\xff\xff\xff\xff", hostile)
    yield value("str-without-content", b"\xdb\xff\xff\xff\xff", hostile)
    yield value("bin-without-content", b"\xc6\xff\xff\xff\xff", hostile)
    # The recipe is the third map, so its value x is at depth 4.
    yield value("nested-33-deep", b"\x91" * 29 + b"\x90", hostile)
    yield value("nested-maps-33-deep", b"\x81\xa1a" * 29 + b"\x80", hostile)
    yield value("nested-100000-deep", b"\x91" * 100_000 + b"\x90", hostile)

    yield metadata("keys-unsorted", b"\x82\xa1b\xa0\xa1a\xa0")
    yield metadata("keys-sorted-by-length", b"\x82\xa1b\xa0\xa2aa\xa0")
    yield metadata("keys-sorted-by-utf-16", b"\x82\xa4\xf0\x90\x80\x80\xa0\xa3\xef\xbf\xbf\xa0")
    yield metadata("key-twice", b"\x82\xa1a\xa0\xa1a\xa0")
    yield metadata("key-int", b"\x81\x01\xa0")
    yield metadata("key-bin", b"\x81\xc4\x01a\xa0")
    yield metadata("key-nil", b"\x81\xc0\xa0")
    yield metadata("key-array", b"\x81\x90\xa0")
    yield metadata("key-long-form", b"\x81\xd9\x01a\xa0")
    yield metadata("key-not-utf-8", b"\x81\xa1\xff\xa0")
    version, producer = pack_manifest("version"), pack_manifest("producer")
    yield one("fields-unsorted", b"\x82" + version + b"\x92\x01\0" + producer + b"\xa1x")
    yield one("field-twice", b"\x83" + producer + b"\xa1x" + producer + b"\xa1x" + version + b"\x92\x01\0")


# 3 and 10 Version and requirements --------------------------------------------------------------------------------


def version_cases() -> Iterator[Case]:
    wrong = (MANIFEST, VERSION)
    for name, version in {
        "major": [2, 0],
        "minor": [1, 1],
        "short": [1],
        "long": [1, 0, 0],
        "empty": [],
    }.items():
        file = draft()
        file.manifest["version"] = version
        yield Case(f"version-{name}", "3", 4, wrong, file.build())

    def requires(name: str, section: str, errors: tuple[str, ...], value: list[str], minor: int = 0) -> Case:
        return Case(f"requires-{name}", section, 4, errors, draft(version=(1, minor), requires=value).build())

    yield requires("unknown", "10", (VERSION,), ["range"])
    yield requires("unknown-in-unknown-minor", "10", (VERSION,), ["range"], minor=9)
    yield requires("unsorted", "3", wrong, ["b", "a"])
    yield requires("twice", "3", wrong, ["a", "a"])
    # A newer file says so, whatever else this reader does not know of it.
    file = draft(version=(1, 1), requires=["triangular"])
    file.manifest["tensors"] = [{"layout": {"kind": "triangular"}, "dtype": "u4"}]
    yield Case("requires-unknown-with-unknown-kinds", "10", 4, (VERSION,), file.build())
