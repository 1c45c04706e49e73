"""Ages of acquisition: surprisals against plain calls, curves whose crossing is known, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from transformers import AutoModelForCausalLM

from bitgen.evaluation.babylm.acquisition import ages as module
from bitgen.evaluation.babylm.acquisition.ages import (
    AcquisitionData,
    Vocabulary,
    acquisition_scores,
    age_of_acquisition,
    read_acquisition_data,
    word_vocabulary,
)
from bitgen.evaluation.babylm.acquisition.curves import RULES, child_age, model_age, rising
from bitgen.evaluation.babylm.models import load_model_folder
from support.babylm import model_folder
from support.babylm_plain import CHILD_WORDS, Plain, write_acquisition

CPU = torch.device("cpu")
M = 10**6


@pytest.fixture(scope="module")
def aoa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "aoa"
    return folder, write_acquisition(folder, np.random.default_rng(5))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders by words seen: a model whose logits grow from nothing to their whole size."""
    source, folders = model_folder("gpt2", bos=True), {}
    for words, share in ((1, 0.05), (2, 0.3), (5, 0.7), (10, 1.0)):
        folder = shutil.copytree(source, tmp_path_factory.mktemp("export") / f"chck_{words}M")
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            model.transformer.ln_f.weight *= share
            model.transformer.ln_f.bias *= share
        model.save_pretrained(folder)
        folders[words * M] = folder
    return folders


@pytest.fixture(scope="module")
def found(aoa, checkpoints):
    return age_of_acquisition(checkpoints, aoa[0], model_name="tiny")


def test_surprisals_are_those_of_the_word_after_its_context(found, aoa, checkpoints):
    rows = iter(found.surprisal["results"])
    for words, folder in checkpoints.items():
        plain = Plain(folder)
        for word, entries in aoa[1].items():
            if len(word) == 1:
                continue  # "a": words of one letter are left out
            for number, entry in enumerate(entries):
                row = next(rows)
                start = entry["context"].strip() + " "
                assert row["surprisal"] == pytest.approx(-sum(plain.log_probs(start + word, len(start))), abs=1e-4)
                about = {"step": f"chck_{words // M}M", "word_count": words, "target_word": word, "context_id": number}
                assert about.items() <= row.items() and row["context"] == entry["context"]
    assert next(rows, None) is None
    about = {"model_name": "tiny", "use_bos_only": False, "total_steps": 4, "completed_steps": 4}
    assert found.surprisal["metadata"] == about and found.score == {"aoa": found.results["aoa"]}


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_model_learns_a_word_halfway_from_a_guess_to_its_best(pieces):
    """Points on a curve that starts at the guess: the crossing is where the curve is at the middle of its points."""
    ceiling, middle = pieces * math.log(500), 6.6
    words = [M * count for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 50, 70, 100)]
    heights = rising(np.log10(np.array(words) + 1), 0.9 * ceiling, 4.0, middle, -ceiling)
    level = -(ceiling + -heights.max()) / 2
    expected = middle - math.log(0.9 * ceiling / (level + ceiling) - 1) / 4.0
    assert model_age(words, (-heights).tolist(), ceiling, RULES[2026]) == pytest.approx(expected, abs=1e-3)
    assert words[0] < 10**expected < words[-1]


def test_words_that_are_never_or_always_known_have_no_age():
    words, rules = [M, 2 * M, 5 * M, 10 * M, 50 * M], RULES[2026]
    assert model_age(words, [3.0, 2.9, 2.8, 2.75, 2.7], 9.0, rules) is None  # better than halfway from the start
    assert model_age(words, [4.0, 5.0, 6.0, 7.0, 8.0], 9.0, rules) is None  # rises
    assert model_age(words[:2], [8.0, 2.0], 9.0, rules) is None
    assert model_age(words, [math.nan] * 5, 9.0, rules) is None
    with_gap = model_age(words, [8.9, math.nan, 7.0, 4.0, 2.0], 9.0, rules)
    without = model_age([words[0], *words[2:]], [8.9, 7.0, 4.0, 2.0], 9.0, rules)
    assert with_gap == without is not None


