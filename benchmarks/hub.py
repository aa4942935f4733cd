"""push, pull and reading by ranges through the Hub of the tests, against `hf upload` and `hf download`.

The Hub runs in a process of its own, on the same machine: what both sides send through it is written and read at the speed
of memory, so that what is compared is the work of the clients. Each run of one side is followed by one of the other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pkgutil
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

import dcz
from benchmarks.common import Figure, run_python

ROUNDS: Final = 5
SIZE: Final = 500_000_000
PULLS, PUSHES = 300, 100

_SERVER: Final = """
import json, sys
from pathlib import Path
from tests.hub.server import TestHub
with TestHub(Path(sys.argv[1])) as hub:
    print(json.dumps([hub.url, hub.add_user("me")]), flush=True)
    for line in sys.stdin:
        print(json.dumps(eval(line, {"hub": hub})), flush=True)
"""

_LLAMA: Final = """
import sys, torch, transformers, dcz
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=32000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16, dtype="bfloat16"
)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1] + "/llama/plain")
dcz.save_pretrained(sys.argv[1] + "/llama/plain", sys.argv[1] + "/llama/dcz")
"""
_FIRST_OUTPUT: Final = """
import sys, time, torch, transformers, dcz.transformers
from transformers import LlamaForCausalLM
start = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    assert model(torch.arange(8)[None]).logits.isfinite().all()
print(time.perf_counter() - start)
"""


class HubProcess:
    """A Hub in another process, and the environment of its users."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(folder / "hub")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        url, token = self._read()
        _compile()
        self.environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_TOKEN": token,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # hf alone needs it: the server has no Xet
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, expression: str) -> Any:
        """The value of a Python expression about ``hub`` in the server."""
        assert self._process.stdin is not None
        print(expression, file=self._process.stdin, flush=True)
        return self._read()

    def run(self, *command: str) -> float:
        """Seconds that a command takes."""
        start = time.perf_counter()
        subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        return time.perf_counter() - start

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _compile() -> None:
    """Bytecode of all of dcz, which an installed package has, as the peer does, and a checkout need not have."""
    for module in pkgutil.walk_packages(dcz.__path__, "dcz."):
        spec = importlib.util.find_spec(module.name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            py_compile.compile(spec.origin, doraise=True)


@contextmanager
def _hub() -> Iterator[tuple[HubProcess, Path]]:
    with tempfile.TemporaryDirectory(prefix="dcz-hub-") as name:
        hub = HubProcess(Path(name))
        try:
            yield hub, Path(name)
        finally:
            hub.close()


def _write_model(path: Path, size: int, seed: int = 0) -> None:
    """A .dcz of about ``size`` bytes: bf16 weights as of a real model, of 1 MiB and more each."""
    import ml_dtypes

    from dcz.format import Writer

    draw, written, number = np.random.default_rng(seed), 0, 0
    with Writer(path) as writer:
        writer.add_tensor(
            "small", draw.standard_normal(1 << 19).astype(np.float32).astype(ml_dtypes.bfloat16)
        )
        while written < size:
            values = draw.standard_normal((4096, 2048)).astype(np.float32) * 0.02
            writer.add_tensor(f"layer.{number}.weight", values.astype(ml_dtypes.bfloat16))
            written += int(values.size * 2 * 0.665)
            number += 1


def _dcz(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dcz", *arguments]


def _hf(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "import sys; from huggingface_hub.cli.hf import main; sys.exit(main())",
        *arguments,
    ]


def _speed(hub: HubProcess, folder: Path, model: Path) -> list[Figure]:
    """Both sides in turns, each first as often as the other, and with nothing left to be written when they start."""
    times: dict[str, list[float]] = {"dcz push": [], "hf upload": [], "dcz pull": [], "hf download": []}
    here, size = folder / "here", model.stat().st_size

    def push(name: str, *command: str, repo: str) -> None:
        hub.ask("[path.unlink() for path in hub.state.objects.iterdir()] and 0")
        os.sync()
        times[name].append(hub.run(*command))
        assert hub.ask(f"len(hub.content({repo!r}, 'model.dcz'))") == size

    def pull(name: str, *command: str) -> None:
        os.sync()
        times[name].append(hub.run(*command))
        assert (here / model.name).stat().st_size == size
        shutil.rmtree(here)

    for number in range(ROUNDS):
        ours, theirs = f"me/d{number}", f"me/h{number}"
        mine_first = number % 2 == 1
        for is_mine in (mine_first, not mine_first):
            if is_mine:
                push("dcz push", *_dcz("push", str(model), f"hf://{ours}"), repo=ours)
            else:
                push("hf upload", *_hf("upload", theirs, str(model), model.name), repo=theirs)
        for is_mine in (mine_first, not mine_first):
            if is_mine:
                pull("dcz pull", *_dcz("pull", f"hf://{theirs}", "-o", str(here)))
            else:
                pull("hf download", *_hf("download", theirs, "--local-dir", str(here)))
    figures: list[Figure] = []
    for what, mine, peer in (("push", "dcz push", "hf upload"), ("pull", "dcz pull", "hf download")):
        ratio = median(b / a for a, b in zip(times[mine], times[peer], strict=True))
        print(mine, times[mine], peer, times[peer], file=sys.stderr)
        figures.append(
            Figure(
                f"{what} of a 500 MB file, speed against `{peer}`",
                "0.9 x or more",
                f"{ratio:.2f} x",
                ratio >= 0.9,
            )
        )
    return figures


def _ranges(hub: HubProcess, folder: Path) -> list[Figure]:
    """Bytes on the wire for a look at a large file, and for one tensor of it."""
    hub.ask("hub.log.clear()")
    hub.run(*_dcz("inspect", "hf://me/h0", "--json"))
    looked = hub.ask("hub.log.sent()")
    hub.ask("hub.log.clear()")
    program = "import dcz; f = dcz.open('hf://me/h0', 'numpy'); assert f['small'].nbytes == 1 << 20"
    hub.run(sys.executable, "-c", program)
    loaded = hub.ask("hub.log.sent()")
    return [
        Figure(
            "dcz inspect of a 500 MB file on the Hub, bytes transferred",
            "below 300 KB",
            f"{looked:,}",
            looked < 300_000,
        ),
        Figure("one 1 MB tensor of it, bytes transferred", "below 3 MB", f"{loaded:,}", loaded < 3_000_000),
    ]


def _killed(hub: HubProcess, folder: Path, model: Path) -> Figure:
    """kill -9 in the middle of a pull, and another one."""
    here, size = folder / "killed", model.stat().st_size
    command = _dcz("pull", "hf://me/h0", "-o", str(here))
    hub.ask("hub.limit_rate(200e6)")
    hub.ask("hub.log.clear()")
    process = subprocess.Popen(command, env=hub.environment, stdout=subprocess.DEVNULL)
    while not any(path.stat().st_size > size // 2 for path in here.glob(".dcz-pull-*/*.0")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = sum(path.stat().st_size for path in here.glob(".dcz-pull-*/*.0"))
    hub.ask("hub.limit_rate(None)")
    while not hub.ask("len(hub.log.all('/object/'))"):
        time.sleep(0.1)
    hub.ask("hub.log.clear()")
    hub.run(*command)
    assert (here / model.name).read_bytes() == model.read_bytes()
    again = hub.ask("hub.log.sent('/object/')") - (size - kept)
    return Figure(
        "bytes transferred twice after kill -9 of a pull", "below 16 MB", f"{again:,}", again < 16_000_000
    )


def _faults(hub: HubProcess, folder: Path) -> Figure:
    """Pulls and pushes of which a fifth of all requests goes wrong, in one of eight ways."""
    from dcz.errors import RegistryError
    from dcz.registry import Hub, Patience, pull, push

    patience = Patience(stall=0.2, give_up=3.0, first=0.01, longest=0.1)
    me = Hub(hub.environment["HF_ENDPOINT"], hub.environment["HF_TOKEN"], folder / "cache", patience)
    models: list[bytes] = []
    for number in range(8):
        _write_model(folder / "model.dcz", 1, seed=number)
        models.append((folder / "model.dcz").read_bytes())
    push(folder / "model.dcz", "hf://me/faults", registry=me)
    right = failed = 0
    wrong: list[str] = []
    hub.ask(f"hub.faults.at_random(0.2, seed=1, size={len(models[0])})")
    for number in range(PULLS):
        here = folder / "pulled"
        try:
            pull("hf://me/faults", here, registry=me)
            right += 1
            if (here / "model.dcz").read_bytes() != models[-1]:
                wrong.append(f"pull {number}: damaged")
        except RegistryError:
            failed += 1
            if (here / "model.dcz").exists():
                wrong.append(f"pull {number}: half a file")
        shutil.rmtree(here, ignore_errors=True)
    before = models[-1]
    for number in range(PUSHES):
        model = folder / "model.dcz"
        model.write_bytes(models[number % 8])
        try:
            push(model, "hf://me/faults", registry=me)
            right, wanted = right + 1, [models[number % 8]]
        except RegistryError:
            failed, wanted = failed + 1, [before, models[number % 8]]
        digests = [hashlib.sha256(data).hexdigest() for data in wanted]
        seen = hub.ask("hub.repository('me/faults').commit_of('main').files['model.dcz'].sha256")
        if seen not in digests:
            wrong.append(f"push {number}: something else is there")
        before = wanted[digests.index(seen)] if seen in digests else before
    hub.ask("hub.faults.clear()")
    commits = hub.ask("len(hub.repository('me/faults').commits)")
    if commits > PUSHES + 2:
        wrong.append(f"{commits} commits")
    print("\n".join(wrong), file=sys.stderr)
    return Figure(
        f"{PULLS} pulls and {PUSHES} pushes, a fifth of their requests disturbed",
        "all right or cleanly failed",
        f"{right} right, {failed} cleanly failed, {len(wrong)} wrong",
        not wrong,
    )


def _cold(hub: HubProcess, folder: Path) -> Figure:
    """From an empty cache to the first output of a Llama in bf16 over 100 Mbit/s; imports are not counted, which both need."""
    run_python(_LLAMA, str(folder))
    sizes = {}
    for name, file in (("plain", "model.safetensors"), ("dcz", "model.dcz")):
        sizes[name] = (folder / "llama" / name / file).stat().st_size
        hub.run(*_hf("upload", f"me/llama-{name}", str(folder / "llama" / name), "."))
    hub.ask("hub.limit_rate(12.5e6)")
    times: dict[str, float] = {}
    for name in sizes:
        environment = hub.environment | {"HF_HOME": str(folder / f"cold-{name}")}
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_OUTPUT, f"me/llama-{name}"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        times[name] = float(done.stdout)
    hub.ask("hub.limit_rate(None)")
    took, size = times["dcz"] / times["plain"], sizes["dcz"] / sizes["plain"]
    return Figure(
        f"Llama of {sizes['plain'] / 1e6:.0f} MB, empty cache, 100 Mbit/s: seconds to the first output, x plain safetensors",
        f"at most 5 % above {size:.3f}, the ratio of the sizes",
        f"{took:.3f} ({times['dcz']:.1f} against {times['plain']:.1f} s)",
        took <= 1.05 * size,
    )


def run() -> list[Figure]:
    with _hub() as (hub, folder):
        model = folder / "model.dcz"
        _write_model(model, SIZE)
        figures = _speed(hub, folder, model)
        figures += _ranges(hub, folder)
        figures.append(_killed(hub, folder, model))
        figures.append(_faults(hub, folder))
        figures.append(_cold(hub, folder))
    return figures
