"""GGUF files: converted, decoded and written again, against the gguf package; and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from tests.converters.gguf_files import QUANTIZED, dequantized, random_blocks, write_gguf_file
from tests.fuzz.byte_mutations import BYTE_MUTATIONS

import dcz
from dcz.converters.gguf import GgufSource
from dcz.errors import SourceError, UsageError
from dcz.format import Reader, verify

VALUES: list[tuple[str, Any]] = [
    ("general.name", "A toy"),
    ("toy.block_count", 2),
    ("toy.rate", 0.5),
    ("tokenizer.ggml.tokens", ["<s>", "\u00e9", "", "a b"]),
    ("tokenizer.ggml.scores", [0.5, 1.5]),
    ("toy.nested", [[1, 2], [3]]),
]


def _plain(random: np.random.Generator) -> dict[str, tuple[str, np.ndarray]]:
    weights = random.standard_normal((5, 7))
    return {
        "f32": ("F32", weights.astype("<f4")),
        "f16": ("F16", weights.astype("<f2")),
        "bf16": ("BF16", (weights.astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)),
        "f64": ("F64", weights),
        "i8": ("I8", random.integers(-128, 128, (3, 4, 5), dtype=np.int8)),
        "i16": ("I16", np.arange(6, dtype="<i2").reshape(1, 2, 3)),
        "i32": ("I32", np.arange(3, dtype="<i4")),
        "i64": ("I64", np.arange(4, dtype="<i8").reshape(2, 2)),
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tensor of each type."""
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    tensors = _plain(np.random.default_rng(0))
    tensors |= {name: (name, random_blocks(name, 8, 1024)) for name in QUANTIZED}
    write_gguf_file(path, tensors, VALUES)
    return path


@pytest.fixture(scope="module")
def converted(toy: Path) -> Path:
    path = toy.with_suffix(".dcz")
    dcz.convert(toy, path)
    return path


def test_tensors_are_what_the_gguf_package_reads(toy: Path, converted: Path) -> None:
    with dcz.open(converted, framework="numpy") as file:
        verify(converted, deep=True)
        for theirs in gguf.GGUFReader(str(toy)).tensors:
            ours = file[theirs.name]
            name = theirs.tensor_type.name
            assert ours.shape == tuple(reversed(theirs.shape.tolist()))
            if name in QUANTIZED:
                assert np.array_equal(ours.view("u4"), dequantized(name, theirs.data).view("u4")), name
            else:
                assert ours.tobytes() == theirs.data.tobytes()
        assert file.metadata()["general.name"] == "A toy"


def test_codes_are_stored_as_codes(toy: Path, converted: Path) -> None:
    with Reader(converted) as reader:
        kinds = {tensor.name: tensor.values.kind for tensor in reader.manifest.tensors}
    affine = {name for name in QUANTIZED if not name.startswith(("IQ", "MX"))}
    assert {name for name, kind in kinds.items() if kind == "affine"} >= affine
    assert converted.stat().st_size < 1.05 * toy.stat().st_size + 8192


def test_the_file_comes_back_byte_for_byte(toy: Path, converted: Path, tmp_path: Path) -> None:
    done = dcz.decode(converted, tmp_path / "back.gguf")
    assert done.original
    assert (tmp_path / "back.gguf").read_bytes() == toy.read_bytes()
    folder = dcz.decode(converted, tmp_path / "folder")
    assert folder.files == ("toy.gguf",)
    assert (tmp_path / "folder" / "toy.gguf").read_bytes() == toy.read_bytes()


def test_safetensors_come_out_always(converted: Path, tmp_path: Path) -> None:
    dcz.decode(converted, tmp_path / "model.safetensors")
    dcz.convert(tmp_path / "model.safetensors", tmp_path / "again.dcz")
    with Reader(converted) as one, Reader(tmp_path / "again.dcz") as other:
        for name in one:
            assert one.read(name).tobytes() == other.read(name).tobytes()


