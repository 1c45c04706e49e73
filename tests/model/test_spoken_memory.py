"""The memory that ``generate`` speaks from: what is recalled, what stays as it was, and its file."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from safetensors.torch import save

from bitgen.data.sampler import SampleKey
from bitgen.model import spoken_memory_file
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.speaking import chosen, find_asked, recalled_for
from bitgen.model.spoken_memory import _Facts
from bitgen.model.spoken_memory_file import MOST_CHARACTERS, read_facts
from bitgen.model.token_ids import words_of
from support.models import open_gates, tiny_config
from support.speaking import dataset, make_objective
from support.tokenizers import tiny_tokenizer

TOLD = ["the dog sat", "a cat ran here", "the mat is red"]
NOWHERE, EVERYWHERE, ITSELF = 2.0, -2.0, 1 - 1e-5  # cosines above which something is meant


def speaking_model(features=True, threshold=EVERYWHERE, seed=0, **changes):
    """A model with open gates; what a cue must be like to mean a fact is ``threshold``."""
    torch.manual_seed(seed)
    sizes = dict(recall_tokens=8, recall_dim=16, recall_code=8, vocab_size=len(tiny_tokenizer()), max_seq_len=24)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, recall_words=words_of(tiny_tokenizer()))
    model = BitGenForCausalLM(tiny_config((9, 6) if features else None, **(sizes | special | changes))).eval()
    open_gates(model)
    if model.recall is not None:
        with torch.no_grad():
            model.recall.threshold.fill_(threshold)
            model.recall.log_scale.fill_(12.0)  # sure of whatever is above the threshold
    return model


@pytest.fixture
def model():
    return speaking_model()


def picture(seed=2, rows=1):
    return torch.randn(rows, 9, 6, generator=torch.Generator().manual_seed(seed))


def taught(model, texts=TOLD, pictures=1):
    """A memory of sentences, and of the first texts again, each of a picture."""
    memory = model.new_memory()
    for text in texts:
        memory.teach(text, tiny_tokenizer())
    for number in range(pictures):
        memory.teach(f"{texts[number]} too", tiny_tokenizer(), vision_features=picture(number))
    return memory


def prompts(*texts):
    """Prompts padded on the left, as the tokenizer of an export makes them."""
    ids = [[0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]] for text in texts]
    longest = max(map(len, ids))
    padded = torch.tensor([[2] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    return {"input_ids": padded, "attention_mask": mask}


def written(model, **inputs):
    """Ids and logits of five new tokens."""
    options = dict(max_new_tokens=5, eos_token_id=None, output_logits=True, return_dict_in_generate=True)
    found = model.generate(**(options | inputs))
    return found.sequences, torch.stack(found.logits, dim=1)


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


CUES = {
    "picture": lambda: {"vision_features": picture()},
    "prompt": lambda: prompts("who sat"),
    "both": lambda: {**prompts("the"), "vision_features": picture()},
}


# ---------------------------------------------------------------- keys, values and reading


def test_keys_and_values_are_those_of_training():
    """As ``RecallObjective.write`` makes them, of pictures and of sentences."""
    objective, data = make_objective().eval(), dataset()
    episode = data.maker.episode(SampleKey(0))
    expected = objective.write(data.tensors(episode))
    model = BitGenForCausalLM(objective.model.config).eval()
    model.load_state_dict(objective.model.state_dict())
    memory = model.new_memory()
    for text, number in episode.taught:
        seen = {} if number is None else {"pixel_values": data.maker.tensor(episode.pictures[number])}
        memory.teach(text, data.processor.tokenizer, **seen)
    torch.testing.assert_close(memory._facts.keys, expected.keys.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(memory._facts.values, expected.values.detach(), atol=1e-5, rtol=0)
    assert 0 < sum(number is not None for _, number in episode.taught) < len(episode.taught)


def test_as_many_facts_as_a_key_is_wide_are_read_exactly():
    random = torch.Generator().manual_seed(1)
    keys, values = torch.randn(16, 16, generator=random), torch.randn(16, 64, generator=random)
    facts = _Facts(("a",) * 16, torch.nn.functional.normalize(keys, dim=1), values)
    read = facts.read(torch.arange(16))
    assert read.dtype == torch.float64
    torch.testing.assert_close(read, values.double(), atol=1e-9, rtol=0)


def test_what_is_forgotten_was_never_taught(model):
    memory, never = taught(model, pictures=0), taught(model, [TOLD[0], TOLD[2]], pictures=0)
    memory.forget(1)
    assert memory.texts == never.texts == (TOLD[0], TOLD[2]) and len(memory) == 2
    assert torch.equal(memory._facts.keys, never._facts.keys) and torch.equal(memory._facts.values, never._facts.values)
    assert same(written(model, memory=memory, **prompts("who")), written(model, memory=never, **prompts("who")))


def test_of_one_sentence_taught_twice_the_later_counts(model):
    memory, once = taught(model, pictures=0), taught(model, pictures=0)
    memory.teach(TOLD[0], tiny_tokenizer())
    assert memory.texts == (*TOLD, TOLD[0]) and memory._facts.latest.tolist() == [1, 2, 3]
    torch.testing.assert_close(memory._facts.read(torch.tensor([2])), once._facts.values[:1].double())


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize("cue", CUES)
def test_what_was_taught_changes_what_is_said(model, cue):
    memory = taught(model)
    plain, said = written(model, **CUES[cue]()), written(model, memory=memory, **CUES[cue]())
    assert not same(plain, said) and (plain[1][:, 0] - said[1][:, 0]).abs().max() > 1e-2
    other = taught(model, ["red far away", "on a mat", "run and run"])
    assert not same(said, written(model, memory=other, **CUES[cue]()))


@pytest.mark.parametrize("cue", CUES)
@pytest.mark.parametrize("how", ["empty", "forgotten", "like nothing"])
def test_where_nothing_is_recalled_all_is_as_without_a_memory(model, cue, how):
    memory = model.new_memory() if how == "empty" else taught(model)
    if how == "forgotten":
        while len(memory):
            memory.forget(0)
    elif how == "like nothing":
        model.recall.threshold.data.fill_(NOWHERE)
    assert same(written(model, **CUES[cue]()), written(model, memory=memory, **CUES[cue]()))


def test_a_row_that_recalls_nothing_is_as_without_a_memory():
    model = speaking_model(threshold=ITSELF)
    inputs = prompts(TOLD[0], "red dog here", TOLD[2])
    plain, said = written(model, **inputs), written(model, memory=taught(model), **inputs)
    assert torch.equal(plain[0][1], said[0][1]) and torch.equal(plain[1][1], said[1][1])
    for row in (0, 2):
        assert not torch.equal(plain[1][row], said[1][row])


def test_a_prompt_recalls_by_its_key_of_training(model):
    """Between BOS and EOS, and without an image's place."""
    memory = taught(model)
    ids = torch.tensor([[0, *tiny_tokenizer()("who sat", add_special_tokens=False)["input_ids"], 1]])
    with torch.no_grad():
        question, facts = model.recall.questions(ids, torch.ones_like(ids)), memory._facts
        found = find_asked(model.recall, facts.keys, facts.values, question)
    recalled = recalled_for(model.recall, chosen(found), found, lambda rows: facts.values[rows], None)
    given = {"recalled": recalled.tokens, "recalled_mask": recalled.present}
    expected, said = written(model, **given, **prompts("who sat")), written(model, memory=memory, **prompts("who sat"))
    assert torch.equal(expected[0], said[0])
    torch.testing.assert_close(expected[1], said[1], atol=1e-4, rtol=0)


