"""DczModelHubMixin: save_pretrained, from_pretrained and push_to_hub for any module, with weights in .dcz files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from dcz.converters.folders import SavedFolder
from dcz.converters.model_card import merged_card
from dcz.converters.safetensors import INDEX_SUFFIX, read_weight_map
from dcz.converters.shards import MAX_SHARD_BYTES, Shards
from dcz.errors import MissingDependency, ModelMismatch, SourceError
from dcz.format.source import check_local
from dcz.runtime.folders import save_pretrained
from dcz.runtime.hub import push_folder
from dcz.runtime.loading import load_into

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError as exc:
    raise MissingDependency("huggingface_hub", needed_for="DczModelHubMixin", extra="hub") from exc

if TYPE_CHECKING:
    import torch

    from dcz.converters.conversion import RecipeLike
    from dcz.format.effort import EffortName
    from dcz.registry import Hub, Pushed

__all__ = ["DczModelHubMixin"]

_INDEX = f"model{INDEX_SUFFIX}"
_CARD = "README.md"


class DczModelHubMixin(ModelHubMixin, library_name="dcz", tags=["dcz"]):
    """Gives a ``torch.nn.Module`` the methods save_pretrained, from_pretrained and push_to_hub.

        class Net(torch.nn.Module, dcz.DczModelHubMixin):
            def __init__(self, width: int): ...

        Net(8).push_to_hub("me/net", recipe="int8")
        net = Net.from_pretrained("me/net")

    As with huggingface_hub's own mixins, the arguments of ``__init__`` travel in ``config.json``, and the options of the class
    (``license``, ``tags``, ...) go into the model card.
    """

    def save_pretrained(  # type: ignore[override]  # what is pushed has options of its own
        self,
        save_directory: str | os.PathLike[str],
        *,
        recipe: RecipeLike = "lossless",
        effort: EffortName = "balanced",
        max_shard_size: int | str = MAX_SHARD_BYTES,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> SavedFolder:
        """Write weights, configuration and model card into a folder, which is made if need be.

        ``recipe``, ``effort`` and ``max_shard_size``: as for dcz.save_pretrained. ``config``: instead of the arguments of
        ``__init__``. A model card that is there is kept, and what dcz has to say is added to it. ``name``: of the repository
        that it is for.
        """
        check_local(save_directory)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dcz-", suffix=".tmp", dir=folder) as temporary:
            made = Path(temporary, "model")
            done = save_pretrained(
                cast("torch.nn.Module", self),
                made,
                recipe=recipe,
                effort=effort,
                max_shard_size=max_shard_size,
                name=name,
            )
            self._made = made
            try:
                super().save_pretrained(folder, config=config, model_card_kwargs=model_card_kwargs)
            finally:
                del self._made
        card = folder / _CARD
        card.write_bytes(merged_card(card.read_bytes(), done.facts(loading="module", name=name)))
        return replace(done, path=os.fspath(save_directory))

    def _save_pretrained(self, save_directory: Path) -> None:
        old = {path.name for path in save_directory.glob("model*.dcz")}
        new = {path.name for path in self._made.glob("*.dcz")}
        for name in [*sorted(new), _INDEX]:  # the index last: until then, the old files are the model
            shutil.move(self._made / name, save_directory / name)
        for name in old - new:
            (save_directory / name).unlink()

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """Called by ``from_pretrained``, which passes on ``map_location`` and ``strict``: whether names that only the
        module or only the files have are an error."""

        def path_of(name: str) -> Path:
            if os.path.isdir(model_id):
                return Path(model_id, name)
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        index = path_of(_INDEX)
        if not index.is_file():
            raise SourceError(f"{model_id} has no {_INDEX}")
        for name in sorted(set(read_weight_map(index)[1].values())):
            path_of(name)
        # The files are what the index says, all of one version.
        with Shards(index) as shards:
            paths = [reader.name for reader in shards.readers.values()]
        model = cls(**model_kwargs)
        module = cast("torch.nn.Module", model)
        missing: set[str] | None = None
        unexpected: list[str] = []
        for path in paths:
            found = load_into(module, os.path.abspath(path), strict=False)
            missing = set(found.missing) if missing is None else missing & set(found.missing)
            unexpected += found.unexpected
        if strict and (missing or unexpected):
            names = sorted([*(missing or ()), *unexpected])
            raise ModelMismatch(
                f"{model_id} and {cls.__name__} do not fit: {len(names)} tensors are only in one of them, such as {names[0]!r}"
            )
        module.to(map_location)
        module.eval()
        return model

    def push_to_hub(  # type: ignore[override]  # as save_pretrained
        self,
        repo_id: str,
        *,
        recipe: RecipeLike = "lossless",
        effort: EffortName = "balanced",
        max_shard_size: int | str = MAX_SHARD_BYTES,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        branch: str | None = None,
        tags: Iterable[str] = (),
        private: bool = False,
        registry: Hub | None = None,
    ) -> Pushed:
        """Push weights, configuration and model card to the Hub, as one commit. As for dcz.push_to_hub."""

        def save(folder: Path, name: str, card: bytes | None) -> None:
            folder.mkdir()
            if card is not None:
                (folder / _CARD).write_bytes(card)
            self.save_pretrained(
                folder,
                recipe=recipe,
                effort=effort,
                max_shard_size=max_shard_size,
                config=config,
                model_card_kwargs=model_card_kwargs,
                name=name,
            )

        return push_folder(save, repo_id, branch=branch, tags=tags, private=private, registry=registry)
