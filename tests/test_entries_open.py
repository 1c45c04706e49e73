"""Every entry takes a run, a checkpoint or an export, and refuses anything else with one message that names it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from bitgen.commands import caption, evaluate, export, memory
from bitgen.config import ConfigError
from bitgen.export.revisions import export_run
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.tasks.stage1_parts import start_from
from bitgen.trained import open_model
from support.runs import written_run

EVALUATE = ["--data", "scenes", "--max_images", "4", "--task", "retrieval", "--rerank_top_k", "2", "--bootstrap", "0"]
EVALUATE += ["--device", "cpu", "--num_workers", "0"]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    """What a person may name, by what it is."""
    folder, run = tmp_path_factory.mktemp("given"), written_run()
    exported = export_run(str(run), str(folder / "export"), False, False, {})
    damaged = shutil.copytree(run, folder / "damaged run", symlinks=True)
    change_a_bit(damaged / "step-00000007" / "model.safetensors")
    headless = shutil.copytree(run, folder / "headless run", symlinks=True)
    (headless / "step-00000007" / "manifest.json").unlink()
    baseless = shutil.copytree(run, folder / "baseless run", symlinks=True)
    for base in baseless.glob("vision_base-*"):
        change_a_bit(base)
    orphan = shutil.copytree(run / "step-00000007", folder / "orphan")
    for base in run.glob("vision_base-*"):
        shutil.copy(base, folder)
    cut = shutil.copytree(exported, folder / "cut export")
    (cut / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:-8])
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "file").write_text("")
    return {
        "run": run,
        "checkpoint": run / "step-00000007",
        "export": exported,
        "damaged run": damaged,
        "damaged checkpoint": damaged / "step-00000007",
        "checkpoint without a manifest": headless / "step-00000007",
        "damaged base": baseless,
        "checkpoint without a tokenizer": orphan,
        "damaged export": cut,
        "missing folder": folder / "nowhere",
        "empty folder": folder / "empty",
        "another model": folder / "other",
        "file": folder / "file",
    }


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.effect_noise((50, 40), 90).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def entries(given, photo, tmp_path):
    """``{entry: call}``; each call opens what it is given as a person would have it opened."""
    network = open_model(given["run"])

    def start(path: str) -> None:
        model = copy.deepcopy(network.model)
        with torch.no_grad():
            model.final_norm.weight.zero_()
        start_from(model, network.tokenizer, path)
        assert torch.equal(model.final_norm.weight, network.model.final_norm.weight)

    results = ["--output", str(tmp_path / "results.json")]
    run = str(given["run"])
    return {
        "evaluate --checkpoint": lambda path: evaluate.main(["--checkpoint", path, *EVALUATE, *results]),
        "evaluate --captioner": lambda path: evaluate.main(
            ["--checkpoint", run, "--captioner", path, *EVALUATE, *results]
        ),
        "export --checkpoint": lambda path: export.main(["--checkpoint", path, "--output", str(tmp_path / "out")]),
        "caption --model": lambda path: caption.main([photo, "--model", path, "--max_new_tokens", "2"]),
        "memory --model": lambda path: memory.main(
            ["--model", path, "--memory", str(tmp_path / "m"), "--device", "cpu", "teach", photo, "this is Rex"]
        ),
        "init_from": start,
    }


ENTRIES = [
    "evaluate --checkpoint",
    "evaluate --captioner",
    "export --checkpoint",
    "caption --model",
    "memory --model",
    "init_from",
]
REFUSED = {
    "damaged run": "is damaged: .*step-00000007.model.safetensors is not what was written .* Give another",
    "damaged checkpoint": "is damaged: .*step-00000007.model.safetensors is not what was written .* Give another",
    "checkpoint without a manifest": "is damaged: cannot read .*manifest.json.* Give another",
    "damaged base": "vision_base-.* is damaged.* Restore it from a copy",
    "checkpoint without a tokenizer": "has no tokenizer: .* is missing.* put it back",
    "damaged export": "is a damaged or incomplete export .* Export the model again",
    "missing folder": "there is no such folder. Give a run's --output_dir, one of its checkpoints or an export",
    "empty folder": "holds no trained model. Give a run's --output_dir, one of its checkpoints or an export",
    "another model": "is no exported model of BitGen .*gpt2.* Give a run's --output_dir",
    "file": "this is a file. Give a run's --output_dir",
}


@pytest.mark.parametrize("what", ["run", "checkpoint", "export"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_was_trained_is_opened(entries, given, capsys, entry: str, what: str) -> None:
    if (entry, what) == ("export --checkpoint", "export"):
        said = refusal(entries[entry], given[what], capsys)
        assert "is an export already. Give the --output_dir of the run" in said and str(given[what]) in said
        return
    entries[entry](str(given[what]))


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_anything_else_is_one_message_that_names_it(entries, given, capsys, tmp_path, entry: str, what: str) -> None:

    said = refusal(entries[entry], given[what], capsys)
    if (entry, what) == ("export --checkpoint", "damaged export"):
        assert "is an export already" in said
    else:
        assert re.search(REFUSED[what], said), said
    assert given[what].name in said and "Traceback" not in said
    assert entry.split()[-1] in said, "the flag or setting is named"
    assert {path.name for path in tmp_path.iterdir()} <= {"photo.png", ".m.lock"}


def refusal(call, path: Path, capsys) -> str:
    """The one message with which an entry refuses."""
    capsys.readouterr()
    with pytest.raises((SystemExit, ConfigError)) as stopped:
        call(str(path))
    if isinstance(stopped.value, ConfigError):
        return str(stopped.value)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    return " ".join(said.split("error: ")[1].split())


@pytest.mark.parametrize(
    ("settings", "untrained"),
    [
        ({}, {}),
        ({"text_loss_weight": 0.0}, {"captions": "never learned to write"}),
        ({"itm_weight": 0.0}, {"matching": "the matching head is untrained"}),
        ({"contrastive_weight": 0.0}, {"retrieval": "never brought together"}),
        ({"train_data": None}, dict.fromkeys(("captions", "matching", "retrieval"), "has never seen an image")),
    ],
)
def test_a_checkpoint_and_its_export_say_what_was_never_learned(tmp_path, settings, untrained) -> None:
    run = written_run(features=True, settings=settings)
    exported = export_run(str(run), str(tmp_path / "model"), False, False, {})
    for trained in map(open_model, (run, exported)):
        assert list(trained.untrained) == list(untrained)
        for what, part in untrained.items():
            assert part in trained.untrained[what]
            with pytest.raises(ConfigError, match=part):
                trained.require(what)
        assert trained.config.objective.text_loss_weight == settings.get("text_loss_weight", 1.0)


def test_an_export_of_before_says_nothing_and_still_opens(tmp_path) -> None:

    exported = export_run(str(written_run(features=True)), str(tmp_path / "model"), False, False, {})
    config = json.loads((exported / "config.json").read_text())
    del config["trained_with"]
    (exported / "config.json").write_text(json.dumps(config))
    trained = open_model(exported)
    assert trained.untrained == {} and trained.kind == "export" and not trained.model.training


def test_an_export_that_lacks_weights_is_refused(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    exported = export_run(str(written_run(features=True)), str(tmp_path / "model"), False, False, {})
    weights = load_file(exported / "model.safetensors")
    del weights["final_norm.weight"]
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not what was exported"):
        open_model(exported)
    (exported / CHECKSUMS).unlink()  # as in exports of earlier versions
    with pytest.raises(ValueError, match="lacks 1 weights, first final_norm.weight"):
        open_model(exported)
