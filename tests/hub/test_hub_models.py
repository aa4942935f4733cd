"""Models on the Hub: pushed by dcz, loaded by transformers and by modules, hydrated, all by the unmodified clients."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from tests.hub.fixtures import as_user
from tests.hub.server import TestHub

import dcz
from dcz.errors import (
    AccessDenied,
    Conflict,
    DigestMismatch,
    ModelMismatch,
    RegistryError,
    SourceError,
    UsageError,
)
from dcz.registry import Hub, HubReference, pull

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.LlamaForCausalLM(config).bfloat16()


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", False)
    make_model().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_transformers_loads_what_was_pushed(
    hub: TestHub, ada: Hub, plain: Path, tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    done = dcz.push_to_hub(
        make_model(), "ada/m", registry=ada, private=True, max_shard_size="8KB", tags=["v1"]
    )
    assert isinstance(done.reference, HubReference)
    other = make_model()
    with torch.no_grad():
        other.lm_head.weight += 1
    dcz.push_to_hub(other, "ada/m", registry=ada)
    # In a sub-folder of another repository, too.
    (tmp_path / "nested").mkdir()
    plain.rename(tmp_path / "nested" / "sub")
    dcz.push_to_hub(tmp_path / "nested", "ada/nested", registry=ada)
    assert {name.partition("/")[0] for name in hub.repository("ada/nested").commit_of("main").files} > {
        "sub",
        "README.md",
    }
    code = """
