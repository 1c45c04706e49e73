"""A folder that claims to be an export: whatever is wrong with it, one line names the folder and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import bitgen
from bitgen.checkpoint.manifest import DamagedCheckpoint
from bitgen.commands import caption, evaluate
from bitgen.export.revisions import export_run
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.trained import open_model
from faults.harness import flip, spread_bits
from support.runs import written_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An export as it was before exports had checksums, which would find most of what follows."""
    folder = export_run(str(written_run()), str(tmp_path_factory.mktemp("whole") / "model"), True, False, {})
    (folder / CHECKSUMS).unlink()
    return folder


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def change(name, **values):
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return apply


def weights(edit):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DEEP = b"[" * 200_000
DAMAGE = {
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights pickled": (pickled, "model.safetensors is missing"),
    "weights cut": (lambda f: write("model.safetensors", (f / "model.safetensors").read_bytes()[:500])(f), "damaged"),
    "weights of nothing": (write("model.safetensors", b""), "damaged"),
    "weights with a huge header": (write("model.safetensors", b"\xff" * 8 + b"{}"), "damaged"),
    "weights of another shape": (
        weights(lambda t: t.update({"text_projection.weight": torch.zeros(3, 3)})),
        r"text_projection.weight is \[3, 3\] there and \[16, 16\] here: another release of BitGen may have written it",
    ),
    "a weight missing": (weights(lambda t: t.pop("text_projection.weight")), "lacks 1 weights, first text_projection"),
    "configuration no JSON": (write("config.json", b'{"model_type": "bitgen", '), "no exported model|no trained model"),
    "configuration deep": (write("config.json", DEEP), "no exported model"),
    "configuration no object": (write("config.json", b"[]"), "no exported model"),
    "configuration of another kind": (change("config.json", model_type=["bitgen"]), "no exported model"),
    "a size no number": (change("config.json", embed_dim="wide"), "damaged"),
    "a size none": (change("config.json", num_heads=0), "damaged"),
    "a size of another model": (change("config.json", embed_dim=24, vision_embed_dim=24), "damaged"),
    "a million layers": (change("config.json", num_layers=1_000_000), "num_layers is 1000000, beyond 1,000"),
    "a vocabulary without end": (change("config.json", vocab_size=10**12), "vocab_size is 1000000000000, beyond"),
    "no tower": (change("config.json", vision_config={"model_type": "dinov2"}), "damaged"),
    "training no object": (change("config.json", trained_with=[1]), "damaged"),
    "a temperature no number": (change("config.json", trained_with={"learned_temperature": "hot"}), "damaged"),
    "a weight of the training no number": (change("config.json", trained_with={"itm_weight": "x"}), "damaged"),
    "tokenizer missing": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "tokenizer no JSON": (write("tokenizer.json", b"\0\1"), "tokenizer.json: it is no JSON"),
    "tokenizer deep": (write("tokenizer.json", DEEP), "tokenizer.json: it is nested too deeply"),
    "tokenizer of another shape": (write("tokenizer.json", b'{"model": 3}'), "damaged"),
    "tokenizer's settings": (write("tokenizer_config.json", b"[]"), "tokenizer_config.json: it holds a list"),
    "no end of a text": (change("tokenizer_config.json", eos_token=None), "damaged"),
    "processor missing": (
        lambda folder: (folder / "processor_config.json").unlink(),
        "processor_config.json is missing",
    ),
    "image processor missing": (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    "image processor of other channels": (
        change("preprocessor_config.json", image_mean=[0.5]),
        "image_mean is .*three numbers",
    ),
    "image processor of no numbers": (change("preprocessor_config.json", image_std="x"), "damaged"),
    "a message that clears the screen": (change("config.json", fusion="\x1b[2J"), r"\\x1b"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_one_line(whole, tmp_path, damage, capsys):
    apply, message = DAMAGE[damage]
    folder = shutil.copytree(whole, tmp_path / "model")
    apply(folder)
    with pytest.raises(ValueError, match=message) as refused:
        bitgen.load(folder, device="cpu")
    said = str(refused.value)
    assert said.startswith(str(folder)) and len(said.splitlines()) == 1 and said.isprintable()


@pytest.mark.parametrize("damage", ["tokenizer of another shape", "training no object"])
@pytest.mark.parametrize("entry", ["caption", "retrieval", "captioning", "babylm"])
def test_every_entry_ends_with_that_line(whole, tmp_path, entry, damage, capsys):
    folder = shutil.copytree(whole, tmp_path / "model")
    DAMAGE[damage][0](folder)
    Image.new("RGB", (30, 30)).save(tmp_path / "photo.png")
    (tmp_path / "sets" / "blimp_fast").mkdir(parents=True)
    item = {"sentence_good": "a cat", "sentence_bad": "cat a", "UID": "x", "field": "f", "linguistics_term": "t"}
    (tmp_path / "sets" / "blimp_fast" / "one.jsonl").write_text(json.dumps(item) + "\n")
    with pytest.raises(SystemExit) as stopped:
        if entry == "caption":
            caption.main([str(tmp_path / "photo.png"), "--model", str(folder)])
        else:
            evaluate.main(
                ["--checkpoint", str(folder), "--task", entry, "--output", str(tmp_path / "out.json")]
                + ["--data", "scenes", "--eval_dir", str(tmp_path / "sets"), "--device", "cpu"]
            )
    assert stopped.value.code == 2
    assert "is a damaged or incomplete export" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_in_an_export_is_found(tmp_path: Path, name: str) -> None:
    folder = export_run(str(written_run()), str(tmp_path / "model"), True, False, {})
    good = (folder / name).read_bytes()
    open_model(folder)
    for bit in spread_bits(folder / name, 20):
        flip(folder / name, bit)
        with pytest.raises(DamagedCheckpoint, match="damaged or incomplete export"):
            open_model(folder)
        (folder / name).write_bytes(good)
    (folder / CHECKSUMS).unlink()
    open_model(folder)
