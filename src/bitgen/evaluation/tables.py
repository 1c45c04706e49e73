"""Results as tables for a person to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitgen.evaluation.babylm.evaluation import summary_rows
from bitgen.evaluation.results import Results
from bitgen.show.tables import format_table

DIRECTIONS = (("t2i", "text to image"), ("i2t", "image to text"))


def tables(results: Results, rerank_top_k: int) -> str:
    """A table for each task that there are results of."""
    parts = []
    if retrieval := results.get("retrieval"):
        rows = []
        for prefix, how in (("", "by cosine"), ("reranked_", f"best {rerank_top_k} re-ranked")):
            for name, direction in DIRECTIONS:
                key = f"{prefix}{name}"
                if f"{key}_R@1" in retrieval:
                    cells = [_cell(retrieval, f"{key}_R@{k}") for k in (1, 5, 10)]
                    rows.append([f"{direction}, {how}", *cells, f"{retrieval[f'{key}_median_rank']:g}"])
        parts.append(format_table(["retrieval, %", "R@1", "R@5", "R@10", "median rank"], rows))
    if matching := results.get("matching"):
        kinds = [
            ["matching head (itm_acc)", "itm_acc"],
            ["cosine at its best threshold (itm_acc_cosine)", "itm_acc_cosine"],
            ["all scores, weighed on other images (itm_acc_calibrated)", "itm_acc_calibrated"],
            ["cosine alone, likewise (itm_acc_cosine_calibrated)", "itm_acc_cosine_calibrated"],
        ]
        rows = [[name, f"{matching[key]:.1f}"] for name, key in kinds]
        parts.append(format_table(["right or wrong partner, balanced accuracy", "%"], rows))
        if "swapped_group" in matching:
            names = ("text", "image", "group")
            rows = [
                [how, *(f"{matching[f'swapped_{name}{ending}']:.1f}" for name in names)]
                for how, ending in (("matching head", ""), ("cosine", "_cosine"))
            ]
            rows.append(["by chance", "25.0", "25.0", "16.7"])
            parts.append(format_table(["two scenes, the same words in another order, %", *names], rows))
    if memory := results.get("memory"):
        parts.append(format_table(["memory", "%"], [[name, f"{value:.1f}"] for name, value in memory.items()]))
    if captioning := results.get("captioning"):
        scores = (("BLEU-4, %", "bleu4"), ("chrF, %", "chrf"), ("ROUGE-L, %", "rouge_l"), ("CIDEr x 100", "cider"))
        rows = [[name, f"{captioning[key]:.1f}"] for name, key in scores]
        rows.append(["words a caption (a person's)", f"{captioning['mean_words']:.1f}"])
        rows[-1][1] += f" ({captioning['mean_reference_words']:.1f})"
        rows.append(["different captions", f"{captioning['distinct_captions']:,} of {captioning['images']:,}"])
        parts.append(format_table(["captions", ""], rows))
        parts += captions_that_are_right(captioning)
    if babylm := results.get("babylm"):
        parts.append(format_table(["BabyLM", ""], list(summary_rows(babylm))))
    return "\n\n".join(parts)


def captions_that_are_right(captioning: Mapping[str, Any]) -> list[str]:
    """A table of how many captions of built-in scenes are right; none of other data."""
    if "right" not in captioning:
        return []
    aspects = (
        ("colour, shape, number and place, all of them", "right"),
        ("and the size", "right_with_size"),
        *((name, f"right_{name}") for name in ("colour", "shape", "number", "size", "where")),
        ("can be read as a description at all", "readable"),
    )
    rows = [[name, f"{captioning[key]:.1f}"] for name, key in aspects]
    return [format_table(["captions that are right in", "%"], rows)]


def likelihood_table(retrieval: Mapping[str, Any]) -> str:
    """Retrieval by how likely a model that writes finds each caption."""
    rows = []
    for key, how in (
        ("t2i", "text to image, likelihood"),
        ("i2t", "image to text, likelihood"),
        ("i2t_gain", "image to text, what the image adds"),
    ):
        cells = [_cell(retrieval, f"{key}_R@{k}") for k in (1, 5, 10)]
        rows.append([how, *cells, f"{retrieval[f'{key}_median_rank']:g}"])
    chance = [f"{100 * min(k / retrieval['candidates'], 1):.1f}" for k in (1, 5, 10)]
    rows.append(["by chance", *chance, f"{(retrieval['candidates'] + 1) / 2:g}"])
    title = f"retrieval among {retrieval['candidates']:,}, %"
    return format_table([title, "R@1", "R@5", "R@10", "median rank"], rows)


def _cell(metrics: Mapping[str, Any], name: str) -> str:
    interval = metrics.get(f"{name}_ci95")
    return f"{metrics[name]:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
