"""Every call that the official BabyLM pipelines make of a model, on exports of our own, as they make it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.modeling_outputs import ModelOutput

from bitgen.export.revisions import export_run
from bitgen.trained import open_model
from support.runs import written_run
from support.warm import run_alone

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export with images, whose context of 512 fine-tuning needs."""
    folder = tmp_path_factory.mktemp("contract") / "bitgen"
    return str(export_run(str(written_run(max_seq_len=512)), str(folder), True, False, {}))


@pytest.fixture(scope="module")
def model(exported):
    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, revision=None).eval()


@pytest.fixture(scope="module")
def processor(exported):
    return AutoProcessor.from_pretrained(exported, padding_side="right", revision=None, trust_remote_code=True)


@pytest.fixture
def image():
    return Image.effect_noise((50, 40), 90).convert("RGB")


def expected_logits(run, features, path):
    """Inputs, and the logits of the trainer's model for them, written to a file."""
    trained = open_model(run).model
    ids = torch.randint(3, trained.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    name, shape = ("vision_features", (2, 9, 6)) if features else ("pixel_values", (2, 3, 28, 28))
    tensors = {"input_ids": ids, "attention_mask": mask, name: torch.randn(shape)}
    with torch.no_grad():
        images = trained.encode_image(**{name: tensors[name]})
        tensors["text"] = trained(ids, mask)
        tensors["image"] = trained(ids, mask, trained.pool_image_tokens(images.image_tokens))
    assert (tensors["text"] - tensors["image"]).abs().max() > 1e-2
    save_file(tensors, path)


def test_it_loads_in_a_fresh_process_without_this_repository_or_peft(tmp_path):
    """All kinds of model in one process: starting torch and transformers is what takes the time."""
    arguments = []
    rotary = {"positions": "rope", "feed_forward": "swiglu"}
    for name, features, options in (("images", False, {}), ("features", True, {}), ("rotary", True, rotary)):
        run = written_run(features=features, **options)
        expected_logits(run, features, tmp_path / f"{name}.safetensors")
        folder = export_run(str(run), str(tmp_path / name), True, False, {})
        arguments += [str(folder), str(tmp_path / f"{name}.safetensors")]
    (tmp_path / "empty").mkdir()
    done = run_alone([HERE / "load_export.py", *arguments], tmp_path / "empty")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("image ") == 3, done.stdout


# ---------------------------------------------------------------- sentence_zero_shot


def scored(model, processor, sentence, completion, image=None, template=None):
    """The log-probability of a completion as `sentence_zero_shot` computes it, and the phrase mask it uses."""
    text = template.format(image_token=processor.tokenizer.image_token, text=sentence) if template else sentence
    inputs = {"images": image} if image is not None else {}
    output = processor(text=text, **inputs, return_offsets_mapping=True)
    alone = processor(text=sentence, return_offsets_mapping=True)["input_ids"]
    tokens, mask, offsets = output["input_ids"], output["attention_mask"], output["offset_mapping"]
    assert all(isinstance(token, int) for token in tokens) and len(tokens) == len(mask) == len(offsets)
    start = len(tokens) - len(alone)
    first = len(sentence) - len(completion) + offsets[start][0]
    phrase = [int(index >= start and end > first) for index, (_, end) in enumerate(offsets)]
    pixels = {"pixel_values": torch.FloatTensor(output["pixel_values"])} if image is not None else {}
    ids = torch.LongTensor(tokens)[None]
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], attention_mask=torch.LongTensor(mask)[None, :-1], **pixels)["logits"]
    assert logits.dtype == torch.float32 and logits.shape[:2] == ids[:, 1:].shape
    chosen = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return float((chosen * torch.LongTensor(phrase)[None, 1:]).sum()), phrase


def test_a_sentence_is_scored_from_its_first_word(model, processor):
    whole, phrase = scored(model, processor, "the cat sat on the mat", "the cat sat on the mat")
    assert phrase == [0] + [1] * (len(phrase) - 1)
    part, phrase = scored(model, processor, "the cat sat on the mat", "the mat")
    assert sum(phrase) < len(phrase) - 1 and whole < part < 0


