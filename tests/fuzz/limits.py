"""The limits under which mutants are read: the same for both readers, and large enough for every seed file."""

from __future__ import annotations

from typing import Final

from tests.reference.dcz_reference_manifest import Limits as ReferenceDefaults

from dcz.format import Limits

__all__ = ["LIMITS", "ReferenceLimits"]

# The reference reader has no limit on the ratio of a manifest: the slack switches that of dcz off.
LIMITS: Final = Limits(
    manifest_bytes=1 << 19,
    manifest_slack=1 << 19,
    tensors=500,
    assets=100,
    chunks=500,
    streams=1 << 12,
    tensor_bytes=1 << 20,
    parameter_bytes=1 << 17,
    asset_bytes=(1 << 20) + 5,
    chunk_bytes=1 << 19,
)


class ReferenceLimits(ReferenceDefaults):
    """The same for the reference reader."""

    manifest = LIMITS.manifest_bytes
    tensors = LIMITS.tensors
    assets = LIMITS.assets
    chunks = LIMITS.chunks
    streams = LIMITS.streams
    tensor_bytes = LIMITS.tensor_bytes
    parameter_bytes = LIMITS.parameter_bytes
    asset_bytes = LIMITS.asset_bytes
    chunk_bytes = LIMITS.chunk_bytes