import sys, torch, transformers
import dcz.transformers
from transformers import AutoModelForCausalLM
expected = AutoModelForCausalLM.from_pretrained(sys.argv[1])
def same(model): return all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
print(same(AutoModelForCausalLM.from_pretrained("ada/m", revision="v1")))
print(same(AutoModelForCausalLM.from_pretrained("ada/m", revision=sys.argv[2])))
print(same(AutoModelForCausalLM.from_pretrained("ada/m")))
print(same(AutoModelForCausalLM.from_pretrained("ada/nested", subfolder="sub")))
"""
    environment = {
        **os.environ,
        **hub_environment,
        "HF_TOKEN": hub.add_user("ada"),
        "HF_HUB_DISABLE_XET": "1",
    }
    arguments = [sys.executable, "-c", code, str(tmp_path / "nested" / "sub"), str(done.reference.revision)]
    first = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["True", "True", "False", "True"]
    # Again, from the cache, without anybody who could be asked.
    hub.close()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    again = subprocess.run(arguments, env=offline, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == ["True", "True", "False", "True"]


def test_hydrate_gives_back_what_was_pushed(hub: TestHub, ada: Hub, plain: Path, tmp_path: Path) -> None:
    (plain / "sub").mkdir()
    (plain / "sub" / "more.json").write_text("{}")
    dcz.push_to_hub(plain, "hf://ada/m", registry=ada, max_shard_size="8KB", base_model="org/base")
    dcz.hydrate("hf://ada/m", tmp_path / "back", registry=ada)
    for path in plain.rglob("*"):
        assert path.is_dir() or filecmp.cmp(path, tmp_path / "back" / path.relative_to(plain), shallow=False)
    assert {path.name for path in tmp_path.iterdir()} >= {"back", "plain"}
    pull("hf://ada/m", tmp_path / "pulled", registry=ada)
    dcz.hydrate(tmp_path / "pulled", tmp_path / "again")
    assert filecmp.cmp(tmp_path / "again" / "model.safetensors", plain / "model.safetensors", shallow=False)
    card: Any = ModelCard(hub.content("ada/m", "README.md").decode())
    assert card.data.to_dict()["base_model"] == "org/base"
    assert 'from_pretrained("ada/m")' in card.text
    assert "dcz hydrate hf://ada/m -o folder" in card.text
    # What is there as safetensors is fetched, and made into a folder.
    hub.add_files(
        "ada/plain", {str(path.relative_to(plain)): path for path in plain.rglob("*") if path.is_file()}
    )
    dcz.save_pretrained("hf://ada/plain", tmp_path / "of-hub", registry=ada)
    assert "base_model: ada/plain" in (tmp_path / "of-hub" / "README.md").read_text()
    # A repository with a single .dcz file, and one with several that do not belong together.
    dcz.convert(plain, tmp_path / "m.dcz")
    dcz.registry.push(tmp_path / "m.dcz", "hf://ada/single", registry=ada)
    dcz.hydrate("hf://ada/single", tmp_path / "single", registry=ada)
    assert filecmp.cmp(tmp_path / "single" / "model.safetensors", plain / "model.safetensors", shallow=False)
    dcz.convert(plain, tmp_path / "n.dcz", recipe="int8")
    dcz.registry.push(tmp_path / "n.dcz", "hf://ada/single", registry=ada)
    with pytest.raises(SourceError, match="no index"):
        dcz.hydrate("hf://ada/single", tmp_path / "none", registry=ada)
    assert not (tmp_path / "none").exists()


def test_pushing_again_changes_nothing(hub: TestHub, ada: Hub, plain: Path) -> None:
    first = dcz.push_to_hub(plain, "ada/m", registry=ada)
    again = dcz.push_to_hub(plain, "ada/m", registry=ada)
    assert (again.created, again.reference) == (False, first.reference)


def test_the_card_on_the_hub_is_kept(hub: TestHub, ada: Hub, plain: Path) -> None:
    mine = "---\nlicense: mit\ntags: [mine]\n---\n\n# By hand\n"
    hub.add_files("ada/m", {"README.md": mine.encode()})
    dcz.push_to_hub(plain, "ada/m", registry=ada, recipe="int8")
    text = hub.content("ada/m", "README.md").decode()
    card: Any = ModelCard(text)
    assert card.data.to_dict() == {"license": "mit", "tags": ["mine", "dcz"], "library_name": "transformers"}
    assert "# By hand" in text
    assert "the recipe `int8` changes them" in text
    edited = text.replace("# By hand", "# By hand, edited")
    hub.add_files("ada/m", {"README.md": edited.encode()})
    dcz.push_to_hub(plain, "ada/m", registry=ada)
    after = hub.content("ada/m", "README.md").decode()
    assert "# By hand, edited" in after
    assert "the recipe is lossless" in after
    assert after.count("begin dcz") == 1


def test_a_card_that_is_edited_meanwhile_is_not_lost(
    hub: TestHub, ada: Hub, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_files("ada/card", {"README.md": b"# First\n"})
    edits = [b"# Second\n", b"# Third\n"]
    save = dcz.save_pretrained

    def late(*arguments: Any, **options: Any) -> Any:
        done = save(*arguments, **options)
        if edits:
            hub.add_files("ada/card", {"README.md": edits.pop(0)})
        return done

    monkeypatch.setattr(dcz.runtime.hub, "save_pretrained", late)
    dcz.push_to_hub(plain, "ada/card", registry=ada)
    assert "# Third" in hub.content("ada/card", "README.md").decode()
    assert len(hub.repository("ada/card").commits) == 5  # with the first one of all
    edits += [b"# 4\n", b"# 5\n", b"# 6\n"]
    with pytest.raises(Conflict, match=r"README\.md"):
        dcz.push_to_hub(plain, "ada/card", registry=ada)
    assert hub.content("ada/card", "README.md") == b"# 6\n"


def test_other_shards_go_when_fewer_come(hub: TestHub, ada: Hub, plain: Path) -> None:
    dcz.push_to_hub(plain, "ada/m", registry=ada, max_shard_size="8KB")
    before = {name for name in hub.repository("ada/m").commit_of("main").files if name.endswith(".dcz")}
    dcz.push_to_hub(plain, "ada/m", registry=ada, max_shard_size="16KB")
    after = {name for name in hub.repository("ada/m").commit_of("main").files if name.endswith(".dcz")}
    assert not after & before
    index = json.loads(hub.content("ada/m", "model.safetensors.index.json"))
    assert set(index["weight_map"].values()) == after


def test_what_cannot_be_pushed(hub: TestHub, ada: Hub, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(AccessDenied):
        dcz.push_to_hub(plain, "eve/m", registry=ada)
    with pytest.raises(RegistryError):
        dcz.push_to_hub(plain, "ada/m", registry=as_user(hub, False, tmp_path / "cache2"))
    with pytest.raises(SourceError, match="no tensors"):
        dcz.push_to_hub({}, "ada/m", registry=ada)
    with pytest.raises(UsageError, match="is text"):
        dcz.push_to_hub(plain, None, registry=ada)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no \.dcz file"):
        dcz.registry.push(plain, "hf://ada/m", registry=ada)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "gone.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="not a regular file"):
        dcz.registry.push(tmp_path / "linked", "hf://ada/m", registry=ada)
    assert "ada/m" not in hub.state.repositories


# -- modules


class Net(torch.nn.Module, dcz.DczModelHubMixin, license="mit", tags=["small"]):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.head = torch.nn.Linear(width, 3)
        self.tied = self.layers[0]


def net() -> Net:
    torch.manual_seed(0)
    return Net(32, depth=3)


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("most", ["5GB", "5000"])
def test_a_module_is_saved_and_loaded(tmp_path: Path, most: str) -> None:
    size = int(most) if most.isdigit() else most
    done = net().save_pretrained(tmp_path / "net", max_shard_size=size)
    assert done.path == str(tmp_path / "net")
    assert {file.path for file in done.dcz_files} == {path.name for path in (tmp_path / "net").glob("*.dcz")}
    assert (len(done.dcz_files) > 1) == (most == "5000")
    loaded = Net.from_pretrained(tmp_path / "net")
    assert_equal(loaded, net())
    assert not loaded.training
    assert loaded.tied is loaded.layers[0]
    # Once more into the same folder, with another number of files: the old ones go, the card stays.
    card = tmp_path / "net" / "README.md"
    card.write_text(card.read_text() + "\nmy words\n")
    again = net().save_pretrained(tmp_path / "net", recipe="int8")
    assert {path.name for path in (tmp_path / "net").iterdir()} == {
        *("model.dcz", "model.safetensors.index.json", "config.json", "README.md")
    }
    assert [file.path for file in again.dcz_files] == ["model.dcz"]
    text = card.read_text()
    assert "my words" in text
    assert "the recipe `int8` changes them" in text
    assert "Model.from_pretrained" in text
    data: Any = ModelCard(text)
    assert data.data.to_dict()["license"] == "mit"
    assert {"dcz", "small"} <= set(data.data.to_dict()["tags"])
    assert data.data.to_dict()["library_name"] == "dcz"


def test_a_module_on_the_hub(hub: TestHub, ada: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = net().push_to_hub("ada/net", registry=ada, private=True, tags=["v1"], max_shard_size=5000)
    assert done.created
    hub.add_files("ada/net", {"other.txt": b"x"})
    for module in (huggingface_hub.constants, huggingface_hub.file_download.constants):
        monkeypatch.setattr(module, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    token = hub.add_user("ada")
    loaded = Net.from_pretrained("ada/net", revision="v1", token=token, cache_dir=tmp_path / "cache3")
    assert_equal(loaded, net())
    assert len(hub.repository("ada/net").commits) == 3
    assert 'Model.from_pretrained("ada/net")' in hub.content("ada/net", "README.md").decode()
    assert net().push_to_hub("ada/net", registry=ada, max_shard_size=5000).created is False


def test_modules_that_do_not_fit(tmp_path: Path) -> None:
    net().save_pretrained(tmp_path / "net", max_shard_size=5000)
    with pytest.raises(ModelMismatch, match=r"only in one of them, such as 'layers\.3"):
        Net.from_pretrained(tmp_path / "net", depth=4)
    assert len(Net.from_pretrained(tmp_path / "net", depth=4, strict=False).layers) == 4
    with pytest.raises(ModelMismatch, match="of another shape"):
        Net.from_pretrained(tmp_path / "net", width=9)
    shards = sorted((tmp_path / "net").glob("*.dcz"))
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(DigestMismatch):
        Net.from_pretrained(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match="has no model"):
        Net.from_pretrained(tmp_path / "net")
