"""The examples of docs/guides/python.md, converting.md, deep-compression.md and transformers.md run, in the order in which they stand."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from tests.converters.gguf_files import random_blocks, write_gguf_file
from tests.converters.test_huggingface_folders import minilm

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def _run(guide: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (GUIDES / guide).read_text(), flags=re.DOTALL):
        exec(compile(block, guide, "exec"), names)  # noqa: S102 - our own documentation
    return names


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(minilm(), target_is_directory=True)
    return tmp_path


def test_converting(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(1), "args": argparse.Namespace(lr=0.1)}, place / "unsafe.pth")
    write_gguf_file(place / "model.gguf", {"w": ("Q4_K", random_blocks("Q4_K", 4, 256))})
    _run("converting.md")
    figures, *estimates, error, differences = capsys.readouterr().out.splitlines()
    assert estimates[1].startswith("lossless balanced ")
    assert figures.startswith("104 ")
    assert figures.endswith(" 0.82 ()")
    assert "it asks for argparse.Namespace" in error
    assert differences.startswith("103 0.0")  # all but the scalar of no use
    source = minilm()
    for path in source.rglob("*"):
        assert path.is_dir() or (place / "back" / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert (place / "again.gguf").read_bytes() == (place / "model.gguf").read_bytes()
    size = (source / "model.safetensors").stat().st_size
    assert (place / "model-int8.safetensors").stat().st_size == size


def test_deep_compression(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _run("deep-compression.md")
    torch.set_num_threads(threads)
    figures = capsys.readouterr().out.splitlines()[0]
    ratio = re.match(r"(\d+\.\d)x, 9\d\.\d % -> 9\d\.\d %$", figures)
    assert ratio is not None, figures
    assert float(ratio[1]) > 15
    assert (place / "by-hand.dcz").stat().st_size < (place / "digits.dcz").stat().st_size


def test_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import dcz

    dcz.convert("path/to/model", "model.dcz")
    names = _run("python.md")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "['embedding', 'bias', 'head'] {'author': 'me'}"
    assert printed[1] == "0.9"
    assert isinstance(names["rows"], torch.Tensor)
    assert names["rows"].shape == (16, 64)
    assert isinstance(names["sparse"], torch.Tensor)
    assert names["sparse"].layout == torch.sparse_csr


def test_transformers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import dcz

    dcz.save_pretrained("path/to/model", "path/to/minilm-dcz")
    names = _run("transformers.md")
    assert type(names["model"]).__name__ == "BertModel"
    assert capsys.readouterr().out.splitlines() == ["['model.dcz'] 0.82"]
    source = minilm()
    for path in source.rglob("*"):
        assert (
            path.is_dir() or (place / "minilm" / path.relative_to(source)).read_bytes() == path.read_bytes()
        )


def test_limits_are_as_written() -> None:
    from dcz.converters.huggingface import MAX_ASSET, MAX_MODULE
    from dcz.converters.pytorch import _NESTED, _PREFIXES

    text = (GUIDES / "converting.md").read_text()
    assert f"files above {MAX_ASSET >> 20} MiB" in text
    assert f"up to {MAX_MODULE >> 30} GiB" in text
    assert all(f"`{name}`" in text for name in (*_NESTED, *_PREFIXES))
