"""Exported folders of vision-language models: what lies in them, that they load anywhere, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitgen.commands import export
from bitgen.export.vlm_folder import write_vlm_folder
from bitgen.export.vlm_merge import merged
from bitgen.machine.files import file_hash
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.trained_vlm import is_vlm, open_vlm
from bitgen.vlm.adapters import adapted_layers
from support.hub_cache import as_in_the_cache
from support.runs import written_run
from support.tiny_vlms import LORA, an_input, language_folder, logits_of, tiny_vlm, tower_folder

DORA = LORA | {"kind": "dora", "rslora": True}
# What is exported: arguments of ``tiny_vlm``, and the files that hold weights.
ADAPTER, CONNECTOR, LANGUAGE, VISION = (
    "adapter_model.safetensors", "connector.safetensors", "language/model.safetensors", "vision.safetensors"
)  # fmt: skip
KINDS = {
    "connector": (dict(adapter=None), {CONNECTOR}),
    "lora": (dict(), {CONNECTOR, ADAPTER}),
    "dora": (dict(adapter=DORA, connector="tac", layers="all"), {CONNECTOR, ADAPTER}),
    "own language": (dict(adapter=None, own_parts=("language",)), {CONNECTOR, LANGUAGE}),
    "own language with lora": (dict(own_parts=("language",)), {CONNECTOR, ADAPTER, LANGUAGE}),
    "own vision": (dict(own_parts=("vision",), tuning="full"), {CONNECTOR, ADAPTER, VISION}),
    "vision lora": (dict(tuning="lora"), {CONNECTOR, ADAPTER, VISION}),
    "all own": (dict(own_parts=("language", "vision"), tuning="full"), {CONNECTOR, ADAPTER, LANGUAGE, VISION}),
}


@pytest.fixture
def parts(tmp_path):
    return tower_folder(tmp_path / "tower"), language_folder(tmp_path / "lm")


@pytest.fixture
def exported(parts, tmp_path):
    write_vlm_folder(tiny_vlm(*parts), made(tmp_path / "export"), {})
    return tmp_path / "export"


def made(folder):
    """A new folder."""
    folder.mkdir()
    return folder


def weights_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}


def sum_anew(folder):
    sums = {name: file_hash(folder / name) for name in json.loads((folder / CHECKSUMS).read_text())}
    (folder / CHECKSUMS).write_text(json.dumps(sums))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_what_is_its_own_and_loads_wherever_it_lies(kind, parts, tmp_path):
    settings, files = KINDS[kind]
    trained = tiny_vlm(*parts, **settings)
    before = logits_of(trained)
    write_vlm_folder(trained, made(tmp_path / "export"), {})
    assert weights_in(tmp_path / "export") == files
    assert is_vlm(tmp_path / "export")
    made(tmp_path / "a b")
    shutil.move(tmp_path / "export", tmp_path / "a b" / "c")
    for part, folder in zip(("vision", "language"), parts, strict=True):
        if part in settings.get("own_parts", ()):
            shutil.rmtree(folder)  # what is its own is not looked for elsewhere
    loaded = open_vlm(tmp_path / "a b" / "c")
    assert torch.equal(logits_of(loaded), before)
    said = json.loads(json.dumps(trained.description.to_dict()))
    assert json.loads(json.dumps(loaded.description.to_dict())) == said
    # Written again, it is the same.
    write_vlm_folder(loaded, made(tmp_path / "again"), {})
    sums = [json.loads((path / CHECKSUMS).read_text()) for path in (tmp_path / "a b" / "c", tmp_path / "again")]
    assert sums[0] == sums[1]


def test_plain_peft_puts_the_adapter_on_the_plain_base(exported, parts):
    ours = open_vlm(exported)
    inputs = an_input(ours)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parts[1]), exported).eval()
    base = AutoModelForCausalLM.from_pretrained(parts[1]).eval()
    with torch.no_grad():
        embeds = ours.model.embed(inputs)
        expected = ours.model.language(inputs_embeds=embeds).logits
        assert torch.equal(theirs(inputs_embeds=embeds).logits, expected)
        assert (base(inputs_embeds=embeds).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("settings", [dict(), dict(adapter=DORA), dict(own_parts=("language",)), dict(tuning="lora")])
def test_merged_adapters_leave_a_language_model_of_its_own(settings, parts, tmp_path):
    trained = tiny_vlm(*parts, **settings)
    inputs = an_input(trained)
    before, plain = logits_of(trained, inputs), logits_of(tiny_vlm(*parts, adapter=None), inputs)
    write_vlm_folder(merged(trained), made(tmp_path / "export"), {})
    shutil.rmtree(parts[1])
    loaded = open_vlm(tmp_path / "export")
    assert not adapted_layers(loaded.model.language) and loaded.description.adapter is None
    assert not any("lora_" in name for name in loaded.model.state_dict())
    torch.testing.assert_close(logits_of(loaded, inputs), before, atol=1e-5, rtol=1e-5)
    assert (plain - before).abs().max() > 0.1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / "language").eval()
    with torch.no_grad():
        embeds = loaded.model.embed(inputs)
        assert torch.equal(theirs(inputs_embeds=embeds).logits, loaded.model.language(inputs_embeds=embeds).logits)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "export" / "language")("a dog").input_ids
        == loaded.tokenizer("a dog").input_ids
    )


# ---- what is refused ----


def refused(folder, *words):
    with pytest.raises(ValueError) as error:
        open_vlm(folder)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", [0, 1])
def test_another_base_is_refused(which, exported, parts):
    [path] = parts[which].glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})
    refused(exported, str(parts[which]), "other weights")


@pytest.mark.parametrize("file", [CONNECTOR, ADAPTER])
def test_a_weight_that_is_missing_unknown_or_of_another_shape_is_refused(file, exported, tmp_path):
    whole = load_file(exported / file)
    name = sorted(whole)[0]
    others = {key: tensor for key, tensor in whole.items() if key != name}
    for tensors in (others, whole | {"linear_9.weight": torch.zeros(2)}, others | {name: whole[name][:1]}):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, exported / file, {"format": "pt"})
        refused(exported, "is not what was exported")
        sum_anew(exported)
        with pytest.raises(ValueError) as error:
            open_vlm(exported)
        assert str(exported) in str(error.value) and "is not what was exported" not in str(error.value)
        layer = name.removeprefix("base_model.model.").split(".lora_")[0]
        assert layer in str(error.value) or "linear_9" in str(error.value)
    save_file(whole, exported / file, {"format": "pt"})
    sum_anew(exported)
    open_vlm(exported)


def test_a_folder_that_lacks_a_file_is_refused(exported):
    for name in (CONNECTOR, ADAPTER, "tokenizer.json", CHECKSUMS):
        path = exported / name
        content = path.read_bytes()
        path.unlink()
        refused(exported, str(exported))
        path.write_bytes(content)
    open_vlm(exported)


def test_an_export_may_lie_in_the_hubs_cache(parts, tmp_path):
    trained = tiny_vlm(*parts, **KINDS["all own"][0])
    before = logits_of(trained)
    write_vlm_folder(trained, made(tmp_path / "export"), {})
    snapshot = as_in_the_cache(tmp_path / "export", tmp_path / "hub")
    assert torch.equal(logits_of(open_vlm(snapshot)), before)
    (snapshot / CONNECTOR).unlink()
    shutil.copy(tmp_path / "export" / ADAPTER, snapshot / CONNECTOR)
    refused(snapshot, "is not what was exported")


# ---- the entry ----


def exporting(capsys, *arguments):
    """What ``src/export.py`` says as it refuses."""
    with pytest.raises(SystemExit) as stopped:
        export.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_entry_writes_each_layout_and_refuses_what_cannot_be(exported, parts, tmp_path, capsys):
    before = logits_of(open_vlm(exported))
    export.main(["--checkpoint", str(exported), "--output", str(tmp_path / "m"), "--merge_lora", "True"])
    torch.testing.assert_close(logits_of(open_vlm(tmp_path / "m")), before, atol=1e-5, rtol=1e-5)
    export.main(["--checkpoint", str(exported), "--output", str(tmp_path / "l"), "--format", "llava"])
    assert json.loads((tmp_path / "l" / "config.json").read_text())["model_type"] == "llava"
    again = ("--checkpoint", tmp_path / "m", "--output", tmp_path / "n")
    assert "no adapters to merge" in exporting(capsys, *again, "--merge_lora", "True")
    assert "words_seen" in exporting(capsys, *again, "--words_seen_checkpoints", "True")
    assert "not empty" in exporting(capsys, "--checkpoint", exported, "--output", tmp_path / "m")
    assert "lies in" in exporting(capsys, "--checkpoint", exported, "--output", tmp_path / "m" / "n")
    assert "no vision-language model" in exporting(
        capsys, "--checkpoint", written_run(), "--output", tmp_path / "n", "--format", "llava"
    )
    write_vlm_folder(tiny_vlm(*parts, adapter=None, connector="linear"), made(tmp_path / "linear"), {})
    reason = exporting(capsys, "--checkpoint", tmp_path / "linear", "--output", tmp_path / "n", "--format", "llava")
    assert str(tmp_path / "linear") in reason and "its connector is linear" in reason
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_model_keeps_its_adapters_apart(bits, parts, tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    wide = language_folder(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    trained = tiny_vlm(parts[0], wide, quantization=bits)
    before = logits_of(trained)
    write_vlm_folder(trained, made(tmp_path / "export"), {})
    assert weights_in(tmp_path / "export") == {CONNECTOR, ADAPTER}
    torch.testing.assert_close(logits_of(open_vlm(tmp_path / "export")), before)
    to = ("--checkpoint", tmp_path / "export", "--output", tmp_path / "n")
    for flags in (("--merge_lora", "True"), ("--format", "llava")):
        reason = exporting(capsys, *to, *flags)
        assert flags[0] in reason and f"{bits[0]}-bit" in reason


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("own_parts",), [["language"]]),
        (("language", "name"), 5),
        (("language", "dtype"), {}),
        (("vision", "select_layer"), "none"),
        (("vision", "config"), [1]),
        (("connector", "kind"), []),
        (("connector", "options"), {"depth": -1}),
        (("adapter", "rank"), "many"),
        (("speech", "template"), []),
        (("speech", "system_prompt"), 7),
        (("speech", "prompt"), None),
        (("format",), 99),
    ],
)
def test_a_description_of_nothing_is_refused_in_one_line(where, value, exported):
    content = json.loads((exported / "config.json").read_text())
    at = content
    for name in where[:-1]:
        at = at[name]
    at[where[-1]] = value
    (exported / "config.json").write_text(json.dumps(content))
    sum_anew(exported)
    refused(exported)
