"""Every command from one end to the other, in processes of its own."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.cli.process import COMMAND, Home, write_model

from dcz.format import CodebookTensor, PerTensor, Reader, Writer


def test_an_effort_is_recorded(home: Home) -> None:
    write_model(home.path / "model.safetensors")
    sizes = {}
    for effort in ("fast", "balanced", "small"):
        done = home.run(
            "convert", "model.safetensors", "-o", f"{effort}.dcz", "--effort", effort, "--json"
        ).json
        assert done["effort"] == effort
        sizes[effort] = done["file_bytes"]
        assert home.run("inspect", f"{effort}.dcz", "--json").json["provenance"]["effort"] == effort
        assert re.search(rf"^effort +{effort}$", home.run("inspect", f"{effort}.dcz").out, re.MULTILINE)
    assert sizes["small"] <= sizes["balanced"] + 3  # the name of the effort is in the file
    wrong = home.run("convert", "model.safetensors", "-o", "x.dcz", "--effort", "huge", code=2)
    assert "'huge' is not one of 'fast', 'balanced', 'small'" in wrong.err


def test_an_estimate(home: Home) -> None:
    write_model(home.path / "model.safetensors")
    before = sorted(home.path.iterdir())
    found = home.run("estimate", "model.safetensors", "--json").json
    assert sorted(home.path.iterdir()) == before
    by_recipe = {(one["recipe"], one["effort"]): one for one in found["estimates"]}
    real = home.run("convert", "model.safetensors", "-o", "m.dcz", "--json").json
    assert by_recipe["lossless", "balanced"]["file_bytes"] == pytest.approx(real["file_bytes"], rel=0.1)
    assert found["tensor_bytes"] == real["tensor_bytes"]
    text = home.run("estimate", "model.safetensors", "--recipe", "int8", "--recipe", "int4").out
    assert re.search(r"^int8 +balanced +[\d,]+ +\d\.\d{3} +[\d.]+$", text, re.MULTILINE)
    assert "lossless  " not in text
    home.run("estimate", "nothing.safetensors", code=1)


def test_the_main_job(home: Home) -> None:
    folder = home.path / "hf"
    folder.mkdir()
    tensors = write_model(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')

    done = home.run("convert", "hf", "-o", "model.dcz", "--json").json
    assert done["file"] == "model.dcz"
    assert done["recipe"] == "lossless"
    assert done["tensors"] == len(tensors)
    assert done["tensor_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert done["file_bytes"] == (home.path / "model.dcz").stat().st_size
    assert done["ratio"] == pytest.approx(done["file_bytes"] / done["tensor_bytes"])
    assert done["seconds"] > 0
    assert done["notes"] == []

    report = home.run("inspect", "model.dcz", "--json").json
    assert report["digest"] == done["digest"]
    assert sum(report["bytes"].values()) == report["size"] == done["file_bytes"]
    assert {tensor["name"]: tensor["shape"] for tensor in report["tensors"]} == {
        name: list(tensor.shape) for name, tensor in tensors.items()
    }
    assert "config.json" in [asset["path"] for asset in report["assets"]]

    verified = home.run("verify", "model.dcz", "--deep", "--json").json
    assert verified["ok"] is True
    assert verified["reference"] is None
    assert verified["files"][0]["digest"] == done["digest"]
    assert verified["files"][0]["steps"] == [1, 2, 3, 4, 5, 6, 7]

    pushed = home.run("push", "model.dcz", "minilm:1.0", "--json").json
    assert pushed["created"] is True
    assert pushed["reference"] == f"minilm:1.0@{pushed['digest']}"
    assert {change["tag"] for change in pushed["changes"]} == {"1.0", "latest"}
    assert home.registry.is_dir()

    tagged = home.run("tag", "minilm:1.0", "champion", "--json").json
    assert tagged["digest"] == pushed["digest"]
    assert tagged["previous"] is None
    assert tagged["moved"] is True

    (listed,) = home.run("list", "--json").json["versions"]
    assert (listed["name"], listed["version"]) == ("minilm", "1.0")
    assert listed["aliases"] == ["champion", "latest"]
    assert listed["files"] == ["model.dcz"]
    assert listed["size"] == done["file_bytes"]

    pulled = home.run("pull", "minilm:champion", "-o", "here", "--json").json
    assert pulled["files"] == [{"path": "here/model.dcz", "reused": False}]
    assert (home.path / "here/model.dcz").read_bytes() == (home.path / "model.dcz").read_bytes()
    assert home.run("pull", "minilm", "-o", "here", "--json").json["files"][0]["reused"] is True

    artifact = home.run("verify", "minilm", "--json").json
    assert artifact["reference"] == pushed["reference"]
    assert artifact["files"][0]["digest"] == done["digest"]
    assert home.run("inspect", "minilm:1.0", "--json").json["digest"] == done["digest"]

    decoded = home.run("decode", "minilm", "-o", "out", "--json").json
    assert decoded["files"] == ["config.json", "model.safetensors"]
    assert decoded["original"] is True
    for name in decoded["files"]:
        assert (home.path / "out" / name).read_bytes() == (folder / name).read_bytes()
    home.run("decode", "model.dcz", "-o", "out.safetensors")
    assert (home.path / "out.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", ["int8", "codebook", "deep-compression"])
def test_recipes_shrink_and_say_so(model: Home, recipe: str) -> None:
    text = model.run("convert", "model.safetensors", "-o", "small.dcz", "--recipe", recipe).out
    ratio = re.search(r"^  ratio   (\d\.\d+), in ", text, re.MULTILINE)
    assert ratio is not None
    size = (model.path / "small.dcz").stat().st_size
    original = sum(t.nbytes for t in load_file(model.path / "model.safetensors").values())
    assert float(ratio[1]) == pytest.approx(size / original, abs=0.001)
    assert size < 0.5 * original
    report = model.run("inspect", "small.dcz", "--json").json
    assert report["provenance"]["recipe"]["name"] == recipe
    assert report["bytes"]["parameters"] > 0
    model.run("decode", "small.dcz", "-o", "back.safetensors")
    back = load_file(model.path / "back.safetensors")
    with Reader(model.path / "small.dcz") as reader:
        for name, tensor in back.items():
            np.testing.assert_array_equal(tensor, reader.read(name))


def test_a_recipe_from_a_file(model: Home) -> None:
    (model.path / "mine.toml").write_text('[[rules]]\nvalues = { kind = "codebook", size = 4 }\n')
    done = model.run("convert", "model.safetensors", "-o", "m.dcz", "--recipe", "mine.toml", "--json").json
    assert done["recipe"] == "mine"


def test_threads_do_not_change_the_bytes(model: Home) -> None:
    digests = {
        model.run("convert", "model.safetensors", "-o", f"{n}.dcz", "--threads", str(n), "--json").json[
            "digest"
        ]
        for n in (1, 3)
    }
    assert len(digests) == 1


def test_what_is_left_out_stands_in_the_notes(home: Home) -> None:
    torch = pytest.importorskip("torch")
    state = {"weight": torch.ones(4, 4)}
    moments = {"state": {0: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"state_dict": state, "optimizer": moments, "epoch": 3}, home.path / "checkpoint.pt")
    notes = home.run("convert", "checkpoint.pt", "-o", "m.dcz", "--json").json["notes"]
    assert any("optimizer" in note for note in notes)
    text = home.run("convert", "checkpoint.pt", "-o", "m.dcz").out
    assert all(f"  note    {note}\n" in text for note in notes)


def test_an_existing_output_is_replaced(model: Home) -> None:
    (model.path / "old.dcz").write_text("something else")
    model.run("convert", "model.safetensors", "-o", "old.dcz", "--quiet")
    model.run("verify", "old.dcz", "--deep")
    (model.path / "old.safetensors").write_text("something else")
    model.run("decode", "old.dcz", "-o", "old.safetensors", "--quiet")
    load_file(model.path / "old.safetensors")


def test_quiet_is_quiet(model: Home) -> None:
    for arguments in (
        ("convert", "model.safetensors", "-o", "m.dcz"),
        ("verify", "m.dcz"),
        ("push", "m.dcz", "m:1"),
        ("pull", "m:1", "-o", "x"),
        ("decode", "m.dcz", "-o", "m.safetensors"),
    ):
        assert model.run(*arguments, "--quiet").out == ""


def test_inspect_text(model: Home) -> None:
    digest = model.run("inspect", "model.dcz", "--json").json["digest"]
    text = model.run("inspect", "model.dcz").out
    lines = text.splitlines()
    assert f"digest   {digest}" in lines
    assert "recipe   lossless" in lines
    assert any(re.match(r"from +model\.safetensors, [\d,]+ bytes", line) for line in lines)
    parts = {
        match[1].strip(): int(match[2].replace(",", ""))
        for match in re.finditer(r"^([^\d\n]+?) {2,}([\d,]+) +\d+\.\d\d$", text, re.MULTILINE)
    }
    assert parts.pop("all") == (model.path / "model.dcz").stat().st_size == sum(parts.values())
    assert {"values", "code tables", "manifest", "header, padding, footer"} <= parts.keys()
    assert any("dense x exact (rotated) x huffman" in line for line in lines)
    assert "embeddings.position_ids" not in text

    listing = model.run("inspect", "model.dcz", "--tensors").out.splitlines()
    for number, line in enumerate(listing):
        if line == "embeddings.position_ids  i64 [1, 512]":
            assert re.match(r" +\d+ +0\.\d+ +\d+\.\d\d +dense x exact \(bytes\) x ", listing[number + 1])
            break
    else:
        pytest.fail("the tensor is not listed")
    for line in [*lines, *listing, *model.run("verify", "model.dcz").out.splitlines()]:
        assert len(line) <= 80
        assert line == line.rstrip()
        assert "\x1b" not in line


def test_inspect_layers(model: Home) -> None:
    size = (model.path / "model.dcz").stat().st_size
    table = model.run("inspect", "model.dcz", "--layers", "--json").json["layer_table"]
    assert "layer_table" not in model.run("inspect", "model.dcz", "--json").json
    assert sum(table["bytes"].values()) == table["size"] == size
    assert [row["name"] for row in table["layers"] if row["is_weight"]] == [
        "encoder.layer.0.attention.weight"
    ]
    assert table["totals"]["weights"]["weights"] == 40_000
    assert table["compression"] == table["totals"]["all"]["dense_bytes"] / size
    lines = model.run("inspect", "model.dcz", "--layers").out.splitlines()
    row = next(line for line in lines if line.endswith("encoder.layer.0.attention.weight")).split()
    assert row[:3] == ["40,000", "100.00", "32.00"]
    assert any(line.endswith("(4 other tensors)") for line in lines)
    assert lines[-1].endswith(f"{size:,} bytes of file = {table['compression']:.2f}x")
    model.run("push", "model.dcz", "m:1")
    assert model.run("inspect", "m:1", "--layers", "--json").json["layer_table"] == table


def test_report(model: Home) -> None:
    digest = model.run("inspect", "model.dcz", "--json").json["digest"]
    done = model.run("report", "model.dcz", "-o", "page.html", "--json").json
    page = (model.path / "page.html").read_bytes()
    assert done == {"path": "page.html", "bytes": len(page), "digest": digest}
    assert digest.encode() in page
    assert b"encoder.layer.0.attention.weight" in page
    assert model.run("report", "model.dcz", "-o", "page.html", "-q").out == ""  # replaces it
    assert (model.path / "page.html").read_bytes() == page
    model.run("push", "model.dcz", "m:1")
    assert model.run("report", "m:1", "-o", "other.html").out.startswith("other.html: ")
    assert b"<h1>m:1</h1>" in (model.path / "other.html").read_bytes()
    (model.path / "bad.dcz").write_bytes(b"not a file of ours")
    for arguments, code in (
        (("bad.dcz", "-o", "x.html"), 1),
        (("none:1", "-o", "x.html"), 3),
        (("model.dcz",), 2),
    ):
        assert model.run("report", *arguments, code=code).err
    assert "x.html" not in model.names()


@pytest.mark.parametrize("output", ["model.dcz", "model.safetensors", "link"])
def test_a_report_replaces_pages_only(model: Home, output: str) -> None:
    (model.path / "link").symlink_to("model.dcz")
    before = (model.path / output).read_bytes()
    done = model.run("report", "model.dcz", "-o", output, "--json", code=1)
    assert done.json["error"]["code"] == "usage"
    assert f"{output} is not an HTML page" in done.err
    assert (model.path / output).read_bytes() == before


@pytest.mark.parametrize("page", [b"", b"\xef\xbb\xbf\n<!doctype HTML><p>", b"<HTML>"])
def test_a_report_replaces_other_pages(model: Home, page: bytes) -> None:
    (model.path / "page").write_bytes(page)
    model.run("report", "model.dcz", "-o", "page")
    assert (model.path / "page").read_bytes().startswith(b"<!DOCTYPE html>")


def test_a_report_about_a_damaged_file(model: Home) -> None:
    with Reader(model.path / "model.dcz") as reader:
        name = "encoder.layer.0.attention.weight"
        place = reader.geometry.segment_place(name, 0)
        at = reader.geometry.offset_of(place) + place.length - 1
    data = bytearray((model.path / "model.dcz").read_bytes())
    data[at] ^= 0xFF
    (model.path / "model.dcz").write_bytes(data)
    error = model.run("report", "model.dcz", "-o", "page.html", "--json", code=1).json["error"]
    assert (error["code"], error["file"], error["tensor"]) == ("digest-mismatch", "model.dcz", name)
    assert error["hint"] == "page.html was written, and says so"
    assert b"cannot be decoded" in (model.path / "page.html").read_bytes()


def test_inspect_paper(home: Home) -> None:
    mask = np.zeros((4, 100), np.bool_)
    mask[:, ::40] = True
    tensor = CodebookTensor(
        "f32",
        mask.shape,
        2,
        np.tile(np.arange(100, dtype=np.uint8) % 3, (4, 1)),
        np.ones((1, 3), np.float32),
        PerTensor(),
        mask,
    )
    with Writer(home.path / "m.dcz") as writer:
        writer.add_tensor("w", tensor)
    (row,) = home.run("inspect", "m.dcz", "--paper", "5", "--json").json["paper_table"]["rows"]
    # Each row: an entry at once, then 39 zeros before the next one, which take a filler, and again.
    assert (row["kept"], row["fillers"], row["index_bits"]) == (12, 8, 5)
    assert row["rate"] == (20 * (2 + 5) + 4 * 32) / (32 * 400)
    lines = home.run("inspect", "m.dcz", "--paper", "5").out.splitlines()
    assert any(line.endswith("  w") for line in lines)
    assert "as in the paper" in lines[-1]


def test_verify_text_numbers_the_steps(model: Home) -> None:
    shallow = model.run("verify", "model.dcz").out
    deep = model.run("verify", "model.dcz", "--deep").out
    for text in (shallow, deep):
        assert re.findall(r"^  (\d)  ", text, re.MULTILINE) == list("1234567")
    assert "--deep" in shallow
    assert "--deep" not in deep


def test_names_from_strangers_do_not_command_the_terminal(home: Home) -> None:
    with Writer(home.path / "m.dcz", metadata={"[bold]k\x1b[2J": "a\nb[/bold]\x07"}) as writer:
        writer.add_tensor("evil\x1b[31m\n\u202ename[red]", np.arange(3, dtype=np.uint8))
        writer.add_asset("[link=x]asset.txt", b"text")
    for arguments in (
        ("inspect", "m.dcz"),
        ("inspect", "m.dcz", "--tensors"),
        ("inspect", "m.dcz", "--layers"),
        ("inspect", "m.dcz", "--json"),
    ):
        out = home.run(*arguments).out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out)
    text = home.run("inspect", "m.dcz", "--tensors").out
    assert r"evil\x1b[31m\n\u202ename[red]  u8 [3]" in text
    assert r"[bold]k\x1b[2J: a\nb[/bold]\x07" in text
    assert "[link=x]asset.txt" in text


def test_json_and_text_survive_any_locale(home: Home) -> None:
    with Writer(home.path / "m.dcz") as writer:
        writer.add_tensor("权重", np.arange(3, dtype=np.uint8))
    environment = {**home.environment, "PYTHONIOENCODING": "latin-1"}
    for option in ("--json", "--tensors"):
        done = subprocess.run(
            [*COMMAND, "inspect", "m.dcz", option],
            cwd=home.path,
            env=environment,
            capture_output=True,
            check=True,
        )
        assert rb"\u6743\u91cd" in done.stdout
        if option == "--json":
            assert json.loads(done.stdout)["tensors"][0]["name"] == "权重"


def test_a_url_is_read_in_place(model: Home) -> None:
    url = f"file://{model.path}/model.dcz"
    local, remote = (model.run("inspect", target, "--json").json for target in ("model.dcz", url))
    assert remote["digest"] == local["digest"]
    assert remote["bytes"]["tables"] is None
    assert sum(size or 0 for size in remote["bytes"].values()) == remote["size"]
    model.run("verify", url, "--deep")
    model.run("decode", url, "-o", "back.safetensors")
    assert (model.path / "back.safetensors").read_bytes() == (model.path / "model.safetensors").read_bytes()


def test_the_registry_is_where_one_says(model: Home) -> None:
    model.run("push", "model.dcz", "a", "--registry", "elsewhere")
    assert not model.registry.exists()
    assert "a:v1" in model.run("list", "--registry", "elsewhere").out
    assert "nothing yet" in model.run("list").out
    done = subprocess.run(
        [*COMMAND, "list", "--json"],
        cwd=model.path,
        env={**model.environment, "DCZ_REGISTRY": str(model.path / "elsewhere")},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["versions"][0]["version"] == "v1"


def test_push_moves_aliases_and_repeats_itself_gladly(model: Home) -> None:
    (model.path / "notes.txt").write_text("loose")
    first = model.run("push", "model.dcz", "notes.txt", "m:1", "--alias", "a", "--alias", "b", "--json").json
    assert {change["tag"] for change in first["changes"]} == {"1", "a", "b", "latest"}
    again = model.run("push", "model.dcz", "notes.txt", "m:1").out
    assert again == f"{first['reference']} was there already\n"
    assert set(model.run("pull", "m:a", "-o", "x").out.split()) >= {"x/model.dcz", "x/notes.txt"}
    text = model.run("list", "m").out
    assert "a, b, latest" in text


def test_one_of_several_files(model: Home) -> None:
    (model.path / "other.dcz").write_bytes((model.path / "model.dcz").read_bytes())
    model.run("push", "model.dcz", "other.dcz", "both:1")
    error = model.run("inspect", "both:1", code=1).err
    assert "other.dcz" in error
    model.run("inspect", "both:1", "--file", "other.dcz")
    model.run("decode", "both:1", "--file", "model.dcz", "-o", "m.safetensors")
    files = model.run("verify", "both:1", "--json").json["files"]
    assert [file["file"] for file in files] == ["model.dcz", "other.dcz"]


def test_progress_is_drawn_on_a_terminal_only(home: Home) -> None:
    write_model(home.path / "model.safetensors", elements=4_000_000)
    main, side = pty.openpty()
    drawn = bytearray()

    def read() -> None:
        try:
            while piece := os.read(main, 1 << 16):
                drawn.extend(piece)
        except OSError:  # the other side is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    process = home.start("convert", "model.safetensors", "-o", "m.dcz", stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    out, _ = process.communicate(timeout=120)
    reader.join()
    os.close(main)
    assert process.returncode == 0
    assert b"convert model.safetensors" in drawn
    assert b"\x1b" not in out
    assert out.startswith(b"m.dcz: lossless, 5 tensors")


def test_version_and_module(home: Home) -> None:
    out = home.run("--version").out
    assert re.fullmatch(r"dcz \d+\.\d+\.\d+\S*\n", out)
    script = Path(COMMAND[0]).with_name("dcz")
    if not script.exists():
        pytest.skip("the script `dcz` is not installed beside this Python")
    assert home.run("--version", command=(str(script),)).out == out


def test_same_file_same_digest_as_the_bytes_say(model: Home) -> None:
    """The digest that the commands print is that of the stored manifest, computed here from the file alone."""
    from blake3 import blake3

    data = (model.path / "model.dcz").read_bytes()
    offset = int.from_bytes(data[-64:-56], "little")
    length = int.from_bytes(data[-56:-52], "little")
    identity = f"blake3:{blake3(data[offset : offset + length]).hexdigest()}"
    assert model.run("verify", "model.dcz").out.splitlines()[-1] == identity
    source = hashlib.sha256((model.path / "model.safetensors").read_bytes()).hexdigest()
    files = model.run("inspect", "model.dcz", "--json").json["provenance"]["files"]
    assert [file["sha256"] for file in files] == [source]


def test_differences_to_a_base(model: Home) -> None:
    tensors = load_file(model.path / "model.safetensors")
    name = "encoder.layer.0.attention.weight"
    tensors[name][::9, ::5] += 0.01
    save_file(tensors, model.path / "tuned.safetensors", metadata={"format": "pt"})

    done = model.run("convert", "tuned.safetensors", "--base", "model.dcz", "-o", "tuned.dcz", "--json").json
    assert done["differences"] > 2
    assert done["file_bytes"] < 10_000
    text = model.run("convert", "tuned.safetensors", "--base", "model.dcz", "-o", "tuned.dcz").out
    assert f"{done['differences']} tensors as differences to model.dcz" in text
    base = model.run("inspect", "model.dcz", "--json").json["digest"]
    report = model.run("inspect", "tuned.dcz", "--json").json
    assert report["bases"] == [{"digest": base, "hint": "model.dcz"}]
    stored = {one["name"]: one["values"] for one in report["tensors"]}
    assert stored[name]["delta"]["operation"] in ("difference", "xor")
    shown = model.run("inspect", "tuned.dcz").out
    assert base in shown
    assert "to the base" in " ".join(shown.split())

    # Beside it, given, from the registry; and missing, or another.
    assert model.run("verify", "tuned.dcz", "--deep", "--json").json["files"][0]["bases"] == [base]
    (model.path / "apart").mkdir()
    (model.path / "tuned.dcz").rename(model.path / "apart" / "tuned.dcz")
    for command in (
        ("decode", "apart/tuned.dcz", "-o", "out"),
        ("verify", "apart/tuned.dcz", "--deep"),
        ("convert", "apart/tuned.dcz", "-o", "full.dcz"),
    ):
        failed = model.run(*command, "--json", code=1)
        assert failed.json["error"]["code"] == "base-not-found"
        assert base in failed.err
        assert "--base" in failed.err
    assert model.names() == {"apart", "model.dcz", "model.safetensors", "tuned.safetensors"}
    assert model.run("verify", "apart/tuned.dcz").out.count("is needed to decode it") == 1
    failed = model.run(
        "decode", "apart/tuned.dcz", "-o", "out", "--base", "apart/tuned.dcz", "--json", code=1
    )
    assert failed.json["error"]["code"] == "wrong-base"
    assert model.run("decode", "apart/tuned.dcz", "-o", "out", "--base", "nobody:1", code=3).err
    model.run("decode", "apart/tuned.dcz", "-o", "out", "--base", "model.dcz")
    assert (model.path / "out" / "tuned.safetensors").read_bytes() == (
        model.path / "tuned.safetensors"
    ).read_bytes()

    model.run("push", "apart/tuned.dcz", "m:2")
    needs = f"needs its base {base}, which is"
    assert f"{needs} not in this registry" in model.run("pull", "m:2", "-o", "here").out
    model.run("push", "model.dcz", "m:1")
    assert f"{needs} m:1" in model.run("pull", "m:2", "-o", "here").out
    assert model.run("pull", "m:2", "-o", "here", "--json").json["bases"] == [base]
    model.run("verify", "m:2", "--deep")
    model.run("decode", "m:2", "-o", "again")
    model.run("decode", "apart/tuned.dcz", "-o", "third", "--base", "m:1")
    model.run("convert", "tuned.safetensors", "--base", "m:1", "-o", "c.dcz")
    assert model.run("inspect", "c.dcz", "--json").json["bases"][0]["hint"] == "m:1"

    failed = model.run(
        "convert", "tuned.safetensors", "--base", "model.dcz", "-o", "model.dcz", "--json", code=1
    )
    assert failed.json["error"]["code"] == "usage"
    assert model.run("inspect", "model.dcz", "--json").json["digest"] == base


def test_a_folder_and_back(home: Home) -> None:
    (home.path / "in" / "sub").mkdir(parents=True)
    write_model(home.path / "in" / "model.safetensors")
    write_model(home.path / "in" / "sub" / "model.safetensors", seed=1)
    (home.path / "in" / "config.json").write_text('{"model_type": "bert"}')
    done = home.run(
        "convert", "in", "-o", "out/", "--max-shard-size", "100KB", "--base-model", "org/name", "--json"
    ).json
    assert home.names("out") == {
        *(file["path"] for file in done["files"] if "/" not in file["path"]),
        *("sub", "config.json", "README.md", "model.safetensors.index.json"),
    }
    assert len(done["files"]) > 2
    for file in done["files"]:
        assert home.run("inspect", f"out/{file['path']}", "--json").json["digest"] == file["digest"]
        assert (home.path / "out" / file["path"]).stat().st_size == file["bytes"]
    assert "base_model: org/name" in (home.path / "out" / "README.md").read_text()
    back = home.run("hydrate", "out/", "-o", "back", "--json").json
    assert sorted(back["files"]) == ["config.json", "model.safetensors", "sub/model.safetensors"]
    for name in back["files"]:
        assert (home.path / "back" / name).read_bytes() == (home.path / "in" / name).read_bytes()
    text = home.run("hydrate", "./out", "-o", "again").out
    assert "left out: README.md" in text
    home.run("convert", "in/model.safetensors", "-o", "m.dcz", "--quiet")
    assert home.run("hydrate", "m.dcz", "-o", "single", "--quiet").out == ""
    assert home.names("single") == {"model.safetensors"}
    assert "ratio" in home.run("convert", "in", "-o", "more/").out


def test_options_that_do_not_fit(home: Home) -> None:
    write_model(home.path / "m.safetensors")
    assert (
        "is for a folder"
        in home.run("convert", "m.safetensors", "-o", "m.dcz", "--max-shard-size", "1GB", code=2).err
    )
    assert "single file" in home.run("convert", "m.safetensors", "-o", "m/", "--base", "x.dcz", code=2).err
    assert (
        "such as 5GB" in home.run("convert", "m.safetensors", "-o", "m/", "--max-shard-size", "x", code=1).err
    )
    assert "no index" in home.run("hydrate", "./", "-o", "x", code=1).err
    assert home.names() == {"m.safetensors"}
