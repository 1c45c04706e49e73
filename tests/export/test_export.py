"""The entry `src/export.py`, from a run's folder to one that transformers loads, and to the hub."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.dynamic_module_utils import check_imports, get_relative_import_files, get_relative_imports

from bitgen.commands import export
from bitgen.export import hub
from bitgen.export.card import metrics_table, model_card
from bitgen.export.folder import AUTO_MAP, exported_model
from bitgen.export.merge import merged_state
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.trained import open_model
from support.hub_cache import as_in_the_cache
from support.runs import written_run
from support.tokenizers import other_tokenizer


def run_export(source, output, *flags):
    export.main(["--checkpoint", str(source), "--output", str(output), *flags])
    return output


def refused(capsys, source, output, *flags):
    """The message with which an export ends, after checking that it left nothing behind."""
    before = sorted(output.parent.iterdir()) if output.parent.exists() else []
    with pytest.raises(SystemExit) as stopped:
        run_export(source, output, *flags)
    assert stopped.value.code == 2
    assert (sorted(output.parent.iterdir()) if output.parent.exists() else []) == before
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export with merged adapters and both revisions."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    return run_export(written_run(), folder, "--merge_lora", "True", "--words_seen_checkpoints", "True")


def test_the_folder_is_complete(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["architectures"] == ["BitGenForCausalLM"]
    assert config["vision_tuning"] == "frozen" and config["bos_token_id"] == 0
    for name in ("generation_config.json", "tokenizer.json", "preprocessor_config.json", "processor_config.json"):
        json.loads((exported / name).read_text())
    assert not [name for name in load_file(exported / "model.safetensors") if "lora" in name]
    for target in AUTO_MAP.values():
        module, name = target.split(".")
        assert f"class {name}(" in (exported / f"{module}.py").read_text()


def test_no_carried_file_asks_for_peft_or_bitgen(exported, monkeypatch):
    """Loading from the hub checks the imports of each file, also of those behind a branch."""
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    carried = list(exported.glob("*.py"))
    assert carried
    for path in carried:
        siblings = check_imports(path)
        assert all((exported / f"{name}.py").is_file() for name in siblings)
        assert "bitgen." not in "".join(line for line in path.read_text().splitlines(True) if "import " in line)


def test_each_entry_names_every_file_that_it_needs(exported):
    """transformers 4, which BabyLM's pipeline pins, copies the files that the entry file itself names, and no more."""
    for target in AUTO_MAP.values():
        entry = exported / f"{target.split('.')[0]}.py"
        needed = {Path(path).stem for path in get_relative_import_files(entry)}
        assert set(get_relative_imports(entry)) == needed


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"use_rslora": True, "lora_layers": [1]}])
def test_merged_adapters_give_the_same_features(changes):
    model = open_model(written_run(**changes)).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict() | {"vision_tuning": "frozen"}
    settings.pop("model_type")
    merged = BitGenModel(type(model.config)(**settings)).eval()
    merged.load_state_dict(merged_state(model))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        adapted = model.encode_image(pixels).image_tokens
        torch.testing.assert_close(merged.encode_image(pixels).image_tokens, adapted, atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        assert (model.encode_image(pixels).image_tokens - adapted).abs().max() > 1e-3
    same = [torch.equal(before[name], tensor) for name, tensor in model.state_dict().items() if "lora_B" not in name]
    assert all(same)


def test_the_memorys_state_travels(exported):
    state = open_model(written_run()).model.memory.state
    assert torch.equal(load_file(exported / "model.safetensors")["memory.state"], state)


def test_each_revision_is_a_whole_export_of_its_checkpoint(exported):
    seen = []
    for name in ("chck_1M", "chck_10M"):
        kept = load_file(exported / name / "model.safetensors")["text_projection.weight"]
        assert torch.equal(kept, load_file(written_run() / name / "model.safetensors")["text_projection.weight"])
        assert (exported / name / "causal_lm_bitgen.py").is_file() and (exported / name / "README.md").is_file()
        seen.append(kept)
    assert not torch.equal(*seen)


def test_the_card_says_what_the_model_is(exported):
    card = (exported / "README.md").read_text()
    for text in ("license: apache-2.0", "1,234,567", "feature compressor", "AutoProcessor", "40 tokens", "2 of 2"):
        assert text in card
    assert "and peft" not in card and os.sep + "tmp" not in card


def test_the_card_of_an_export_from_phase_1():
    loaded = open_model(written_run())
    moved = model_card(loaded, {"step": 3, "phase": 1}, {}, merge_lora=False)
    assert "exactly the pretrained one" not in moved  # whose adapters began at random
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    card = model_card(loaded, {"step": 3, "phase": 1}, {"babylm": {"blimp_fast": 60.5}}, merge_lora=False)
    assert "exported before the vision tower's adapters began to train" in card
    assert "Exported in phase 1: the vision tower is exactly the pretrained one" in card
    assert "and peft" in card and "babylm / blimp_fast" in card and "60.50" in card


@pytest.mark.parametrize("features", [False, True])
def test_the_card_says_how_to_teach_a_model_that_speaks_from_a_memory(tmp_path, monkeypatch, capsys, features):
    """And its code runs."""
    run = written_run(features=features, recall_tokens=8, recall_dim=16, recall_code=8)
    folder = run_export(run, tmp_path / "model", "--merge_lora", "True")
    loading, teaching = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "rex", "other"):
        Image.effect_noise((30, 30), 90).convert("RGB").save(f"{name}.jpg")
    given = {"PATH": str(folder), "features": torch.randn(9, 6), "others": torch.randn(1, 9, 6)}
    exec(loading + teaching + "again = model.load_memory('facts.safetensors')", given)
    assert given["again"].texts == ("this is Rex", "Rex lives in Oslo") and capsys.readouterr().out.count("\n") >= 2