def test_a_prompt_is_the_same_cue_with_and_without_begin_and_end(model, monkeypatch):
    """All its words count, and only they."""
    memory, asked = taught(model), []
    questions = type(model.recall).questions

    def noted(self, ids, mask):
        asked.append((ids, mask, questions(self, ids, mask)))
        return asked[-1][2]

    monkeypatch.setattr(type(model.recall), "questions", noted)
    words = tiny_tokenizer()("who sat on a mat", add_special_tokens=False)["input_ids"]
    longest = model.config.max_seq_len - 2
    for ids in ([0, *words], words, [0, *words, 1], [*words, 1], [0, *[7] * longest, *words]):
        memory.answering(model, torch.tensor([ids]), {})
    for ids, mask, found in asked[:4]:
        assert ids.tolist() == [[0, *words, 1]] and mask.all()
        assert (found.worth[..., 0] > 0).all() and found.worth.shape[1] == len(words)
        torch.testing.assert_close(found.keys, asked[0][2].keys)
    assert asked[4][0].tolist() == [[0, *([7] * longest + words)[-longest:], 1]]


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_prompts_padded_on_the_left_are_answered_as_alone(masked, seen):
    model = speaking_model(threshold=EVERYWHERE if seen else 0.9)
    memory, texts = taught(model), ["the dog sat on a mat", "who", TOLD[1], ""]
    inputs, images = prompts(*texts), picture(rows=4)
    if not masked:
        inputs.pop("attention_mask")
    if seen:
        inputs["vision_features"] = images
    ids, logits = written(model, memory=memory, **inputs)
    assert not torch.equal(logits[2], written(model, **inputs)[1][2])
    for row, text in enumerate(texts):
        image = {"vision_features": images[row : row + 1]} if seen else {}
        alone_ids, alone = written(model, memory=memory, **prompts(text), **image)
        assert torch.equal(ids[row, -5:], alone_ids[0, -5:])
        torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cue", CUES)
