"""The bad conformance vectors, part 3: fields, names and paths (sections 3 to 5 and 7, step 4 of section 8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.reference.dcz_reference_writer import (
    Exact,
    asset,
    draft,
    tensor,
)
from tests.vectors.bad_cases import (
    AFFINE,
    ASSET,
    CODEBOOK,
    DELETE,
    EXACT,
    MANIFEST,
    PLANES,
    VERSION,
    Case,
    edited,
    edited_model,
    simple,
)

__all__ = ["field_cases"]


def field_cases() -> Iterator[Case]:
    yield from missing_cases()
    yield from type_cases()
    yield from name_cases()
    yield from path_cases()


# 3 Fields ---------------------------------------------------------------------------------------------------------


def missing_cases() -> Iterator[Case]:
    fields: dict[str, tuple[str | int, ...]] = {
        "version": ("version",),
        "producer": ("producer",),
        **{f"tensor-{field}": (*EXACT, field) for field in ("name", "dtype", "shape", "digest")},
        "layout-kind": (*CODEBOOK, "layout", "kind"),
        "relative-index-bits": (*AFFINE, "layout", "bits"),
        "values-kind": (*AFFINE, "values", "kind"),
        "exact-split": (*PLANES, "values", "split"),
        "affine-bits": (*AFFINE, "values", "bits"),
        "codebook-bits": (*CODEBOOK, "values", "bits"),
        "codebook-size": (*CODEBOOK, "values", "size"),
        "granularity-kind": (*CODEBOOK, "values", "granularity", "kind"),
        "granularity-axis": (*AFFINE, "values", "granularity", "axis"),
        "granularity-size": (*CODEBOOK, "values", "granularity", "size"),
        **{f"asset-{field}": (*ASSET, field) for field in ("path", "size", "digest")},
        **{f"file-{field}": ("provenance", "files", 0, field) for field in ("path", "size", "sha256")},
    }
    for name, path in fields.items():
        errors = (MANIFEST, VERSION) if name == "version" else (MANIFEST,)
        yield Case(f"missing-{name}", "3", 4, errors, edited_model(*path, to=DELETE))
    for field in ("lengths", "digests"):
        chunks = {"lengths": [4], "digests": bytes(32)}
        del chunks[field]
        yield Case(f"missing-chunks-{field}", "3", 4, (MANIFEST,), edited(simple(), "chunks", to=chunks))


def type_cases() -> Iterator[Case]:
    def one(
        name: str, section: str, *path: str | int, to: Any, errors: tuple[str, ...] = (MANIFEST,)
    ) -> Case:
        return Case(name, section, 4, errors, edited_model(*path, to=to))

    # Field, a value of a wrong type, its section.
    wrong: list[tuple[tuple[str | int, ...], Any, str]] = [
        (("version",), "1.0", "3"),
        (("requires",), "range", "3"),
        (("requires",), [1], "3"),
        (("producer",), 1, "3"),
        (("tensors",), {}, "3"),
        (EXACT, [], "5"),
        (("aliases",), [], "3"),
        (("aliases", "alias"), 1, "3"),
        (("assets",), {}, "3"),
        (ASSET, "config.json", "7"),
        (("metadata",), [], "3"),
        (("metadata", "licence"), 1, "3"),
        (("provenance",), "example", "3.1"),
        (("provenance", "source"), 1, "3.1"),
        (("provenance", "revision"), 1, "3.1"),
        (("provenance", "files"), {}, "3.1"),
        (("provenance", "files", 0, "path"), 1, "3.1"),
        (("provenance", "files", 0, "size"), -1, "3.1"),
        (("provenance", "files", 0, "sha256"), bytes(31), "3.1"),
        (("provenance", "recipe"), "x", "3.1"),
        (("provenance", "recipe", "name"), b"x", "3.1"),
        (("provenance", "recipe", "name"), [{"x": [b"x"]}], "3.1"),
        (("provenance", "metrics"), [], "3.1"),
        (("provenance", "metrics", "accuracy"), 1, "3.1"),
        (("provenance", "metrics", "accuracy"), "high", "3.1"),
        (("provenance", "metrics", "accuracy"), True, "3.1"),
        ((*EXACT, "name"), b"exact", "3"),
        ((*EXACT, "dtype"), 1, "5.1"),
        ((*EXACT, "shape"), 4, "5"),
        ((*EXACT, "shape"), b"\x04", "5"),
        ((*EXACT, "shape"), ["4"], "5"),
        ((*EXACT, "shape"), [4.0], "5"),
        ((*EXACT, "shape"), [True, 4], "5"),
        ((*EXACT, "shape"), [-4], "5"),
        ((*EXACT, "shape"), [-2, -2], "5"),
        ((*EXACT, "digest"), "x" * 32, "5"),
        ((*EXACT, "digest"), bytes(31), "5"),
        ((*EXACT, "digest"), bytes(33), "5"),
        ((*EXACT, "segment"), 0, "5"),
        ((*EXACT, "segment"), -4, "5"),
        ((*EXACT, "segment"), (1 << 24) + 1, "5"),
        ((*EXACT, "segment"), 4.0, "5"),
        ((*EXACT, "codings"), [0], "5"),
        ((*EXACT, "codings"), "\0", "5"),
        ((*EXACT, "lengths"), b"\x04", "5"),
        ((*EXACT, "lengths"), [-4], "5"),
        ((*EXACT, "lengths"), [4.0], "5"),
        ((*AFFINE, "entries"), {}, "5"),
        ((*AFFINE, "entries"), [-2, 1], "5"),
        ((*AFFINE, "entries"), [2, True], "5"),
        ((*AFFINE, "gaps"), [-2, 1], "5"),
        ((*AFFINE, "gaps"), b"\2\1", "5"),
        ((*EXACT, "layout"), "dense", "5.2"),
        ((*AFFINE, "layout", "kind"), 1, "5.2"),
        ((*AFFINE, "layout", "bits"), "2", "5.2"),
        ((*AFFINE, "layout", "bits"), 0, "5.2"),
        ((*AFFINE, "layout", "bits"), 9, "5.2"),
        ((*EXACT, "values"), "exact", "5.3"),
        ((*PLANES, "values", "split"), 2, "5.3"),
        ((*PLANES, "values", "split"), "halves", "5.3"),
        ((*AFFINE, "values", "bits"), 0, "5.3"),
        ((*AFFINE, "values", "bits"), 9, "5.3"),
        ((*AFFINE, "values", "bits"), 4.0, "5.3"),
        ((*AFFINE, "values", "zero_points"), 1, "5.3"),
        ((*AFFINE, "values", "scale_dtype"), "f8_e5m2", "5.3"),
        ((*AFFINE, "values", "scale_dtype"), 4, "5.3"),
        ((*AFFINE, "values", "granularity"), "channel", "5.4"),
        ((*AFFINE, "values", "granularity", "axis"), -1, "5.4"),
        ((*AFFINE, "values", "granularity", "axis"), 0.0, "5.4"),
        ((*CODEBOOK, "values", "bits"), 9, "5.3"),
        ((*CODEBOOK, "values", "size"), 0, "5.3"),
        ((*CODEBOOK, "values", "size"), 257, "5.3"),
        ((*CODEBOOK, "values", "granularity", "size"), 0, "5.4"),
        ((*CODEBOOK, "values", "granularity", "size"), (1 << 24) + 1, "5.4"),
        ((*ASSET, "path"), b"config.json", "7"),
        ((*ASSET, "size"), "3", "7"),
        ((*ASSET, "size"), -3, "7"),
        ((*ASSET, "digest"), bytes(31), "7"),
        ((*ASSET, "role"), 1, "7"),
        ((*ASSET, "codings"), [0], "7"),
        ((*ASSET, "lengths"), b"\x03", "7"),
    ]
    used: dict[str, int] = {}
    for path, value, section in wrong:
        words = [str(part).replace("_", "-") for part in path if isinstance(part, str)]
        name = "type-of-" + "-".join(words if len(words) > 1 or len(path) == 1 else [*words, "item"])
        used[name] = used.get(name, 0) + 1
        errors = (MANIFEST, VERSION) if words[0] in ("version", "requires") else (MANIFEST,)
        yield one(
            name if used[name] == 1 else f"{name}-{used[name]}", section, *path, to=value, errors=errors
        )

    chunks: list[tuple[str, Any]] = [
        ("chunks", []),
        ("chunks-lengths", {"lengths": b"\x04", "digests": bytes(32)}),
        ("chunks-lengths-2", {"lengths": [-4], "digests": bytes(32)}),
        ("chunks-digests", {"lengths": [4], "digests": [bytes(32)]}),
    ]
    for name, value in chunks:
        yield Case(f"type-of-{name}", "4.2", 4, (MANIFEST,), edited(simple(), "chunks", to=value))

    places: dict[str, tuple[str | int, ...]] = {
        "manifest": (),
        "tensor": EXACT,
        "layout-relative-index": (*AFFINE, "layout"),
        "layout-bitmap": (*CODEBOOK, "layout"),
        "values-exact": (*PLANES, "values"),
        "values-affine": (*AFFINE, "values"),
        "values-codebook": (*CODEBOOK, "values"),
        "granularity-channel": (*AFFINE, "values", "granularity"),
        "granularity-group": (*CODEBOOK, "values", "granularity"),
        "asset": ASSET,
        "provenance": ("provenance",),
        "file": ("provenance", "files", 0),
    }
    for name, place in places.items():
        yield one(f"unknown-field-of-{name}", "10", *place, "unknown", to=1)
    file = simple()
    file.manifest["chunks"] = {"lengths": [4], "digests": file.digests_of_chunks(), "unknown": 1}
    yield Case("unknown-field-of-chunks", "10", 4, (MANIFEST,), file.build())
    yield one("unknown-field-of-dense", "10", *EXACT, "layout", to={"kind": "dense", "bits": 4})
    yield one("unknown-field-split-of-affine", "10", *AFFINE, "values", "split", to="whole")

    unknown: list[tuple[str, str, tuple[str | int, ...], str]] = [
        ("dtype", "5.1", (*EXACT, "dtype"), "u4"),
        ("layout", "5.2", (*CODEBOOK, "layout", "kind"), "triangular"),
        ("values", "5.3", (*CODEBOOK, "values", "kind"), "lattice"),
        ("split", "5.3", (*PLANES, "values", "split"), "thirds"),
        ("granularity", "5.4", (*CODEBOOK, "values", "granularity", "kind"), "block"),
        ("role", "7", (*ASSET, "role"), "hook"),
    ]
    for name, section, path, value in unknown:
        yield one(f"unknown-{name}", section, *path, to=value)
        errors = (MANIFEST, VERSION)
        yield Case(
            f"unknown-{name}-in-unknown-minor",
            section,
            4,
            errors,
            edited_model(*path, to=value, version=(1, 1)),
        )


# Names and paths --------------------------------------------------------------------------------------------------


def name_cases() -> Iterator[Case]:
    def one(name: str, data: bytes) -> Case:
        return Case(name, "3", 4, (MANIFEST,), data)

    def named(*names: str, aliases: dict[str, str] | None = None) -> bytes:
        tensors = [tensor(name, "u8", [1], Exact(b"x")) for name in names]
        return draft(tensors, aliases=aliases or {}).build()

    yield one("name-empty", named(""))
    yield one("name-with-nul", named("a\0b"))
    yield one("name-of-4097-bytes", named("é" * 2048 + "a"))
    yield one("name-twice", named("a", "b", "a"))
    yield one("alias-empty", named("a", aliases={"": "a"}))
    yield one("alias-with-nul", named("a", aliases={"\0": "a"}))
    yield one("alias-of-4097-bytes", named("a", aliases={"b" * 4097: "a"}))
    yield one("alias-has-name-of-tensor", named("a", "b", aliases={"b": "a"}))
    yield one("alias-to-itself", named("a", aliases={"b": "b"}))
    yield one("alias-to-alias", named("a", aliases={"b": "a", "c": "b"}))
    yield one("alias-in-a-circle", named("a", aliases={"b": "c", "c": "b"}))
    yield one("alias-to-nothing", named("a", aliases={"b": "missing"}))
    yield one("alias-without-tensors", named(aliases={"b": "a"}))


def path_cases() -> Iterator[Case]:
    def one(name: str, *paths: str) -> Case:
        return Case(
            f"path-{name}", "7", 4, (MANIFEST,), draft([], [asset(path, b"x") for path in paths]).build()
        )

    paths = {
        "empty": "",
        "absolute": "/etc/passwd",
        "parent": "..",
        "escapes": "../../x",
        "escapes-inside": "a/../../x",
        "escapes-at-the-end": "a/..",
        "dot": ".",
        "dot-inside": "a/./b",
        "empty-name": "a//b",
        "trailing-slash": "a/",
        "backslash": "..\\x",
        "backslash-inside": "a\\b",
        "drive": "C:/x",
        "stream": "a:b",
        "nul": "a\0b",
        "line-feed": "a\nb",
        "escape-character": "a\x1bb",
        "unit-separator": "a\x1fb",
        "delete": "a\x7fb",
        "trailing-space": "a ",
        "trailing-space-of-folder": "a /b",
        "trailing-dot": "a.",
        "three-dots": "...",
        "space": " ",
        "of-1025-bytes": "é" * 512 + "a",
    }
    for name, path in paths.items():
        yield one(name, path)
    yield one("twice", "a", "b", "a")
    yield one("twice-in-another-case", "README.md", "readme.MD")
    yield one("twice-after-full-folding", "straße", "STRASSE")
    yield one("twice-with-final-sigma", "ς", "Σ")
    yield one("file-is-folder", "a/b", "a")
    yield one("file-is-folder-of-folder", "a", "a/b/c")
    yield one("file-is-folder-in-another-case", "A", "a/b")
    twice = [asset("a", b"x", role="safetensors-header"), asset("a", b"y")]
    yield Case("path-twice-in-two-roles", "7", 4, (MANIFEST,), draft([], twice).build())