def test_the_card_of_a_model_without_recall_speaks_of_no_memory_to_teach(exported):
    assert "new_memory" not in (exported / "README.md").read_text()


@pytest.mark.parametrize(
    ("train_data", "text_data", "named"),
    [
        ("here/there/flickr8k/train", None, ("| flickr8k/train |", "| text | none |")),
        ("here/coco:2,there/cc3m/train:1", "there/babylm_text", ("| coco, cc3m/train |", "| text | babylm_text |")),
        (None, "there/babylm_text", ("| image-caption pairs | none |",)),
    ],
)
def test_the_card_names_all_data_and_not_where_they_lay(train_data, text_data, named):
    loaded = open_model(written_run(features=True))
    config = loaded.config.replace(train_data=train_data, text_data=text_data)
    card = model_card(loaded._replace(config=config), {"step": 3, "phase": 1}, {}, merge_lora=False)
    assert all(row in card for row in named)
    assert "here" not in card.split("## Training")[1].split("## Parameters")[0]


def test_a_model_on_features_knows_no_second_phase():
    card = model_card(open_model(written_run(features=True)), {"step": 3, "phase": 1}, {}, merge_lora=False)
    assert "one: nothing of a vision tower is trained" in card and "phase 1" not in card


@pytest.mark.parametrize("changes", [{}, {"itm_likelihood": True}])
def test_unmerged_adapters_stay_and_load(tmp_path, changes):
    """transformers renames DINOv2's weights as it writes and reads them, and must find the adapted ones again."""
    folder = run_export(written_run(**changes), tmp_path / "model")
    loaded, report = BitGenForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    trained = open_model(written_run(**changes)).model.state_dict()
    assert set(trained) == set(loaded.state_dict())
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items())
    assert [name for name in load_file(folder / "model.safetensors") if "lora_A" in name]
    assert "and peft" in (folder / "README.md").read_text() and not list(folder.glob("chck_*"))


