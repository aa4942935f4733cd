"""The page about a file: its numbers against the file, and what it may never be: markup of strangers, or anything loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.format.test_report import GOOD, walk

from dcz.format import (
    Bitmap,
    CodebookTensor,
    PerTensor,
    Provenance,
    Reader,
    RelativeIndex,
    TensorBase,
    Writer,
)
from dcz.format.layers import layer_table
from dcz.format.page import MOST_BARS, MOST_ROWS, html_page
from dcz.format.statistics import tensor_statistics

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00\x1b\u202e]]>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, the text in them, and that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self.titles: list[str] = []
        self._open: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
        if tag == "tr":
            self.rows.setdefault(self._table, []).append([])
        if tag in ("td", "th"):
            self.rows[self._table][-1].append("")
        if tag == "title":
            self.titles.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.text.append(data)
        if self._open and self._open[-1] == "title":
            self.titles[-1] += data
        if (self._table and "td" in self._open) or "th" in self._open:
            self.rows[self._table][-1][-1] += data


def loads_nothing(text: str) -> None:
    """No element or attribute that makes a browser fetch or run something, and a policy that forbids it."""
    page = Page(text)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "b",
    }
    allowed |= {
        "code",
        "dl",
        "dt",
        "dd",
        "div",
        "ul",
        "li",
        "span",
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
    }
    allowed |= {"details", "summary", "svg", "g", "rect", "line", "circle", "text"}
    assert set(page.tags) <= allowed
    names = {name for _, name, _ in page.attributes}
    assert not names & {
        "src",
        "href",
        "style",
        "srcset",
        "xlink:href",
        "action",
        "data",
        "poster",
        "background",
    }
    assert not any(name.startswith("on") for name in names)
    policy = next(
        value
        for tag, name, value in page.attributes
        if tag == "meta" and name == "content" and "default-src" in (value or "")
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"@import|url\(|//", text.split("<style>")[1].split("</style>")[0])


def page_of(path: Path) -> str:
    with Reader(path) as reader:
        return html_page(reader, file=path.name)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_every_vector_has_a_page(path: Path) -> None:
    text = page_of(path)
    loads_nothing(text)
    rows = {cells[0]: cells[1] for cells in Page(text).rows["parts"][1:]}
    walked, size = walk(path.read_bytes()), path.stat().st_size
    taken = {name: int(number.replace(",", "")) for name, number in rows.items()}
    assert taken.pop("all") == sum(taken.values()) == size
    assert taken.get("weights (codes, planes)", 0) == walked["values"]
    assert taken.get("code tables", 0) == walked["tables"]
    assert taken.get("manifest without digests", 0) + taken.get("digests", 0) == walked["manifest"]


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A pruned and clustered tensor by Huffman codes; its codes and its mask."""
    rng = np.random.default_rng(0)
    mask = rng.random((60, 500)) < 0.1
    codes = rng.binomial(15, 0.3, mask.shape).astype(np.uint8)
    tensor = CodebookTensor(
        "f32", mask.shape, 4, codes, rng.standard_normal((1, 16)).astype(np.float32), PerTensor(), mask
    )
    path = tmp_path / "model.dcz"
    metrics = {"accuracy": 0.875, "accuracy.dense": 0.9, "loss": float("inf")}
    metrics |= {"accuracy.step.001": 0.89, "bytes.step.001": 50_000.0, "accuracy.step.002": 0.88}
    with Writer(path, provenance=Provenance(source="org/model", metrics=metrics)) as writer:
        writer.add_tensor("fc.weight", tensor, layout=RelativeIndex(bits=5), coding="huffman")
        writer.add_tensor("fc.bias", rng.standard_normal(60).astype(np.float32))
    return path, codes, mask


