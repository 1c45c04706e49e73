"""What a submission says of itself: scores beside published ones, what is missing, and the learning curve."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bitgen.evaluation.babylm.evaluation import EvaluationData
from bitgen.evaluation.babylm.submission.curves import _LABEL_GAP, _apart, draw_curves, write_curves
from bitgen.evaluation.babylm.submission.data import SetData, SubmissionData
from bitgen.evaluation.babylm.submission.layout import FAST, FULL, TRACKS
from bitgen.evaluation.babylm.submission.model import Revision, SubmissionModel
from bitgen.evaluation.babylm.submission.published import COMPONENTS, PUBLISHED
from bitgen.evaluation.babylm.submission.report import Report
from bitgen.evaluation.babylm.submission.run import Done, Parts, Submission, sets_of
from bitgen.evaluation.babylm.submission.scores import formatted, scores_of

MILLION = 10**6
FIGURES = {
    "reading": {"eye_tracking": 0.27, "self_paced_reading": 0.43},
    "wug_adj_nominalization": {"spearman": 0.7},
}


def report(
    sets: dict[str, list[str]],
    checkpoints: tuple[int, ...] = (1, 2),
    words: int | None = 3_200_000,
    parts: Parts | None = None,
    unknown: tuple[str, ...] = (),
    passes: int | None = 1,
) -> Report:
    """Of a model whose score on a set is 50, and one more with each checkpoint."""
    revisions = [Revision("main", None, Path("m"), "")]
    revisions += [Revision(f"chck_{millions}M", millions, Path("m"), "") for millions in checkpoints]
    of_set = [SetData(part, name, Path(name), EvaluationData({}, None), "") for part in sets for name in sets[part]]
    data = SubmissionData(of_set, None, None, list(unknown))
    done = {
        revision.name: {
            one.label: Done(FIGURES.get(one.name, {"accuracy": 50.0 + number}), 1.0, dict)
            for one in sets_of(revision, data)
        }
        for number, revision in enumerate(revisions)
    }
    nothing = Parts({}, {}, {}, {}, {"glue": "not asked for", "aoa": "no data"})
    model = SubmissionModel(Path("models/my_model"), revisions, words, passes)
    return Report(model, data, Submission(done, 0, 0, {}), parts or nothing, TRACKS["strict-small"])


def test_what_is_missing_is_named():
    said = report({FAST: ["blimp_fast", "reading"]}, checkpoints=(2,)).missing()
    assert said == [
        "full_eval: no set of it was found in --eval_dir",
        "fast_eval: supplement_fast, ewok_fast, entity_tracking_fast, global_piqa_parallel, global_piqa_nonparallel",
        "checkpoints: chck_1M, chck_3M",
        "GLUE: not asked for",
        "age of acquisition: no data",
    ]
    bare = report({FULL: ["blimp_filtered"]}, checkpoints=(), words=None)
    assert "checkpoints: chck_1M, chck_2M, chck_3M ... chck_100M (19) (python src/export.py" in "\n".join(
        bare.missing()
    )
    assert "fast_eval: no set" in "\n".join(bare.missing())
    done = Parts({}, {"rte": {"predictions": []}}, {}, {}, {})
    assert "GLUE: boolq, mnli, mrpc, multirc, qqp, wsc" in report({FAST: ["reading"]}, parts=done).missing()


def test_the_last_checkpoint_of_a_budget_is_asked_for_and_is_none_too_many():
    milestones = (*range(1, 10), *range(10, 101, 10))
    so_near = report({FAST: []}, milestones, words=99_989_246)
    assert so_near.wanted_checkpoints() == [f"chck_{millions}M" for millions in milestones]
    assert not [line for line in so_near.remarks() if "chck" in line or "collate script" in line]
    assert "chck_100M" in "".join(report({FAST: []}, milestones[:-1], words=99_989_246).missing())
    assert "chck_100M" not in "".join(report({FAST: []}, milestones[:-1], words=98_900_000).missing())


def test_what_is_odd_is_named():
    found = report({FULL: ["blimp"], FAST: ["blimp_fast", "wug_past_tense"]}, (1, 4), unknown=("full_eval/x",))
    said = "\n".join(found.remarks())
    assert "full_eval/x was left out" in said
    assert "full_eval/blimp was evaluated, but it is no name of the pipeline's; if it is blimp_filtered" in said
    assert "chck_4M: after more words than the 3,200,000" in said and "wug" not in said
    assert "chck_11M: not among the checkpoints of strict-small" in "\n".join(
        report({FAST: []}, (11,), words=None).remarks()
    )


def test_what_another_script_or_track_would_say_is_named():
    with_ewok = report({FAST: ["ewok_fast"]})
    assert "it is an old copy (8 July 2026), which compares whole sentences" in "\n".join(with_ewok.remarks())
    assert "multimodal" not in "\n".join(with_ewok.remarks())
    with_images = with_ewok._replace(model=with_ewok.model._replace(images=True))
    assert "for the multimodal track the pipeline's collate script" in "\n".join(with_images.remarks())


@pytest.mark.parametrize(
    ("words", "passes", "corpus", "verdicts"),
    [
        (3_200_000, 1, 10_000_000, ["within", "within", "within", "1 missing"]),
        (100_000_001, 11, 10_000_001, [*["MORE THAN ALLOWED"] * 3, "17 missing"]),
        (None, None, None, [*["check it yourself"] * 3, "17 missing"]),
    ],
)
def test_what_the_track_allows(words, passes, corpus, verdicts):
    found = report({FAST: ["blimp_fast"]}, words=words, passes=passes)
    rows = found._replace(model=found.model._replace(corpus_words=corpus)).allowance()
    assert [row[-1] for row in rows] == verdicts


def test_scores_stand_beside_published_ones():
    found = report({FULL: ["blimp_filtered"], FAST: ["blimp_fast", "reading", "wug_adj_nominalization"]})
    columns, rows = found.comparison(all_columns=True)
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    own = table["my_model: full sets"]
    assert own["BLiMP"] == "50.0" and own["words seen"] == "3.2M" and own["EWoK"] == ""
    assert table["my_model: fast sets"]["eye tr."] == "0.27"
    published = [row for row in rows if row[0].startswith("GPT-2 small (98M")]
    assert [dict(zip(columns, row, strict=True))["suppl."] for row in published] == ["57.3", "65.0"]
    assert found.comparison(all_columns=False)[0][3:] == ["BLiMP", "eye tr.", "self-p.", "WUG adj."]
    text = found.as_markdown()
    assert "| GPT-BERT, causal focus (30M parameters) | 10M x 10 | 2025-08-11 | 71.7 | 63.2 |" in text
    assert "- GLUE: not asked for" in text and "![scores against words seen](learning_curve.png)" in text
    assert text.startswith("# my_model: BabyLM submission, strict-small")


def test_glue_and_ages_belong_to_the_full_row():
    parts = Parts({"mean": {"accuracy": 61.5}}, {}, {"aoa": 0.25}, {}, {})
    found = report({FULL: ["blimp_filtered"]}, parts=parts)
    assert found.final_scores() == {FULL: {"blimp": 50.0, "glue": 61.5, "aoa": 0.25}}


def test_published_figures_have_a_source_a_date_and_known_components():
    for model in PUBLISHED:
        assert model.source.name and model.source.date[:2] == "20"
        assert set(model.figures) <= set(COMPONENTS)


def test_a_score_is_one_number():
    assert scores_of("blimp_fast", {"accuracy": 65.0, "UID": {}}) == {"blimp": 65.0}
    assert scores_of("wug_past_tense", {"spearman": float("nan")}) == {}
    assert scores_of("reading", {"eye_tracking": 0.5, "self_paced_reading": None}) == {"eye_tracking": 0.5}
    assert (formatted("blimp", 57.25), formatted("wug_adj", 0.5), formatted("ewok", None)) == ("57.3", "0.50", "")


# ---- curves ----


def test_curves_are_of_the_fast_sets_and_end_with_the_final_model():
    curves = report({FULL: ["comps"], FAST: ["blimp_fast", "reading"]}).curves()
    assert list(curves) == ["blimp", "eye_tracking", "self_paced_reading"]
    assert curves["blimp"] == [(MILLION, 51.0), (2 * MILLION, 52.0), (3_200_000, 50.0)]
    # Where the export does not say how many words the final model has seen, there is no place for it.
    assert len(report({FAST: ["blimp_fast"]}, words=None).curves()["blimp"]) == 2
    assert report({FAST: ["blimp_fast"]}, checkpoints=()).curves() == {}


def test_the_picture_has_a_line_for_each_set(tmp_path):
    sets = ["blimp_fast", "supplement_fast", "entity_tracking_fast", "wug_adj_nominalization", "reading"]
    curves = report({FAST: sets}).curves()
    figure = draw_curves(curves, "a $title$ with $dollars")
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.get_lines() if line.get_gid() != "chance"}
    assert set(lines) == {*curves} and len(lines) == len(sets) + 1  # reading has two figures
    assert lines["blimp"].get_xydata().tolist() == [list(point) for point in curves["blimp"]]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"} and len(figure.axes) == 3
    write_curves(curves, "title", tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 1000
    with pytest.raises(ValueError, match="no score to draw"):
        draw_curves({"blimp": []}, "title")


def test_labels_move_apart_and_keep_their_order():
    moved = _apart([10.0, 12.0, 13.0, 100.0])
    assert moved == sorted(moved) and moved[3] == 100.0
    assert min(right - left for left, right in zip(moved, moved[1:], strict=False)) == pytest.approx(_LABEL_GAP)
    assert sum(moved[:3]) == pytest.approx(35.0)


def test_names_of_folders_cannot_steer_a_terminal():
    said = report({FAST: ["blimp_\x1b]0;x\x07"]}, unknown=("odd\x1b[2J",)).terminal()
    assert "odd" in said and "blimp_" in said and not set("\x1b\x07") & set(said)