def _gaps(data: bytes) -> bytes:
    """The same file with something in its padding, and behind its end."""
    changed = bytearray(data)
    at = data.index(b"second") + 6 + 4 + 8 + 4 + 8
    start = -(-at // 32) * 32
    changed[start + 68 : start + 96] = bytes(range(28))
    return bytes(changed) + b"the end"


@pytest.mark.parametrize("change", [bytes, lambda data: data[:-14], _gaps], ids=["padded", "cut", "filled"])
def test_what_is_no_tensor_is_kept(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf_file(
        path,
        {"first": ("Q8_0", random_blocks("Q8_0", 1, 64)), "second": ("Q4_0", random_blocks("Q4_0", 1, 32))},
    )
    data = path.read_bytes()
    assert data.endswith(bytes(14))
    path.write_bytes(change(data))
    dcz.convert(path, tmp_path / "x.dcz")
    dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == change(data)


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_without_tensors_and_padding(version: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    dcz.convert(path, tmp_path / "x.dcz")
    dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


def test_a_lossy_recipe_decodes_first_and_says_so(toy: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[rules]]\nnames = ["Q*"]\n'
        'values = { kind = "affine", bits = 4, granularity = { kind = "group", size = 64 }, scale_dtype = "f16" }\n'
    )
    scaled = tmp_path / "scaled.gguf"  # weights of one magnitude
    weights = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    q8 = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    write_gguf_file(scaled, {"Q": ("Q8_0", q8), "R": ("Q8_0", q8), "bias": ("F32", weights[0])}, VALUES)
    done = dcz.convert(scaled, tmp_path / "x.dcz", recipe=str(recipe))
    assert any("1 tensor was quantized already" in note for note in done.notes)
    expected = dequantized("Q8_0", q8)
    dcz.save({"Q": expected}, tmp_path / "y.dcz", recipe=str(recipe))
    with Reader(tmp_path / "x.dcz") as ours, Reader(tmp_path / "y.dcz") as other:
        assert np.array_equal(ours.read("Q"), other.read("Q"))
        assert np.array_equal(ours.read("R"), expected)
        wanted = ours.read("Q")

    # Codes of 4 bits in groups of 64 are those of two groups of 32: Q4_0. The rest is as it was.
    decoded = dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf")
    assert not decoded.original
    found = {each.name: each for each in gguf.GGUFReader(str(tmp_path / "back.gguf")).tensors}
    assert [found[name].tensor_type.name for name in ("Q", "R", "bias")] == ["Q4_0", "Q8_0", "F32"]
    assert np.array_equal(dequantized("Q4_0", found["Q"].data), wanted)
    assert np.array_equal(found["R"].data, q8)
    fields = gguf.GGUFReader(str(tmp_path / "back.gguf")).fields
    assert fields["tokenizer.ggml.tokens"].contents() == ["<s>", "\u00e9", "", "a b"]


SCHEMES = {
    "symmetric": ("Q8_0", 'bits = 8, granularity = { kind = "channel", axis = 0 }'),
    "4 bits by tensor": ("Q4_0", "bits = 4"),
    "3 bits": ("Q4_0", 'bits = 3, granularity = { kind = "group", size = 32 }'),
    "asymmetric": ("Q8_0", 'bits = 4, scheme = "asymmetric", granularity = { kind = "group", size = 32 }'),
    "asymmetric, even": (
        "Q4_1",
        'bits = 4, scheme = "asymmetric", granularity = { kind = "group", size = 32 }',
    ),
    "single": ("F32", 'bits = 4, scale_dtype = "f32", granularity = { kind = "group", size = 32 }'),
    "groups of 16": ("F32", 'bits = 4, granularity = { kind = "group", size = 16 }'),
    "columns": ("F32", 'bits = 4, granularity = { kind = "channel", axis = 1 }'),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_types_for_what_recipes_make(scheme: str, tmp_path: Path) -> None:
    kind, fields = SCHEMES[scheme]
    fields = fields if "scale_dtype" in fields else f'{fields}, scale_dtype = "f16"'
    (tmp_path / "r.toml").write_text(f'[[rules]]\nvalues = {{ kind = "affine", {fields} }}\n')
    random = np.random.default_rng(3)
    weights = random.standard_normal((16, 64)).astype(np.float32)
    if scheme.endswith("even"):  # multiples of 1/16, from -2/16 to 13/16 in each group
        weights = random.permuted(np.tile(np.arange(-2, 14, dtype=np.float32) / 16, (16, 4)), axis=0)
    write_gguf_file(tmp_path / "x.gguf", {"w": ("F32", weights)})
    dcz.convert(tmp_path / "x.gguf", tmp_path / "x.dcz", recipe=tmp_path / "r.toml")
    done = dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf")
    assert done.original == (kind == "F32")
    (found,) = gguf.GGUFReader(str(tmp_path / "back.gguf")).tensors
    assert found.tensor_type.name == kind
    with Reader(tmp_path / "x.dcz") as reader:
        assert np.array_equal(gguf.dequantize(found.data, found.tensor_type), reader.read("w"))


def test_what_looks_quantized_keeps_its_type(tmp_path: Path) -> None:
    blocks = random_blocks("Q8_0", 8, 1024)
    weights = dequantized("Q8_0", (blocks & np.uint8(0x0F)) ^ np.uint8(1))
    write_gguf_file(tmp_path / "x.gguf", {"w": ("F32", weights)})
    dcz.convert(tmp_path / "x.gguf", tmp_path / "x.dcz")
    with Reader(tmp_path / "x.dcz") as reader:
        assert reader.manifest.tensors[0].values.kind == "affine"
    assert dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf").original
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_without_a_head_there_is_no_gguf(tmp_path: Path) -> None:
    dcz.save({"w": np.zeros((2, 32), np.float32)}, tmp_path / "x.dcz")
    with pytest.raises(UsageError, match="does not hold the head of a GGUF file"):
        dcz.decode(tmp_path / "x.dcz", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_estimates_are_near_and_agree(toy: Path, converted: Path) -> None:
    found = dcz.estimate(toy, recipes=["lossless", "int8"], efforts=["balanced"])
    assert found.tensors == len(QUANTIZED) + 8
    with Reader(converted) as reader:
        assert found.tensor_bytes == sum(reader.read(name).nbytes for name in reader)
    assert found.estimates[0].file_bytes == pytest.approx(converted.stat().st_size, rel=0.1)
    # Exponents of any bits give infinities, which a quantizer does not take.
    assert found.estimates[1].problem is not None
    assert found.estimates[1].problem.startswith("MXFP4: ")


def test_rows_of_an_outline_are_those_of_the_tensor(toy: Path) -> None:
    source = GgufSource(toy)
    try:
        outlines = {outline.name: outline for outline in source.outlines()}
        from dcz.format import decoded

        for name, tensor in source.tensors():
            whole = decoded(tensor)
            row = whole.shape[0] // 2
            assert np.array_equal(decoded(outlines[name].read(row, row + 1)), whole[row : row + 1]), name
    finally:
        source.close()


def test_progress_counts_decoded_bytes(toy: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = dcz.convert(toy, tmp_path / "x.dcz", progress=lambda now, total: seen.append((now, total)))
    assert seen[-1] == (done.tensor_bytes, done.tensor_bytes)
    assert len(seen) == done.tensors


def test_the_digest_in_the_provenance_is_the_files(toy: Path, converted: Path) -> None:
    import hashlib

    with Reader(converted) as reader:
        (read,) = reader.manifest.provenance.files
    assert read.path == "toy.gguf"
    assert read.size == toy.stat().st_size
    assert read.sha256 == hashlib.sha256(toy.read_bytes()).digest()


# What is refused


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _info(name: bytes = b"w", shape: tuple[int, ...] = (32,), kind: int = 0, at: int = 0) -> bytes:
    rank = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + rank + struct.pack("<IQ", kind, at)


def _file(
    values: bytes = b"", count: int = 0, infos: tuple[bytes, ...] = (_info(),), data: int = 128
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), count) + values + b"".join(infos)
    return head + bytes(-len(head) % 32 + data)


def _uint(key: bytes, value: int) -> bytes:
    return _text(key) + struct.pack("<II", 4, value)


BAD: dict[str, tuple[bytes, str]] = {
    "an old version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut off in the numbers": (b"GGUF\3\0\0\0\1", "ends at 9"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors, more than"),
    "many values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60) + bytes(64), "given twice"),
    "a long key": (_file(struct.pack("<Q", 1 << 63), 1), "a text of"),
    "a long text": (_file(_text(b"k") + struct.pack("<IQ", 8, 1 << 63), 1), "should go on to"),
    "a long array": (_file(_text(b"k") + struct.pack("<IIQ", 9, 12, 1 << 60), 1), "should go on to"),
    "a long array of texts": (_file(_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60), 1), "should go on to"),
    "deep arrays": (_file(_text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, 1), "nested"),
    "an unknown value": (_file(_text(b"k") + struct.pack("<I", 13), 1), "unknown type 13"),
    "a key twice": (_file(_uint(b"k", 1) * 2, 2), "'k' is given twice"),
    "a key that is no text": (_file(_uint(b"\xff", 1), 1), "not UTF-8"),
    "no alignment": (_file(_uint(b"general.alignment", 0), 1), "power of two"),
    "an odd alignment": (_file(_uint(b"general.alignment", 24), 1), "power of two"),
    "an alignment that is a text": (
        _file(_text(b"general.alignment") + struct.pack("<I", 8) + _text(b""), 1),
        "power",
    ),
    "a tensor twice": (_file(infos=(_info(), _info(at=128)), data=256), "'w' is given twice"),
    "an empty name": (_file(infos=(_info(b""),)), "name"),
    "a name that is no text": (_file(infos=(_info(b"\xff"),)), "not UTF-8"),
    "five dimensions": (_file(infos=(_info(shape=(1, 1, 1, 1, 1)),)), "5 dimensions"),
    "a type that is not read": (_file(infos=(_info(kind=16),)), "'w' has the type IQ2_XXS"),
    "an unknown type": (_file(infos=(_info(kind=4),)), "'w' has the type 4, which is unknown"),
    "rows that are no blocks": (_file(infos=(_info(shape=(48,), kind=8),)), "blocks of 32"),
    "a huge shape": (_file(infos=(_info(shape=(1 << 32, 1 << 31)),)), "beyond 2"),
    "a shape that lies": (_file(infos=(_info(shape=(64,)),)), "its head describes"),
    "a place that lies": (_file(infos=(_info(at=1 << 40),)), "its head describes"),
    "a place that is not aligned": (_file(infos=(_info(at=4),), data=256), "no multiple"),
    "an overlap": (_file(infos=(_info(), _info(b"v", at=96)), data=256), "'w' and 'v' overlap"),
    "the same place": (_file(infos=(_info(), _info(b"v")), data=256), "overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        dcz.convert(path, tmp_path / "x.dcz")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "x.dcz").exists()


def test_a_wide_hole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(_file())
    with path.open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(SourceError, match="neither head nor tensors"):
        dcz.convert(path, tmp_path / "x.dcz")


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf_file(path, {"w": ("Q8_0", np.full((1, 34), 0xFF, np.uint8))})
    with pytest.raises(SourceError, match="'w': a scale is not finite"):
        dcz.convert(path, tmp_path / "x.dcz")


@pytest.mark.parametrize("mutation", BYTE_MUTATIONS)
def test_mutated_files_are_read_or_refused(mutation: str, toy: Path, tmp_path: Path) -> None:
    """Parse or SourceError, never another exception; and what is read can be written again, byte for byte."""
    small = tmp_path / "small.gguf"
    kinds = ("Q4_0", "Q4_K", "MXFP4", "TQ1_0")
    write_gguf_file(small, {name: (name, random_blocks(name, 1, 256)) for name in kinds}, VALUES)
    data, donor = small.read_bytes(), toy.read_bytes()[:4096]
    head = data.index(b"TQ1_0") + 64
    path, refused = tmp_path / "x.gguf", 0
    for number in range(40):
        random = Random(f"{mutation} {number}")
        # Nearly all of what can be wrong stands in the head.
        changed = BYTE_MUTATIONS[mutation](random, data[:head], donor) + data[head:]
        path.write_bytes(changed)
        try:
            source = GgufSource(path)
            try:
                for _ in source.tensors():
                    pass
            finally:
                source.close()
        except SourceError:
            refused += 1
            continue
        if number % 20 == 0:
            dcz.convert(path, tmp_path / "x.dcz", threads=1)
            done = dcz.decode(tmp_path / "x.dcz", tmp_path / "back.gguf")
            assert done.original
            assert len((tmp_path / "back.gguf").read_bytes()) == len(changed)
    assert refused


def test_a_head_that_is_not_of_these_tensors_is_a_file_like_others(converted: Path, tmp_path: Path) -> None:
    with Reader(converted) as reader:
        head = reader.read_asset("toy.gguf-head")
    for number, asset in enumerate([head, head[:-1], head + b"x", b"GGUF", b""]):
        path = tmp_path / f"{number}.dcz"
        from dcz.format import Writer

        with Writer(path) as writer:
            writer.add_tensor("w", np.zeros(3, np.float32))
            writer.add_asset("toy.gguf-head", asset)
        with pytest.raises(UsageError, match="head of a GGUF file"):
            dcz.decode(path, tmp_path / "x.gguf")
        assert dcz.decode(path, tmp_path / str(number)).files == ("model.safetensors", "toy.gguf-head")


def test_blocks_of_another_form_are_told(tmp_path: Path) -> None:
    blocks = random_blocks("TQ1_0", 1, 256)
    blocks[0, 0] = 1  # 0 means the same
    path = tmp_path / "x.gguf"
    write_gguf_file(path, {"w": ("TQ1_0", blocks)})
    done = dcz.convert(path, tmp_path / "x.dcz")
    assert any("'w'" in note and "more than one form" in note for note in done.notes)
    with dcz.open(tmp_path / "x.dcz", framework="numpy") as file:
        expected: npt.NDArray[np.float32] = dequantized("TQ1_0", blocks)
        assert np.array_equal(file["w"], expected)