@pytest.mark.parametrize("how", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 20}])
def test_beams_and_samples_recall_with_and_without_a_cache(model, cue, how):
    memory, found = taught(model), []
    for options in ({"memory": memory}, {"memory": memory, "use_cache": False}, {}):
        torch.manual_seed(5)
        found.append(model.generate(max_new_tokens=6, eos_token_id=None, **CUES[cue](), **how, **options))
    assert torch.equal(*found[:2]) and not torch.equal(found[0], found[2])


def test_beams_of_a_batch_are_those_of_each_row():
    model = speaking_model(threshold=ITSELF)
    memory, texts = taught(model), [TOLD[0], "red dog", TOLD[1]]
    options = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": None, "memory": memory}
    together = model.generate(**prompts(*texts), **options)
    for row, text in enumerate(texts):
        assert torch.equal(together[row, -6:], model.generate(**prompts(text), **options)[0, -6:])


def test_a_prompt_without_a_word_means_nothing(model):
    memory, start = taught(model), torch.zeros(1, 1, dtype=torch.long)
    assert same(written(model, inputs=start), written(model, inputs=start, memory=memory))
    assert torch.equal(model.generate(max_new_tokens=3), model.generate(max_new_tokens=3, memory=memory))


def test_a_copy_of_the_model_and_one_of_half_precision_speak_from_the_same_memory(model):
    memory, copy = taught(model), speaking_model()
    assert same(*(written(one, memory=memory, **prompts("who")) for one in (model, copy)))
    assert written(copy.to(torch.bfloat16), memory=memory, **prompts("who"))[1].isfinite().all()


def test_dropout_does_not_touch_what_is_taught():
    model = speaking_model(dropout=0.5).train()
    frozen = model.decoder.eval()
    keys = [taught(model)._facts.keys for _ in range(2)]
    assert torch.equal(*keys) and model.training and model.recall.training and not frozen.training


# ---------------------------------------------------------------- what is long or too much