def test_of_an_almost_flat_curve_a_word_has_no_age(monkeypatch):
    """It crosses after more words than a number can hold."""
    monkeypatch.setattr("bitgen.evaluation.babylm.acquisition.curves._fit", lambda *_: (10.0, 0.005, 6.6, -9.0))
    words = [M, 2 * M, 5 * M, 10 * M, 50 * M]
    assert model_age(words, [4.0, 3.5, 3.0, 2.5, 2.0], 0.0, RULES[2026]) is None


def test_children_know_a_word_when_half_of_them_say_it():
    ages = np.arange(16, 31)
    for middle in (18.0, 22.5, 28.0):
        shares = rising(ages, 1.0, 0.5, middle, 0.0)
        shares[3] = math.nan
        assert child_age(ages, shares) == pytest.approx(middle, abs=1e-3)
    assert child_age(ages, np.full(15, 0.2)) is None
    assert child_age(ages, np.array([0.1, 0.9, *[math.nan] * 13])) is None


def made(order: int) -> tuple[AcquisitionData, dict[int, list[float]], Vocabulary]:
    """Words that children learn a month after another, and a model in the same order (1), the other (-1), or mixed."""
    names = [f"word{number}" for number in range(8)]
    ages = np.arange(16, 31)
    shares = {name: rising(ages, 1.0, 1.0, 18.0 + number, 0.0) for number, name in enumerate(names)}
    contexts = [(name, text) for name in names for text in ("one", "two")]
    places = {1: range(8), -1: range(7, -1, -1), 0: [3, 6, 0, 5, 2, 7, 1, 4]}[order]
    ceiling = math.log(1000)
    words = [M * count for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40, 60, 100)]
    surprisals = {
        seen: [
            ceiling * (1 - rising(np.log10(np.array([seen])), 0.95, 8.0, 6.3 + 0.15 * place, 0.0)[0]) + sign * 0.5
            for place in places
            for sign in (1, -1)
        ]
        for seen in words
    }
    return AcquisitionData(None, contexts, ages, shares), surprisals, Vocabulary(1000, dict.fromkeys(names, 1))


@pytest.mark.parametrize("order", [1, -1, 0])
def test_the_score_is_the_correlation_of_ages_where_it_is_significant(order):
    results = acquisition_scores(*made(order))
    assert results["n_words"] == results["words"] == 8
    pairs = [(pair["model"], pair["child"]) for pair in results["ages"].values()]
    expected, p_value = pearsonr(*zip(*pairs, strict=True))
    assert results["correlation"] == pytest.approx(expected) and results["p_value"] == pytest.approx(p_value)
    if order:
        assert results["aoa"] == results["correlation"] and results["aoa"] * order > 0.95
    else:
        assert results["p_value"] > 0.1 and results["aoa"] == 0.0 != results["correlation"]


def test_in_2025_every_correlation_counted_and_every_context_was_a_point():
    data, surprisals, vocabulary = made(0)
    scale = math.log2(300_000) / math.log(1000)  # the guess was the same for all words, in bits
    scaled = {words: [scale * surprisal for surprisal in found] for words, found in surprisals.items()}
    results = acquisition_scores(data, scaled, vocabulary, year=2025)
    assert results["n_words"] == 8 and results["p_value"] > 0.1 and results["aoa"] == results["correlation"] != 0.0
    lowest = min(scaled[words][0] for words in scaled), min(scaled[words][1] for words in scaled)
    assert lowest[1] < lowest[0]  # the threshold is from the lowest context, not from the lowest mean
    other = {words: [max(found), min(found)] * 8 for words, found in scaled.items()}
    assert acquisition_scores(data, other, vocabulary, year=2025)["ages"] != results["ages"]


def test_too_few_words_or_checkpoints_score_nothing(aoa, checkpoints, caplog):
    data, surprisals, vocabulary = made(1)
    few = AcquisitionData(None, data.contexts, data.ages, dict(list(data.shares.items())[:2]))
    results = acquisition_scores(few, surprisals, vocabulary)
    assert results["n_words"] == 2 and results["aoa"] == 0.0 and math.isnan(results["correlation"])
    two = {words: checkpoints[words] for words in (M, 2 * M)}
    assert age_of_acquisition(two, aoa[0]).results["aoa"] == 0.0
    assert "2 checkpoints: a curve needs 3" in caplog.text


