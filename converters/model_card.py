"""The model card of a folder of .dcz files: README.md, with the metadata that the Hub indexes.

What the author of the model wrote stays as it is, to the letter: keys of the metadata that are there are kept, others are
added, and what dcz has to say stands in one block between two comments, at the end. A card that has such a block gets the
new one in its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["CardFacts", "Loading", "is_generated", "merged_card"]

Loading: TypeAlias = Literal["transformers", "module", "folder"]
"""How the weights are loaded: by transformers, by DczModelHubMixin, or by hydrating the folder first."""

BEGIN: Final = "<!-- begin dcz -->"
END: Final = "<!-- end dcz -->"
_BLOCK: Final = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
_METADATA: Final = re.compile(
    r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE
)
_KEY: Final = re.compile(r"^([A-Za-z_][\w-]*)[ \t]*:", re.MULTILINE)
_TAGS: Final = re.compile(
    r"^tags[ \t]*:[ \t]*(?:\[(?P<flow>[^\[\]\n]*)\][ \t]*\r?$|\r?\n(?P<block>(?:[ \t]*-[ \t][^\n]*(?:\n|\Z))+))",
    re.MULTILINE,
)
_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_LOADING: Final = {
    "transformers": """\
```python
import dcz.transformers                 # pip install 'dcz[transformers]'
from transformers import AutoModel      # or the class that you need

model = AutoModel.from_pretrained("{name}")
```
""",
    "module": """\
```python
import dcz                              # pip install 'dcz[torch,hub]'

class Model(torch.nn.Module, dcz.DczModelHubMixin): ...

model = Model.from_pretrained("{name}")
```
""",
    "folder": "",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. ``files``: path, bytes and digest of each .dcz file. ``base_model``: the repository on the Hub that
    these weights are of. ``name``: of the repository that the card is for, if it is known."""

    recipe: str
    lossless: bool
    tensors: int
    tensor_bytes: int
    files: tuple[tuple[str, int, str], ...]
    loading: Loading
    base_model: str | None = None
    name: str | None = None


def is_generated(card: bytes) -> bool:
    """Whether a card has a block of dcz."""
    return BEGIN.encode() in card


def merged_card(original: bytes | None, facts: CardFacts) -> bytes:
    """The card ``original``, or a new one, with what dcz adds. What is not UTF-8 is left as it is."""
    if original is None:
        title = (facts.name or facts.base_model or "Model").rpartition("/")[2]
        original = f"---\n---\n\n# {title}\n".encode()
    try:
        text = original.decode()
    except UnicodeDecodeError:
        return original
    newline = "\r\n" if "\r\n" in text else "\n"
    match = _METADATA.match(text)
    if match is None:
        start, metadata, end, body = f"---{newline}", "", f"---{newline}", f"{newline}{text}"
    else:
        start, metadata, end = match.groups()
        body = text[match.end() :]
    block = _block(facts).replace("\n", newline)
    if _BLOCK.search(body):
        body = _BLOCK.sub(lambda _: block, body, count=1)
    else:
        body = f"{body.rstrip()}{newline * 2}{block}{newline}"
    return f"{start}{_with_keys(metadata, facts, newline)}{end}{body}".encode()


def _with_keys(metadata: str, facts: CardFacts, newline: str) -> str:
    keys = set(_KEY.findall(metadata))
    added: list[str] = []
    if "library_name" not in keys:
        added.append(f"library_name: {'transformers' if facts.loading == 'transformers' else 'dcz'}")
    if facts.base_model and _SAFE.fullmatch(facts.base_model) and "base_model" not in keys:
        added.append(f"base_model: {facts.base_model}")
        if "base_model_relation" not in keys:
            added.append("base_model_relation: quantized")
    if "tags" not in keys:
        added += ["tags:", "- dcz"]
    if metadata and not metadata.endswith("\n"):
        metadata += newline
    return _TAGS.sub(_with_tag, metadata, count=1) + "".join(line + newline for line in added)


def _with_tag(match: re.Match[str]) -> str:
    whole, flow, block = match[0], match["flow"], match["block"]
    if flow is not None:
        names = [name.strip(" \t'\"") for name in flow.split(",")]
        at = match.end("flow") - match.start()
        comma = ", " if flow.strip() else ""
        return whole if "dcz" in names else f"{whole[:at].rstrip()}{comma}dcz{whole[at:]}"
    lines = block.splitlines(keepends=True)
    if "dcz" in [line.strip().removeprefix("-").strip(" \t'\"") for line in lines]:
        return whole
    ending = "\r\n" if "\r\n" in lines[0] else "\n"
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return f"{whole if whole.endswith(chr(10)) else whole + ending}{indent}- dcz{ending}"


def _block(facts: CardFacts) -> str:
    stored = sum(size for _, size, _ in facts.files)
    ratio = f"{stored / facts.tensor_bytes:.1%}" if facts.tensor_bytes else "-"
    kept = (
        "bit for bit those of the original: the recipe is lossless"
        if facts.lossless
        else f"not those of the original: the recipe `{facts.recipe}` changes them"
    )
    lines = [
        BEGIN,
        "## Weights in .dcz files",
        "",
        f"The weights are {kept}.",
        "",
    ]
    loading = _LOADING[facts.loading].format(name=facts.name or "this/repository")
    lines += [loading] if loading else []
    source = f"hf://{facts.name}" if facts.name else "this-folder"
    lines += [
        "For every other tool, this makes an ordinary folder with safetensors weights:",
        "",
        f"    dcz hydrate {source} -o folder",
        "",
        "| | |",
        "|---|---|",
        f"| recipe | {facts.recipe} |",
        f"| tensors | {facts.tensors:,} |",
        f"| bytes before | {facts.tensor_bytes:,} |",
        f"| bytes now | {stored:,} ({ratio}) |",
        "",
        "| file | bytes | digest |",
        "|---|---|---|",
        *(f"| {path} | {size:,} | `{digest}` |" for path, size, digest in facts.files),
        "",
        "`dcz verify FILE` compares every byte of a file with its digests, and `dcz verify --deep FILE` the weights, too;",
        "`dcz inspect FILE` says what is in it, and its digest.",
        END,
    ]
    return "\n".join(lines)
