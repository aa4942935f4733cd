"""open, load, save and load_into, with torch, numpy and safetensors as the oracles."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import dcz
from dcz.errors import (
    DigestMismatch,
    InvalidReference,
    ModelMismatch,
    NotInRegistry,
    SourceError,
    TensorNotFound,
    UsageError,
)
from dcz.format import DTYPES, Limits, Reader, Writer
from dcz.registry import push
from dcz.runtime.slabs import allocate

TYPES = [getattr(torch, row.numpy.name) for row in DTYPES.values()]


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embedding": torch.randn(100, 16).bfloat16(),
        "weight": torch.randn(64, 48),
        "mask": torch.rand(7) > 0.5,
        "fp8": torch.randn(3, 3).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.numel() == 0 or torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    dcz.save(_tensors(), tmp_path / "m.dcz", metadata={"format": "pt", "author": "us"})
    return tmp_path / "m.dcz"


# -- save and load


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_what_was_saved_is_loaded(path: Path, threads: int | None) -> None:
    found = dcz.load(path, threads=threads)
    assert list(found) == list(_tensors())
    assert all(_same(found[name], tensor) for name, tensor in _tensors().items())
    assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in found.values())
    found["weight"].add_(1)  # memory of our own
    assert not any(tensor.requires_grad for tensor in found.values())


def test_loading_as_numpy(path: Path) -> None:
    found = dcz.load(path, framework="numpy")
    assert found["embedding"].dtype == ml_dtypes.bfloat16
    assert found["fp8"].dtype == ml_dtypes.float8_e4m3fn
    for name, tensor in dcz.load(path).items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].tobytes() == (
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    found["weight"][0] = 0


def test_tied_tensors_come_back_tied(tmp_path: Path) -> None:
    weight = torch.randn(30, 40)
    dcz.save({"a": weight, "b": weight, "part": weight[:10], "turned": weight.T}, tmp_path / "m.dcz")
    found = dcz.load(tmp_path / "m.dcz")
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()
    found["a"][0, 0] = 7
    assert found["b"][0, 0] == 7
    assert found["part"][0, 0] == weight[0, 0]
    assert torch.equal(found["turned"], weight.T)
    arrays = dcz.load(tmp_path / "m.dcz", framework="np")
    assert np.shares_memory(arrays["a"], arrays["b"])
    with dcz.open(tmp_path / "m.dcz") as f:
        assert torch.equal(f["b"], weight)


def test_saving_is_strict(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'a' is neither a tensor"):
        dcz.save({"a": [1, 2]}, tmp_path / "m.dcz")  # type: ignore[arg-type]
    done = dcz.save({"w": torch.randn(64, 64)}, tmp_path / "m.dcz", recipe="int8")
    assert done.recipe == "int8"
    assert done.ratio < 0.4


@given(
    st.lists(st.integers(0, 40), max_size=30),
    st.sampled_from([1 << 9, 1 << 12]),
    st.sampled_from([1 << 7, 1 << 30]),
)
def test_arrays_do_not_overlap(sizes: list[int], slab: int, large: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcz.runtime.slabs._SLAB", slab)
        patch.setattr("dcz.runtime.slabs._LARGE", large)
        arrays = allocate((f"{i}", DTYPES["f32"], (size,)) for i, size in enumerate(sizes))
    assert list(arrays) == [f"{i}" for i in range(len(sizes))]
    for i, (array, size) in enumerate(zip(arrays.values(), sizes, strict=True)):
        assert array.shape == (size,)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert size == 0 or array.ctypes.data % 64 == 0
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(arrays.values()))


# -- open


def test_open_is_like_safe_open(path: Path, tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt", "author": "us"})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as theirs, dcz.open(path) as ours:
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        for name in theirs.keys():  # noqa: SIM118 - it is not a mapping
            assert _same(ours.get_tensor(name), theirs.get_tensor(name))
            a, b = ours.get_slice(name), theirs.get_slice(name)
            assert a.get_shape() == b.get_shape()
            assert a.get_dtype() == b.get_dtype()
        slices: Any = (
            (slice(None), slice(3, 9)),
            slice(5, 60, 7),
            (slice(2, 4), slice(None)),
            (Ellipsis, slice(0, 2)),
        )
        for index in slices:
            assert torch.equal(ours.get_slice("weight")[index], theirs.get_slice("weight")[index])


def test_open_as_a_mapping(path: Path) -> None:
    with dcz.open(path, framework="np") as f:
        assert list(f) == f.keys() == list(_tensors())
        assert len(f) == 6
        assert "weight" in f
        assert "nothing" not in f
        assert f["weight"].tobytes() == _tensors()["weight"].numpy().tobytes()
        assert f.digest == dcz.verify(path).digest
        assert f.assets() == []
        for action in (lambda: f["nothing"], lambda: f.tensor("nothing")):
            with pytest.raises(TensorNotFound):
                action()
            with pytest.raises(KeyError):
                action()
        with pytest.raises(dcz.AssetNotFound):
            f.read_asset("config.json")


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_lazy_tensors(path: Path, framework: Any) -> None:
    weight: Any = _tensors()["weight"]
    with dcz.open(path, framework) as f:
        lazy = f.tensor("weight")
        assert (lazy.name, lazy.dtype, lazy.shape, lazy.nbytes, len(lazy)) == (
            "weight",
            "f32",
            (64, 48),
            12288,
            64,
        )
        assert repr(lazy) == "TensorSlice('weight', f32, [64, 48])"
        for index in (
            0,
            -1,
            slice(3, 5),
            (slice(None), 4),
            (2, 3),
            (slice(None, None, 2), slice(1, None, 3)),
            ...,
        ):
            found = lazy[index]
            assert isinstance(found, torch.Tensor if framework == "torch" else np.ndarray | np.generic)
            np.testing.assert_array_equal(np.asarray(found), weight[index].numpy())
        reverse = lazy[::-1]  # torch cannot, but the file can
        np.testing.assert_array_equal(np.asarray(reverse), weight.numpy()[::-1])
        with pytest.raises(IndexError):
            lazy[64]
        assert f.tensor("scalar")[...] == 2.5
        assert f.tensor("embedding")[3:5].shape == (2, 16)
        if framework == "torch":
            assert _same(f.tensor("embedding")[3:5], _tensors()["embedding"][3:5])
            lazy[0:2].add_(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_tensors_never_become_dense(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = torch.where(torch.rand(50, 70) < 0.1, torch.randn(50, 70), 0).to(dtype)
    dcz.save({"w": dense, "v": torch.ones(3)}, tmp_path / "m.dcz")
    with dcz.open(tmp_path / "m.dcz") as f:
        csr, csc = f.tensor("w").csr(), f.tensor("w").csc()
        assert (csr.layout, csc.layout) == (torch.sparse_csr, torch.sparse_csc)
        assert csr.dtype == dtype
        assert csr.values().numel() == int((dense != 0).sum())
        assert torch.equal(csr.to_dense(), dense)
        assert torch.equal(csc.to_dense(), dense)
        with pytest.raises(UsageError, match="dimensions"):
            f.tensor("v").csr()
    with dcz.open(tmp_path / "m.dcz", "numpy") as f:
        rows, columns = f.tensor("w").csr(), f.tensor("w").csc()
        assert isinstance(rows, scipy.sparse.csr_array)
        assert isinstance(columns, scipy.sparse.csc_array)
        np.testing.assert_array_equal(rows.toarray(), dense.float().numpy())
        np.testing.assert_array_equal(columns.toarray(), dense.float().numpy())


# -- where files come from


def test_bytes_files_and_urls(path: Path) -> None:
    with path.open("rb") as file:
        sources: list[Any] = [
            str(path),
            path,
            path.read_bytes(),
            io.BytesIO(path.read_bytes()),
            file,
            f"file://{path}",
        ]
        for source in sources:
            assert _same(dcz.load(source)["weight"], _tensors()["weight"])


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "default"))
    return tmp_path / "other"


def test_references(path: Path, registry: Path) -> None:
    push(path, "small:1.0")
    assert _same(dcz.load("small:1.0")["weight"], _tensors()["weight"])
    with dcz.open("small") as f:
        assert "weight" in f
    with pytest.raises(NotInRegistry):
        dcz.load("small:1.0", registry=registry)
    push(path, "small:2.0", registry=registry)
    assert len(dcz.load("small:2.0", registry=registry)) == 6
    with pytest.raises(InvalidReference):
        dcz.load("hf://not-a-repository")
    module = torch.nn.Module()
    assert dcz.load_into(module, "small:1.0", strict=False).unexpected == tuple(_tensors())


def test_text_is_read_as_references_are(path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for text in ("m.dcz", "./m.dcz", "~/m.dcz"):
        assert len(dcz.load(text)) == 6
    path.rename(path.parent / "model")
    assert len(dcz.load("./model")) == 6
    with pytest.raises(NotInRegistry):
        dcz.load("model")
    with pytest.raises(FileNotFoundError):
        dcz.load("nothing.dcz")


def test_unknown_frameworks_are_refused_before_anything_is_opened(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    framework: Any = "jax"
    for action in (dcz.open, dcz.load):
        with pytest.raises(UsageError, match="no framework 'jax'"):
            action(path, framework=framework)
    assert len(os.listdir("/proc/self/fd")) == before


def test_damage_is_found(path: Path) -> None:
    file = bytearray(path.read_bytes())
    file[200] ^= 1
    path.write_bytes(file)
    with pytest.raises(DigestMismatch):
        dcz.load(path)
    with dcz.open(path) as f, pytest.raises(DigestMismatch):
        [f[name] for name in f]


# -- load_into


class _Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8, dtype=dtype)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 20, bias=False, dtype=dtype)


def _saved(folder: Path, module: torch.nn.Module) -> Path:
    dcz.convert(module, folder / "m.dcz")
    return folder / "m.dcz"


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name].to(y[name].dtype), y[name]) for name in x)


def test_parameters_keep_their_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Model(), _Model()
    pointers = {name: value.data_ptr() for name, value in target.state_dict().items()}
    assert dcz.load_into(target, _saved(tmp_path, source)) == ((), ())
    assert _equal(source, target)
    assert {name: value.data_ptr() for name, value in target.state_dict().items()} == pointers
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_other_types_and_strides_are_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Model(), _Model(torch.bfloat16)
    target.head.weight = torch.nn.Parameter(torch.zeros(8, 20).T)
    dcz.load_into(target, _saved(tmp_path, source))
    assert target.head.weight.stride() == (1, 20)
    assert torch.equal(target.head.weight, source.head.weight)
    assert torch.equal(target.embedding.weight, source.embedding.weight.bfloat16())


def test_nothing_is_written_if_anything_does_not_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = _saved(tmp_path, _Model())
    target = _Model()
    target.head = torch.nn.Linear(8, 21)
    target.more = torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(
        ModelMismatch, match=r"1 of another shape: head\.weight \(\[21, 8\] in the module, \[20, 8\] in"
    ):
        dcz.load_into(target, file, strict=False)
    target.head = torch.nn.Linear(8, 20)
    del target.norm
    with pytest.raises(ModelMismatch) as caught:
        dcz.load_into(target, file)
    assert "3 missing in the file: head.bias, more.weight, more.bias" in str(caught.value)
    assert "5 unexpected in the file: norm.weight" in str(caught.value)
    assert all(
        torch.equal(before[name], value) for name, value in target.state_dict().items() if "head" not in name
    )
    found = dcz.load_into(target, file, strict=False)
    assert found.missing == ("head.bias", "more.weight", "more.bias")
    assert len(found.unexpected) == 5
    assert torch.equal(target.embedding.weight, dcz.load(file)["embedding.weight"])


def test_tied_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Model(), _Model()
    for module in (source, target):
        module.head.weight = module.embedding.weight
    dcz.load_into(target, _saved(tmp_path, source))
    assert _equal(source, target)
    # Files that hold only one of the names, as transformers writes them, and files that hold the weights twice.
    state = source.state_dict()
    for name in ("head.weight", "embedding.weight"):
        torch.nn.init.zeros_(target.head.weight)
        dcz.save({key: value for key, value in state.items() if key != name}, tmp_path / "one.dcz")
        dcz.load_into(target, tmp_path / "one.dcz")
        assert _equal(source, target)
    torch.nn.init.zeros_(target.head.weight)
    dcz.save({key: value.clone() for key, value in state.items()}, tmp_path / "two.dcz")
    dcz.load_into(target, tmp_path / "two.dcz")
    assert _equal(source, target)
    dcz.save(_Model().state_dict(), tmp_path / "untied.dcz")
    with pytest.raises(
        ModelMismatch, match=r"tied in the module, but not in the file: embedding\.weight = head"
    ):
        dcz.load_into(target, tmp_path / "untied.dcz")


def test_a_module_without_memory(tmp_path: Path) -> None:
    file = _saved(tmp_path, _Model())
    with torch.device("meta"):
        target = _Model()
    with pytest.raises(ModelMismatch, match="on the meta device"):
        dcz.load_into(target, file)


class _Cloning(_Model):
    """Its state is not its memory: as of modules that pack, move or rename parameters when they are saved."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"core.{name}": value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(
            {name.removeprefix("core."): value for name, value in state_dict.items()}, *args, **kwargs
        )


