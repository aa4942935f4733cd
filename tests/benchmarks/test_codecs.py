"""The harness that compares codecs: its adapters, its classifier, and that the pages show what was measured."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zstandard
from benchmarks.codecs import corruption, sparse, speed, weights
from benchmarks.codecs.__main__ import RESULTS, ROOT
from benchmarks.codecs.cells import ALL_PEERS
from benchmarks.codecs.corruption import COUNTS, OUTCOMES, classify, mutations
from benchmarks.codecs.peer import Decode, Peer
from benchmarks.codecs.run import Choice, limited
from benchmarks.codecs.tables import page, readme
from benchmarks.codecs.weights import DTYPES, Weights, write_safetensors
from benchmarks.common import between_markers
from safetensors.torch import load_file

# Some peers' packages warn when they are imported.
others = pytest.mark.filterwarnings("ignore::DeprecationWarning")
forks = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters leave files for the run's own folder to take along."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Weights:
    """Two tensors of one type, normally distributed as weights are."""
    dtype: str = request.param
    random = np.random.default_rng(7)
    tensors = [(name, random.normal(0, 0.02, shape)) for name, shape in (("a", (96, 64)), ("b", (96,)))]
    path = tmp_path / f"small-{dtype}.safetensors"
    return write_safetensors(path, dtype, [(name, t.astype(DTYPES[dtype])) for name, t in tensors])


@pytest.fixture
def pruned(tmp_path: Path) -> Weights:
    """Two matrices with a tenth of their weights, at most 32 values each, and a row of zeros."""
    random = np.random.default_rng(8)
    tensors = [(name, random.normal(0, 0.02, (64, 80)).astype(np.float32)) for name in "ab"]
    for _, tensor in tensors:
        tensor[5] *= 1e-6
    dense = write_safetensors(tmp_path / "dense-fp32.safetensors", "fp32", tensors)
    return sparse.prune(dense, 0.1, tmp_path / "pruned-fp32.safetensors")


# -- weights


def test_the_files_are_what_the_library_reads(small: Weights) -> None:
    read = load_file(small.path)
    assert list(small.tensors) == ["a", "b"]
    for name, tensor in small.tensors.items():
        assert tuple(read[name].shape) == tensor.shape
        assert read[name].untyped_storage().nbytes() == tensor.nbytes
        assert np.array_equal(read[name].float().numpy(), tensor.astype(np.float32))
    assert small.data.size == sum(t.nbytes for t in small.tensors.values())


def test_three_times_is_the_same_values_without_repetition() -> None:
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = dict(weights._shaped(weights.MODELS["minilm-x3"], {"w": tensor}))
    assert {name: sorted(t.ravel()) for name, t in made.items()} == {name: list(range(12)) for name in made}
    assert len({np.ascontiguousarray(t).tobytes() for t in made.values()}) == 3


def test_a_sample_is_the_first_rows() -> None:
    table = np.arange(1 << 22, dtype=np.float32).reshape(-1, 256)
    ((_, sample),) = weights._shaped(weights.MODELS["sample"], {"w": table})
    assert sample.size == 1 << 21
    assert np.array_equal(sample.ravel(), np.arange(1 << 21))


def test_pruned_weights(pruned: Weights) -> None:
    for tensor in pruned.tensors.values():
        assert np.count_nonzero(tensor) == pytest.approx(0.1 * tensor.size, abs=2)
        assert np.unique(tensor[tensor != 0]).size <= sparse.VALUES


def test_the_entropy_bound_of_a_coin_and_a_die(tmp_path: Path) -> None:
    # Half of the places hold one of four values: a bit for each place, two for each value, and the values.
    tensor = np.array([0, 1, 0, 2, 0, 3, 0, 4] * 100, np.float32).reshape(20, 40)
    held = write_safetensors(tmp_path / "x-fp32.safetensors", "fp32", [("x", tensor)])
    assert sparse.entropy_bound(held) == pytest.approx(800 / 8 + 400 * 2 / 8 + 4 * 4)


# -- adapters


def _round_trip(peer: Peer, held: Weights) -> None:
    before = held.data.copy()
    stream = peer.stream(peer.encode(peer.prepare(held), held))
    assert np.array_equal(held.data, before), "the weights themselves were changed"
    decode = peer.decoder(stream, held)
    for _ in range(2):
        assert np.array_equal(peer.decoded(decode(), held), before)


def _present(table: str) -> list[str]:
    """The peers of a table that this environment has; .venv-codecs has them all."""
    return [n for n, peer in ALL_PEERS.items() if table in peer.tables and peer.version() is not None]


@others
@pytest.mark.parametrize("name", _present("lossless"))
def test_adapters_give_back_every_bit(name: str, small: Weights) -> None:
    _round_trip(ALL_PEERS[name], small)


@others
@pytest.mark.parametrize("name", _present("sparse"))
def test_adapters_give_back_pruned_tensors(name: str, pruned: Weights) -> None:
    _round_trip(ALL_PEERS[name], pruned)


def test_what_every_environment_has_is_present() -> None:
    present = {name for name, peer in ALL_PEERS.items() if peer.version() is not None}
    assert present >= {
        "dcz balanced",
        "dcz balanced, codebook",
        "zstd 1",
        "zstd 3 transposed",
        "safetensors load + copy",
    }


def test_transposed_means_planes(small: Weights) -> None:
    peer = ALL_PEERS["zstd 1 transposed"]
    stream = peer.stream(peer.encode(peer.prepare(small), small))
    data, step = small.data.tobytes(), small.itemsize
    assert zstandard.decompress(stream) == b"".join(data[i::step] for i in range(step))


# -- speed


class _Copy(Peer):
    """Stores the bytes as they are; `wrong` changes one of them."""

    name = "copy"
    wrong: ClassVar[bool] = False

    def encode(self, data: Any, weights: Weights) -> bytes:
        encoded: bytes = data.tobytes()
        return encoded + b"!" * 10

    def decoder(self, stream: bytes, weights: Weights) -> Decode:
        flip = bytes([stream[0] ^ self.wrong]) + stream[1:-10]
        return lambda: flip


class _Wrong(_Copy):
    name = "wrong"
    wrong = True


def test_measuring(small: Weights) -> None:
    figures = speed.measure(_Copy(), small)
    size = small.data.size
    assert figures["exact"]
    assert figures["bytes"] == size
    assert figures["size"] == (size + 10) / size
    for verb in ("encode", "decode"):
        assert figures[verb]["x_memcpy"] > 0
        assert speed.LEAST <= figures[verb]["repetitions"] <= speed.MOST
    assert not speed.measure(_Wrong(), small, once=True)["exact"]


# -- damage


def test_mutations_are_of_the_kinds_that_they_say() -> None:
    stream = np.random.default_rng(1).bytes(1000)
    made = list(mutations(stream, 5))
    assert made == list(mutations(stream, 5))
    assert made != list(mutations(stream, 6))
    assert len(made) == sum(COUNTS.values()) == 200
    assert stream not in made

    def changed(mutation: bytes) -> list[int]:
        assert len(mutation) == len(stream)
        return [i for i, (a, b) in enumerate(zip(mutation, stream, strict=True)) if a != b]

    for mutation in made[:80]:
        (at,) = changed(mutation)
        assert (mutation[at] ^ stream[at]).bit_count() == 1
    for mutation in made[80:120]:
        (at,) = changed(mutation)
        assert at < corruption.HEADER
    for mutation in made[120:160]:
        assert len(mutation) < len(stream)
        assert stream.startswith(mutation)
    for mutation in made[160:180]:
        where = changed(mutation)
        assert where[-1] - where[0] < 16
    for mutation in made[180:]:
        where = changed(mutation)
        assert where[-1] - where[0] < 8
        assert where[-1] < corruption.HEADER


def _toy(stream: bytes) -> np.ndarray:
    """Does what it is told."""
    right = np.arange(10, dtype=np.uint8)
    actions: dict[bytes, Callable[[], Any]] = {
        b"right": lambda: right,
        b"wrong": lambda: right + 1,
        b"short": lambda: right[:5],
        b"memory": lambda: np.zeros(2 * corruption.MEMORY, np.uint8),
        b"interrupt": lambda: signal.raise_signal(signal.SIGINT),
        b"crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"abort": os.abort,
        b"exit": lambda: os._exit(0),
        b"hang": lambda: time.sleep(3600),
    }
    if stream not in actions:
        raise ValueError("damaged")
    result: np.ndarray = actions[stream]()
    return result


@forks
@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        (b"right", "same"),
        (b"wrong", "wrong"),
        (b"short", "wrong"),
        (b"nonsense", "raised"),
        (b"memory", "raised"),
        (b"interrupt", "raised"),
        (b"crash", "crashed"),
        (b"abort", "crashed"),
        (b"exit", "crashed"),
    ],
)
def test_classifying(told: bytes, outcome: str) -> None:
    counts = classify(_toy, [told] * 3, np.arange(10, dtype=np.uint8))
    assert counts == {name: 3 * (name == outcome) for name in OUTCOMES}


@forks
def test_classifying_what_does_not_end() -> None:
    counts = classify(_toy, [b"hang"] * 3, np.arange(10, dtype=np.uint8), timeout=0.2)
    assert counts == {name: 3 * (name == "hung") for name in OUTCOMES}


def test_a_part_goes_with_all_that_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    held = f"import os, time; pipe = open({str(pipe)!r}, 'wb'); os.fork(); time.sleep(3600)"
    assert limited([sys.executable, "-c", held], 1.0, os.environ).code is None
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # once nobody has its other end
    os.close(reader)


def test_how_a_part_ends() -> None:
    assert limited([sys.executable, "-c", "raise SystemExit(3)"], 60, os.environ).code == 3
    assert limited([sys.executable, "-c", "import os; os.abort()"], 60, os.environ).code == -signal.SIGABRT


# -- what is shown


def test_only_a_whole_run_is_written() -> None:
    assert Choice().whole
    assert Choice(everything=True).whole
    for part in (
        Choice(models=["crepe"]),
        Choice(dtypes=["bf16"]),
        Choice(peers=["dcz"]),
        Choice(quick=True),
    ):
        assert not part.whole
    assert Choice(peers=["zstd", "dcz small"]).wants_peer("zstd 19")
    assert not Choice(peers=["zstd", "dcz small"]).wants_peer("dcz balanced")
    assert Choice(models=["crepe"], dtypes=["bf16"]).pairs() == [("crepe", "bf16")]
    assert Choice(peers=["zstd"], everything=True).arguments == ["--peers", "zstd", "--all"]


def _results(**sizes: float) -> dict[str, Any]:
    """One model and type; the names of peers with _ for a space."""
    figures = {"x_memcpy": 0.5, "seconds": 1.0, "memcpy_seconds": 0.5, "repetitions": 3}
    row = {"bytes": 1000, "model": "minilm", "encode": figures, "decode": figures, "exact": True}
    made = {"command": "", "processor": "", "kernel": "", "python": "", "minutes": 1, "everything": False}
    return {
        "made": made,
        "versions": {},
        "efforts": ["balanced"],
        "absent": [],
        "models": [],
        "lossless": [
            {**row, "peer": p.replace("_", " "), "dtype": "bf16", "size": s} for p, s in sizes.items()
        ],
        **{table: [] for table in ("loading", "kernels", "sparse", "corruption")},
    }


def test_the_words_tell_of_losses() -> None:
    assert "dcz has the smallest file in 1." in page(_results(dcz_balanced=0.66, zipnn=0.67))
    lost = page(_results(dcz_balanced=0.66, zipnn=0.67, glyd_max=0.60))
    assert "dcz has the smallest file in 0; in the others it is up to 10.0 % larger" in lost
    assert "made by glyd max" in lost


def test_the_words_tell_of_speeds_and_damage() -> None:
    results = _results(dcz_balanced=0.66, zipnn=0.67)
    for row, times in zip(results["lossless"], (0.25, 0.5), strict=True):
        row.update(model="minilm-x3", decode={**row["decode"], "x_memcpy": times})
    none = dict.fromkeys(OUTCOMES, 0)
    row = {"model": "minilm", "dtype": "bf16"}
    results["corruption"] = [
        {**row, **none, "peer": "dcz balanced", "raised": 200},
        {**row, **none, "peer": "zipnn", "raised": 90, "wrong": 50, "crashed": 40, "hung": 20},
        {**row, **none, "peer": "glyd max", "raised": 200},
    ]
    text = page(results)
    assert (
        "dcz balanced decodes bf16 at 0.25 x memcpy (fastest peer: zipnn, 0.50, with a file of 67.0 %)"
        in text
    )
    assert "of 200 damaged files dcz gave wrong weights for, crashed on or hung on none" in text
    assert "1 of 2 other decoders did so on up to 110" in text
    results["corruption"][0].update(raised=193, wrong=4, crashed=3)
    assert "crashed on or hung on 7," in page(results)


def test_what_fails_is_shown() -> None:
    results = _results(dcz_balanced=0.66, zipnn=0.1)
    results["lossless"][1]["exact"] = False
    text = page(results)
    assert "dcz has the smallest" not in text
    assert "- zipnn, minilm bf16 (lossless): what came back differs from what went in" in text


def test_markers() -> None:
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    assert between_markers(text, "x", "new\n") == "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n"
    for broken in ("", "<!-- begin x -->\n", "<!-- end x -->\n<!-- begin x -->\n"):
        with pytest.raises(ValueError, match="no markers"):
            between_markers(broken, "x", "new")


def test_the_pages_show_the_results_that_are_committed() -> None:
    """And nothing if there are none."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    for path, text in (("docs/benchmarks.md", page), ("README.md", readme)):
        shown = (ROOT / path).read_text(encoding="utf-8")
        expected = between_markers(shown, "codecs", text(results) if results else "")
        assert shown == expected, "run `python -m benchmarks.codecs --render`"