def test_lengths_of_words_are_those_within_a_sentence(aoa):
    _, encoder = load_model_folder(model_folder("gpt2", bos=True), CPU)
    vocabulary = word_vocabulary(CHILD_WORDS, encoder)
    whole = encoder.encode_word("The astonishing")
    assert vocabulary.lengths["astonishing"] == len(whole) - len(encoder.encode_word("The")) > 1
    assert vocabulary.lengths["cat"] == 1 and vocabulary.size == encoder.tokenizer.vocab_size


def test_finished_checkpoints_are_not_read_again(found, aoa, checkpoints, tmp_path, monkeypatch):
    opened, whole = [], module.open_language_model

    def failing(folder, *rest):
        if len(opened) == 2:
            raise KeyboardInterrupt
        opened.append(folder)
        return whole(folder, *rest)

    monkeypatch.setattr(module, "open_language_model", failing)
    with pytest.raises(KeyboardInterrupt):
        age_of_acquisition(checkpoints, aoa[0], kept=tmp_path)
    opened.clear()
    with pytest.raises(KeyboardInterrupt):
        age_of_acquisition(checkpoints, aoa[0], kept=tmp_path / "other")
    opened.clear()
    again = age_of_acquisition(checkpoints, aoa[0], kept=tmp_path, model_name="tiny")
    assert opened == [checkpoints[5 * M], checkpoints[10 * M]]
    np.testing.assert_equal(again.results, found.results)
    np.testing.assert_equal(again.surprisal, found.surprisal)


def test_surprisals_of_another_edition_are_not_taken(aoa, checkpoints, tmp_path, monkeypatch):
    opened, whole = [], module.open_language_model
    monkeypatch.setattr(module, "open_language_model", lambda one, *rest: opened.append(one) or whole(one, *rest))
    last = {10 * M: checkpoints[10 * M]}
    for edition, times in ((module.EDITION, 1), (module.EDITION, 1), (1, 2)):
        monkeypatch.setattr(module, "EDITION", edition)
        age_of_acquisition(last, aoa[0], kept=tmp_path)
        assert len(opened) == times


def test_checkpoints_of_other_vocabularies_are_refused(aoa, checkpoints, tmp_path):
    odd = shutil.copytree(checkpoints[2 * M], tmp_path / "chck_2M")
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (odd / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"chck_2M has another vocabulary than .*chck_10M"):
        age_of_acquisition({**checkpoints, 2 * M: odd}, aoa[0])


@pytest.mark.parametrize(
    ("folders", "message"),
    [({}, "there are no checkpoints"), ({1_500_000: "chck"}, "chck: 1500000 words seen; .* whole millions")],
)
def test_checkpoints_that_make_no_curve_are_named(aoa, folders, message):
    with pytest.raises(ValueError, match=message):
        age_of_acquisition(folders, aoa[0])
    with pytest.raises(ValueError, match="the rules of 2024 are not known"):
        age_of_acquisition({M: "x"}, aoa[0], year=2024)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cdi_childes.json", None, r"cdi_childes.json cannot be read"),
        ("cdi_childes.json", "{", r"cdi_childes.json cannot be read \(it is no JSON"),
        ("cdi_childes.json", '{"cat": ["text"]}', r"'cat' is no list of objects with a text 'context'"),
        ("cdi_childes.json", '{"a": [{"context": "the"}]}', r"holds no contexts"),
        ("cdi_human.csv", None, r"cdi_human.csv cannot be read"),
        ("cdi_human.csv", "word,15,31\ncat,1,1\n", r"needs a column 'word' and one for an age of 16 to 30 months"),
        ("cdi_human.csv", "word,16,17\ncat,1,many\n", r"row 1: 'many' is not a finite number; a share of children"),
        ("cdi_human.csv", "word,16,17\ncat,1\n", r"line 2 does not have the 3 cells"),
    ],
)
def test_damaged_data_is_named(aoa, tmp_path, file, content, message):
    folder = shutil.copytree(aoa[0], tmp_path / "aoa")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_acquisition_data(folder)
