"""The bad conformance vectors, part 6: bases and differences (sections 3.2 and 5.5). Their base is ``good/base-types.dcz``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blake3 import blake3
from tests.reference.dcz_reference_writer import Draft, Exact, draft, tensor
from tests.vectors.bad_cases import CORRUPT, DELETE, DIGEST, MANIFEST, Case, edited
from tests.vectors.good_deltas import base_types, delta_tensor, digest_of

__all__ = ["delta_cases"]


def delta_cases() -> Iterator[Case]:
    base = digest_of(base_types())

    def file(**bases: Any) -> Draft:
        one = delta_tensor("scalar", "f32", b"\0\0\xc0\x3f", b"\0\0\xc0\x3f", "xor", shape=[])
        return draft([one], bases=[{"digest": base, "hint": "types:1.0"}], **bases)

    def one(
        name: str,
        section: str,
        *path: str | int,
        to: Any,
        step: int = 4,
        errors: tuple[str, ...] = (MANIFEST,),
    ) -> Case:
        return Case(f"delta-{name}", section, step, errors, edited(file(), *path, to=to))

    delta = ("tensors", 0, "values", "delta")
    yield one("bases-a-map", "3.2", "bases", to={})
    yield one("base-not-a-map", "3.2", "bases", 0, to=base)
    yield one("base-without-digest", "3", "bases", 0, "digest", to=DELETE)
    yield one("base-digest-of-31", "3.2", "bases", 0, "digest", to=base[:31])
    yield one("base-digest-a-string", "3.2", "bases", 0, "digest", to=base.hex()[:32])
    yield one("base-unknown-field", "10", "bases", 0, "size", to=1)
    yield one("hint-empty", "3.2", "bases", 0, "hint", to="")
    yield one("hint-of-1025-bytes", "3.2", "bases", 0, "hint", to="ü" * 512 + "x")
    yield one("hint-a-number", "3.2", "bases", 0, "hint", to=1)
    yield one("bases-17", "3.2", "bases", to=[{"digest": bytes([i]) * 32} for i in range(17)])
    yield one("base-twice", "3.2", "bases", to=[{"digest": base}, {"digest": base, "hint": "x"}])
    yield one("base-of-no-tensor", "3.2", "bases", to=[{"digest": base}, {"digest": bytes(32)}])
    yield one("bases-missing", "5.5", "bases", to=DELETE)
    yield one("base-number-1-of-1", "5.5", *delta, "base", to=1)
    yield one("base-number-largest", "5.5", *delta, "base", to=(1 << 64) - 1)
    yield one("base-number-negative", "5.5", *delta, "base", to=-1)
    yield one("not-a-map", "5.5", *delta, to="xor")
    yield one("without-operation", "3", *delta, "operation", to=DELETE)
    yield one("unknown-operation", "5.5", *delta, "operation", to="add")
    yield one("unknown-field", "10", *delta, "offset", to=0)
    yield one("tensor-empty", "3", *delta, "tensor", to="")
    yield one("tensor-with-nul", "3", *delta, "tensor", to="a\0")
    yield one("tensor-a-number", "3", *delta, "tensor", to=1)
    codebook = {"kind": "codebook", "bits": 1, "size": 1, "delta": {"operation": "xor"}}
    yield one("of-codebook", "10", "tensors", 0, "values", to=codebook)
    rotated = {"kind": "exact", "split": "rotated", "delta": {"operation": "xor"}}
    yield one("rotated", "5.3", "tensors", 0, "values", to=rotated, step=5)

    # A base that is there and does not fit
    yield one("base-tensor-missing", "5.5", *delta, "tensor", to="no such tensor", step=7)
    for name, dtype, shape in (("another-type", "u32", []), ("another-shape", "f32", [1])):
        other = delta_tensor("scalar", dtype, b"\0\0\xc0\x3f", b"\0\0\xc0\x3f", "xor", shape=shape)
        file_of_it = draft([other], bases=[{"digest": base}])
        yield Case(f"delta-base-tensor-of-{name}", "5.5", 7, (MANIFEST,), file_of_it.build())

    bits = bytes([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0])
    of_bool = delta_tensor("bool", "bool", bits, bits, "xor")
    of_bool.fields["values"]["delta"]["operation"] = "difference"
    yield Case(
        "delta-difference-of-bool", "5.5", 5, (MANIFEST,), draft([of_bool], bases=[{"digest": base}]).build()
    )
    two = delta_tensor("bool", "bool", bytes([2]) + bits[1:], bits, "xor")
    yield Case("delta-xor-of-bool-2", "5.5", 7, (CORRUPT,), draft([two], bases=[{"digest": base}]).build())

    empty = tensor("t", "f32", [0], Exact(b""))
    empty.fields["values"] = {"kind": "exact", "split": "whole", "delta": {"operation": "xor"}}
    yield Case("delta-of-empty-tensor", "5", 5, (MANIFEST,), draft([empty], bases=[{"digest": base}]).build())

    # The digest of the differences instead of that of the content
    wrong = delta_tensor("scalar", "f32", b"\0\0\xc0\x3f", b"\0\0\xc0\x3f", "xor", shape=[])
    wrong.fields["digest"] = blake3(bytes(4)).digest()
    yield Case(
        "delta-digest-of-differences", "5", 7, (DIGEST,), draft([wrong], bases=[{"digest": base}]).build()
    )