def test_numbers(pruned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, codes, mask = pruned
    text = page_of(path)
    loads_nothing(text)
    page = Page(text)
    layer = next(cells for cells in page.rows["layers"] if cells[0] == "fc.weight")
    assert layer[1] == "30,000"
    assert float(layer[2]) == pytest.approx(100 * mask.mean(), abs=0.005)
    assert layer[3] == "4.00"
    assert page.rows["layers"][-1][1] == "30,060"
    assert f"{4 * 30_060 / path.stat().st_size:.2f}x" in "".join(page.text)
    # The bars of the histogram of codes have these titles; a Huffman code never has a longer word for what is more frequent.
    counts = np.bincount(codes[mask], minlength=16)
    words: list[tuple[int, float]] = []
    for code, count in enumerate(counts.tolist()):
        found = [title for title in page.titles if title.startswith(f"code {code}: {count:,} (")]
        assert len(found) == (1 if count else 0)
        if count:
            bits = re.search(r"code word of ([\d.]+) bits", found[0])
            assert bits is not None
            words.append((count, float(bits[1])))
    assert sum(2**-bits for _, bits in words) == 1
    ordered = sorted(words, reverse=True)
    assert [bits for _, bits in ordered] == sorted(bits for _, bits in ordered)
    assert "accuracy" in [cell.strip() for cell in page.text]
    assert any(
        title.startswith(f"this file: accuracy 0.875 at {path.stat().st_size:,}") for title in page.titles
    )
    assert any(title.startswith("dense: accuracy 0.9 at 120,240") for title in page.titles)
    on_the_way = [title for title in page.titles if title.startswith("on the way")]
    assert on_the_way == ["on the way: accuracy 0.89 at 50,000 bytes"]


def test_text_of_strangers_is_only_text(tmp_path: Path) -> None:
    path = tmp_path / "model.dcz"
    name = HOSTILE.replace("\x00", "")
    provenance = Provenance(
        source=HOSTILE,
        revision=HOSTILE,
        recipe={"name": HOSTILE},
        effort=HOSTILE,
        metrics={HOSTILE: 1.0, f"{HOSTILE}.dense": 2.0},
    )
    with Writer(path, metadata={HOSTILE: HOSTILE}, provenance=provenance) as writer:
        writer.add_tensor(name, np.arange(4000, dtype=np.float32).reshape(40, 100))
        writer.add_tensor("x" * 4096, np.zeros((2, 2), np.float32))
        writer.add_alias(f"alias{name}", name)
        writer.add_asset("<b>config<b>.json", b"{}")
    with Reader(path) as reader:
        text = html_page(reader, file=HOSTILE)
    loads_nothing(text)
    page = Page(text)
    assert page.tags.count("h1") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    shown = name.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert shown in [cells[0] for cells in page.rows["layers"]]
    assert "x" * 301 not in text


def test_a_page_has_an_end(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.dcz", MOST_ROWS + 200
    with Writer(path, metadata={f"key {i}": "v" * 5000 for i in range(500)}) as writer:
        for i in range(tensors):
            writer.add_tensor(f"layer.{i}", np.full((2, 2 + i % 7), i + 0.5, np.float32))
    text = page_of(path)
    loads_nothing(text)
    page = Page(text)
    rows = page.rows["layers"]
    assert len(rows) == 2 + MOST_ROWS + 2
    assert rows[-2][0] == "(200 smaller layers)"
    assert rows[-1][1] == f"{sum(2 * (2 + i % 7) for i in range(tensors)):,}"
    assert sum(int(cells[1].replace(",", "")) for cells in rows[2:-1]) == int(rows[-1][1].replace(",", ""))
    assert f"The {MOST_BARS} largest tensors" in "".join(page.text)
    assert len(text) < 2_000_000


def test_a_damaged_stream_does_not_take_the_page_with_it(pruned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, _, _ = pruned
    with Reader(path) as reader:
        place = reader.geometry.segment_place("fc.weight", 0)
        at = reader.geometry.offset_of(place) + place.length - 1
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    with Reader(bytes(data)) as reader:
        text = html_page(reader, file="model.dcz")
    loads_nothing(text)
    assert "cannot be decoded" in text


def test_the_same_file_makes_the_same_page(pruned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    assert page_of(pruned[0]) == page_of(pruned[0])


def test_statistics_are_those_of_the_symbols(pruned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, codes, mask = pruned
    with Reader(path) as reader:
        found = tensor_statistics(reader, "fc.weight")
        tensor = reader.geometry.tensors["fc.weight"].tensor
    (values,), positions = found.values, found.positions
    assert positions is not None
    assert np.array_equal(values.counts, np.bincount(codes[mask], minlength=256))
    assert (positions.symbols, positions.kind, positions.width) == (sum(tensor.gaps), "relative-index", 5)
    assert positions.stored + values.stored == sum(tensor.lengths[1:])
    # Every bit of the data is part of a code word; what remains are tables and the padding of tree nodes.
    rest = values.stored - float(values.word_bits.sum()) / 8
    assert 0 <= rest < 40


def test_labels_tell_layers_apart(tmp_path: Path) -> None:
    """Whatever is cut out of long names, no two bars have the same label, and numbers of layers are seen."""
    ends = ("attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight")
    names = [f"encoder.layer.{i}.{end}" for i in (1, 10, 11) for end in ends]
    middles = [f"decoder.{'block.' * 6}{i}.{'inner.' * 9}weight" for i in (3, 13, 23)]
    wide = "\uff37" * 29
    path = tmp_path / "model.dcz"
    with Writer(path) as writer:
        for name in (*names, *middles, wide):
            writer.add_tensor(name, np.arange(400, dtype=np.float32).reshape(20, 20) + len(name))
    text = page_of(path)
    loads_nothing(text)
    found = re.findall(r'<text class="name"([^>]*)>([^<]*)</text>', text)
    labels = [label for _, label in found]
    assert len(labels) == len(set(labels)) == len(names) + len(middles) + 1
    assert max(map(len, labels)) <= 30
    for i in (3, 13, 23):
        assert sum(f".{i}." in label for label in labels) == 1
    assert "…encoder.layer.10.output.dense.weight"[-29:] in " ".join(labels)
    assert ["textLength" in attributes for attributes, label in found if label == wide] == [True]
    assert not any("textLength" in attributes for attributes, label in found if label != wide)


def test_a_bitmap_is_called_one(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((40, 200)) < 0.3
    codes = np.random.default_rng(1).integers(0, 4, mask.shape).astype(np.uint8)
    tensor = CodebookTensor(
        "f32", mask.shape, 2, codes, np.arange(4, dtype=np.float32)[None], PerTensor(), mask
    )
    with Writer(tmp_path / "model.dcz") as writer:
        writer.add_tensor("fc.weight", tensor, layout=Bitmap())
    text = page_of(tmp_path / "model.dcz")
    assert f"so a gap has no code word. The bitmap: {mask.size // 8:,} bytes, of 8 positions each, " in text


def test_a_ratio_without_the_base_says_so(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.dcz", tmp_path / "tuned.dcz"
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with Writer(base) as writer:
        writer.add_tensor("w", values)
    near = (values.view(np.uint32) ^ 1).view(np.float32)
    with Reader(base) as reader, Writer(tuned) as writer:
        index = writer.add_base(reader.digest, base.name)
        writer.add_tensor("w", near, base=TensorBase(values, index, operation="auto"))
    for path, said in ((base, False), (tuned, True)):
        with Reader(path) as reader:
            table = layer_table(reader)
            text = html_page(reader, file=path.name)
        assert table.needs_base == table.to_dict()["needs_base"] == said
        assert table.text().endswith("x, and it needs its base, which is not counted") == said
        assert ("<dt>dense / file without its base</dt>" in text) == said
        assert ("can be decoded only where its base is" in text) == said
        loads_nothing(text)


def test_the_axis_of_quality_has_numbers(pruned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    ticks = re.findall(r'<text class="tick"[^>]*>([^<]*)</text>', page_of(pruned[0]).split("bytes, log")[0])
    assert ticks == ["0.875", "0.8875", "0.9"]
