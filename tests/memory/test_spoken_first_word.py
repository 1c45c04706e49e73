"""Where something was recalled an answer has a first word, at every door; where nothing was it may end at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

import bitgen
from bitgen.data.sampler import SampleKey
from bitgen.memory.answering import Speaker
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.spoken_memory import SpokenMemory
from support.data import picture
from support.models import tiny_config
from support.speaking import dataset, make_objective, random_recalled
from support.spoken_memories import CODE, KEY, TEXTS, TOKENS, finds, speaking_run
from support.tokenizers import tiny_tokenizer

# What was said: of each answer, whether something was recalled for it. Asked by pictures or by texts.
Said = Callable[[bool], list[tuple[str, bool]]]
WORD = "dog"


@pytest.fixture(autouse=True)
def ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends as soon as it may, and else says one word."""

    def favoured(model: BitGenModel, states: torch.Tensor) -> torch.Tensor:
        logits = lm_logits(model, states)
        logits[..., favourites(model)] += torch.tensor([2e4, 1e4])
        return logits

    lm_logits = BitGenModel.lm_logits
    monkeypatch.setattr(BitGenModel, "lm_logits", favoured)


TOKENIZERS: dict[int, PreTrainedTokenizerBase] = {}  # by the vocabulary's size


def favourites(model: BitGenModel) -> list[int]:
    return favourites_of(TOKENIZERS[model.config.vocab_size])


def favourites_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.eos_token_id, *tokenizer(WORD, add_special_tokens=False)["input_ids"][:1]]


def of_a_file(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    opened = bitgen.load(speaking_run())
    TOKENIZERS[opened.trained.model.config.vocab_size] = opened.trained.tokenizer
    memory = opened.memory()
    memory.tell(TEXTS[:2])
    memory.write([picture(0)], TEXTS[2:3])
    finds(monkeypatch, found)

    def said(pictured: bool) -> list[tuple[str, bool]]:
        if not pictured:
            return [(opened.answer("is it red", memory=memory), found)]
        return [
            (opened.caption(picture(0), memory=memory, num_beams=1), found),
            (opened.caption(picture(0), memory=memory, num_beams=3), found),
            (opened.answer("is it red", picture(0), memory=memory), found),
            (opened.caption(picture(0)), False),
        ]

    return said


def of_an_export(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = dict(recall_tokens=TOKENS, recall_dim=KEY, recall_code=CODE, vocab_size=len(tokenizer), max_seq_len=24)
    model = BitGenForCausalLM(tiny_config((9, 6), **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=2)).eval()
    TOKENIZERS[len(tokenizer)] = tokenizer
    memory = SpokenMemory(model)
    for text in TEXTS[:3]:
        memory.teach(text, tokenizer)
    finds(monkeypatch, found)
    words = tokenizer("red dog", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[0, *words], [2] * len(words) + [0]])  # of which the second has no word, and recalls nothing
    asked = {"input_ids": ids, "attention_mask": (ids != 2).long(), "max_new_tokens": 6}

    def said(pictured: bool) -> list[tuple[str, bool]]:
        given = asked | ({"vision_features": torch.randn(2, 9, 6)} if pictured else {})
        answers = []
        for options in (
            {},
            {"use_cache": False},
            {"num_beams": 3},
            {"num_beams": 4, "num_return_sequences": 2},
            {"do_sample": True, "num_return_sequences": 3},
            {"eos_token_id": [1, 7]},
            {"generation_config": GenerationConfig(eos_token_id=[7, 1], pad_token_id=2)},
        ):
            rows = model.generate(**given, **options, memory=memory)[:, ids.shape[1] :]
            for number, row in enumerate(rows):
                recalled = found and (pictured or number < len(rows) / 2)
                if recalled or "num_return_sequences" not in options:  # of two beams that may end at once one does
                    answers.append((tokenizer.decode(row, skip_special_tokens=True), recalled))
        return answers

    return said


def of_episodes(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    speaker = Speaker(make_objective(), dataset(held_out=True, picture_queries=12, sentence_queries=8))
    TOKENIZERS[speaker.model.config.vocab_size] = speaker.tokenizer
    episode = speaker.data.maker.episode(SampleKey(0))
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    finds(monkeypatch, found)

    def said(pictured: bool) -> list[tuple[str, bool]]:
        answers = [
            answer
            for answer in speaker.ask(memory, episode, tensors, told=found)
            if (answer.query.picture is not None) == pictured
        ]
        # Told what each is about: those about nothing recall nothing, beside others of the same batch that do.
        assert len({bool(answer.facts) for answer in answers}) == 1 + found
        return [(answer.said, bool(answer.facts)) for answer in answers] + [(answer.plain, False) for answer in answers]

    return said


@pytest.mark.parametrize("pictured", [True, False], ids=["picture", "text"])
@pytest.mark.parametrize("found", [True, False], ids=["found", "nothing"])
@pytest.mark.parametrize("door", [of_a_file, of_an_export, of_episodes])
def test_an_answer_from_a_memory_does_not_end_before_it_begins(
    door: Callable[[pytest.MonkeyPatch, bool], Said], found: bool, pictured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = door(monkeypatch, found)(pictured)
    assert answers
    for said, recalled in answers:
        assert bool(said.strip()) == recalled, (said, recalled)


def recalling(space: int | None = None) -> tuple[BitGenForCausalLM, dict]:
    """A model, and a prompt to which something is recalled."""
    tokenizer = tiny_tokenizer()
    TOKENIZERS[len(tokenizer)] = tokenizer
    sizes = dict(recall_tokens=TOKENS, recall_dim=KEY, recall_code=CODE, vocab_size=len(tokenizer), max_seq_len=24)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, recall_space=space)
    torch.manual_seed(0)
    model = BitGenForCausalLM(tiny_config((9, 6), **sizes, **special)).eval()
    assert model.recall is not None
    present = torch.tensor([[True, False]])
    recalled = random_recalled(model.recall, present.tolist())
    return model, {"inputs": torch.tensor([[0, 5]]), "recalled": recalled.tokens, "recalled_mask": recalled.present}


def test_an_answer_ends_behind_its_first_word_and_a_space_is_none() -> None:
    word = favourites_of(tiny_tokenizer())[1]
    model, given = recalling()
    assert model.generate(**given)[0, 2:].tolist() == [word, 1]
    assert model.generate(**given, logits_processor=[favours(9, 5e4)])[0, 2:].tolist()[:2] == [9, 9], "the caller's too"
    raw = model.generate(**given, output_logits=True, return_dict_in_generate=True)
    assert all(step.isfinite().all() for step in raw.logits)
    assert model.generate(**given, eos_token_id=None, max_new_tokens=3)[0, 2:].tolist() == [1, 1, 1], "nothing ends it"
    for space, expected in ((None, [9, 1]), (9, [9, word, 1])):
        model, given = recalling(space)
        once = favours(9, 1.5e4, first_alone=True)
        assert model.generate(**given, logits_processor=[once])[0, 2:].tolist() == expected


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_space_follows_no_space(num_beams: int) -> None:
    """A model that would end, or else says space after space, came to its limit without a word."""
    word = favourites_of(tiny_tokenizer())[1]
    model, given = recalling(space=9)
    said = model.generate(**given, logits_processor=[favours(9, 1.5e4)], num_beams=num_beams)[0, 2:].tolist()
    assert said == ([9, word, 1] if num_beams == 1 else [word, 1])  # beams find the word without the space


def favours(token: int, by: float, first_alone: bool = False) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, token] += by if not first_alone or ids.shape[1] == 2 else 0.0
        return scores

    return processor
