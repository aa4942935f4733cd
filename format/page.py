"""A file as one HTML page: where its bytes are, layer by layer, and what its codes look like.

The page holds everything that it needs, and a policy that forbids a browser to load anything. All text of the file is escaped, all
lists have an end: a page of a file with a quarter of a million tensors is not longer than one with MOST_ROWS.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from dcz.errors import FormatError
from dcz.format.charts import escape, histogram, points, stacked_bars
from dcz.format.layers import layer_table
from dcz.format.report import DENSE, STEP, account
from dcz.format.statistics import LONGEST_RUN, tensor_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dcz.format.layers import Layer, LayerCounts, LayerTable
    from dcz.format.reader import Reader
    from dcz.format.report import Report
    from dcz.format.statistics import StreamStatistics

__all__ = ["MOST_BARS", "MOST_HISTOGRAMS", "MOST_ROWS", "html_page"]

MOST_ROWS: Final = 1000
MOST_BARS: Final = 30
MOST_HISTOGRAMS: Final = 8
_MOST_SEGMENTS: Final = 24  # of a layer that are decoded for its histograms
_MOST_TEXT: Final = 300  # characters
_MOST_FACTS: Final = 40
_MOST_STEPS: Final = 200
_PARTS: Final = (
    ("weights", "weights (codes, planes)"),
    ("indices", "indices (positions)"),
    ("codebooks", "codebooks, scales, zero points"),
    ("tables", "code tables"),
    ("assets", "assets"),
    ("manifest", "manifest without digests"),
    ("digests", "digests"),
    ("header", "header"),
    ("padding", "padding"),
    ("footer", "footer"),
)
_LAYER_PARTS: Final = tuple(words for _, words in _PARTS[:4])

_STYLE: Final = """
:root{color-scheme:light dark;--text:#1b1d21;--soft:#5a6069;--line:#d5d9df;--page:#fff;--stripe:#f5f6f8;
--c0:#2f6fb5;--c1:#d9822b;--c2:#3f9460;--c3:#8a5cb8;--c4:#b84a62;--c5:#6b7280;--c6:#9aa3ae;--c7:#222;--c8:#bbb;--c9:#444}
@media(prefers-color-scheme:dark){:root{--text:#e6e8eb;--soft:#a2a9b3;--line:#3a4049;--page:#14161a;--stripe:#1c1f25;
--c0:#6ea8e8;--c1:#f0a45c;--c2:#6cc48d;--c3:#b592dd;--c4:#e58197;--c5:#98a1ae;--c6:#6b7480;--c7:#ddd;--c8:#555;--c9:#aaa}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:78rem;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2.25rem 0 .5rem}
h3{font-size:1rem;margin:1.25rem 0 .25rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:48rem}.soft{color:var(--soft)}
dl.key{display:flex;flex-wrap:wrap;gap:.75rem 2.5rem;margin:1rem 0}dl.key dt{color:var(--soft);font-size:.85rem}
dl.key dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.9rem}dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.2rem .55rem;text-align:right;white-space:nowrap}th{font-weight:600;vertical-align:bottom}
thead{border-bottom:2px solid var(--line)}tbody tr:nth-child(even){background:var(--stripe)}
tbody th{text-align:left;font-weight:400;white-space:normal;overflow-wrap:anywhere;min-width:15rem}
thead th:first-child{text-align:left}
th.group{text-align:center;border-bottom:1px solid var(--line)}tfoot{border-top:2px solid var(--line);font-weight:600}
tfoot th{text-align:left}
table.narrow{width:auto}table.narrow tbody th{min-width:0}table.narrow td:first-child,table.narrow th:first-child{text-align:left}
svg{display:block;width:100%;max-width:60rem;min-width:34rem;height:auto;margin:.4rem 0}
.chart{overflow-x:auto}svg text{font-size:12px;fill:var(--text)}
svg .name,svg .tick{text-anchor:end}svg .beside{paint-order:stroke;stroke:var(--page);stroke-width:4px}svg .under{text-anchor:middle}svg .tick,svg .under{fill:var(--soft)}
svg .axis{stroke:var(--soft);stroke-width:1}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}.c6{fill:var(--c6)}
.c7{fill:var(--c7)}.c8{fill:var(--c8)}.c9{fill:var(--c9)}
.swatch{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;vertical-align:-.05rem}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.3rem 0;font-size:.85rem}
details{border-top:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer;overflow-wrap:anywhere}
code{font-size:.85em;overflow-wrap:anywhere}
@media print{body{max-width:none;padding:0;font-size:11px}.scroll,.chart{overflow:visible}svg{min-width:0}table{font-size:8px}th,td{padding:.1rem .25rem}details{break-inside:avoid}}
"""
_COLOURS: Final = "".join(f".b{i}{{background:var(--c{i})}}" for i in range(len(_PARTS)))
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def html_page(
    reader: Reader,
    *,
    file: str | None = None,
    tables: bool = True,
    progress: Callable[[int, int], None] | None = None,
    damaged: Callable[[FormatError], None] = lambda error: None,
) -> str:
    """The page of an opened file. ``file``: what to call it, if not by the reader's name. ``tables``: as in ``account``.

    The streams of the MOST_HISTOGRAMS largest layers are decoded, of each at most some 24 segments; the rest follows from
    the manifest. ``progress`` is called with the layers done and how many there are. ``damaged`` is called with the error of each
    layer that cannot be decoded, which the page has without its histograms. Raises FormatError of the rest, OSError.
    """
    report = account(reader, tables=tables)
    table = layer_table(reader, report=report)
    name = report.file if file is None else file
    body = [
        f"<header><h1>{_text(name)}</h1>",
        f'<p class="soft"><code>{escape(report.digest)}</code></p></header><main>',
        *_key_figures(report, table),
        *_quality(report, table),
        *_file_bytes(table),
        *_layer_bytes(table),
        *_layers(table),
        *_histograms(reader, table, progress, damaged),
        *_facts(report),
        "</main>",
    ]
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="dcz">'
        f"<title>{_text(name)} - dcz report</title><style>{_STYLE}{_COLOURS}</style>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(body) + "</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "...")


def _key_figures(report: Report, table: LayerTable) -> Iterator[str]:
    total = table.total
    figures = [("file", f"{report.size:,} bytes")]
    if table.compression is not None:
        figures += [
            ("dense", f"{total.dense:,} bytes"),
            ("dense / file" + (" without its base" if table.needs_base else ""), f"{table.compression:.2f}x"),
            ("weights", f"{total.weights:,}"),
        ]
    if table.weights.density is not None:
        figures.append(("stored of the layers' weights", f"{100 * table.weights.density:.2f} %"))
    figures.append(("tensors", f"{len(report.tensors):,}"))
    yield '<dl class="key">'
    yield from (f"<div><dt>{words}</dt><dd>{number}</dd></div>" for words, number in figures)
    yield "</dl>"
    if table.needs_base:
        yield "<p>The file holds differences: it can be decoded only where its base is, whose bytes are not counted here.</p>"


def _quality(report: Report, table: LayerTable) -> Iterator[str]:
    """Of metrics that were also measured on the dense model (``accuracy`` and ``accuracy.dense``), both against the size."""
    metrics = {
        name: value for name, value in report.to_dict()["provenance"]["metrics"].items() if value is not None
    }
    both = [name for name in sorted(metrics) if name + DENSE in metrics][:_MOST_FACTS]
    if not both or not table.layers:
        return
    yield "<section><h2>Quality against size</h2>"
    yield '<p class="soft">As recorded in the file by whoever made it; not measured here. The vertical axis does not begin at zero.</p>'
    for name in both:
        places = [
            ("dense", float(table.total.dense), metrics[name + DENSE]),
            *_steps(metrics, name),
            ("this file", float(table.size), metrics[name]),
        ]
        yield f"<h3>{_text(name)}</h3>"
        yield points(places, f"{_clipped(name)} against bytes", "bytes", _clipped(name))
    yield "</section>"


def _steps(metrics: dict[str, float], name: str) -> Iterator[tuple[str, float, float]]:
    """What dcz.compress recorded on the way (``quality.step.003`` and ``bytes.step.003``): points without a name."""
    found = (key for key in sorted(metrics) if key.startswith(name + STEP))
    for key in itertools.islice(found, _MOST_STEPS):
        size = metrics.get("bytes" + key.removeprefix(name))
        if size is not None and size >= 1:
            yield "", size, metrics[key]


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."


def _legend(words: Iterable[str]) -> str:
    items = (f'<li><span class="swatch b{i}"></span>{escape(each)}</li>' for i, each in enumerate(words))
    return f'<ul class="legend">{"".join(items)}</ul>'


def _file_bytes(table: LayerTable) -> Iterator[str]:
    parts = table.parts.to_dict()
    yield "<section><h2>Where the bytes went</h2>"
    yield stacked_bars(
        [("file", [parts[name] for name, _ in _PARTS])],
        [words for _, words in _PARTS],
        "bytes",
        "the parts of the file as one bar; the table below has the numbers",
        whole=True,
    )
    yield '<table class="narrow" id="parts"><thead><tr><th scope="col">part</th><th scope="col">bytes</th><th scope="col">%</th></tr></thead><tbody>'
    for number, (name, words) in enumerate(_PARTS):
        if parts[name]:
            share = 100 * parts[name] / table.size
            swatch = f'<span class="swatch b{number}"></span>'
            yield (
                f'<tr data-part="{name}"><th scope="row">{swatch}{words}</th>'
                f"<td>{parts[name]:,}</td><td>{share:.2f}</td></tr>"
            )
    yield f'</tbody><tfoot><tr><th scope="row">all</th><td>{table.parts.total:,}</td><td>100.00</td></tr></tfoot></table></section>'


def _by_size(table: LayerTable) -> list[Layer]:
    return sorted(table.layers, key=lambda layer: -layer.counts.stored)


def _layer_bytes(table: LayerTable) -> Iterator[str]:
    layers = [layer for layer in _by_size(table) if layer.counts.stored]
    if not layers:
        return
    rows = [(layer.name, _bytes_of(layer.counts)) for layer in layers[:MOST_BARS]]
    yield "<section><h2>Bytes by layer</h2>"
    if len(layers) > MOST_BARS:
        rest = sum(layer.counts.stored for layer in layers[MOST_BARS:])
        yield (
            f"<p>The {MOST_BARS} largest tensors; the other {len(layers) - MOST_BARS:,} take {rest:,} bytes together.</p>"
        )
    yield _legend(_LAYER_PARTS)
    yield stacked_bars(
        rows, _LAYER_PARTS, "bytes", "bytes of each layer by part; the table of layers has the numbers"
    )
    yield "</section>"


def _bytes_of(counts: LayerCounts) -> tuple[int, int, int, int]:
    return counts.coded_weights, counts.coded_indices, counts.codebooks, counts.tables


_COLUMNS: Final = (
    *(
        ("", "weights"),
        ("", "stored %"),
        ("weight bits", "P+Q"),
        ("weight bits", "P+Q+H"),
        ("index bits", "P+Q"),
    ),
    *(
        ("index bits", "P+Q+H"),
        ("rate %", "P+Q"),
        ("rate %", "P+Q+H"),
        ("bytes", "weights"),
        ("bytes", "indices"),
    ),
    *(("bytes", "codebooks"), ("bytes", "tables")),
)


def _layers(table: LayerTable) -> Iterator[str]:
    layers = [layer for layer in table.layers if layer.is_weight]
    yield "<section><h2>Layers</h2>"
    yield (
        "<p>In the columns of Deep Compression's tables: <b>stored</b> is the part of the weights that is stored; bits are for each "
        "stored weight, of its value and of its position, before entropy coding (P+Q) and on disk (P+Q+H); rates are bytes for each byte of "
        "the dense tensor in its own type.</p>"
    )
    shown = (
        layers
        if len(layers) <= MOST_ROWS
        else sorted(layers, key=lambda layer: -layer.counts.stored)[:MOST_ROWS]
    )
    groups: dict[str, int] = {}
    for group, _ in _COLUMNS:
        groups[group] = groups.get(group, 0) + 1
    yield '<div class="scroll" tabindex="0" role="region" aria-label="table of layers"><table id="layers"><thead><tr><th rowspan="2" scope="col">layer</th>'
    yield "".join(
        f'<th class="group" scope="colgroup" colspan="{span}">{group}</th>' for group, span in groups.items()
    )
    yield (
        "</tr><tr>"
        + "".join(f'<th scope="col">{words}</th>' for _, words in _COLUMNS)
        + "</tr></thead><tbody>"
    )
    for layer in shown:
        title = f"{layer.dtype} {list(layer.shape[:8])}{' ...' if len(layer.shape) > 8 else ''}, {layer.stored_as}"
        yield f'<tr><th scope="row" title="{_text(title)}">{_text(layer.name)}</th>{_cells(layer.counts)}</tr>'
    if len(layers) > len(shown):
        rest = type(table.total).sum(
            layer.counts for layer in sorted(layers, key=lambda one: -one.counts.stored)[MOST_ROWS:]
        )
        yield f'<tr><th scope="row">({len(layers) - len(shown):,} smaller layers)</th>{_cells(rest)}</tr>'
    others = sum(not layer.is_weight for layer in table.layers)
    if others:
        yield f'<tr><th scope="row">({others:,} other tensor{"s" if others > 1 else ""})</th>{_cells(table.others)}</tr>'
    yield f'</tbody><tfoot><tr><th scope="row">all</th>{_cells(table.total)}</tr></tfoot></table></div></section>'


def _cells(counts: LayerCounts) -> str:
    hundred = 100
    numbers = (
        *(_times(counts.density, hundred), counts.weight_bits, counts.coded_weight_bits, counts.index_bits),
        *(counts.coded_index_bits, _times(counts.rate, hundred), _times(counts.coded_rate, hundred)),
    )
    cells = [f"{counts.weights:,}", *("-" if number is None else f"{number:.2f}" for number in numbers)]
    cells += [f"{size:,}" for size in _bytes_of(counts)]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _histograms(
    reader: Reader,
    table: LayerTable,
    progress: Callable[[int, int], None] | None,
    damaged: Callable[[FormatError], None],
) -> Iterator[str]:
    layers = [layer for layer in _by_size(table) if layer.counts.stored][:MOST_HISTOGRAMS]
    if not layers:
        return
    yield "<section><h2>Codes and gaps</h2>"
    yield (
        f"<p>Of the {len(layers)} largest tensors. Bars above the line: how often each symbol occurs. Bars below it: the length of its "
        "code word, where the coding has code words (raw, Huffman, cascade); range and zstd have none. A gap is the number of weights that are "
        "not stored before one that is, in its row.</p>"
    )
    for number, layer in enumerate(layers):
        yield f"<details{' open' if number < 2 else ''}><summary>{_text(layer.name)}: {_text(layer.stored_as)}</summary>"
        yield from _histograms_of(reader, layer, damaged)
        yield "</details>"
        if progress:
            progress(number + 1, len(layers))
    yield "</section>"


def _histograms_of(reader: Reader, layer: Layer, damaged: Callable[[FormatError], None]) -> Iterator[str]:
    try:
        found = tensor_statistics(reader, layer.name, most_segments=_MOST_SEGMENTS)
    except FormatError as exc:
        damaged(exc)
        yield f"<p>Its streams cannot be decoded: {_text(str(exc))}</p>"
        return
    if found.segments < found.of_segments:
        yield f'<p class="soft">From {found.segments} of its {found.of_segments:,} segments.</p>'
    for stream in found.values:
        yield from _stream(
            stream,
            "codes" if stream.kind == "codes" else stream.kind,
            "code" if stream.kind == "codes" else "byte",
        )
    if found.positions is not None and found.runs is not None:
        if found.positions.kind == "relative-index":
            filler = (1 << found.positions.width) - 1
            yield from _stream(found.positions, f"gaps ({filler} is the filler)", "gap")
        else:
            yield (
                f"<h3>gaps</h3><p>The positions are stored as a bitmap, so a gap has no code word. The bitmap: "
                f"{_stream_words(found.positions, 'bytes, of 8 positions each')}</p>"
            )
            counts = found.runs.counts.tolist()
            yield histogram(
                counts, [None] * len(counts), f"histogram of gaps of {_clipped(layer.name)}", "gap", more=True
            )
            assert len(counts) == LONGEST_RUN + 1


def _stream(stream: StreamStatistics, title: str, symbol: str) -> Iterator[str]:
    if not stream.symbols:
        return
    words = [stream.word_length(i) for i in range(len(stream.counts))]
    yield f"<h3>{escape(title)}</h3><p>{_stream_words(stream)}</p>"
    yield histogram(stream.counts.tolist(), words, f"histogram of {title}", symbol)


def _stream_words(stream: StreamStatistics, symbols: str | None = None) -> str:
    """``symbols``: what they are, if not codes or gaps of some bits."""
    codings = " and ".join(sorted(stream.codings)) or "nothing"
    bits = (
        ""
        if stream.bits is None
        else f"{stream.bits:.3f} bits each on disk (order-0 entropy {stream.entropy:.3f}), "
    )
    what = symbols or f"symbols of {stream.width} bits"
    return f"{stream.symbols:,} {what}, {bits}coded as {escape(codings)}."


def _facts(report: Report) -> Iterator[str]:
    provenance = report.provenance
    facts: list[tuple[str, str]] = [
        ("format", f"{report.version[0]}.{report.version[1]}, written by {report.producer}")
    ]
    facts += [("base", f"{base.digest} {base.hint or ''}") for base in report.bases]
    for words, value in (
        ("source", provenance.source),
        ("revision", provenance.revision),
        ("effort", provenance.effort),
    ):
        facts += [] if value is None else [(words, value)]
    facts += [("from", f"{read.path}, {read.size:,} bytes") for read in provenance.files]
    if provenance.recipe:
        facts.append(("recipe", str(provenance.recipe.get("name", "without a name"))))
    facts += [
        (f"metric {name}", f"{value:g}")
        for name, value in sorted(provenance.metrics.items())
        if STEP not in name
    ]
    facts += [
        (f"asset {asset.path}", f"{asset.size:,} bytes, {asset.stored:,} stored") for asset in report.assets
    ]
    facts += [(f"alias {alias}", f"the same as {stored}") for alias, stored in sorted(report.aliases.items())]
    facts += [(f"metadata {key}", report.metadata[key]) for key in sorted(report.metadata)]
    yield '<section><h2>About the file</h2><dl class="facts">'
    yield from (f"<dt>{_text(words)}</dt><dd>{_text(text)}</dd>" for words, text in facts[:_MOST_FACTS])
    yield "</dl>"
    if len(facts) > _MOST_FACTS:
        yield f"<p>And {len(facts) - _MOST_FACTS:,} more; <code>dcz inspect</code> shows them.</p>"
    yield "</section>"
