"""A base from dcz.convert to dcz.load: how it is given, found, and missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dcz
from dcz.errors import BaseNotFound, UsageError, WrongBase
from dcz.format import Limits, Reader
from dcz.registry import push

Pair = tuple[Path, Path, dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def _own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(200, 300, generator=generator)
    return {"weight": weight.to(torch.bfloat16), "bias": torch.randn(200, generator=generator)}


def tuned(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    new = {name: tensor.clone() for name, tensor in old.items()}
    new["weight"][::20, ::7] += 0.25
    return new


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """The base in a folder of its own, so that it is not found beside the file."""
    old = state()
    base, path = tmp_path / "bases" / "old.dcz", tmp_path / "new.dcz"
    base.parent.mkdir()
    dcz.save(old, base)
    done = dcz.save(tuned(old), path, base=base)
    assert done.differences == 2
    assert done.file_bytes < 4000
    return base, path, tuned(old)


def same(one: Any, other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        torch.equal(torch.as_tensor(one[name]), other[name]) for name in other
    )


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(200, 300, dtype=torch.bfloat16))
        self.bias = torch.nn.Parameter(torch.zeros(200))


def load_into(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    module = Linear()
    dcz.load_into(module, path, **options)
    return dict(module.state_dict())


def open_all(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    with dcz.open(path, **options) as file:
        assert torch.equal(file.tensor("weight")[3:5], file["weight"][3:5])
        return dict(file)


def decode(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    out = path.with_suffix(".safetensors")
    dcz.decode(path, out, **options)
    return load_file(out)


WAYS: list[Callable[..., dict[str, torch.Tensor]]] = [
    lambda path, **options: dcz.load(path, **options),
    lambda path, **options: dcz.load_model(path, **options),  # a file without a configuration
    load_into,
    open_all,
    decode,
]


@pytest.mark.parametrize("way", WAYS, ids=["load", "load_model", "load_into", "open", "decode"])
def test_every_way_takes_a_base_and_misses_it(pair: Pair, tmp_path: Path, way: Any) -> None:
    base, path, expected = pair
    for given in (base, str(base), [base], Reader(base), base.read_bytes()):
        assert same(way(path, base=given), expected)
    with pytest.raises(BaseNotFound, match=r"old\.dcz"):
        way(path)
    other = tmp_path / "other.dcz"
    dcz.save(state(1), other)
    with pytest.raises(WrongBase):
        way(path, base=other)
    push(base, "model:1")
    assert same(way(path), expected)
    assert same(way(path, base="model:1"), expected)
    with pytest.raises(BaseNotFound):
        way(path, registry=tmp_path / "elsewhere")


def test_verify_takes_a_base(pair: Pair) -> None:
    base, path, _ = pair
    assert not dcz.verify(path).deep
    assert dcz.verify(path, deep=True, base=base).bases == (Reader(base).digest,)
    with pytest.raises(BaseNotFound):
        dcz.verify(path, deep=True)


def test_a_version_is_read_with_the_base_in_its_registry(pair: Pair) -> None:
    base, path, expected = pair
    push(base, "model:1")
    push(path, "model:2")
    assert same(dcz.load("model:2"), expected)
    assert dcz.verify("model:2", deep=True).deep


def test_the_base_is_found_beside_the_file(pair: Pair) -> None:
    base, path, expected = pair
    base.rename(path.with_name("old.dcz"))
    assert same(dcz.load(path), expected)


@pytest.mark.parametrize("kind", ["path", "reference", "reader"])
def test_the_hint_says_what_the_base_was_called(pair: Pair, tmp_path: Path, kind: str) -> None:
    base, _, expected = pair
    push(base, "model:1")
    given: Any = {"path": base, "reference": "model:1", "reader": Reader(base)}[kind]
    dcz.convert(expected, tmp_path / "c.dcz", base=given)
    with Reader(tmp_path / "c.dcz") as reader:
        assert [one.hint for one in reader.bases] == ["model:1" if kind == "reference" else "old.dcz"]
    assert same(dcz.load(tmp_path / "c.dcz"), expected)


def test_a_file_of_differences_is_a_source(pair: Pair, tmp_path: Path) -> None:
    base, path, expected = pair
    with pytest.raises(BaseNotFound):
        dcz.convert(path, tmp_path / "full.dcz")
    assert not (tmp_path / "full.dcz").exists()
    push(base, "model:1")
    assert dcz.convert(path, tmp_path / "full.dcz").differences == 0
    with Reader(tmp_path / "full.dcz") as reader:
        assert reader.bases == ()
    base.unlink()
    assert same(dcz.load(tmp_path / "full.dcz", registry=tmp_path / "none"), expected)


def test_quantized_tensors_have_no_base(pair: Pair, tmp_path: Path) -> None:
    base, _, expected = pair
    done = dcz.convert(expected, tmp_path / "q.dcz", recipe="int8", base=base)
    with Reader(tmp_path / "q.dcz") as reader:
        kinds = {name: one.tensor.values.kind for name, one in reader.geometry.tensors.items()}
        deltas = {name: one.delta for name, one in reader.geometry.tensors.items()}
    assert kinds == {"weight": "affine", "bias": "exact"}
    assert done.differences == 1
    assert deltas["bias"] is not None


def test_a_base_that_does_not_help_is_noted_and_not_named(pair: Pair, tmp_path: Path) -> None:
    base, _, _ = pair
    others = {"weight": torch.zeros(3), "else": torch.ones(5)}
    done = dcz.save(others, tmp_path / "o.dcz", base=base)
    assert done.differences == 0
    assert "base is not used" in " ".join(done.notes)
    assert same(dcz.load(tmp_path / "o.dcz"), others)


def test_the_base_is_not_replaced(pair: Pair, tmp_path: Path) -> None:
    base, path, expected = pair
    before = base.read_bytes()
    link = tmp_path / "link.dcz"
    link.symlink_to(base)
    for target in (base, link):
        with pytest.raises(UsageError, match="the base"):
            dcz.save(expected, target, base=base)
    # Nor what the base needs.
    with pytest.raises(UsageError, match="the base"):
        dcz.save(expected, base, base=Reader(path, base=base))
    assert base.read_bytes() == before


def test_a_chain_ends_before_it_cannot_be_read(tmp_path: Path) -> None:
    tensors = {"weight": state()["weight"]}
    paths = [tmp_path / f"{i}.dcz" for i in range(11)]
    dcz.save(tensors, paths[0])
    for number in range(1, 11):
        tensors["weight"][number] += 1
        done = dcz.save(tensors, paths[number], base=paths[number - 1])
        assert done.differences == (number != 9)
        assert ("1 tensor is stored without the base" in " ".join(done.notes)) == (number == 9)
        assert same(dcz.load(paths[number]), tensors)
        assert dcz.verify(paths[number], deep=True).deep


def test_a_resolver_is_no_base_to_convert_to(pair: Pair, tmp_path: Path) -> None:
    base, path, expected = pair
    find: Any = lambda _: Reader(base)
    assert same(dcz.load(path, base=find), expected)
    with pytest.raises(UsageError):
        dcz.save(expected, tmp_path / "x.dcz", base=find)


def test_limits_reach_the_base(pair: Pair) -> None:
    base, path, _ = pair
    with Reader(base) as reader:
        largest = max(reader.geometry.chunk_lengths)
    with pytest.raises(dcz.LimitExceeded) as caught:
        dcz.load(path, base=base, limits=Limits(chunk_bytes=largest - 1))
    assert caught.value.file == str(base)


def test_numpy_needs_no_torch_for_it(pair: Pair) -> None:
    base, path, expected = pair
    arrays = dcz.load(path, framework="numpy", base=base)
    assert arrays["bias"].tobytes() == expected["bias"].numpy().tobytes()
    assert isinstance(arrays["weight"], np.ndarray)
