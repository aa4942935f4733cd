"""The examples of docs/guides/quantization.md run, in the order in which they stand, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import decode_affine

from dcz.converters.recipes import load_recipe
from dcz.format import Reader, decoded

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "quantization.md"


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)  # noqa: S102 - our own documentation
    weights = names["weights"]
    for name in (
        "kmeans",
        "quantiles",
        "nf4",
        "smaller",
        "powers",
        "sums",
        "xnor",
        "ttq",
        "tensor",
        "twn",
        "best",
    ):
        assert np.corrcoef(decoded(names[name]).reshape(-1), weights.reshape(-1))[0, 1] > 0.75, name
    np.testing.assert_array_equal(names["layer"], decode_affine(names["gptq"]))
    assert names["codes"].dtype == np.uint8
    assert names["moving"].parameters().scales.shape == (256,)
    assert names["dynamic"].scales.shape == (32,)
    assert names["approximation"].shape == weights.shape
    with Reader("vectors.dcz") as reader:
        np.testing.assert_array_equal(reader.read("weight"), names["approximation"])
    assert names["added"].shape == (64,)
    np.testing.assert_allclose(names["second"] @ names["first"], names["following"] @ weights, atol=1e-3)
    for one, tensor in zip(("0.weight", "2.weight"), names["ste"].values(), strict=True):
        with Reader(tmp_path / "ste.dcz") as reader:
            np.testing.assert_array_equal(reader.read(one), decode_affine(tensor))
    assert names["after"] < names["before"]
    assert names["loss"].item() > 0
    assert names["training"].steps == 4
    with Reader(tmp_path / "coupled.dcz") as reader:
        assert np.count_nonzero(reader.read("0.weight")) <= round(0.2 * 64 * 256)
    assert names["done"].compression > 6
    folded, model, images = names["folded"], names["model"].eval(), names["images"][0]
    np.testing.assert_allclose(folded.module(images).detach(), model(images).detach(), atol=1e-2)
    with Reader("network.dcz") as reader:
        assert set(reader) == set(folded.module.state_dict())
        for name, tensor in names["quantized"].items():
            np.testing.assert_array_equal(reader.read(name), decoded(tensor))
    assert len(names["pairs"]) == 2
    assert {type(names[key]["3.weight"]).__name__ for key in ("quantized", "clustered")} == {
        "UniformTensor",
        "CodebookTensor",
    }
    assert names["distilled"].losses[-1] < names["distilled"].losses[0]
    assert names["substitute"].shape == (16, 3, 8, 8)
    assert str(names["codes8"].dtype) == "torch.int8"
    np.testing.assert_allclose(names["logits"], model(images).detach(), atol=0.05)
    learned, lsq, (x, _) = names["learned"], names["lsq"], names["data"][0]
    assert set(names["ranges"]) == {"0", "2"}
    assert np.corrcoef(learned(x).reshape(-1), lsq(x).detach().reshape(-1))[0, 1] > 0.99
    assert Path("mixed.dcz").stat().st_size <= 9000
    assert load_recipe("mixed.toml").rules
    assert names["shared"][0].kind == "codebook"
    assert names["mixed"].file_bytes <= 9000
    assert 0 < names["mixed"].seconds <= 1
    assert sum(choice.bytes for choice in names["agent"].best.choices.values()) <= 9000
