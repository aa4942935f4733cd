"""Makes the conformance vectors: ``python -m tests.vectors.generate`` writes ``good/`` and ``bad/`` beside this file.

    good/<name>.dcz     what every reader must read
    good/<name>.json    what it must get: identity, and type, shape and SHA-256 of each tensor, size and SHA-256 of each asset,
                        SHA-256 of each value of the metadata
    good/base-<name>.dcz    a good file, too, and the base of others, good ones and bad ones
    bad/<defect>.dcz    what every reader must refuse
    bad/index.json      why: the section of docs/format.md, the step of its section 8, and the errors of dcz that are right

The vectors are made by the reference writer, and are the same bytes on every machine. A test compares them with what is
committed; only this program writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from blake3 import blake3
from tests.reference.dcz_reference_writer import Draft
from tests.vectors.bad_cases import Case, file_cases
from tests.vectors.bad_deltas import delta_cases
from tests.vectors.bad_fields import field_cases
from tests.vectors.bad_manifests import manifest_cases
from tests.vectors.bad_streams import stream_cases
from tests.vectors.bad_tensors import tensor_cases
from tests.vectors.cascade_cases import cascade_files, cascade_stream_cases
from tests.vectors.good_cases import good_files
from tests.vectors.good_deltas import delta_files
from tests.vectors.quantized_cases import quantized_cases, quantized_files
from tests.vectors.range_cases import range_files, range_stream_cases

__all__ = ["FOLDER", "bases", "generate", "main"]

FOLDER = Path(__file__).parent


def bases() -> dict[str, bytes]:
    """The good files that may be somebody's base, by their identities."""
    return {
        json.loads(path.with_suffix(".json").read_text())["identity"]: path.read_bytes()
        for path in sorted((FOLDER / "good").glob("base-*.dcz"))
    }


def canonical_json(value: dict[str, Any]) -> bytes:
    """Sorted, and one line for each item of the outer object."""
    lines = [
        f"{json.dumps(key)}:{json.dumps(value[key], sort_keys=True, separators=(',', ':'))}"
        for key in sorted(value)
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expected(file: Draft, data: bytes) -> dict[str, Any]:
    """What a reader must get, from what the vector was made of."""
    length = int.from_bytes(data[-56:-52], "little")
    tensors = {
        tensor.fields["name"]: {
            "dtype": tensor.fields["dtype"],
            "shape": tensor.fields["shape"],
            "sha256": sha256(tensor.content),
        }
        for tensor in file.tensors
    }
    aliases = file.manifest.get("aliases", {})
    return {
        "identity": "blake3:" + blake3(data[-64 - length : -64]).hexdigest(),
        "tensors": tensors | {alias: tensors[target] for alias, target in aliases.items()},
        "aliases": aliases,
        "assets": {
            asset.fields["path"]: {
                "size": len(asset.content),
                "sha256": sha256(asset.content),
            }
            for asset in file.assets
        },
        "metadata": {key: sha256(value.encode()) for key, value in file.manifest.get("metadata", {}).items()},
    }


def generate() -> dict[str, bytes]:
    """Every file of the vectors: its path below the folder, and its bytes."""
    files: dict[str, bytes] = {}
    for name, file in chain(good_files(), delta_files(), range_files(), cascade_files(), quantized_files()):
        data = file.build()
        add(files, f"good/{name}.dcz", data)
        add(files, f"good/{name}.json", canonical_json(expected(file, data)))
    index = {}
    for case in bad_files():
        add(files, f"bad/{case.name}.dcz", case.data)
        index[f"{case.name}.dcz"] = {"section": case.section, "step": case.step, "errors": list(case.errors)}
    add(files, "bad/index.json", canonical_json(index))
    return files


def bad_files() -> Iterator[Case]:
    yield from file_cases()
    yield from manifest_cases()
    yield from field_cases()
    yield from tensor_cases()
    yield from stream_cases()
    yield from delta_cases()
    yield from range_stream_cases()
    yield from cascade_stream_cases()
    yield from quantized_cases()


def add(files: dict[str, bytes], path: str, data: bytes) -> None:
    if path in files:
        raise AssertionError(f"two vectors are named {path}")
    files[path] = data


def main() -> None:
    files = generate()
    for folder in ("good", "bad"):
        (FOLDER / folder).mkdir(exist_ok=True)
        for old in (FOLDER / folder).iterdir():
            if f"{folder}/{old.name}" not in files:
                old.unlink()
    for path, data in files.items():
        (FOLDER / path).write_bytes(data)


if __name__ == "__main__":
    main()
