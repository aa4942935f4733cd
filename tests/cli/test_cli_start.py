"""Help texts as in the guide, and what a command may import before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.cli.help_texts import GUIDE, commands_in, with_help_texts
from tests.cli.process import Home

from dcz.cli.group import COMMANDS
from dcz.registry import push

# Runs dcz and says which of the given modules it has imported.
_IMPORTS = """
import json, sys
from dcz.cli import main
watched, arguments = json.loads(sys.argv[1]), sys.argv[2:]
try:
    main(arguments, prog_name="dcz")
except SystemExit as exc:
    assert not exc.code, exc.code
print(json.dumps([name for name in watched if name in sys.modules]), file=sys.stderr)
"""
FRAMEWORKS = ["torch", "transformers", "safetensors", "huggingface_hub", "requests", "fsspec", "aiohttp"]
HEAVY = [
    "numpy",
    "pydantic",
    "rich",
    "msgpack",
    "zstandard",
    "dcz.format",
    "dcz.registry.client",
    "dcz.cli.commands",
]


def imported(home: Home, watched: list[str], *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, json.dumps(watched), *arguments],
        cwd=home.path,
        env=home.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stderr)
    return found


def test_the_guide_shows_the_help_of_every_command() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert commands_in(guide) == ["dcz --help", *(f"dcz {name} --help" for name in COMMANDS)]
    assert with_help_texts(guide) == guide, "run `python -m tests.cli.help_texts` and look at the difference"


def test_the_guide_names_every_field_of_the_json(model: Home) -> None:
    """Each section names all fields that its command prints, and prints all that it names as one."""
    sections = dict(part.split("\n", 1) for part in GUIDE.read_text(encoding="utf-8").split("\n## ")[1:])
    runs = {
        "estimate": ("estimate", "model.safetensors"),
        "convert": ("convert", "model.safetensors", "-o", "m.dcz"),
        "inspect": ("inspect", "m.dcz"),
        "report": ("report", "m.dcz", "-o", "m.html"),
        "verify": ("verify", "m.dcz"),
        "decode": ("decode", "m.dcz", "-o", "x.safetensors"),
        "push": ("push", "m.dcz", "m:1"),
        "pull": ("pull", "m:1", "-o", "here"),
        "tag": ("tag", "m:1", "a"),
        "list": ("list",),
    }
    for name, arguments in runs.items():
        printed = model.run(*arguments, "--json").json
        inner = [item for value in printed.values() if isinstance(value, list) for item in value[:1]]
        fields = {*printed, *(key for item in inner if isinstance(item, dict) for key in item)}
        fields |= {*printed.get("provenance", ()), *(printed["bytes"] if name == "inspect" else ())}
        documented = sections[name].split("JSON", 1)[1]
        assert {field for field in fields if f"`{field}`" not in documented} == set(), name


def test_help_imports_next_to_nothing(home: Home) -> None:
    assert imported(home, [*FRAMEWORKS, *HEAVY], "--help") == []
    assert imported(home, [*FRAMEWORKS, *HEAVY], "--version") == []
    heavy = [name for name in HEAVY if name != "dcz.cli.commands"]
    for name in COMMANDS:
        assert imported(home, [*FRAMEWORKS, *heavy], name, "--help") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "model.dcz", "--tensors"),
        ("inspect", "m:1"),
        ("inspect", "m:1", "--layers", "--paper", "5"),
        ("report", "m:1", "-o", "m.html"),
        ("verify", "model.dcz", "--deep"),
        ("verify", "m:1", "--deep"),
        ("push", "model.dcz", "m:2"),
        ("pull", "m:1", "-o", "here"),
        ("tag", "m:1", "a"),
        ("list",),
        ("convert", "model.safetensors", "-o", "x.dcz"),
        ("decode", "m:1", "-o", "x"),
    ],
    ids=" ".join,
)
def test_no_command_imports_a_framework_that_it_does_not_need(
    model: Home, arguments: tuple[str, ...]
) -> None:
    push(model.path / "model.dcz", "m:1", registry=model.registry)
    assert imported(model, FRAMEWORKS, *arguments) == []
