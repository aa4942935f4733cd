"""Integer networks in files: the same codes come back, and nothing else than a network does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compression.networks.zoo import Residual, batch, mobile, seeded
from torch import nn

import dcz
from dcz.compression.integer.conversion import integer_network
from dcz.compression.integer.description import decode_description, encode_description
from dcz.compression.integer.network import IntegerNetwork
from dcz.errors import DczError, FormatError, UsageError
from dcz.format import Reader, Writer
from dcz.runtime.integer import DESCRIPTION, load_integer_network, save_integer_network


def network_of(module: nn.Module, shape: tuple[int, ...], bits: int = 8) -> IntegerNetwork:
    return integer_network(seeded(module), [batch(shape, 32)], bits=bits)


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("name", ["mobile", "residual"])
def test_a_network_comes_back_to_the_bit(name: str, bits: int, tmp_path: Path) -> None:
    module, shape = (mobile(), (3, 8, 8)) if name == "mobile" else (Residual(), (2, 8, 8))
    network = network_of(module, shape, bits)
    path = tmp_path / "model.dcz"
    save_integer_network(network, path, metadata={"data": "none"})
    found = load_integer_network(path)
    assert found.description == network.description
    inputs = batch(shape, 8, seed=4)
    for ours, theirs in zip(
        network.values(network.quantize(inputs)), found.values(found.quantize(inputs)), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(network(inputs), found(inputs))
    # Any reader gets floats of the weights, and they take as many bits as they have.
    tensors = dcz.load(path)
    for step, scales in network.weight_scales.items():
        codes = network.tensors[f"{step}.weight"]
        steps = scales.reshape(-1, *[1] * (codes.ndim - 1))
        assert torch.equal(tensors[f"{step}.weight"], codes.float() * steps)
    with Reader(path) as reader:
        values = {tensor.name: tensor.values for tensor in reader.manifest.tensors}
    assert {getattr(value, "bits", None) for name, value in values.items() if name.endswith("weight")} == {
        bits
    }
    again = tmp_path / "again.dcz"
    save_integer_network(found, again, metadata={"data": "none"})
    assert path.read_bytes() == again.read_bytes()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.dcz"
    dcz.save({"weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(UsageError, match="not an integer network"):
        load_integer_network(path)


def written(path: Path, description: bytes, tensors: dict[str, np.ndarray]) -> Path:
    with Writer(path) as writer:
        writer.add_asset(DESCRIPTION, description)
        for name, value in tensors.items():
            writer.add_tensor(name, value)
    return path


def parts_of(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    with Reader(path) as reader:
        description = json.loads(reader.read_asset(DESCRIPTION))
    return description, dcz.load(path, framework="numpy")


CHANGES: dict[str, tuple[Any, str]] = {
    "unknown operation": (lambda d, t: d["steps"][0].update(op="eval"), "op|tag"),
    "code": (lambda d, t: d["steps"][0].update(module="os.system"), "Extra"),
    "later value": (lambda d, t: d["steps"][0].update(inputs=[1]), "comes later"),
    "same names": (lambda d, t: d["steps"][1].update(name="0"), "same name"),
    "no stride": (lambda d, t: d["steps"][1].update(stride=[0, 1]), "stride"),
    "a float": (lambda d, t: d["steps"][1].update(groups=8.5), "groups"),
    "many axes": (lambda d, t: d["steps"][1].update(stride=[1]), "axes"),
    "other version": (lambda d, t: d.update(version=2), "version"),
    "huge input": (lambda d, t: d.update(input=[3, 1 << 24, 1 << 24]), "elements|products"),
    "huge padding": (
        lambda d, t: d["steps"][1].update(padding=[[1 << 24, 1 << 24]] * 2),
        "elements|products",
    ),
    "missing": (lambda d, t: t.pop("3.bias"), "missing"),
    "no scales": (lambda d, t: t.pop("3.weight_scale"), "missing"),
    "other type": (lambda d, t: t.update({"3.bias": t["3.bias"].astype(np.int64)}), "i64"),
    "float multiplier": (
        lambda d, t: t.update({"3.multiplier": t["3.multiplier"].astype(np.float32)}),
        "int32",
    ),
    "shift": (lambda d, t: t["3.shift"].fill(63), "shift"),
    "negative multiplier": (lambda d, t: t["3.multiplier"].fill(-1), "negative"),
    "bounds": (lambda d, t: t["3.bounds"].__setitem__(slice(None), [[1], [0]]), "above"),
    "overflow": (lambda d, t: t["3.bias"].fill(2**31 - 1), "int32"),
    "no scale": (lambda d, t: t["activations.scales"].__setitem__(0, 0), "positive"),
    "input bounds": (
        lambda d, t: t["activations.input_bounds"].fill(0) or t["activations.input_bounds"].__setitem__(0, 1),
        "least",
    ),
    "infinite scale": (lambda d, t: t["activations.scales"].__setitem__(0, np.inf), "finite"),
    "weights that are no codes": (lambda d, t: t["3.weight"].__iadd__(1e-3), "multiples"),
    "weights that are large": (lambda d, t: t["3.weight"].__imul__(1000), "multiples"),
    "weights that are infinite": (lambda d, t: t["3.weight"].fill(np.inf), "multiples"),
    "other inputs": (lambda d, t: t.update({"6.weight": t["6.weight"][:, :-1].copy()}), "groups"),
    "short bias": (lambda d, t: t.update({"3.bias": t["3.bias"][:-1]}), "bias|scales"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integer") / "model.dcz"
    save_integer_network(network_of(mobile(nn.ReLU), (3, 8, 8)), path)
    return path


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_file_that_does_not_fit_together(name: str, saved: Path, tmp_path: Path) -> None:
    description, tensors = parts_of(saved)
    tensors = {key: value.copy() for key, value in tensors.items()}
    change, message = CHANGES[name]
    change(description, tensors)
    path = written(tmp_path / "model.dcz", json.dumps(description).encode(), tensors)
    with pytest.raises(FormatError, match=message):
        load_integer_network(path)


def test_descriptions_are_a_network_or_an_error() -> None:
    """Invariant: bytes either are a description, which is written back as it was read, or raise one of our errors."""
    seed = encode_description(network_of(Residual(), (2, 8, 8)).description)
    generator = random.Random(0)
    values: list[Any] = [None, True, -1, 0, 1, 2**63, 1.5, "", "input", [], {}, [0] * 2000]
    accepted = 0
    for _ in range(1500):
        if generator.random() < 0.5:
            data = bytearray(seed)
            for _ in range(generator.randint(1, 4)):
                data[generator.randrange(len(data))] = generator.choice(
                    b'{}[]",:0123456789-.eatrunfls\\\x00\xff'
                )
            changed = bytes(data[: generator.randint(0, len(data))] if generator.random() < 0.2 else data)
        else:
            document = json.loads(seed)
            place: Any = document
            while isinstance(place, dict | list) and place:
                key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if generator.random() < 0.4 or not isinstance(place[key], dict | list):
                    place[key] = generator.choice(values)
                    break
                place = place[key]
            changed = json.dumps(document).encode()
        try:
            found = decode_description(changed)
        except DczError:
            continue
        accepted += 1
        assert decode_description(encode_description(found)) == found
    assert 0 < accepted < 700


def test_tensors_are_a_network_or_an_error(saved: Path, tmp_path: Path) -> None:
    """Invariant: with any numbers in its tensors, a file gives a network that runs, or one of our errors."""
    description, tensors = parts_of(saved)
    generator = np.random.default_rng(0)
    inputs = torch.randint(-128, 128, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    ran = 0
    for _ in range(40):
        changed = {key: value.copy() for key, value in tensors.items()}
        name = str(generator.choice(list(changed)))
        flat = changed[name].reshape(-1)
        raw = flat[generator.integers(flat.size) :][:1].view(np.uint8)
        raw[generator.integers(raw.size)] ^= np.uint8(1 << generator.integers(8))
        path = written(tmp_path / "model.dcz", json.dumps(description).encode(), changed)
        try:
            network = load_integer_network(path)
        except DczError:
            continue
        ran += 1
        assert network.run(inputs).dtype == torch.int8
    assert ran > 5
