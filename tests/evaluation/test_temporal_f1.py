"""Temporal F1, against Libra's own numbers and closed forms."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bitgen.evaluation.temporal_f1 import TEMPORAL_WORDS, mean_temporal_f1, temporal_f1, temporal_words

EPSILON = 1e-10
REPOSITORY = Path(__file__).resolve().parents[2]


def fixtures() -> list[Path]:
    beside = REPOSITORY.parent / "shared" / "data" / "connector_fixtures"
    return sorted(Path(os.environ.get("CONNECTOR_FIXTURES", beside)).glob("*temporal_f1*.json"))


@pytest.mark.realdata
def test_scores_are_libras():
    if not fixtures():
        pytest.skip("no *temporal_f1*.json here: CONNECTOR_FIXTURES, or ../shared/data/connector_fixtures")
    for path in fixtures():
        entries = json.loads(path.read_text(encoding="utf-8"))
        cases = [entry for entry in entries if "f1" in entry]
        assert cases, path
        for case in cases:
            assert temporal_f1(case["prediction"], case["reference"]) == pytest.approx(case["f1"], rel=0, abs=1e-9)
        for entry in entries:
            assert set(entry.get("keywords", TEMPORAL_WORDS)) == TEMPORAL_WORDS
        texts = [case["prediction"] for case in cases], [case["reference"] for case in cases]
        assert mean_temporal_f1(*texts) == pytest.approx(sum(case["f1"] for case in cases) / len(cases), abs=1e-9)


def test_closed_forms():
    assert len(TEMPORAL_WORDS) == 44
    assert temporal_f1("The lungs are clear.", "Clear lungs.") == 1
    assert temporal_f1("", "") == 1
    assert temporal_f1("stable", "clear") == EPSILON
    # p = eps / (0 + eps) = 1, r = eps / (1 + eps).
    assert temporal_f1("", "stable") == pytest.approx(2 * EPSILON, rel=1e-9)
    # p = 5e-11, r = 1e-10: 2pr / (p + r + eps).
    assert temporal_f1("worsened, new", "increased") == pytest.approx(4e-11, rel=1e-9)
    assert temporal_f1("stable and larger", "Stable; new; larger; worse") == pytest.approx(2 / 3, abs=1e-9)


def test_words_are_whole_in_any_case_and_counted_once():
    assert temporal_words("New, NEW: newer renewed unstable Larger-than") == {"new", "larger"}


def test_of_several_references_the_best_counts():
    assert mean_temporal_f1(["stable", "new"], [["worse", "stable"], "new"]) == pytest.approx(1, abs=1e-9)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no texts"):
        mean_temporal_f1([], [])
    with pytest.raises(ValueError, match="1 candidates for 2"):
        mean_temporal_f1(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="sample 0 has no reference"):
        mean_temporal_f1(["a"], [[]])
