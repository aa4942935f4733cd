"""estimate: close to what convert makes, from a small part of the model, without a trace on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dcz
from dcz.converters.recipes import BUILTIN_RECIPES
from dcz.errors import RecipeError, SourceError, UsageError


def layers(dtype: torch.dtype, count: int = 6) -> dict[str, torch.Tensor]:
    """A network whose layers differ in scale, with norms, an embedding and integers."""
    generator = torch.Generator().manual_seed(7)
    model: dict[str, torch.Tensor] = {}
    for i in range(count):
        scale = 0.02 * 2 ** (i / count)
        weight = torch.randn(768, 512, generator=generator) * scale
        model[f"layers.{i}.weight"] = weight.to(dtype)
        model[f"layers.{i}.bias"] = torch.zeros(768, dtype=dtype)
        model[f"layers.{i}.norm.weight"] = (1 + 0.1 * torch.randn(512, generator=generator)).to(dtype)
    model["embed.weight"] = (torch.randn(3000, 256, generator=generator) * 0.05).to(dtype)
    model["position_ids"] = torch.arange(2048)[None]
    return model


def converted(
    model: dict[str, torch.Tensor] | Path, folder: Path, recipe: str, effort: str = "balanced"
) -> int:
    return dcz.convert(model, folder / "real.dcz", recipe=recipe, effort=effort).file_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_estimates_are_close(tmp_path: Path, dtype: torch.dtype) -> None:
    model = layers(dtype)
    found = dcz.estimate(model)
    assert {one.recipe for one in found.estimates} == set(BUILTIN_RECIPES)
    assert found.tensors == len(model)
    assert found.tensor_bytes == sum(v.numel() * v.itemsize for v in model.values())
    assert found.sampled_bytes < 0.5 * found.tensor_bytes
    for one in found.estimates:
        real = converted(model, tmp_path, one.recipe, one.effort)
        assert one.problem is None
        assert one.file_bytes == pytest.approx(real, rel=0.02), one
        assert one.ratio == one.file_bytes / found.tensor_bytes
        assert one.bits_per_weight == pytest.approx(8 * real / found.elements, rel=0.03)


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    model = layers(torch.bfloat16, count=2)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(model, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    torch.save(model, tmp_path / "model.pt")
    dcz.convert(model, tmp_path / "model.dcz")
    before = sorted(tmp_path.rglob("*"))
    expected = [one.weight_bytes for one in dcz.estimate(model).estimates]
    for source in (folder, folder / "model.safetensors", tmp_path / "model.pt", tmp_path / "model.dcz"):
        assert [one.weight_bytes for one in dcz.estimate(source).estimates] == expected
    with dcz.format.Reader(tmp_path / "model.dcz") as reader:
        assert [one.weight_bytes for one in dcz.estimate(reader).estimates] == expected
        assert reader.read("layers.0.bias").size == 768  # it is still open
    assert sorted(tmp_path.rglob("*")) == before
    found = dcz.estimate(folder, recipes=["lossless"], efforts=["balanced"])
    assert found.estimates[0].file_bytes == pytest.approx(converted(folder, tmp_path, "lossless"), rel=0.02)


def test_only_samples_of_a_large_tensor_are_read(tmp_path: Path) -> None:
    """And only of some tensors that are alike."""
    large = {"w": np.zeros((4096, 2048), np.float32)}
    assert dcz.estimate(large, recipes=["lossless"]).sampled_bytes <= 1 << 20
    many = {f"layers.{i}.w": np.ones((512, 256), np.float32) for i in range(40)}
    assert dcz.estimate(many, recipes=["lossless"]).sampled_bytes == 4 * 512 * 256 * 4


def test_hints_say_what_will_be_met() -> None:
    model = layers(torch.float16, count=2)
    half = dcz.estimate(model, recipes=["int8"]).hints
    assert any(
        "f16: its mantissa does not compress" in hint and "lossless saves about 1" in hint for hint in half
    )
    wide = {name: value.float() if value.is_floating_point() else value for name, value in model.items()}
    assert any("hold the values of float16" in hint for hint in dcz.estimate(wide).hints)
    codes = np.random.default_rng(0).integers(-127, 128, (512, 512)).astype(np.float32)
    scales = np.random.default_rng(1).random((512, 1)).astype(np.float32)
    assert any("what a quantizer made" in hint for hint in dcz.estimate({"w": codes * scales}).hints)


def test_a_recipe_that_cannot_be_applied_is_told() -> None:
    weights = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    weights[0, 0] = np.nan
    found = {one.recipe: one for one in dcz.estimate({"w": weights}).estimates}
    assert found["lossless"].problem is None
    assert "w: " in str(found["int8"].problem)


def test_what_convert_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        dcz.estimate(tmp_path / "nothing")
    with pytest.raises(RecipeError):
        dcz.estimate({}, recipes=["no such recipe"])
    with pytest.raises(UsageError):
        dcz.estimate({}, efforts=["slow"])  # type: ignore[list-item]


def test_an_empty_model_and_odd_shapes() -> None:
    nothing = dcz.estimate({})
    assert (nothing.tensors, nothing.elements, nothing.tensor_bytes) == (0, 0, 0)
    assert all(one.ratio == 1 and one.bits_per_weight == 0 for one in nothing.estimates)
    odd = {
        "scalar": np.float32(1.5).reshape(()),
        "empty": np.empty((0, 4), np.float32),
        "flat": np.arange(500_000, dtype=np.float32),
        "wide": np.random.default_rng(0).standard_normal((2, 300_000)).astype(np.float32),
        "flags": np.ones((9, 9), np.bool_),
    }
    found = dcz.estimate(odd)
    assert found.tensors == 5
    assert all(one.problem is None for one in found.estimates)
