"""What `import dcz` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dcz
import dcz.errors

NAMES = {
    *("open", "load", "save", "load_into", "load_model", "load_tokenizer", "convert", "decode", "verify"),
    *("estimate", "Estimate", "Estimated", "compress", "Compressed"),
    *("allocate_bits", "Allocation"),
    *("save_pretrained", "SavedFolder", "hydrate", "Hydrated", "push_to_hub", "DczModelHubMixin"),
    *("Converted", "Decoded", "TensorFile", "VerifyReport", "__version__"),
}


def test_the_public_names() -> None:
    assert set(dcz.__all__) == NAMES | set(dcz.errors.__all__)
    assert len(set(dcz.__all__)) == len(dcz.__all__)
    assert set(dcz.__all__) <= set(dir(dcz))
    for name in dcz.__all__:
        value = getattr(dcz, name)
        assert name == "__version__" or inspect.getdoc(value), name
    for name in dcz.errors.__all__:
        assert getattr(dcz, name) is getattr(dcz.errors, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dcz.nothing


def test_the_folders_are_there_without_an_import() -> None:
    code = "import dcz; dcz.errors.DczError, dcz.format.Limits, dcz.registry.push, dcz.runtime, dcz.converters, dcz.compression"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_needs_torch_says_so() -> None:
    code = """
import sys
sys.modules["torch"] = None
import dcz
try:
    dcz.compress
except dcz.errors.MissingDependency as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "dcz.compress needs the package 'torch'" in done.stdout


def test_checkers_see_the_same_names() -> None:
    """The names that are imported for type checkers are those that __getattr__ gives."""
    tree = ast.parse(Path(dcz.__file__).read_text())
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name in dcz.__all__:
        module = imported[name]
        assert module is not None
        assert getattr(__import__(module, fromlist=[name]), name) is getattr(dcz, name)


HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "safetensors",
    "scipy",
    "pydantic",
    "zstandard",
    "huggingface_hub",
    "click",
)


def _loaded(code: str, *arguments: str) -> set[str]:
    code += f"\nimport sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_importing_costs_next_to_nothing() -> None:
    assert _loaded("import dcz; dir(dcz); dcz.__version__; dcz.DczError") == set()


def test_numpy_is_enough(tmp_path: Path) -> None:
    """Converting, reading, verifying and decoding arrays and safetensors files never imports torch."""
    code = (
        "import sys, dcz, numpy as np, ml_dtypes\n"
        "folder = sys.argv[1]\n"
        "a = np.arange(6, dtype=ml_dtypes.bfloat16)\n"
        "dcz.save({'a': a, 'b': a}, folder + '/m.dcz')\n"
        "dcz.decode(folder + '/m.dcz', folder + '/m.safetensors')\n"
        "dcz.convert(folder + '/m.safetensors', folder + '/n.dcz', recipe='int8')\n"
        "dcz.verify(folder + '/n.dcz', deep=True)\n"
        "assert dcz.load(folder + '/n.dcz', framework='numpy')['b'].tobytes() == a.tobytes()\n"
        "with dcz.open(folder + '/n.dcz', 'np') as f: assert f.tensor('a')[1:3].tolist() == [1, 2]"
    )
    assert not _loaded(code, str(tmp_path)) & {
        "torch",
        "transformers",
        "safetensors",
        "scipy",
        "huggingface_hub",
    }


def test_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import dcz, numpy as np\n"
        "path = sys.argv[1] + '/m.dcz'\n"
        "dcz.save({'a': np.ones(3)}, path)\n"
        "open(sys.argv[1] + '/m.pt', 'wb').write(b'\\x80\\x02}.')\n"
        "for action in (\n"
        "    lambda: dcz.load(path), lambda: dcz.open(path), lambda: dcz.load_into(None, path),\n"
        "    lambda: dcz.load_model(path), lambda: dcz.convert(sys.argv[1] + '/m.pt', path),\n"
        "):\n"
        "    try: action()\n"
        "    except dcz.MissingDependency as exc: print(exc.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["pip install 'dcz[torch]'"] * 5
