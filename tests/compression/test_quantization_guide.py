"""The examples of docs/guides/quantization.md run, in the order in which they stand, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compression.oracles import decode_affine, decode_codebook

from dcz.converters.recipes import load_recipe

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "quantization.md"


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)  # noqa: S102 - our own documentation
    weights = names["weights"]
    for name in ("kmeans", "quantiles", "nf4", "powers", "sums", "xnor", "ttq"):
        decoded = decode_codebook(names[name])
        assert np.corrcoef(decoded.reshape(-1), weights.reshape(-1))[0, 1] > 0.75, name
    for name in ("tensor", "twn", "best"):
        decoded = decode_affine(names[name])
        assert np.corrcoef(decoded.reshape(-1), weights.reshape(-1))[0, 1] > 0.75, name
    np.testing.assert_array_equal(names["layer"], decode_affine(names["gptq"]))
    assert names["codes"].dtype == np.uint8
    assert names["moving"].parameters().scales.shape == (256,)
    assert names["dynamic"].scales.shape == (32,)
    assert names["approximation"].shape == weights.shape
    assert names["added"].shape == (64,)
    np.testing.assert_allclose(names["second"] @ names["first"], names["following"] @ weights, atol=1e-3)
    assert Path("mixed.dcz").stat().st_size <= 9000
    assert load_recipe("mixed.toml").rules
    assert names["shared"][0].kind == "codebook"
    assert names["mixed"].file_bytes <= 9000
    assert 0 < names["mixed"].seconds <= 1
    assert sum(choice.bytes for choice in names["agent"].best.choices.values()) <= 9000
