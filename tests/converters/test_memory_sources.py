"""Models that are in memory: dictionaries and modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import dcz
from dcz.compression.codebooks import quantize_codebook
from dcz.compression.quantizers import double_quantize, quantize_affine
from dcz.compression.tables import quantize_table
from dcz.compression.vector_codebooks import quantize_vectors
from dcz.converters.conversion import convert, open_source
from dcz.errors import SourceError
from dcz.format import DTYPES, PerGroup, Reader, decoded, verify


def test_arrays_of_every_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        name: rng.normal(0, 3, (4, 7)).astype(np.int8 if row.name[0] == "u" else np.float32).astype(row.numpy)
        for name, row in DTYPES.items()
    }
    done = convert(arrays, tmp_path / "m.dcz")
    assert (done.tensors, done.tensor_bytes) == (15, sum(array.nbytes for array in arrays.values()))
    assert done.file_bytes == (tmp_path / "m.dcz").stat().st_size
    assert done.digest == verify(tmp_path / "m.dcz", deep=True).digest
    found = dcz.load(tmp_path / "m.dcz", framework="numpy")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()


def test_arrays_in_any_order_of_memory(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays: dict[str, Any] = {
        "fortran": np.asfortranarray(base),
        "strided": base[::2, ::-1],
        "big": base.astype(">f4"),
        "scalar": np.float64(3),
        "broadcast": np.broadcast_to(np.int16(4), (3, 2)),
        "base": base,
        "same": base,
    }
    convert(arrays, tmp_path / "m.dcz")
    found = dcz.load(tmp_path / "m.dcz", framework="np")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with Reader(tmp_path / "m.dcz") as reader:
        assert reader.aliases == {"same": "base"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": [1.0]}, "'a' is neither a tensor, nor an array, nor codes, but a list"),
        ({"a": "text"}, "but a str"),
        ({"a": None}, "but a NoneType"),
        ({3: np.zeros(1)}, "the name 3 is not a string"),
        ({"": np.zeros(1)}, "a tensor name has 1 to 4096 bytes"),
        ({"a\0": np.zeros(1)}, "without NUL"),
        ({"\ud800": np.zeros(1)}, "of UTF-8"),
        ({"a": np.zeros(2, np.complex64)}, "'a': no element type for arrays of complex64"),
        ({"a": np.array(["x"])}, "no element type"),
        ({"a": np.array([object()])}, "no element type"),
        ({"a": np.zeros(1, ml_dtypes.float8_e4m3fnuz)}, "no element type"),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        convert(content, tmp_path / "m.dcz")
    assert not list(tmp_path.iterdir())


def test_a_later_failure_leaves_nothing(tmp_path: Path) -> None:
    """What only the recipe finds: a weight that cannot be quantized."""
    weights = {"a": np.zeros((32, 32), np.float32), "b": np.full((32, 32), np.nan, np.float32)}
    with pytest.raises(dcz.EncodingError):
        convert(weights, tmp_path / "m.dcz", recipe="int8")
    assert not list(tmp_path.iterdir())


def test_codes_of_quantizers_beside_what_is_not_quantized(tmp_path: Path) -> None:
    weights = (np.random.default_rng(0).standard_normal((40, 64)) / 16).astype(np.float32)
    tensors: dict[str, Any] = {
        "uniform": quantize_affine(weights, bits=4, granularity=PerGroup(size=16)),
        "double": double_quantize(weights, bits=3, scheme="asymmetric", granularity=PerGroup(size=16)),
        "shared": quantize_codebook(weights, size=9, mask=weights > 0),
        "table": quantize_table(weights, table="normal-float", granularity=PerGroup(size=16)),
        "vectors": quantize_vectors(weights, dimension=4, size=30).tensor(),
        "norm": torch.ones(64, dtype=torch.bfloat16),
        "bias": weights[0],
    }
    done = convert(tensors, tmp_path / "m.dcz")
    assert done.notes == ()
    assert done.tensor_bytes == 5 * 4 * 40 * 64 + 2 * 64 + 4 * 64
    source = open_source(tensors)
    outlines = {outline.name: outline for outline in source.outlines()}
    with Reader(tmp_path / "m.dcz") as reader:
        assert list(reader) == list(tensors)
        kinds = {one.name: one.values.kind for one in reader.manifest.tensors}
        for name in list(tensors)[:5]:
            expected = decoded(tensors[name])
            assert reader.read(name).tobytes() == expected.tobytes()
            assert decoded(outlines[name].read(7, 19)).tobytes() == expected[:12].tobytes()
    assert list(kinds.values())[:5] == ["affine", "affine", "codebook", "scaled-codebook", "vectors"]
    found = dcz.estimate(tensors, recipes=["lossless"], efforts=["balanced"]).estimates[0]
    assert found.file_bytes == pytest.approx(done.file_bytes, rel=0.1)


class _Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def get_extra_state(self) -> str:
        return "extra"

    def set_extra_state(self, state: object) -> None:
        pass


def test_a_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _Tied().to(torch.bfloat16)
    done = convert(module, tmp_path / "m.dcz")
    assert done.notes == ("left out: _extra_state, which is no tensor",)
    assert (done.tensors, done.aliases) == (6, 1)
    found = dcz.load(tmp_path / "m.dcz")
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    assert found.keys() == state.keys()
    assert all(
        torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state
    )
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()


def test_a_module_without_memory_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
    with pytest.raises(SourceError, match="'weight' has no memory"):
        convert(module, tmp_path / "m.dcz")
    with pytest.raises(SourceError, match="has no memory"):
        convert(torch.nn.LazyLinear(3), tmp_path / "m.dcz")


def test_quantized_and_nested_tensors_are_refused(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(SourceError, match="'a' is"):
        convert({"a": nested}, tmp_path / "m.dcz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.LSTM])
def test_a_module_that_torch_has_quantized_is_refused(tmp_path: Path, kind: Any) -> None:
    module = torch.nn.Sequential(kind(4, 4))
    quantize: Any = torch.ao.quantization.quantize_dynamic
    quantized = quantize(module, {kind}, dtype=torch.qint8)
    with pytest.raises(SourceError, match=r"'0\..*' holds weights that torch has quantized and packed"):
        convert(quantized, tmp_path / "m.dcz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_leave_no_prefix(tmp_path: Path) -> None:
    """As of files; a module's own child may be called so."""
    inner = torch.nn.Linear(3, 2)
    compiled = torch.compile(inner)
    assert isinstance(compiled, torch.nn.Module)
    parallel = torch.nn.DataParallel(compiled)
    for module, prefixes in ((compiled, ["_orig_mod."]), (parallel, ["module.", "_orig_mod."])):
        done = convert(module, tmp_path / "m.dcz")
        assert done.notes == tuple(f"the prefix {prefix!r} of all names was removed" for prefix in prefixes)
        found = dcz.load(tmp_path / "m.dcz")
        assert found.keys() == inner.state_dict().keys()
        assert torch.equal(found["weight"], inner.weight)
    own = torch.nn.Module()
    own.module = inner
    assert convert(own, tmp_path / "m.dcz").notes == ()
    assert set(dcz.load(tmp_path / "m.dcz")) == {"module.weight", "module.bias"}