class _Extra(_Model):
    extra = 0.0

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor([self.extra])

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.extra = float(state[0])


def test_wrapped_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Model(), _Model()
    file = _saved(tmp_path, torch.nn.DataParallel(source))
    dcz.load_into(torch.nn.DataParallel(target), file)
    assert _equal(source, target)


def test_modules_that_load_in_a_way_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Cloning(), _Cloning()
    file = _saved(tmp_path, source)
    assert dcz.load_into(target, file) == ((), ())
    assert _equal(source, target)
    dcz.save({"core.norm.weight": torch.ones(3)}, tmp_path / "x.dcz")
    with pytest.raises(ModelMismatch, match="size mismatch"):
        dcz.load_into(target, tmp_path / "x.dcz", strict=False)
    extra, other = _Extra(), _Extra()
    extra.extra = 7.0
    dcz.load_into(other, _saved(tmp_path, extra))
    assert other.extra == 7
    assert _equal(extra, other)


def _with(name: str, tensor: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Linear(4, 4)
    module.register_buffer(name, tensor)
    return module


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (torch.nn.LazyLinear(4), r"2 without memory to load into: weight \(not initialized"),
        (_with("b", torch.eye(2).to_sparse()), r"b \(torch\.sparse_coo\)"),
        (_with("b", torch.zeros(1, 3).expand(4, 3)), r"b \(expanded"),
    ],
    ids=["lazy", "sparse", "expanded"],
)
def test_what_cannot_be_written_to_is_found_first(
    tmp_path: Path, target: torch.nn.Module, reason: str
) -> None:
    file = tmp_path / "m.dcz"
    dcz.save({"weight": torch.ones(4, 4), "bias": torch.ones(4), "b": torch.ones(4, 3)}, file)
    with pytest.raises(ModelMismatch, match=reason):
        dcz.load_into(target, file, strict=False)
    if isinstance(target.weight, torch.Tensor) and not torch.nn.parameter.is_lazy(target.weight):
        assert not torch.equal(target.weight, torch.ones(4, 4))
    with pytest.raises(dcz.UsageError, match="a dict is not a"):
        dcz.load_into({}, file)  # type: ignore[arg-type]


