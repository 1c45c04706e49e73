"""The sets and rules of 2026, against plain calls of the model with the official rules spelt out."""

import json
import shutil

import numpy as np
import pytest
import torch

from bitgen.evaluation.babylm.evaluation import (
    EvaluationData,
    KeptSets,
    evaluate_babylm,
    read_evaluation_data,
    summary_rows,
)
from bitgen.evaluation.babylm.items import read_items
from bitgen.evaluation.babylm.kept import KeptResults, fingerprint
from bitgen.evaluation.babylm.models import identity, load_model_folder
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.babylm.zero_shot import choose, is_tied
from support.babylm import model_folder
from support.babylm_plain import COMPS_FILES, Plain, write_comps, write_global_piqa, write_lines

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", True)], ids=["gpt2", "llama with BOS"])
def folder(request):
    kind, bos = request.param
    return model_folder(kind, bos=bos)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of the sets, and their records."""
    path, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(3)
    comps = write_comps(path / "comps", draw)
    piqa = {
        name: write_global_piqa(path / name, draw, solutions)
        for name, solutions in (("global_piqa_parallel", 4), ("global_piqa_nonparallel", 2))
    }
    return path, comps, piqa


@pytest.fixture(scope="module")
def evaluation(folder, sets):
    model, encoder = load_model_folder(folder, CPU)
    return evaluate_babylm(read_evaluation_data(sets[0]), encoder, Scorer(model, CPU))


@pytest.fixture(scope="module")
def plain(folder):
    return Plain(folder)


def test_comps_asks_after_which_start_the_property_is_more_probable(evaluation, plain, sets):
    shares = {}
    for name, uid in COMPS_FILES.items():
        records = sets[1][name]
        starts = [(record["prefix_acceptable"], record["prefix_unacceptable"]) for record in records]
        chosen = [
            plain.best([(f"{start} ", record["property_phrase"]) for start in both])
            for both, record in zip(starts, records, strict=True)
        ]
        predicted = evaluation.predictions["comps"][uid]["predictions"]
        expected = [f"{starts[at][choice]} {records[at]['property_phrase']}" for at, choice in enumerate(chosen)]
        assert [entry["pred"] for entry in predicted] == expected
        assert [entry["id"] for entry in predicted] == [f"{uid}_{at}" for at in range(len(records))]
        shares[uid] = 100 * chosen.count(0) / len(chosen)
    assert evaluation.results["comps"]["UID"] == pytest.approx(shares)
    assert evaluation.results["comps"]["accuracy"] == pytest.approx(np.mean(list(shares.values())))


@pytest.mark.parametrize(("name", "solutions"), [("global_piqa_parallel", 4), ("global_piqa_nonparallel", 2)])
def test_global_piqa_compares_means_a_token(evaluation, plain, sets, name, solutions):
    right, sums_differ = 0, 0
    for record in sets[2][name]:
        options = [(record["prompt"], f" {record[f'solution{at}']}") for at in range(solutions)]
        choice = plain.best(options, per_token=True)
        sums_differ += choice != plain.best(options)
        right += choice == record["label"]
        (entry,) = evaluation.predictions[name][record["example_id"]]["predictions"]
        assert entry == {"id": f"{record['example_id']}_0", "pred": options[choice][1]}
    assert sums_differ and 0 < right < 20
    assert evaluation.results[name]["accuracy"] == pytest.approx(100 * right / 20)


BOXES = [
    {"numops": 0, "input_prefix": "Box 1 contains ", "options": ["the cat.", "nothing.", "the mat."]},
    {"numops": 0, "input_prefix": "Box 1 contains ", "options": ["the cat.", "the dog.", "the mat."]},
    {"numops": 1, "input_prefix": "Box 0 contains ", "options": ["the hat.", "the box.", "the red mat."]},
]


def test_questions_that_offer_nothing_are_left_out_since_2026(tmp_path, caplog):
    write_lines(tmp_path / "entity_tracking" / "regular.jsonl", BOXES)
    with caplog.at_level("INFO"):
        assert [item.origin[-1] for item in read_items(tmp_path / "entity_tracking")] == ["2", "3"]
    assert "1 items are left out, as the rules of 2026 say; 2 stay" in caplog.text
    assert len(read_items(tmp_path / "entity_tracking", 2025)) == 3
    write_lines(tmp_path / "entity_tracking" / "regular.jsonl", BOXES[:1])
    with pytest.raises(ValueError, match="all of its 1 items are left out"):
        read_items(tmp_path / "entity_tracking")


def test_ewok_of_2025_asks_which_target_follows(eval_dir, folder, plain):
    data = read_evaluation_data(eval_dir, 2025)
    model, encoder = load_model_folder(folder, CPU)
    data = EvaluationData({"ewok_fast": data.items["ewok_fast"]}, None, 2025)
    found = evaluate_babylm(data, encoder, Scorer(model, CPU))
    lines = (eval_dir / "ewok_fast" / "d.jsonl").read_text(encoding="utf-8").splitlines()
    expected = []
    for item in map(json.loads, lines):
        targets = [" " + item[name] for name in ("Target1", "Target2")]
        expected.append(targets[plain.best([(item["Context1"], target) for target in targets])])
    assert [entry["pred"] for entry in found.predictions["ewok_fast"]["d"]["predictions"]] == expected


def test_equals_are_counted_and_one_of_them_is_drawn(tmp_path, folder):
    same = {"sentence_good": "The cat sits.", "sentence_bad": "The cat sits."}
    other = {"sentence_good": "The cat sits.", "sentence_bad": "The dogs runs."}
    write_lines(tmp_path / "supplement_fast" / "one.jsonl", [same] * 40 + [other] * 3)
    model, encoder = load_model_folder(folder, CPU)
    data = {year: read_evaluation_data(tmp_path, year) for year in (2025, 2026)}
    found = {year: evaluate_babylm(data[year], encoder, Scorer(model, CPU)) for year in data}
    again = evaluate_babylm(read_evaluation_data(tmp_path), encoder, Scorer(model, CPU))
    assert [found[year].results["supplement_fast"]["ties"] for year in found] == [40, 40]
    decided = {year: found[year].results["supplement_fast"]["accuracy"] * 43 / 100 for year in found}
    assert decided[2025] >= 40 and 5 < decided[2026] < 38  # 40 coins, of which 20 are heads
    assert again == found[2026]
    (row,) = summary_rows(found[2026].results)
    assert row[1].endswith("(40 ties)")


def test_drawn_equals_are_any_of_them_and_nothing_else():
    draw = np.random.default_rng(0)
    scores = np.array([-3.0, -1.0, -2.0, -1.0], dtype=np.float32)
    assert is_tied(scores) and not is_tied(scores[:3])
    assert {choose(scores, draw) for _ in range(50)} == {1, 3}
    assert choose(scores) == 1 and choose(scores[:3], draw) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("comps/comps_base.jsonl", {"property_phrase": ...}, r"comps_base.jsonl line 2 has no field 'property_phrase'"),
        ("comps/comps_base.jsonl", {"prefix_acceptable": 3}, r"'prefix_acceptable' is 3; it must be text"),
        ("comps/comps_all.jsonl", {}, r"comps_all.jsonl: COMPS counts files named comps_base.jsonl, .*rename it"),
        ("global_piqa_parallel/eng_latn.jsonl", {"solution3": ...}, r"2 has no field 'solution3': .* another year"),
        ("global_piqa_parallel/eng_latn.jsonl", {"label": 4}, r"line 2: 'label' is 4; it must be one of 0 to 3"),
        ("global_piqa_nonparallel/eng_latn.jsonl", {"label": 2}, r"'label' is 2; it must be one of 0 to 1"),
        ("global_piqa_nonparallel/eng_latn.jsonl", {"label": "1"}, r"'label' is '1'; it must be a whole number"),
        ("global_piqa_nonparallel/eng_latn.jsonl", {"example_id": None}, r"'example_id' is None; it must be text or"),
    ],
)
def test_a_field_of_the_new_sets_that_is_wrong_is_named(sets, tmp_path, name, change, message):
    source = sets[0] / name.replace("comps_all", "comps_base")
    lines = list(map(json.loads, source.read_text(encoding="utf-8").splitlines()))
    lines[1] = {key: value for key, value in (lines[1] | change).items() if value is not ...}
    path = write_lines(tmp_path / name, lines)
    with pytest.raises(ValueError, match=message):
        read_items(path.parent)


def test_folders_that_are_missing_renamed_or_of_another_form_are_named(sets, tmp_path, caplog):
    write_lines(tmp_path / "blimp_fast" / "one.jsonl", [{"sentence_good": "a", "sentence_bad": "b"}])
    write_lines(tmp_path / "BLiMP-filtered" / "one.jsonl", [{}])
    write_lines(tmp_path / "evaluation_data" / "fast_eval" / "ewok_fast" / "d.jsonl", [{}])
    (tmp_path / "glue_filtered").mkdir()
    (tmp_path / "ewok_fast.zip").touch()
    with caplog.at_level("INFO"):
        read_evaluation_data(tmp_path)
    assert "BLiMP-filtered is left out: not a kind of data that is evaluated here; if it holds blimp," in caplog.text
    assert "it holds evaluation_data" not in caplog.text and "it holds fast_eval/ewok_fast: move" in caplog.text
    assert "glue_filtered is left out here: its tasks are fine-tuned" in caplog.text
    assert "no folder supplement*, comps*, entity_tracking*, ewok*, global_piqa_parallel*" in caplog.text
    assert "Unpack ewok_fast.zip" in caplog.text
    assert "reading*, aoa*: no score for them" in caplog.text  # glue_filtered shows that it is the full evaluation
    with pytest.raises(ValueError, match=r"holds none of .*: .*evaluation_data/fast_eval"):
        read_evaluation_data(tmp_path / "evaluation_data")
    with pytest.raises(ValueError, match="the rules of 2024 are not known; give one of 2025, 2026"):
        read_evaluation_data(tmp_path, 2024)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blimp/one.json", r"blimp holds .json files, the form of an earlier year"),
        ("blimp/below/one.jsonl", r"its .jsonl files lie in .*below; move them up"),
    ],
)
def test_files_of_an_earlier_form_are_named(tmp_path, path, message):
    write_lines(tmp_path / path, [{"sentence_good": "a", "sentence_bad": "b"}])
    with pytest.raises(ValueError, match=message):
        read_evaluation_data(tmp_path)


def test_a_tokenizer_without_bos_is_named(sets, caplog):
    data = read_evaluation_data(sets[0])
    for bos in (True, False):
        caplog.clear()
        model, encoder = load_model_folder(model_folder("llama", bos=bos), CPU)
        evaluate_babylm(EvaluationData({"comps": data.items["comps"]}, None), encoder, Scorer(model, CPU))
        assert ("no BOS before a text" in caplog.text) is not bos


def test_an_interrupted_evaluation_goes_on(eval_dir, tmp_path, folder, monkeypatch):
    data = read_evaluation_data(eval_dir)
    model, encoder = load_model_folder(folder, CPU)
    scorer = Scorer(model, CPU)
    whole = evaluate_babylm(data, encoder, scorer)
    of_model = identity(model, encoder, folder)
    kept = KeptSets(tmp_path / "kept", of_model, eval_dir)
    score, calls = scorer.score, []

    def interrupted(sequences):
        calls.append(len(sequences))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(sequences)

    monkeypatch.setattr(scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_babylm(data, encoder, scorer, kept)
    again = evaluate_babylm(data, encoder, scorer, kept)
    assert len(calls) == len(data.items) + 1 + 1  # each folder once, and the one that was interrupted twice
    assert evaluate_babylm(data, encoder, scorer, kept).predictions.keys() == again.predictions.keys()
    assert len(calls) == len(data.items) + 2
    assert again.results.keys() == whole.results.keys()
    assert np.isnan(again.predictions["reading"]["reading"]["predictions"][0]["prev_pred"])
    for name in data.items:
        for uid, entries in whole.predictions[name].items():
            quoted = [entry["pred"] for entry in again.predictions[name][uid]["predictions"]]
            assert quoted == [entry["pred"] for entry in entries["predictions"]]
        if "accuracy" in whole.results[name]:
            assert again.results[name] == whole.results[name]
    calls.clear()
    other = KeptSets(tmp_path / "kept", of_model, eval_dir, 2025)
    with pytest.raises(KeyboardInterrupt):
        evaluate_babylm(data, encoder, scorer, other)  # of other rules: nothing is taken
    assert len(calls) == 3


def test_other_weights_tokenizers_code_and_files_are_other_results(eval_dir, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    model, encoder = load_model_folder(copy, CPU)
    same = identity(model, encoder, copy)
    assert identity(*load_model_folder(folder, CPU), folder) == same  # wherever it lies
    encoder.encode(["a text", "a longer one"])
    encoder.processor(text=["a", "b c"], padding=True, truncation=True, max_length=4)
    assert identity(model, encoder, copy) == same  # padding and cutting are no rules
    with torch.no_grad():
        next(model.model.parameters()).view(-1)[0] += 1
    others = [identity(model, encoder, copy)]
    getattr(encoder.processor, "tokenizer", encoder.processor).add_tokens(["another"])
    others.append(identity(model, encoder, copy))
    (copy / "modeling_own.py").write_text("WIDTH = 1")
    others.append(identity(model, encoder, copy))
    assert len({same, *others}) == 4

    sets = shutil.copytree(eval_dir, tmp_path / "sets")
    kept = KeptSets(tmp_path / "kept", same, sets)
    first, *rest = sorted(path.name for path in sets.iterdir())
    for name in (first, *rest):
        results, file = kept.of(name)
        results.put(file, [{}, {}])
    (sets / "broken").symlink_to(tmp_path / "nowhere")  # of no set
    next((sets / first).rglob("*.*")).write_text("changed")
    KeptSets(tmp_path / "kept", others[0], sets).remove([first, *rest])
    found = {name: results.get(file) for name in (first, *rest) for results, file in [kept.of(name)]}
    assert found == {first: None, **dict.fromkeys(rest, [{}, {}])}


def test_what_was_kept_damaged_is_computed_again(tmp_path, caplog):
    kept = KeptResults(tmp_path, "mark")
    kept.put("one", [float("nan"), {"a": 1}])
    np.testing.assert_equal(kept.get("one"), [float("nan"), {"a": 1}])
    assert kept.get("two") is None and KeptResults(tmp_path, "another").get("one") is None
    (tmp_path / "one.json").write_bytes(b'{"fingerprint": "mark", "kept"')
    assert kept.get("one") is None and "one.json cannot be read" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot make it"):
        KeptResults(tmp_path / "file", "mark").put("one", 1)


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path, "2026")
    assert first == fingerprint(tmp_path, "2026") != fingerprint(tmp_path, "2025")
    (tmp_path / "chck_1M").mkdir()
    (tmp_path / "chck_1M" / "a").write_text("1")
    assert fingerprint(tmp_path, "2026") == first
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = fingerprint(tmp_path, "2026")
    (tmp_path / "b").write_text("2")
    assert len({first, renamed, fingerprint(tmp_path, "2026")}) == 3
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        fingerprint(tmp_path / "nowhere")
