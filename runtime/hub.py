"""push_to_hub: a model becomes a repository on the Hub, in one commit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dcz.converters.shards import MAX_SHARD_BYTES
from dcz.errors import Conflict, UsageError
from dcz.runtime.folders import save_pretrained

if TYPE_CHECKING:
    from dcz.converters.conversion import RecipeLike, SourceLike
    from dcz.format.effort import EffortName
    from dcz.registry import Hub, Pushed

__all__ = ["push_folder", "push_to_hub"]

_CARD: Final = "README.md"
_TRIES: Final = 3  # each with the card that is there by then


def push_to_hub(
    source: SourceLike,
    repo_id: str,
    *,
    recipe: RecipeLike = "lossless",
    effort: EffortName = "balanced",
    max_shard_size: int | str = MAX_SHARD_BYTES,
    base_model: str | None = None,
    branch: str | None = None,
    tags: Iterable[str] = (),
    private: bool = False,
    registry: Hub | None = None,
    threads: int | None = None,
) -> Pushed:
    """Save a model as a folder of .dcz files, and push that to the Hub, as one commit.

    ``source``, ``recipe``, ``effort``, ``max_shard_size`` and ``base_model``: as for dcz.save_pretrained. ``repo_id``:
    ``org/name``; the repository is made if it is not there, a ``private`` one if asked for. ``branch``: to push to, made if
    need be; ``tags``: new ones, which point to the commit. ``registry``: which Hub, and as whom; None is the one, and the
    token, that huggingface_hub finds.

    The model card that is there already is kept, and what dcz has to say is added to it. Raises what dcz.save_pretrained and
    dcz.registry.push raise.
    """

    def save(folder: Path, name: str, card: bytes | None) -> None:
        save_pretrained(
            source,
            folder,
            recipe=recipe,
            effort=effort,
            max_shard_size=max_shard_size,
            base_model=base_model,
            name=name,
            card=card,
            registry=registry,
            threads=threads,
        )

    return push_folder(save, repo_id, branch=branch, tags=tags, private=private, registry=registry)


def push_folder(
    save: Callable[[Path, str, bytes | None], None],
    repo_id: str,
    *,
    branch: str | None,
    tags: Iterable[str],
    private: bool,
    registry: Hub | None,
) -> Pushed:
    """Push what ``save`` puts into a folder. It is given the folder, the name of the repository, and the card that is there.

    If somebody changes the branch meanwhile, it is asked again, with the card that is there by then.
    """
    from dcz.registry import HubReference, parse_reference, push, read_file

    given: Any = repo_id
    if not isinstance(given, str):
        raise UsageError(f"a repository of the Hub is text, not a {type(repo_id).__name__}", hint="org/name")
    tags = [tags] if isinstance(tags, str) else list(tags)
    text = repo_id if repo_id.startswith("hf://") else f"hf://{repo_id}"
    reference = parse_reference(text if branch is None else f"{text}@{branch}")
    if not isinstance(reference, HubReference):
        raise UsageError(f"{repo_id!r} is no repository of the Hub", hint="org/name")
    for left in reversed(range(_TRIES)):
        known = read_file(reference, _CARD, registry=registry)
        with tempfile.TemporaryDirectory(prefix="dcz-push-") as temporary:
            folder = Path(temporary, reference.name)
            save(folder, f"{reference.org}/{reference.name}", None if known is None else known[0])
            replaces = {_CARD: None if known is None else known[1]} if (folder / _CARD).exists() else {}
            try:
                return push(
                    folder, reference, tags=tags, private=private, replaces=replaces, registry=registry
                )
            except Conflict:
                if not left:
                    raise
    raise AssertionError("unreachable")
