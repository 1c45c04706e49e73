"""The whole evaluation against a plain one: a call a sentence, softmax over all, the official rules spelt out."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoProcessor

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.evaluation import evaluate_babylm, read_evaluation_data, summary_rows
from bitgen.evaluation.babylm.models import as_language_model, load_model_folder
from bitgen.evaluation.babylm.scoring import Scorer
from support.babylm import model_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", True)], ids=["gpt2", "llama with BOS"])
def folder(request):
    kind, bos = request.param
    return model_folder(kind, bos=bos)


@pytest.fixture(scope="module")
def evaluation(folder, eval_dir):
    model, encoder = load_model_folder(folder, CPU)
    return evaluate_babylm(read_evaluation_data(eval_dir), encoder, Scorer(model, CPU))


@pytest.fixture(scope="module")
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def completion_score(plain, sentence, completion):
    model, processor = plain
    output = processor(text=sentence, return_offsets_mapping=True)
    ids = torch.tensor([output["input_ids"]])
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).logits.log_softmax(-1)[0]
    begins = len(sentence) - len(completion)
    ends = [end for _, end in output["offset_mapping"]]
    return sum(float(log_probs[at - 1, ids[0, at]]) for at in range(1, len(ends)) if ends[at] > begins)


def records(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def decisions(plain, candidates):
    scores = [[completion_score(plain, start + end, end) for start, end in options] for options in candidates]
    return [int(np.argmax(options)) for options in scores], scores


def test_pairs_are_decided_alike(evaluation, plain, eval_dir):
    shares = {}
    for name, path in (("one", "blimp_fast/one"), ("two", "blimp_fast/two"), ("turns", "supplement_fast/turns")):
        pairs = [(pair["sentence_good"], pair["sentence_bad"]) for pair in records(eval_dir, f"{path}.jsonl")]
        chosen, _ = decisions(plain, [[("", sentence) for sentence in pair] for pair in pairs])
        shares[name] = 100 * chosen.count(0) / len(chosen)
        predicted = evaluation.predictions[path.split("/")[0]][name]["predictions"]
        expected = [pair[choice] for pair, choice in zip(pairs, chosen, strict=True)]
        assert [entry["pred"] for entry in predicted] == expected
        assert [entry["id"] for entry in predicted] == [f"{name}_{number}" for number in range(len(pairs))]
    blimp, supplement = evaluation.results["blimp_fast"], evaluation.results["supplement_fast"]
    assert blimp["UID"] == pytest.approx({name: shares[name] for name in ("one", "two")})
    assert blimp["accuracy"] == pytest.approx((shares["one"] + shares["two"]) / 2)
    assert set(blimp["field"]) == {"syntax/semantics"} and set(blimp["linguistics_term"]) == {"binding"}
    assert supplement["UID"] == {"turns": pytest.approx(shares["turns"])}


def test_entity_tracking_is_averaged_by_split(evaluation, plain, eval_dir):
    shares, splits = {}, {}
    for split in ("regular", "ambiref"):
        items = records(eval_dir, f"entity_tracking_fast/{split}.jsonl")
        chosen, _ = decisions(plain, [[(item["input_prefix"], option) for option in item["options"]] for item in items])
        for operations in range(3):
            own = [choice for item, choice in zip(items, chosen, strict=True) if item["numops"] == operations]
            shares[f"{split}_{operations}_ops"] = 100 * own.count(0) / len(own)
        splits[split] = np.mean([share for name, share in shares.items() if name.startswith(split)])
    found = evaluation.results["entity_tracking_fast"]
    assert found["UID"] == pytest.approx(shares | splits)
    assert found["accuracy"] == pytest.approx(np.mean(list(splits.values())))


def test_ewok_asks_which_context_the_target_follows(evaluation, plain, eval_dir):
    items = records(eval_dir, "ewok_fast/d.jsonl")
    contexts = ("Context1", "Context2")
    chosen, _ = decisions(plain, [[(item[name], " " + item["Target1"]) for name in contexts] for item in items])
    assert 0 < chosen.count(0) < len(chosen)
    assert evaluation.results["ewok_fast"]["UID"]["d"] == pytest.approx(100 * chosen.count(0) / len(chosen))
    quoted = [entry["pred"] for entry in evaluation.predictions["ewok_fast"]["d"]["predictions"]]
    assert quoted == [f"{item[contexts[choice]]} {item['Target1']}" for item, choice in zip(items, chosen, strict=True)]


def test_wug_correlates_preferences(evaluation, plain, eval_dir):
    items = records(eval_dir, "wug_adj_nominalization/wugs.jsonl")
    _, scores = decisions(plain, [[("", sentence) for sentence in item["sentences"].split("\t")] for item in items])
    preferred = [1 / (1 + math.exp(second - first)) for first, second in scores]
    predicted = [entry["prob"] for entry in evaluation.predictions["wug_adj_nominalization"]["wug_adj"]["predictions"]]
    np.testing.assert_allclose(predicted, preferred, atol=1e-4)
    # Of the rounded ones: preferences that are one to seven digits tie.
    expected = spearmanr(predicted, [item["ratio"] for item in items])[0]
    assert evaluation.results["wug_adj_nominalization"]["spearman"] == pytest.approx(expected, abs=1e-6)


def word_surprisal(plain, context, word):
    """The word's tokens one after the other, the text before each of them tokenized anew."""
    model, processor = plain
    tokens = processor(word, add_special_tokens=False)["input_ids"]
    total = 0.0
    for place, token in enumerate(tokens):
        target = token if place == 0 else processor(processor.decode(token), add_special_tokens=False)["input_ids"][0]
        with torch.no_grad():
            logits = model(**processor(context, return_tensors="pt")).logits[0, -1]
        total -= math.log(float(logits.softmax(-1)[target]))
        context += processor.decode(token)
    return total


