"""The same tensors give the same bytes, whatever the threads, the instruction set and the order in memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tests.native.isas import HERE, forced, on_each_isa

from dcz.format import AffineTensor, CodebookTensor, PerChannel, PerGroup, Provenance, Reader, Writer

ROOT = Path(__file__).parents[2]


@cache
def tensors() -> dict[str, np.ndarray | AffineTensor | CodebookTensor]:
    random = np.random.default_rng(11)
    shape = (500, 1301)
    normal = random.normal(size=(1100, 1301)).astype(np.float32)
    pruned = random.random(shape) < 0.1
    codes = np.minimum(random.geometric(0.2, shape), 16).astype(np.uint8) - np.uint8(1)
    return {
        "f32": normal,
        "bf16": normal.astype(ml_dtypes.bfloat16),
        "f8": normal[:100].astype(ml_dtypes.float8_e5m2),
        "pruned": np.where(pruned, normal[:500], np.float32(0)),
        "integers": np.arange(300_000) // 7,
        "bool": pruned,
        "affine": AffineTensor(
            "f16",
            shape,
            4,
            codes,
            random.normal(size=500).astype(np.float32),
            PerChannel(axis=0),
            mask=pruned,
        ),
        "codebook": CodebookTensor(
            "bf16",
            shape,
            4,
            codes,
            random.normal(size=(1500, 16)).astype(ml_dtypes.bfloat16),
            PerGroup(size=500),
        ),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 7), np.int8),
    }


def write(path: Path, threads: int | None) -> tuple[str, str]:
    """The digest of the file as the writer gives it, and another one of its bytes."""
    with Writer(
        path, threads=threads, metadata={"b": "2", "a": "1"}, provenance=Provenance(source="here")
    ) as writer:
        for name, tensor in tensors().items():
            writer.add_tensor(name, tensor)
        writer.add_alias("tied", "f32")
        writer.add_asset("config.json", b'{"a": 1}' * 1000)
    assert writer.digest is not None
    return writer.digest, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    with forced("portable"):
        return write(tmp_path_factory.mktemp("portable") / "file.dcz", threads=1)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_threads_do_not_show(tmp_path: Path, expected: tuple[str, str], threads: int | None) -> None:
    assert write(tmp_path / "file.dcz", threads) == expected


@on_each_isa
def test_instruction_sets_do_not_show(tmp_path: Path, expected: tuple[str, str], isa: str) -> None:
    with forced(isa):
        assert write(tmp_path / "file.dcz", threads=2) == expected


@on_each_isa
def test_each_instruction_set_reads_the_same(tmp_path: Path, expected: tuple[str, str], isa: str) -> None:
    write(tmp_path / "file.dcz", threads=1)
    with forced("portable"), Reader(tmp_path / "file.dcz") as reader:
        portable = {name: reader.read(name).tobytes() for name in reader.keys()}  # noqa: SIM118
    with forced(isa), Reader(tmp_path / "file.dcz") as reader:
        assert reader.digest == expected[0]
        assert {name: reader.read(name).tobytes() for name in reader.keys()} == portable  # noqa: SIM118


def test_another_process_writes_the_same(tmp_path: Path, expected: tuple[str, str]) -> None:
    """With other hashes of strings, another instruction set and other threads, all at once."""
    script = (
        "import sys; from pathlib import Path; from tests.format.test_format_determinism import write; "
        "print(*write(Path(sys.argv[1]), threads=3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file.dcz")],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "DCZ_KERNEL": HERE[-2:][0]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(done.stdout.split()) == expected


def test_the_order_in_memory_does_not_show(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(70, 90)).astype(np.float32)
    digests = set()
    for one in (array, np.asfortranarray(array), array.astype(">f4"), array.repeat(2, axis=1)[:, ::2]):
        with Writer(tmp_path / "file.dcz") as writer:
            writer.add_tensor("t", one)
        digests.add(writer.digest)
    assert len(digests) == 1
