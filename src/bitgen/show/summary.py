"""What a run's figures look like in a line and in the summary's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .metrics_file import first_and_last, last_by_phase

_TRAIN_ROWS = (
    ("loss", "train/loss"),
    ("contrastive loss (ITC)", "train/contrastive_loss"),
    ("matching loss (ITM)", "train/itm_loss"),
    ("memory KL", "train/memory_kl_loss"),
    ("caption loss", "train/caption_loss"),
    ("caption loss, no image", "train/caption_prior_loss"),
    ("text loss", "train/text_loss"),
    ("ITM accuracy", "train/itm_acc"),
    ("temperature", "train/temperature"),
)
MAIN_HELD_OUT = (
    "val/caption_loss",
    "val/perplexity",
    "val/loss",
    "val/right",
    "val/bleu4",
    "val/cider",
    "val/direct",
    "val/rationale",
    "val/clauses",
    "val/where_acc@.5",
    *(f"val/says_{what}" for what in ("taught", "alone", "with", "two", "question", "same", "view")),
    "val/says_sentence",
    "val/says_sentence_back",
)
_HELD_OUT = (
    *(f"val/{way}_R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)),
    "val/reranked_t2i_R@1",
    "val/reranked_i2t_R@1",
    "val/contrastive_loss",
    "val/itm_loss",
    "val/itm_acc",
    *MAIN_HELD_OUT,
)


def status_line(numbers: Mapping[str, float], loss_form: str = "{:.3f}", rate_unit: str = " samples/s") -> str:
    """The one line of a step: `210 samples/s | loss 5.123 itc 4.801 itm 0.650 | acc i2t 12% t2i 10% itm 61%`."""

    def present(pairs: Sequence[tuple[str, str]], form: str) -> str:
        return " ".join(f"{label} {form.format(numbers[name])}" for label, name in pairs if name in numbers)

    losses = (
        *(("loss", "train/loss"), ("itc", "train/contrastive_loss"), ("itm", "train/itm_loss")),
        *(("captions", "train/caption_loss"), ("text", "train/text_loss")),
    )
    accuracies = (("i2t", "train/acc_i2t"), ("t2i", "train/acc_t2i"), ("itm", "train/itm_acc"))
    rate = f"{numbers['perf/samples_per_sec']:.0f}{rate_unit}" if "perf/samples_per_sec" in numbers else ""
    accuracy = present(accuracies, "{:.0%}")
    parts = [rate, present(losses, loss_form), accuracy and f"acc {accuracy}"]
    return " | ".join(part for part in parts if part)


def training_rows(records: Sequence[Mapping]) -> list[tuple[str, str, str]]:
    """Each loss: its name, first and last value, from the records of metrics.jsonl."""
    rows = []
    for label, name in _TRAIN_ROWS:
        ends = first_and_last(records, name)
        if ends is not None:
            rows.append((label, f"{ends[0]:.4g}", f"{ends[1]:.4g}"))
    return rows


def held_out_table(records: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the held-out figures at the end of each phase, from the records of metrics.jsonl."""
    by_name = {name: values for name in _HELD_OUT if (values := last_by_phase(records, name))}
    phases = sorted({phase for values in by_name.values() for phase in values})
    rows = [
        [name.removeprefix("val/"), *(f"{values[p]:.4g}" if p in values else "" for p in phases)]
        for name, values in by_name.items()
    ]
    return ["held out", *(f"after phase {phase}" for phase in phases)], rows