def test_surprisal_at_each_word_and_at_the_word_before(evaluation, plain, eval_dir):
    table = pd.read_csv(eval_dir / "reading" / "reading_data.csv", dtype={"item": str})
    table["item"] = table["item"].fillna("None")
    assert (table["item"] == "None").sum() == 1  # pandas takes the word for a gap, and so does the official pipeline
    predicted = evaluation.predictions["reading"]["reading"]["predictions"]
    assert [entry["id"] for entry in predicted] == list(range(len(table)))
    gaps = 0
    for entry, row in zip(predicted, table.itertuples(), strict=True):
        assert entry["pred"] == pytest.approx(word_surprisal(plain, row.item, row.word), abs=1e-4)
        if isinstance(row.prev_item, str):
            assert entry["prev_pred"] == pytest.approx(word_surprisal(plain, row.prev_item, row.prev_word), abs=1e-4)
        else:
            assert math.isnan(entry["prev_pred"])
            gaps += 1
    assert gaps == 13  # the first word of each sentence, and the one after "None"


def test_reading_is_regressed_as_by_statsmodels(evaluation, eval_dir):
    formulas = pytest.importorskip("statsmodels.formula.api")
    table = pd.read_csv(eval_dir / "reading" / "reading_data.csv")
    predicted = evaluation.predictions["reading"]["reading"]["predictions"]
    table["pred"] = [entry["pred"] for entry in predicted]
    table["prev_pred"] = [entry["prev_pred"] for entry in predicted]
    found = evaluation.results["reading"]
    explained = {}
    for key, controls in (
        ("predictive_power", ["Subtlex_log10", "length", "context_length"]),
        ("predictive_power_spillover", ["Subtlex_log10", "length", "context_length", "prev_length", "prev_pred"]),
    ):
        for measure, power in found[key].items():
            interactions = f"{measure} ~ ({' + '.join(controls)}) ** 2"
            whole = table[[measure, "pred", *controls]].dropna()
            baseline = formulas.ols(interactions, whole).fit()
            model = formulas.ols(f"{interactions} + pred", whole).fit()
            expected = {
                "coefficient": model.params["pred"],
                "t": model.tvalues["pred"],
                "p_value": model.pvalues["pred"],
                "r2": model.rsquared,
                "r2_change": model.rsquared - baseline.rsquared,
                "aic": model.aic,
                "aic_change": model.aic - baseline.aic,
            }
            assert power == pytest.approx(expected, rel=1e-6, abs=1e-8)
            explained[key, measure] = 100 * (model.rsquared - baseline.rsquared) / (1 - baseline.rsquared)
    eyes = [explained["predictive_power", f"RT{name}"] for name in ("firstfix", "firstpass", "gopast", "rightbound")]
    assert found["eye_tracking"] == pytest.approx(np.mean(eyes), rel=1e-6)
    expected = explained["predictive_power_spillover", "self_paced_reading_time"]
    assert found["self_paced_reading"] == pytest.approx(expected, rel=1e-6)
    assert found["correlations"]["N400"] == pytest.approx(table["pred"].corr(table["N400"]))


def test_each_folder_has_its_results(evaluation, eval_dir):
    assert set(evaluation.results) == {path.name for path in eval_dir.iterdir()}
    assert len(list(summary_rows(evaluation.results))) == len(evaluation.results) + 1


def test_a_processor_that_takes_single_texts_only_gives_the_same(plain, eval_dir, evaluation):
    model, processor = plain

    class Single:
        def __call__(self, text, **options):
            if not isinstance(text, str):
                raise TypeError("one text at a time")
            output = processor(text=text, **options)
            if not options.get("add_special_tokens", True):
                return output
            return {name: [values] for name, values in output.items()}  # as some processors do: a batch of one

        decode = processor.decode

    scorer = Scorer(as_language_model(model), CPU)
    again = evaluate_babylm(read_evaluation_data(eval_dir), ProcessorEncoder(Single()), scorer)
    assert again.predictions["blimp_fast"] == evaluation.predictions["blimp_fast"]
    assert again.results["entity_tracking_fast"] == evaluation.results["entity_tracking_fast"]
