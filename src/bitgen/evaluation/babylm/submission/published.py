"""Published figures of BabyLM models, each with its source and date. What a source does not say is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# The components of a submission, in the order of tables, and how a table heads them.
COMPONENTS = {
    "blimp": "BLiMP",
    "supplement": "suppl.",
    "ewok": "EWoK",
    "entity_tracking": "entity",
    "comps": "COMPS",
    "global_piqa_parallel": "PIQA par.",
    "global_piqa_nonparallel": "PIQA non-par.",
    "glue": "GLUE",
    "eye_tracking": "eye tr.",
    "self_paced_reading": "self-p.",
    "aoa": "AoA",
    "wug_adj": "WUG adj.",
    "wug_past": "WUG past",
}
UNITS = (
    "Percent right; eye tracking and self-paced reading: percent of the variance that surprisal explains; AoA: the "
    "official score; WUG: Spearman's rho. GLUE: mean over tasks."
)


class Source(NamedTuple):
    """Where figures were published, and when (of a repository: the day of the version that says them)."""

    name: str
    date: str


class Published(NamedTuple):
    """A model's figures on the full sets, by component; ``words`` of its corpus, as its track counts them."""

    name: str
    words: str
    source: Source
    figures: Mapping[str, float]


_PIPELINE_2026 = Source("babylm-org/babylm-eval, README", "2026-04-17")
_PIPELINE_2025 = Source("babylm/evaluation-pipeline-2025, README (table in a comment)", "2025-08-11")
_CITED = Source("cited in issue 20 of this project, without a name", "2026")

PUBLISHED = (
    Published("best causal model of 2026", "10M", _CITED, {"blimp": 73.1}),
    Published(
        "GPT-BERT, causal focus (30M parameters)",
        "10M",
        _PIPELINE_2025,
        {
            "blimp": 71.66,
            "supplement": 63.21,
            "ewok": 49.49,
            "entity_tracking": 33.96,
            "eye_tracking": 9.89,
            "self_paced_reading": 3.45,
        },
    ),
    Published(
        "GPT-2 small (98M parameters), 2026",
        "10M",
        _PIPELINE_2026,
        {
            "blimp": 65.08,
            "supplement": 57.25,
            "entity_tracking": 21.07,
            "comps": 51.81,
            "wug_adj": 0.56,
            "wug_past": 0.16,
        },
    ),
    Published(
        "GPT-2 small, 2025",
        "10M",
        _PIPELINE_2025,
        {
            "blimp": 67.29,
            "supplement": 59.09,
            "ewok": 49.80,
            "entity_tracking": 18.92,
            "eye_tracking": 0.13,
            "self_paced_reading": 0.04,
        },
    ),
    Published(
        "GPT-BERT, causal focus",
        "100M",
        _PIPELINE_2025,
        {"blimp": 79.29, "supplement": 70.42, "ewok": 52.32, "eye_tracking": 8.36, "self_paced_reading": 3.02},
    ),
    Published(
        "GPT-2 small (98M parameters), 2026",
        "100M",
        _PIPELINE_2026,
        {
            "blimp": 74.53,
            "supplement": 65.00,
            "entity_tracking": 23.58,
            "comps": 55.85,
            "wug_adj": 0.62,
            "wug_past": 0.19,
        },
    ),
    Published(
        "GPT-2 small, 2025",
        "100M",
        _PIPELINE_2025,
        {
            "blimp": 75.07,
            "supplement": 64.96,
            "ewok": 51.22,
            "entity_tracking": 30.11,
            "eye_tracking": 0.47,
            "self_paced_reading": 0.06,
        },
    ),
)
CAVEAT = (
    "Published figures are of the full sets. EWoK and entity tracking of 2025, and entity tracking of the 2026 "
    "baselines (April), are of other questions than since July 2026: of EWoK the question is turned round, of entity "
    'tracking those that offer "nothing" are left out. The 2026 pipeline no longer has WUG.'
)