def test_a_text_longer_than_a_value_is_cut_with_a_warning(model, caplog):
    short, long = "the cat sat on a mat", "the cat sat on a mat and saw the big red dog run far away"
    memory = model.new_memory()
    memory.teach(short, tiny_tokenizer())
    assert not caplog.messages
    memory.teach(long, tiny_tokenizer())
    ids = tiny_tokenizer()(long, add_special_tokens=False)["input_ids"]
    [said] = caplog.messages
    assert f"it has {len(ids)} tokens and a fact holds 8, as far as" in said
    assert repr(tiny_tokenizer().decode(ids[:8])) in said and memory.texts == (short, long)


def test_more_facts_than_can_be_read_exactly_are_warned_of_once(caplog):
    memory = speaking_model(recall_dim=2).new_memory()
    for text in TOLD + ["red"]:
        memory.teach(text, tiny_tokenizer())
    assert [message for message in caplog.messages if "3 facts are taught, and this memory reads 2 exactly" in message]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_who_teaches_a_full_memory_of_a_file_is_warned_too(caplog, tmp_path):
    model = speaking_model(recall_dim=2)
    memory = model.new_memory()
    for text in TOLD + ["red"]:
        memory.teach(text, tiny_tokenizer())
    memory.save(tmp_path / "facts.safetensors")
    caplog.clear()
    loaded = model.load_memory(tmp_path / "facts.safetensors")
    loaded.teach("blue", tiny_tokenizer())
    assert [message for message in caplog.messages if "5 facts are taught, and this memory reads 2 exactly" in message]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("", {}, "the text is empty"),
        (" \n", {}, "the text is empty"),
        (3, {}, "the text is a int, not a string"),
        ("a" * (MOST_CHARACTERS + 1), {}, "has 2,001 characters, at most 2,000 are taken"),
        ("a \ud800", {}, "not valid Unicode"),
        ("a", {"vision_features": torch.full((9, 6), math.nan)}, "NaN or infinity in the picture"),
        ("a", {"vision_features": picture(rows=2)}, r"a fact has one picture, not \[2, 9, 6\]"),
        ("a", {"vision_features": torch.zeros(6)}, r"a fact has one picture, not \[1, 6\]"),
        ("a", {"vision_features": torch.zeros(1, 9, 5)}, r"vision_features are \(9, 5\)"),
        ("a", {"pixel_values": torch.zeros(3, 28, 28)}, "takes vision_features"),
    ],
)
def test_what_cannot_be_taught_is_said_and_nothing_is(model, text, inputs, message):
    memory = taught(model)
    before = memory._facts
    with pytest.raises(ValueError, match=message):
        memory.teach(text, tiny_tokenizer(), **inputs)
    assert memory._facts is before


def test_other_mistakes_are_named(model, monkeypatch):
    memory = taught(model)
    for row in (4, -1):
        with pytest.raises(ValueError, match=f"there is no fact {row}: the memory holds 4"):
            memory.forget(row)
    with pytest.raises(ValueError, match="memory is a str: make one with model.new_memory"):
        model.generate(**prompts("who"), memory="facts.safetensors")
    with pytest.raises(ValueError, match="pass input_ids, or leave the memory out"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 16), memory=memory)
    with pytest.raises(ValueError, match="This memory is of another model"):
        speaking_model(seed=1).generate(**prompts("who"), memory=memory)
    with pytest.raises(ValueError, match="pass the model's own"):
        speaking_model(vocab_size=200).new_memory().teach("the cat sat on a mat", tiny_tokenizer())
    monkeypatch.setattr("bitgen.model.spoken_memory.MOST_FACTS", 4)
    with pytest.raises(ValueError, match="holds at most 4 facts: forget some"):
        memory.teach("a", tiny_tokenizer())


def test_a_model_without_recall_says_which_training_gives_it(model):
    plain = speaking_model(recall_tokens=0)
    for call in (plain.new_memory, lambda: plain.generate(**prompts("who"), memory=taught(model))):
        with pytest.raises(ValueError, match="recall_tokens is 0. Train one that can.*memory_scenes.yaml --init_from"):
            call()