def test_complex_parameters_take_real_tensors(tmp_path: Path) -> None:
    target = _with("b", torch.zeros(3, dtype=torch.complex64))
    dcz.save({"b": torch.arange(3.0)}, tmp_path / "m.dcz")
    dcz.load_into(target, tmp_path / "m.dcz", strict=False)
    assert torch.equal(target.get_buffer("b"), torch.arange(3).to(torch.complex64))


def test_a_damaged_file_and_a_module(tmp_path: Path) -> None:
    file = _saved(tmp_path, _Model())
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    with pytest.raises(DigestMismatch):
        dcz.load_into(_Model(), file)


def test_names_are_not_promised_to_be_in_the_order_of_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = _Model(), _Model()
    with Writer(tmp_path / "m.dcz") as writer:
        for name, tensor in reversed(source.state_dict().items()):
            writer.add_tensor(name, tensor.numpy())
    dcz.load_into(target, tmp_path / "m.dcz")
    assert _equal(source, target)


# -- verify and decode


def test_verify_and_decode_take_what_open_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))
    file = _saved(tmp_path, _Model())
    push(file, "small:1.0")
    digests = {dcz.verify(source, deep=True).digest for source in ("small:1.0", file, file.read_bytes())}
    assert len(digests) == 1
    dcz.decode("small", tmp_path / "a.safetensors")
    dcz.decode(file, tmp_path / "b.safetensors")
    with Reader(file) as reader:
        dcz.decode(reader, tmp_path / "c.safetensors")
        assert "head.weight" in reader
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}) == 1
    with pytest.raises(dcz.NotInRegistry):
        dcz.decode("nothing:1.0", tmp_path / "d.safetensors")


def test_a_pinned_reference_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts another file, whole in itself, into the place of the blob."""
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))
    torch.manual_seed(0)
    file, other = tmp_path / "file.dcz", tmp_path / "other.dcz"
    for path in (file, other):
        dcz.save({"w": torch.randint(0, 256, (5000,), dtype=torch.uint8)}, path)
    pushed = push(file, "small:1.0")
    blob = next(
        path
        for path in (tmp_path / "registry" / "blobs" / "sha256").iterdir()
        if b"DCZ" in path.read_bytes()[:8]
    )
    assert blob.stat().st_size == other.stat().st_size
    blob.chmod(0o644)
    blob.write_bytes(other.read_bytes())
    for reference in ("small:1.0", str(pushed.reference)):
        with pytest.raises(dcz.RegistryCorrupt):
            dcz.load(reference)


def test_limits_are_the_callers(tmp_path: Path) -> None:
    file = _saved(tmp_path, _Model())
    tight = Limits(tensor_bytes=100)
    for action in (dcz.open, dcz.load, dcz.verify):
        with pytest.raises(dcz.LimitExceeded):
            action(file, limits=tight)
        action(file)
