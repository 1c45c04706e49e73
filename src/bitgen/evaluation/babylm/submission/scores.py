"""The figures of a set by component, one number each, for tables and curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitgen.evaluation.babylm.submission.published import COMPONENTS

READING_FIGURES = ("eye_tracking", "self_paced_reading")
CORRELATIONS = ("wug_adj", "wug_past")
# Percent right of a model that knows nothing; of the others half.
CHANCE = {"entity_tracking": 20.0, "global_piqa_parallel": 25.0}


def component_of(name: str) -> str:
    """The component that a set's folder is named after; the name itself for a set of another kind."""
    return next((component for component in COMPONENTS if name.startswith(component)), name)


def scores_of(name: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """A set's score by component: accuracy in percent, else Spearman's rho; of reading the two percentages. What is
    not a number (a correlation with a constant) is left out."""
    if name == "reading":
        found = {component: figures.get(component) for component in READING_FIGURES}
    else:
        found = {component_of(name): figures.get("accuracy", figures.get("spearman"))}
    return {
        component: float(value)
        for component, value in found.items()
        if isinstance(value, (int, float)) and value == value
    }


def formatted(component: str, value: float | None) -> str:
    """A score as a table shows it; nothing where there is none."""
    if value is None:
        return ""
    digits = 2 if component in (*CORRELATIONS, *READING_FIGURES, "aoa") else 1
    return f"{value + 1e-9:.{digits}f}"  # halves go up, as in the published tables
