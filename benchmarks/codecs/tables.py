"""The results as Markdown: a pure function of the JSON, so that what the pages show can be checked against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from benchmarks.codecs.corruption import COUNTS, OUTCOMES
from benchmarks.common import markdown

__all__ = ["page", "readme"]

Results = Mapping[str, Any]
Row = Mapping[str, Any]

_NONE: Final = "-"
_PAIRS: Final = tuple(
    (model, dtype) for model in ("minilm", "crepe", "wordllama") for dtype in ("bf16", "fp16", "fp32")
)
_LARGE: Final = ("minilm-x3", "bf16")
_SAMPLE: Final = (("sample", "bf16"), ("sample", "fp32"))
_README: Final = (
    "zipnn",
    "z4ai",
    "z4ai .safetensors",
    "glyd max",
    "pcodec",
    "zstd 3",
    "zstd 3 transposed",
    "blosc2 shuffle + zstd 1",
    "blosc2 bitshuffle + lz4",
    "safetensors load + copy",
)

_PRUNED: Final = """\
Pruned to a part of the weights, with 32 shared values, to dense fp32: size as a multiple of H(p) + p H(values); speeds x \
memcpy of the dense tensors"""

_HOW: Final = """\
Each peer gets the same float tensors and runs on one thread, in a process of its own that is kept on one core; what comes
back is compared bit by bit. A size is that of the complete file or stream, as a part of the tensors' bytes. A speed is a
multiple of memcpy's: every repetition first copies as many bytes as the tensors have, from warm memory to warm memory, and
then runs the codec; shown is the median of the ratios. dcz, blosc2, pcodec and zstd decode into memory that is there
already; zipnn, z4ai, glyd and safetensors return new memory, whose making is part of their time. dcz writes a file, reads
it and checks the BLAKE3 digest of every chunk; safetensors reads a file, the others work from memory to memory, and only
glyd and "zstd 3 + checksum" check what they read. zipnn, zstd, blosc2, pcodec and z4ai see the tensors as one buffer, without names and shapes;
glyd and "z4ai .safetensors" get the .safetensors file. zipnn's `compress` changes its input in place, so it is given a
copy, whose making is not timed. pcodec gets bf16 as unsigned integers. "Transposed" is by numpy, and timed. nncodec is
DeepCABAC alone, without any quantization, on the indices of the shared values. `dcz small` is for size, and left out where
only speed is compared.
"""


def _size(value: float) -> str:
    return f"{value:.2%}".replace("%", " %")


def _times(value: float) -> str:
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.3f}" if value >= 0.00095 else f"{value:.5f}"


def _by_pair(rows: Iterable[Row]) -> dict[str, dict[tuple[str, str], Row]]:
    out: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        out.setdefault(row["peer"], {})[row["model"], row["dtype"]] = row
    return out


def _good(row: Row | None) -> bool:
    return row is not None and "failed" not in row and bool(row["exact"])


def _shown(row: Row | None, value: Callable[[Row], float | None], text: Callable[[float], str]) -> str:
    if row is None:
        return _NONE
    if not _good(row):
        return "failed"
    seen = value(row)
    return _NONE if seen is None else text(seen)


def _encode(row: Row) -> float | None:
    return row["encode"]["x_memcpy"] if "encode" in row else None


def _decode(row: Row) -> float | None:
    return float(row["decode"]["x_memcpy"])


def _grid(
    results: Results,
    pairs: Sequence[tuple[str, str]],
    value: Callable[[Row], float | None],
    text: Callable[[float], str],
    *,
    best: Callable[[Iterable[float]], float],
) -> str:
    """Peers down, models and types across; the best of a column in bold."""
    rows = _by_pair(results["lossless"])
    seen = [pair for pair in pairs if any(pair in row for row in rows.values())]
    tops = {}
    for pair in seen:
        values = [value(row[pair]) for row in rows.values() if _good(row.get(pair))]
        known = [v for v in values if v is not None]
        tops[pair] = text(best(known)) if known else None
    lines = []
    for peer, row in rows.items():
        cells = [_shown(row.get(pair), value, text) for pair in seen]
        if all(cell == _NONE for cell in cells):
            continue
        lines.append([peer, *(f"**{c}**" if c == tops[p] else c for c, p in zip(cells, seen, strict=True))])
    return markdown(("", *(f"{model} {dtype}" for model, dtype in seen)), lines)


def _models(results: Results) -> str:
    return markdown(
        ("", "model", "type", "origin", "MB"),
        [
            (m["model"], m["title"], m["dtype"], m["origin"], f"{m['bytes'] / 1e6:.1f}")
            for m in results["models"]
        ],
    )


def _loading(results: Results) -> str:
    def speed(row: Row, key: str) -> str:
        return f"{row['bytes'] / row[key] / 1e9:.2f}"

    return markdown(
        ("effort", "model", "threads", "x safetensors", "dcz, GB/s", "safetensors, GB/s"),
        [
            (
                row["effort"],
                f"{row['model']} {row['dtype']}",
                str(row["threads"]),
                *(
                    (_times(row["x_safetensors"]), speed(row, "seconds"), speed(row, "safetensors_seconds"))
                    if _good(row)
                    else ("failed", _NONE, _NONE)
                ),
            )
            for row in results["loading"]
        ],
    )


def _kernels(results: Results) -> str:
    return markdown(
        ("", "instruction set", "decode", "encode"),
        [
            (row["peer"], row["kernel"], _shown(row, _decode, _times), _shown(row, _encode, _times))
            for row in results["kernels"]
        ],
    )


def _sparse(results: Results) -> str:
    densities = list(dict.fromkeys(row["density"] for row in results["sparse"]))
    peers = list(dict.fromkeys(row["peer"] for row in results["sparse"]))
    rows = {(row["peer"], row["density"]): row for row in results["sparse"]}
    header = [""]
    for density in densities:
        header += [f"{density:.0%}: x bound", "decode", "encode"]
    lines = []
    for peer in peers:
        line = [peer]
        for density in densities:
            row = rows.get((peer, density))
            line += [
                _shown(row, lambda r: float(r["size"] / r["bound"]), lambda v: f"{v:.3f}"),
                _shown(row, _decode, _times),
                _shown(row, _encode, _times),
            ]
        lines.append(line)
    return markdown(header, lines)


def _corruption(results: Results) -> str:
    return markdown(
        ("", *OUTCOMES),
        [
            (
                row["peer"],
                *(("failed", "", "", "", "") if "failed" in row else [str(row[o]) for o in OUTCOMES]),
            )
            for row in results["corruption"]
        ],
    )


def _faults(results: Results) -> str:
    """What did not come out, one line each."""
    lines = []
    for table in ("lossless", "loading", "kernels", "sparse", "corruption"):
        for row in results[table]:
            what = f"{row['peer']}, {row['model']} {row['dtype']}"
            if "failed" in row:
                lines.append(f"- {what} ({table}): {row['failed']}")
            elif not row.get("exact", True):
                lines.append(f"- {what} ({table}): what came back differs from what went in")
    return "Failed:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _made(results: Results) -> str:
    made = results["made"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    absent = f" Absent: {', '.join(results['absent'])}." if results["absent"] else ""
    return (
        f"Made by `{made['command']}` in {made['minutes']} minutes on {made['processor']} with {made['kernel']}, "
        f"Python {made['python']}: {versions}.{absent}\n"
    )


def _joined(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _sizes_in_words(results: Results) -> str:
    """In how many pairs dcz is smallest, and who is smaller elsewhere."""
    rows = _by_pair(results["lossless"])
    wins, losses = 0, []
    for pair in (*_PAIRS, *_SAMPLE):
        sizes = {peer: row[pair]["size"] for peer, row in rows.items() if _good(row.get(pair))}
        ours = {peer: size for peer, size in sizes.items() if peer.startswith("dcz ")}
        others = {peer: size for peer, size in sizes.items() if peer not in ours}
        if not ours or not others:
            continue
        best = min(others, key=lambda peer: others[peer])
        if min(ours.values()) <= others[best]:
            wins += 1
        else:
            losses.append((min(ours.values()) / others[best] - 1, best))
    if not wins and not losses:
        return ""
    text = f"Of {wins + len(losses)} pairs of model and type, dcz has the smallest file in {wins}"
    if not losses:
        return text + "."
    smaller = list(dict.fromkeys(best for _, best in sorted(losses, reverse=True)))
    most = max(losses)
    return f"{text}; in the others it is up to {_percent(most[0])} larger than the smallest, made by {_joined(smaller)}."


def _speeds_in_words(results: Results) -> list[str]:
    """dcz and the fastest peer, on bf16 beyond any cache: decoding, encoding."""
    rows = {
        peer: row[_LARGE] for peer, row in _by_pair(results["lossless"]).items() if _good(row.get(_LARGE))
    }
    parts = []
    for verb, value in (("decode", _decode), ("encode", _encode)):
        seen = {peer: value(row) for peer, row in rows.items() if "encode" in row}
        known = {peer: v for peer, v in seen.items() if v is not None}
        ours = {peer: v for peer, v in known.items() if peer.startswith("dcz ")}
        others = {peer: v for peer, v in known.items() if peer not in ours}
        if ours and others:
            best = max(others, key=lambda peer: others[peer])
            verbs = verb if len(ours) > 1 else f"{verb}s"
            parts.append(
                f"{_joined(list(ours))} {verbs} bf16 at {_joined([_times(v) for v in ours.values()])} x memcpy "
                f"(fastest peer: {best}, {_times(others[best])}, with a file of {_percent(rows[best]['size'])})"
            )
    return parts


def _damage_in_words(results: Results) -> list[str]:
    rows = [row for row in results["corruption"] if "failed" not in row]
    bad = {row["peer"]: row["wrong"] + row["crashed"] + row["hung"] for row in rows}
    ours = [count for peer, count in bad.items() if peer.startswith("dcz ")]
    others = [count for peer, count in bad.items() if not peer.startswith("dcz ")]
    if not ours or not others:
        return []
    tries = sum(rows[0][outcome] for outcome in OUTCOMES)
    faulty = sum(1 for count in others if count)
    ours_in_words = max(ours) or "none"
    text = f"of {tries} damaged files dcz gave wrong weights for, crashed on or hung on {ours_in_words}, "
    return [f"{text}and {faulty} of {len(others)} other decoders did so on up to {max(others)}"]


def _words(results: Results) -> str:
    """What the tables say, in two sentences."""
    parts = _speeds_in_words(results) + _damage_in_words(results)
    second = "; ".join(parts)
    second = f"{second[0].upper()}{second[1:]}." if second and not second.startswith("dcz") else f"{second}."
    return " ".join(text for text in (_sizes_in_words(results), second if parts else "") if text)


def readme(results: Results) -> str:
    """The short table, and what it says."""
    rows = _by_pair(results["lossless"])
    damage = {row["peer"]: row for row in results["corruption"]}
    lines = []
    for peer in (*(f"dcz {effort}" for effort in results["efforts"]), *_README):
        row = rows.get(peer)
        if row is None:
            continue
        score = damage.get(peer)
        large = row.get(_LARGE)
        lines.append(
            (
                peer,
                *(
                    _shown(row.get(("minilm", d)), lambda r: float(r["size"]), _size)
                    for d in ("bf16", "fp16", "fp32")
                ),
                _shown(large, _decode, _times),
                _shown(large, _encode, _times),
                "/".join(str(score[o]) for o in ("wrong", "crashed", "hung"))
                if score and "failed" not in score
                else _NONE,
            )
        )
    header = ("", "bf16", "fp16", "fp32", "decode", "encode", "wrong/crashed/hung")
    size = next((m["bytes"] for m in results["models"] if (m["model"], m["dtype"]) == _LARGE), 0)
    return (
        f"{markdown(header, lines)}\n\n"
        "The size of all-MiniLM-L6-v2, lossless, as a part of its tensors; the speed on one core for "
        f"{size / 1e6:.0f} MB of bf16, as a multiple of memcpy's in the same run; and what came of "
        f"{sum(COUNTS.values())} damaged files. {_words(results)}\n"
    )


def page(results: Results) -> str:
    """All tables."""
    sections = (
        ("Sizes", _grid(results, (*_PAIRS, *_SAMPLE), lambda r: float(r["size"]), _size, best=min)),
        ("Decoding, x memcpy", _grid(results, (_LARGE, *_PAIRS, *_SAMPLE), _decode, _times, best=max)),
        ("Encoding, x memcpy", _grid(results, (_LARGE, *_PAIRS, *_SAMPLE), _encode, _times, best=max)),
        ("`dcz.load` against `safetensors.torch.load_file` and a copy of each tensor", _loading(results)),
        (f"dcz by instruction set, {_LARGE[0]} bf16, x memcpy", _kernels(results)),
        (_PRUNED, _sparse(results)),
        (f"{sum(COUNTS.values())} damaged files", _corruption(results)),
    )
    slow = "" if results["made"]["everything"] else "The slowest settings were run on `sample` only.\n"
    text = "\n".join(f"### {title}\n\n{table}\n" for title, table in sections)
    return f"{_made(results)}\n{_HOW}{slow}\n{_models(results)}\n\n{_words(results)}\n\n{text}\n{_faults(results)}"
