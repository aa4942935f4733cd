"""Every constant of docs/format.md, once: magic, versions, fixed structs, alignment, ids, limits."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MAJOR: Final = 1
MINOR: Final = 1  # the highest that is known; what a file has follows from the features that it uses

# Section 2
MAGIC: Final = b"\x89DCZ\x00\r\n\x1a"
END_MAGIC: Final = b"\x00DCZEND\x89"
HEADER: Final = struct.Struct("<8sHHI")
FOOTER: Final = struct.Struct("<QII32sHHI8s")

# Section 3
MAX_DEPTH: Final = 32
MAX_BASES: Final = 16
MAX_HINT_BYTES: Final = 1024

# Section 10.2: names that `requires` may hold
ZERO_POINTS: Final = "zero-points"
MINIMUMS: Final = "minimums"
PARAMETER_CODES: Final = "parameter-codes"
SCALED_CODEBOOK: Final = "scaled-codebook"
VECTORS: Final = "vectors"
FLAT_GROUPS: Final = "flat-groups"
INDEXED_GROUPS: Final = "indexed-groups"
FEATURES: Final = frozenset(
    {ZERO_POINTS, MINIMUMS, PARAMETER_CODES, SCALED_CODEBOOK, VECTORS, FLAT_GROUPS, INDEXED_GROUPS}
)

# Section 4
DIGEST_BYTES: Final = 32
ALIGNMENT: Final = 64
ALIGNED_CHUNK: Final = 4096

# Section 5
MAX_RANK: Final = 64
MAX_NAME_BYTES: Final = 4096
MAX_SEGMENT_ELEMENTS: Final = 1 << 24
MAX_SEGMENT_BYTES: Final = 1 << 24
MAX_GROUP: Final = 1 << 24
MAX_INDEXED_GROUPS: Final = 1 << 16
MAX_DIMENSION: Final = 1 << 16

# Section 6
RAW: Final = 0
HUFFMAN: Final = 1
ZSTD: Final = 2
RANGE: Final = 3
CASCADE: Final = 4
CODING_NAMES: Final = {RAW: "raw", HUFFMAN: "huffman", ZSTD: "zstd", RANGE: "range", CASCADE: "cascade"}
READABLE_CODINGS: Final = frozenset({RAW, HUFFMAN, ZSTD, RANGE, CASCADE})

# Section 7
ASSET_SEGMENT: Final = 1 << 20
MAX_PATH_BYTES: Final = 1024


@dataclass(frozen=True)
class Limits:
    """What a reader is ready to accept (docs/format.md, section 9). Checked before anything is allocated."""

    manifest_bytes: int = 64 << 20
    manifest_ratio: int = 64  # decoded bytes for each stored one, beyond the first ...
    manifest_slack: int = 1 << 20
    manifest_containers: int = 1 << 21  # maps and arrays
    manifest_items: int = 1 << 24  # everything in them that is neither
    tensors: int = 1 << 18
    assets: int = 1 << 16
    chunks: int = 1 << 24
    streams: int = 1 << 24
    tensor_bytes: int = 1 << 40
    parameter_bytes: int = 1 << 30
    asset_bytes: int = 1 << 32
    chunk_bytes: int = 1 << 31
    chain: int = 8  # bases behind each other


DEFAULT_LIMITS: Final = Limits()


def padding_before(offset: int, length: int) -> int:
    """The zero bytes between ``offset``, where a chunk ends, and the start of a next one of ``length`` bytes."""
    return -offset % ALIGNMENT if length >= ALIGNED_CHUNK else 0
