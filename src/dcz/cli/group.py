"""The command ``dcz``. Its subcommands are listed here, so that ``dcz --help`` imports none of them."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from typing import Any, Final

import click

from dcz._version import __version__
from dcz.cli.boundary import boundary, silence

__all__ = ["COMMANDS", "main"]

COMMANDS: Final = {
    "estimate": "Say what each recipe would make of a model.",
    "convert": "Make a .dcz file from a model.",
    "inspect": "Show what is in a .dcz file, and where its bytes went.",
    "report": "Write a page about a .dcz file: bytes, layers, codes.",
    "verify": "Check a .dcz file or an artifact against its digests.",
    "decode": "Turn a .dcz file back into safetensors or GGUF.",
    "hydrate": "Make an ordinary folder of a folder of .dcz files.",
    "push": "Put files into a registry, as a version of an artifact.",
    "pull": "Copy an artifact out of a registry.",
    "lock": "Write down what references stand for today.",
    "tag": "Point an alias to a version.",
    "list": "List what is in a registry.",
    "history": "Show what has changed in a registry.",
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"dcz.cli.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:  # commands have their boundary: this was the output of --help or --version
            with contextlib.suppress(OSError):
                click.echo(f"dcz: error: standard output: {exc.strerror}", err=True)
            silence(sys.stdout)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        with boundary(ctx):
            return super().invoke(ctx)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. What a registry refused: 3 not found, "
    "4 access denied, 5 damaged, 6 conflict, 7 unreachable.",
)
@click.version_option(__version__, message="dcz %(version)s")
def main() -> None:
    """Small, safe, verifiable model files, and a registry for them.

    A FILE is a .dcz file. A REF names an artifact in a registry, name[:version][@digest], or a repository on the
    Hugging Face Hub, hf://org/name[@revision]. Text that begins with a dot,
    a slash or ~, or that ends with .dcz, is always a file; everything else is a REF.
    """
