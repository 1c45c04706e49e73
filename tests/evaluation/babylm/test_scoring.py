"""Packed rows against one plain pass a sequence, written out here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

from bitgen.evaluation.babylm import scoring
from bitgen.evaluation.babylm.models import as_language_model
from bitgen.evaluation.babylm.packing import Row, TokenSequence, common_length, pack
from bitgen.evaluation.babylm.scoring import Scorer
from support.babylm import model_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return AutoModelForCausalLM.from_pretrained(model_folder(request.param)).eval()


def one_by_one(model, sequences):
    answers = []
    for sequence in sequences:
        with torch.no_grad():
            log_probs = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        answers.append(np.array([float(log_probs[at - 1, sequence.ids[at]]) for at in sequence.wanted]))
    return answers


def some_sequences(count=60, seed=0):
    """Over so few tokens that beginnings, and whole sequences, are often alike."""
    draw = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        ids = draw.integers(3, 6, int(draw.integers(1, 12))).tolist()
        wanted = [at for at in range(1, len(ids)) if draw.random() < 0.6]
        sequences.append(TokenSequence(ids, wanted, "here"))
    return sequences


def assert_equal(answers, expected):
    assert len(answers) == len(expected)
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_packed_rows_score_as_single_passes(model, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 900)  # chunks of three rows
    monkeypatch.setattr("bitgen.evaluation.babylm.packing.SHORTEST", 20)  # many rows
    plain = []
    language_model = as_language_model(model)
    read = language_model.logits
    monkeypatch.setattr(language_model, "logits", lambda *inputs: plain.append(1) or read(*inputs))
    sequences = some_sequences()
    assert_equal(Scorer(language_model, CPU, batch_tokens=64).score(sequences), one_by_one(model, sequences))
    assert len(plain) < len(sequences) / 2  # those of the trial


@pytest.mark.parametrize("refusal", ["raises", "ignores"])
def test_a_model_that_cannot_read_packed_rows_is_read_plainly(model, monkeypatch, caplog, refusal):
    language_model = as_language_model(model)
    read = language_model.hidden_states

    def refuse(inputs):
        if refusal == "raises":
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        return read(inputs._replace(positions=torch.zeros_like(inputs.positions)))

    monkeypatch.setattr(language_model, "hidden_states", refuse)
    sequences = some_sequences()
    with caplog.at_level("INFO"):
        assert_equal(Scorer(language_model, CPU, batch_tokens=32).score(sequences), one_by_one(model, sequences))
    assert "does not read packed rows" in caplog.text


def test_a_model_that_attends_within_a_window_of_places_is_read_plainly(caplog):
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_layers=2, num_heads=2, intermediate_size=48, vocab_size=99, initializer_range=0.3)
    config = GPTNeoConfig(attention_types=[[["global", "local"], 1]], window_size=32, **sizes)
    model = GPTNeoForCausalLM(config).eval()
    draw = np.random.default_rng(0)
    # Short texts, whose rows are shorter than the window, and eight endings of one beginning, of which none is.
    short = [TokenSequence(draw.integers(3, 9, 5).tolist(), [3, 4], "here") for _ in range(40)]
    begun = draw.integers(9, 99, 10).tolist()
    ended = [TokenSequence([*begun, 10 + n, *draw.integers(9, 99, 5).tolist()], [11, 15], "here") for n in range(8)]
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr("bitgen.evaluation.babylm.packing.SHORTEST", 12)
        found = Scorer(as_language_model(model), CPU).score([*short, *ended])
    assert_equal(found, one_by_one(model, [*short, *ended]))
    assert "does not read packed rows" in caplog.text


def test_a_model_that_attends_within_a_window_of_positions_is_read_plainly(caplog):
    """Many short texts make the longest row, and the one text beyond the window stands in another."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    sizes |= dict(intermediate_size=48, vocab_size=99, initializer_range=0.3)
    model = MistralForCausalLM(MistralConfig(sliding_window=8, **sizes)).eval()
    draw = np.random.default_rng(0)
    short = [TokenSequence(draw.integers(3, 99, 6).tolist(), [3, 4, 5], "here") for _ in range(40)]
    long = TokenSequence(draw.integers(3, 99, 30).tolist(), [20, 29], "here")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr("bitgen.evaluation.babylm.packing.SHORTEST", 12)
        found = Scorer(as_language_model(model), CPU).score([*short, long])
    assert_equal(found, one_by_one(model, [*short, long]))
    assert "does not read packed rows" in caplog.text


def test_a_sequence_beyond_the_context_is_read_whole_or_refused():
    long = TokenSequence([5, 6, 7] * 20, [1, 30, 59], "set.jsonl line 7")
    short = TokenSequence([5, 6, 7], [1, 2], "set.jsonl line 8")
    llama = AutoModelForCausalLM.from_pretrained(model_folder("llama", context=32)).eval()
    assert_equal(Scorer(as_language_model(llama), CPU).score([long, short]), one_by_one(llama, [long, short]))
    gpt2 = AutoModelForCausalLM.from_pretrained(model_folder("gpt2", context=32)).eval()
    with pytest.raises(ValueError, match="set.jsonl line 7: 59 tokens, and the model reads 32. It refuses more"):
        Scorer(as_language_model(gpt2), CPU).score([short, long])


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_whose_probabilities_are_nan_gets_no_score(monkeypatch, packed):
    model = AutoModelForCausalLM.from_pretrained(model_folder()).eval()
    scorer = Scorer(as_language_model(model), CPU)
    monkeypatch.setattr(scorer, "_reads_packed", lambda *_: packed)
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = torch.nan  # tied: the logits of token 6, everywhere
    with pytest.raises(ValueError, match="set.jsonl line 2: the model's probabilities are NaN"):
        scorer.score([TokenSequence([5], [], "set.jsonl line 1"), TokenSequence([5, 7, 4], [1, 2], "set.jsonl line 2")])


@settings(max_examples=60)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12),
    sizes=st.tuples(st.integers(1, 6), st.integers(6, 14), st.integers(0, 4)),
)
def test_every_prediction_is_made_once_from_its_own_context(texts, sizes):
    from bitgen.evaluation.babylm import packing

    sequences = [TokenSequence(ids, list(range(1, len(ids))), "") for ids in texts]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("SHORTEST", "LONGEST", "SHALLOW"), sizes, strict=True):
            patch.setattr(packing, name, value)
        rows = pack(sequences)
    found = {}
    for row in rows:
        visible = row.visible(len(row) + 1)
        assert visible[len(row)].nonzero()[0].tolist() == [len(row)]
        for node, target, slot in zip(row.nodes, row.targets, row.slots, strict=True):
            seen = visible[node].nonzero()[0]
            assert [row.depths[at] for at in seen] == list(range(len(seen)))
            assert slot not in found
            found[slot] = [row.tokens[at] for at in seen], target
    expected = [(ids[:at], ids[at]) for ids in texts for at in range(1, len(ids))]
    assert [found[slot] for slot in range(len(expected))] == expected


def test_shared_beginnings_are_read_once():
    prefix = list(range(100))
    rows = pack([TokenSequence([*prefix, last, 7], [100, 101], "") for last in (3, 4, 5)])
    assert [len(row) for row in rows] == [103]
    assert isinstance(rows[0], Row) and common_length([1, 2, 3], [1, 2]) == 2
