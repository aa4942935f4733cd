"""The examples of docs/guides/registry.md run, and what it says of the disk is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.registry.dcz_files import write_dcz

from dcz.registry import list_artifacts, push
from dcz.registry.artifact import (
    ARTIFACT_TYPE,
    DCZ_BASES,
    DCZ_DIGEST,
    DCZ_FILE_TYPE,
    MAX_ANNOTATIONS,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    TITLE,
)
from dcz.registry.index import MAX_ANNOTATIONS as MAX_INDEX_ANNOTATIONS
from dcz.registry.index import MAX_INDEX_BYTES, REF_NAME, TAG_KIND

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "registry.md").read_text()


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    write_dcz(tmp_path / "model.dcz")
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "registry.md", "exec"), names)  # noqa: S102 - our own documentation
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"minilm:1\.0@sha256:[0-9a-f]{64}", printed[0])
    assert (tmp_path / "here" / "model.dcz").read_bytes() == (tmp_path / "model.dcz").read_bytes()
    assert [line.split()[2] for line in printed[2:]] == ["1.0", "latest", "champion"]


def test_the_folder_is_as_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCZ_REGISTRY", str(tmp_path / "registry"))
    push(write_dcz(tmp_path / "model.dcz"), "minilm:1.0")
    drawn = re.search(r"    registry/\n((?:      .*\n)+)", GUIDE)
    assert drawn is not None
    names = {line.split()[0].rstrip("/") for line in drawn[1].splitlines()}
    found = {str(path.relative_to(tmp_path / "registry")) for path in (tmp_path / "registry").rglob("*")}
    found = {re.sub("[0-9a-f]{64}", "<hex>", name) for name in found} - {".dcz", "blobs", "blobs/sha256"}
    assert found == names
    assert len(list_artifacts()) == 1


def test_constants_are_as_written() -> None:
    for name in (ARTIFACT_TYPE, DCZ_FILE_TYPE, DCZ_DIGEST, DCZ_BASES, TITLE, REF_NAME, TAG_KIND):
        assert f"`{name}`" in GUIDE or f"{name}\n" in GUIDE
    assert f"At most {MAX_FILES} files, {MAX_MANIFEST_BYTES >> 20} MiB of manifest" in GUIDE
    assert f"{MAX_INDEX_BYTES >> 20} MiB of index" in GUIDE
    assert f"at most {MAX_ANNOTATIONS}\nannotations, an entry of the index {MAX_INDEX_ANNOTATIONS}" in GUIDE