def test_a_model_with_more_tokens_speaks_as_before_and_is_opened_again(model, tmp_path):
    size = model.config.vocab_size
    before = model.generate(**prompts("who"), memory=taught(model), max_new_tokens=5)
    codes = model.recall.code_embedding.weight.clone()
    model.resize_token_embeddings(size + 3)
    assert torch.equal(model.recall.code_embedding.weight[:size], codes)
    unused = list(range(size, size + 3))
    after = model.generate(**prompts("who"), memory=taught(model), max_new_tokens=5, suppress_tokens=unused)
    assert torch.equal(after, before)
    model.save_pretrained(tmp_path)
    again = BitGenForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("count", [3, 0])
def test_a_file_brings_everything_back(model, tmp_path, count):
    memory, file = taught(model, TOLD[:count], pictures=min(count, 1)), tmp_path / "facts"
    memory.save(file)
    memory.save(str(file))
    again = model.load_memory(file)
    assert again.texts == memory.texts and len(again) == count + min(count, 1)
    for cue in CUES.values():
        assert same(written(model, memory=memory, **cue()), written(model, memory=again, **cue()))
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]
    assert len(model.to(torch.bfloat16).load_memory(file)) == len(memory)


def test_any_text_comes_back(model, tmp_path):
    text = '"Ünï" \\ \x00\n\u2028 \U0001f600'
    memory = taught(model, [text], pictures=0)
    memory.save(tmp_path / "facts")
    assert model.load_memory(tmp_path / "facts").texts == (text,)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"recall_dim": 8}, {"recall_code": 4}, {"recall_tokens": 7}])
def test_another_models_file_is_refused(model, tmp_path, changes):
    taught(model).save(tmp_path / "facts")
    with pytest.raises(ValueError, match="facts was made with another model"):
        speaking_model(**changes).load_memory(tmp_path / "facts")


def test_a_file_with_any_byte_changed_or_cut_is_refused(model, tmp_path):
    file = tmp_path / "facts"
    taught(model).save(file)
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="facts is damaged or no spoken memory"):
                model.load_memory(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": torch.full((2, 16), math.nan)}, "NaN or infinite"),
        ({"values": torch.zeros(2, 64, dtype=torch.float64)}, "of another kind"),
        ({"keys": torch.zeros(3, 16)}, "do not fit together"),
        ({"probe": torch.zeros(1, 96)}, "do not fit together"),
        ({"more": torch.zeros(1)}, "not what was written"),
        ({"texts": '["a", 3]'}, "is a int, not a string"),
        ({"texts": '"ab"'}, "are no list"),
        ({"texts": "[" * 100_000}, "damaged"),
        ({"format": "another"}, "its format is 'another'"),
    ],
)
def test_a_file_that_was_made_up_is_refused(model, tmp_path, changes, message):
    tensors = {"keys": torch.zeros(2, 16), "values": torch.zeros(2, 64), "probe": torch.zeros(96)}
    said = {"format": "bitgen spoken memory 1", "texts": '["a", "b"]'}
    tensors |= {name: value for name, value in changes.items() if isinstance(value, torch.Tensor)}
    said |= {name: value for name, value in changes.items() if isinstance(value, str)}
    said["sha256"] = spoken_memory_file._digest(said["texts"], tensors)
    (tmp_path / "facts").write_bytes(save(tensors, said))
    with pytest.raises(ValueError, match=message):
        model.load_memory(tmp_path / "facts")


def test_what_is_no_file_is_neither_read_nor_replaced(model, tmp_path):
    memory = taught(model)
    for path in (tmp_path, tmp_path / "no" / "facts"):
        with pytest.raises(ValueError, match="there is no such memory file"):
            read_facts(path)
        with pytest.raises(ValueError, match="cannot write it"):
            memory.save(path)
    assert list(tmp_path.iterdir()) == []
