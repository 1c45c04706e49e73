"""Opening language models: what a folder gives, and what is said of each thing that may be wrong with one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from bitgen.vlm import pretrained
from bitgen.vlm.language import build_language_model, generate, open_language_model
from support.language_models import config_of, padded, ragged, supervised_loss
from support.tokenizers import tiny_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LLaMA of 300 tokens with its tokenizer, as transformers saves it; nobody writes into it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    lm = build_language_model(config_of("llama") | {"vocab_size": 300})
    lm.model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "llama")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_opened_with_its_tokenizer(saved):
    lm = open_language_model(saved)
    again = open_language_model(str(saved), dtype="bfloat16")
    assert (lm.revision, lm.name) == (None, str(saved))
    assert lm.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert not lm.model.training and lm.model.dtype == torch.float32 and again.model.dtype == torch.bfloat16
    assert lm.weights_sha256 == again.weights_sha256
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())


def test_other_weights_have_another_hash(saved, folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_language_model(folder).weights_sha256 != open_language_model(saved).weights_sha256


def test_a_hub_id_is_taken_from_the_cache_with_its_commit(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--owner--tiny"
    shutil.copytree(saved, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    lm = open_language_model("owner/tiny")
    assert (lm.name, lm.revision) == ("owner/tiny", COMMIT)
    assert open_language_model("owner/tiny", COMMIT).weights_sha256 == lm.weights_sha256


def test_a_hub_that_does_not_answer_is_said_with_what_to_download():
    with pytest.raises(ValueError, match="hf download owner/none --revision v1 --local-dir FOLDER, then name FOLDER"):
        open_language_model("owner/none", "v1")


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "~/model"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ValueError, match="there is no such folder"):
        open_language_model(name)


def _without(name):
    return lambda folder: (folder / name).unlink()


def _pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _lacking(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])


def _without_end(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_without("config.json"), "holds no config.json"),
        (_without("tokenizer.json"), "holds no tokenizer; put"),
        (_without("model.safetensors"), "holds no model.safetensors"),
        (_pickled, "holds no model.safetensors"),
        (_lacking, "lacks 1 weights, first model.layers.1.mlp.up_proj.weight"),
        (_cut, "cannot be opened .SafetensorError.*download it again"),
        (_without_end, "has no EOS token"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: it is no JSON"),
        (lambda folder: edit(folder / "config.json", model_type="gpt2"), "unknown family gpt2; known are llama"),
        (lambda folder: edit(folder / "config.json", hidden_size=48), "cannot be opened"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be opened"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder, break_it, message):
    break_it(folder)
    with pytest.raises(ValueError, match=message) as error:
        open_language_model(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(folder, saved):
    torch.manual_seed(0)
    build_language_model(config_of("llama") | {"vocab_size": 200}).model.save_pretrained(folder)
    with pytest.raises(ValueError, match="ids up to 299 and the model 200 embeddings"):
        open_language_model(folder)


def test_code_that_a_folder_brings_is_not_run(folder):
    (folder / "modeling_evil.py").write_text("raise SystemExit('run')")
    edit(
        folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.E"}
    )
    assert type(open_language_model(folder).model).__name__ == "LlamaForCausalLM"


def test_a_published_decoding_file_that_contradicts_itself_does_not_stop_saving(folder, tmp_path):
    edit(folder / "generation_config.json", temperature=0.9, top_p=0.6, do_sample=False)
    lm = open_language_model(folder)
    lm.model.generation_config.pad_token_id = 2
    lm.model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "generation_config.json").is_file()


def test_quantization_without_its_package_is_an_error_with_the_remedy(folder, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package bitsandbytes: pip install bitsandbytes"):
        open_language_model(folder, quantization="4bit")


@pytest.mark.parametrize("changes", [dict(dtype="float16"), dict(quantization="2bit")])
def test_choices_that_do_not_exist_are_named(folder, changes):
    with pytest.raises(ValueError, match="is unknown; choose one of"):
        open_language_model(folder, **changes)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_model_learns_and_writes(folder, quantization):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128}  # blocks are of 64 values
    made = build_language_model(config_of("llama") | sizes).model
    with torch.no_grad():  # as it starts, its loss is ln 300 whatever its weights are
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    made.save_pretrained(folder)
    lm, whole = open_language_model(folder, quantization=quantization), open_language_model(folder)
    ids, mask = padded(ragged())
    embeds = lm.model.get_input_embeddings()(ids).detach().requires_grad_()
    total, count = supervised_loss(lm, embeds, mask, ids)
    total.backward()
    with torch.no_grad():
        logits, right = (one.model(inputs_embeds=embeds, attention_mask=mask).logits[mask > 0] for one in (lm, whole))
    assert F.cosine_similarity(logits.float(), right.float(), dim=1).mean() > 0.7  # of 4 bits: 0.88 here
    assert count > 0 and embeds.grad.isfinite().all() and embeds.grad.any()
    assert generate(lm, embeds.detach(), mask, max_new_tokens=3).shape[0] == 3
    assert lm.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {}, config_of("llama") | {"hidden_size": 33}])
def test_a_model_that_cannot_be_built_is_a_value_error(config):
    with pytest.raises(ValueError, match="is unknown; choose one of|a new llama model cannot be opened"):
        build_language_model(config)


@pytest.mark.realweights
def test_real_answers_of_a_batch_are_those_of_its_rows(smollm2):
    lm = open_language_model(smollm2)
    assert lm.tokenizer.pad_token_id == 0
    texts = ["The capital of France is", "One, two, three, four,", "The opposite of hot is"]
    rows = [lm.tokenizer(text, return_tensors="pt").input_ids[0] for text in texts]
    ids, mask = padded(rows)
    embed = lm.model.get_input_embeddings()
    batch = generate(lm, embed(ids), mask, max_new_tokens=6)
    alone = [generate(lm, embed(row[None]), torch.ones(1, len(row)).long(), max_new_tokens=6)[0] for row in rows]
    answers = lm.tokenizer.batch_decode(batch)
    assert answers == lm.tokenizer.batch_decode(alone)
    assert answers[0].startswith(" Paris") and answers[1].startswith(" five")