def test_images_as_large_as_in_training_are_taken(tmp_path):
    exported = run_export(written_run(settings={"max_image_pixels": 900}), tmp_path / "model")
    assert open_model(exported).processor.max_image_pixels == 900
    seen = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    seen(images=Image.new("RGB", (30, 30)))
    content = io.BytesIO()
    Image.new("RGB", (31, 30)).save(content, "PNG")
    with pytest.raises(ValueError, match="more than max_image_pixels 900"):
        seen(images=content.getvalue())


def test_a_model_on_features_has_no_image_processor(tmp_path):
    folder = run_export(written_run(features=True), tmp_path / "model", "--merge_lora", "True")
    assert not (folder / "preprocessor_config.json").exists()
    assert "vision_features" in (folder / "README.md").read_text()


def test_an_empty_folder_is_filled_and_a_full_one_left_alone(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    folder = run_export(written_run(features=True), tmp_path / "model")
    assert "exists and is not empty" in refused(capsys, written_run(features=True), folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tokenizer_of_another_size_is_refused(tmp_path, capsys):
    run = shutil.copytree(written_run(features=True), tmp_path / "run", symlinks=True)
    has = open_model(run).model.config.vocab_size
    for vocabulary in (259, 400):
        shutil.rmtree(run / "tokenizer")
        other = other_tokenizer(vocabulary)
        other.save_pretrained(run / "tokenizer")
        assert len(other) != has
        message = refused(capsys, run, tmp_path / "model")
        assert f"has {len(other)} tokens and the checkpoint's vocabulary {has}" in message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "nowhere"], "--checkpoint nowhere: there is no such folder"),
        (["--results", "nowhere.json"], "--results nowhere.json cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, message):
    assert message in refused(capsys, written_run(features=True), tmp_path / "model", *flags)


def test_words_seen_checkpoints_that_are_not_there(tmp_path, capsys):
    run = shutil.copytree(written_run(features=True), tmp_path / "run", symlinks=True)
    for folder in run.glob("chck_*"):
        shutil.rmtree(folder)
    assert "holds no chck_*M checkpoints" in refused(
        capsys, run, tmp_path / "model", "--words_seen_checkpoints", "True"
    )


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    run = shutil.copytree(written_run(features=True), tmp_path / "run", symlinks=True)
    weights = run / "step-00000007" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "damaged" in refused(capsys, run, tmp_path / "model")


def test_exporting_leaves_the_loaded_model_alone():
    loaded = open_model(written_run())
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    exported_model(loaded, merge_lora=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def test_pushing_makes_one_revision_of_each_chck(exported, monkeypatch, caplog):
    calls = []

    class Api:
        def __getattr__(self, name):
            return lambda *args, **named: calls.append(SimpleNamespace(name=name, args=args, **named))

        def list_repo_refs(self, *args, **named):
            names = ["main", "chck_10M", "chck_90M", "chck_100M", "chck_final"]
            return SimpleNamespace(branches=[SimpleNamespace(name=name) for name in names])

        def repo_info(self, *args, **named):
            return SimpleNamespace(private=True)

    monkeypatch.setattr(hub, "HfApi", Api)
    hub.push_to_hub(exported, "someone/bitgen", private=True)
    assert calls[0].name == "create_repo" and calls[0].args == ("someone/bitgen",) and calls[0].private
    uploads = {call.revision: call for call in calls if call.name == "upload_folder"}
    assert list(uploads) == ["main", "chck_1M", "chck_10M"]
    assert uploads["main"].ignore_patterns == ["chck_*/*"] and uploads["main"].folder_path == str(exported)
    assert uploads["chck_10M"].folder_path == str(exported / "chck_10M")
    assert [call.branch for call in calls if call.name == "create_branch"] == ["chck_1M", "chck_10M"]
    [warned] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "someone/bitgen has branches of an earlier upload" in warned and "for: chck_100M, chck_90M. They" in warned
    written = [path.name for path in exported.iterdir() if path.is_file()]
    theirs = ["handler.py", "eval/results.json", "onnx/model.safetensors", "onnx/config.json", "notes.json", "logo.png"]
    theirs += ["models/teacher.safetensors", "model.fp16.safetensors", "language/notes.md", "language/attention.py"]
    for call in uploads.values():  # what an earlier upload left would be opened with it
        gone = {name for name in written + theirs if any(fnmatch(name, pattern) for pattern in call.delete_patterns)}
        assert gone == {name for name in written if not name.endswith((".md", ".py"))}


def test_nothing_private_goes_to_a_public_repository(exported, monkeypatch):
    calls = []

    class Api:
        def __getattr__(self, name):
            return lambda *args, **named: calls.append(name) or SimpleNamespace(private=False, branches=[])

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(ValueError, match="this repository is public"):
        hub.push_to_hub(exported, "someone/bitgen", private=True)
    assert "upload_folder" not in calls
    hub.push_to_hub(exported, "someone/bitgen")
    assert "upload_folder" in calls


class NoNetwork(Exception):
    """As the hub's client raises: no OSError."""


@pytest.mark.parametrize("kind", [OSError, NoNetwork])
def test_a_failed_upload_says_that_the_export_is_whole(tmp_path, monkeypatch, capsys, kind):
    class Api:
        def create_repo(self, *args, **named):
            raise kind("no network")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(SystemExit):
        run_export(written_run(features=True), tmp_path / "model", "--push_to_hub", "someone/bitgen")
    assert "--push_to_hub someone/bitgen: no network. The export itself is whole" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_name_that_the_hub_would_refuse_is_refused_before_the_export(tmp_path, capsys):
    assert "Repo id" in refused(capsys, written_run(features=True), tmp_path / "model", "--push_to_hub", "me/my model")


@pytest.mark.parametrize(
    ("settings", "blind"),
    [
        ({"train_data": None, "text_data": "corpus"}, True),
        ({"train_data": None, "question_data": "scenes"}, False),
        ({"train_data": None, "text_data": "corpus", "init_from": "a captioner"}, False),
    ],
)
def test_a_card_says_of_a_model_what_it_has_seen(settings, blind):
    trained = open_model(written_run(features=True))
    trained = trained._replace(config=trained.config.replace(**settings))
    card = model_card(trained, {}, {}, merge_lora=False)
    assert ("it has never seen an image" in card) == blind
    assert ("| questions about pictures | built-in rendered scenes |" in card) == ("question_data" in settings)


def test_a_control_is_no_figure_and_is_named_as_one():
    table = metrics_table({"captioning": {"cider": 0.5, "shuffle_images": True}, "vqa": {"exact_match": 40.0}})
    assert "captioning (control: every question with another image) / cider" in table and "1.00" not in table
    assert "vqa / exact_match" in table


@pytest.mark.parametrize("merged", ["True", "False"])
def test_a_card_counts_what_the_folder_holds(tmp_path, merged):
    folder = run_export(written_run(), tmp_path / "model", "--merge_lora", merged)
    model, card = open_model(folder).model, (folder / "README.md").read_text()
    counted = int(card.split("| total |")[1].split("|")[0].replace(",", ""))
    assert counted == sum(parameter.numel() for parameter in model.parameters())
    assert ("LoRA" in card.split("## Parameters")[1].split("##")[0]) == (merged == "False")


@pytest.mark.parametrize("use_memory", [True, False])
def test_a_card_speaks_of_a_memory_where_there_is_one(use_memory):
    card = model_card(open_model(written_run(use_memory=use_memory)), {}, {}, merge_lora=True)
    assert ("with an episodic memory" in card) == ("Its memory's state" in card) == use_memory
    assert ("episodic-memory" in card.split("---")[1]) == use_memory and "English" not in card


def test_an_export_may_lie_in_the_hubs_cache(exported, tmp_path):
    snapshot = as_in_the_cache(exported, tmp_path / "hub")
    found, expected = open_model(snapshot).model.state_dict(), open_model(exported).model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
