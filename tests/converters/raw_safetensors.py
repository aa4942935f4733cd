"""safetensors files put together by hand, valid and not."""

from __future__ import annotations

import json
import struct
from typing import Any


def raw_safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file with this header, as JSON or as the bytes that are given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
