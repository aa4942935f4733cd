"""What does from_pretrained of transformers take with .dcz files, against the same model in plain safetensors?

A Llama and a Mixtral, whose experts are merged while they are loaded, of random weights in bf16. Each loads in a process of
its own, and uses all its weights once, as only then those of safetensors, which are mapped, are in memory. Counted is the
peak beyond the imports. Time is also compared with decoding to a folder first, and loading that.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import Figure, run_python

_WRITE = """
import sys, torch, transformers, dcz
kind, folder = sys.argv[1:]
torch.manual_seed(0)
sizes = dict(vocab_size=32000, hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, dtype="bfloat16")
if kind == "Llama":
    config = transformers.LlamaConfig(intermediate_size=7168, **sizes)
else:
    config = transformers.MixtralConfig(intermediate_size=1024, num_local_experts=8, num_key_value_heads=16, **sizes)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(folder + "/plain")
del model
dcz.save_pretrained(folder + "/plain", folder + "/dcz")
"""
_LOAD = """
import json, resource, sys, time, torch, transformers, dcz.transformers
transformers.utils.logging.disable_progress_bar()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
folder = sys.argv[1]
if sys.argv[2] == "copy":
    dcz.hydrate(folder, folder + "-copy")
    folder += "-copy"
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
size = sum(parameter.nbytes for parameter in model.parameters())
total = sum(int(parameter.detach().view(torch.int64).sum()) for parameter in model.parameters())
print(json.dumps([peak() - before, time.perf_counter() - start, size, total]))
"""


def run() -> list[Figure]:
    figures = []
    for kind in ("Llama", "Mixtral"):
        with tempfile.TemporaryDirectory() as folder:
            run_python(_WRITE, kind, folder)
            seen: dict[str, list[tuple[int, float, int, int]]] = {"plain": [], "dcz": [], "copy": []}
            for _ in range(3):
                for name, results in seen.items():
                    place = Path(folder, "plain" if name == "plain" else "dcz")
                    results.append(tuple(json.loads(run_python(_LOAD, str(place), name))))
                    shutil.rmtree(Path(folder, "dcz-copy"), ignore_errors=True)
        size, total = seen["plain"][0][2:]
        if any(result[2:] != (size, total) for results in seen.values() for result in results):
            raise AssertionError("not the same weights")
        memory = {name: statistics.median(result[0] for result in results) for name, results in seen.items()}
        times = {
            name: statistics.median(a[1] / b[1] for a, b in zip(seen["dcz"], seen[name], strict=True))
            for name in ("plain", "copy")
        }
        ratio = memory["dcz"] / memory["plain"]
        title = f"{kind} of {size / 1e6:.0f} MB in bf16, from_pretrained"
        figures += [
            Figure(
                f"{title}: peak memory, x plain safetensors", "at most 1.15", f"{ratio:.2f}", ratio <= 1.15
            ),
            Figure(f"{title}: peak memory, x the model", "", f"{memory['dcz'] / size:.2f}"),
            Figure(f"{title}, weights used: time, x plain safetensors", "", f"{times['plain']:.2f}"),
            Figure(f"{title}, weights used: time, x a decoded copy on disk", "", f"{times['copy']:.2f}"),
        ]
    return figures