def test_batches_score_as_sentences_alone(model, processor):
    sentences = ["the cat sat on the mat", "a dog runs", "it is red"]
    rows = [processor(text=sentence, return_offsets_mapping=True)["input_ids"] for sentence in sentences]
    pad = processor.tokenizer.pad_token_id
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask)["logits"]
        for index, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)))["logits"]
            torch.testing.assert_close(together[index, : len(row)], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("template", [None, "{image_token}{text}", "{image_token} {text}"])
def test_a_sentence_is_scored_with_an_image(model, processor, image, template):
    seen, phrase = scored(model, processor, "the cat sat on a mat", "sat on a mat", image, template)
    text_only, same_phrase = scored(model, processor, "the cat sat on a mat", "sat on a mat")
    assert phrase == same_phrase and abs(seen - text_only) > 1e-4
    output = processor(text="the cat", images=image)
    assert torch.FloatTensor(output["pixel_values"]).shape == (1, 3, 28, 28)


def test_special_tokens_are_set(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.is_fast and None not in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id)
    output = processor(text="the cat", return_offsets_mapping=True)
    assert output["input_ids"][0] == tokenizer.bos_token_id and tuple(output["offset_mapping"][0]) == (0, 0)
    assert tokenizer.eos_token_id not in output["input_ids"]
    assert max(processor(text="<image> a <image>")["input_ids"]) < len(tokenizer)


# ---------------------------------------------------------------- reading


def test_reading_words_one_after_the_other(model, processor):
    inputs = processor("the cat sat", return_tensors="pt").to("cpu")
    with torch.no_grad():
        outputs = model(**inputs)
    assert isinstance(outputs, ModelOutput) and outputs.logits.shape[:2] == inputs.input_ids.shape
    target = processor(" on", add_special_tokens=False)["input_ids"]
    assert torch.softmax(outputs.logits[0, -1], dim=-1)[target[0]].item() > 0
    assert "".join(processor.decode(token) for token in target) == " on"


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("three_dimensional", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_fine_tuning(exported, processor, three_dimensional, pairs):
    base = AutoModel.from_pretrained(exported, trust_remote_code=True, revision=None).train()
    assert AutoConfig.from_pretrained(exported, trust_remote_code=True).hidden_size == 16
    texts = [("the cat sat", "the dog runs"), ("a", "b")] if pairs else ["the cat sat on the mat", "a dog"]
    encodings = processor(texts, return_tensors="pt", padding=True, truncation=True, max_length=512)
    mask = encodings.attention_mask
    if three_dimensional:
        mask = mask.unsqueeze(1).repeat(1, mask.size(-1), 1).tril(diagonal=0)
    output = base(input_ids=encodings.input_ids, attention_mask=mask)
    assert isinstance(output, ModelOutput) and not hasattr(output, "logits")
    assert output.last_hidden_state.shape == (*encodings.input_ids.shape, 16)
    output.last_hidden_state.sum().backward()
    assert all(p.grad.isfinite().all() for p in base.parameters() if p.grad is not None)


def test_fine_tuning_on_sequences_of_512(exported, processor):
    base = AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    text = ["the cat sat on the mat " * 200, "a dog"]
    encodings = processor(text, return_tensors="pt", padding=True, truncation=True, max_length=512)
    mask = encodings.attention_mask.unsqueeze(1).repeat(1, 512, 1).tril(diagonal=0)
    with torch.no_grad():
        hidden = base(encodings.input_ids, attention_mask=mask).last_hidden_state
        short = base(encodings.input_ids[1:, :8]).last_hidden_state
    length = int(encodings.attention_mask[1].sum())
    assert hidden.shape == (2, 512, 16)
    torch.testing.assert_close(hidden[1, :length], short[0, :length], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- DevBench


def test_devbench_similarities(model, processor, image):
    assert model.git.image_encoder is not None
    for prompt in ("The caption for this image is: a cat.", "<image> The caption for this image is: a cat."):
        encoding = processor(images=image, text=prompt, return_tensors="pt")
        encoding.pop("token_type_ids")
        encoding["labels"] = encoding["input_ids"]
        with torch.no_grad():
            loss = model(**encoding)["loss"].detach().cpu().numpy()
        assert loss > 0


def test_devbench_image_features(model, processor, image):
    encoding = processor(images=[image, image.rotate(90)], text=["<image> "] * 2, return_tensors="pt")
    assert encoding["token_type_ids"].tolist() == [[0]] * 2
    with torch.no_grad():
        accepted = model(**encoding)
        encoding.pop("token_type_ids")
        encoding["labels"] = encoding["input_ids"]
        states = model(**encoding, output_hidden_states=True)["hidden_states"][-1]
    assert states.mean(dim=1).shape == (2, 16) and accepted.logits.shape[0] == 2
    assert (states[0] - states[1]).abs().max() > 1e-5


# ---------------------------------------------------------------- parts that are missing


def test_a_missing_image_processor_is_named(exported, tmp_path):
    import shutil

    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="has no image processor: preprocessor_config.json is missing"):
        AutoProcessor.from_pretrained(str(copy), trust_remote_code=True)


def test_images_for_a_model_on_features_are_refused(tmp_path, image):
    folder = export_run(str(written_run(features=True)), str(tmp_path / "export"), True, False, {})
    processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=True)
    assert processor.image_processor is None and processor("the cat")["input_ids"]
    with pytest.raises(ValueError, match="has no vision tower"):
        processor(text="the cat", images=image)


def test_a_processor_saved_again_is_the_same(processor, tmp_path, image):
    processor.save_pretrained(tmp_path / "again")
    again = AutoProcessor.from_pretrained(str(tmp_path / "again"), trust_remote_code=True)
    one, other = (p(text="a cat", images=image, return_offsets_mapping=True) for p in (processor, again))
    assert torch.equal(one.pop("pixel_values"), other.pop("pixel_values")) and dict(one) == dict(other)
