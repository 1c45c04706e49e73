"""What a submission holds and lacks: its scores beside published ones, as tables, and as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitgen.evaluation.babylm.submission.data import SubmissionData
from bitgen.evaluation.babylm.submission.layout import (
    AOA,
    COLLATED,
    FAST,
    FINAL,
    FULL,
    GLUE,
    GLUE_TASKS,
    OFFICIAL,
    PARTS,
    Track,
    revision_name,
)
from bitgen.evaluation.babylm.submission.model import SubmissionModel, shortened
from bitgen.evaluation.babylm.submission.published import CAVEAT, COMPONENTS, PUBLISHED, UNITS
from bitgen.evaluation.babylm.submission.run import KEPT, RESULTS, Parts, Submission, sets_of
from bitgen.evaluation.babylm.submission.scores import CORRELATIONS, component_of, formatted, scores_of
from bitgen.guards.markdown import markdown
from bitgen.guards.printable import printable
from bitgen.show.tables import format_markdown, format_table
from bitgen.training.budget import MILLION, milestone

CURVE = "learning_curve.png"
_MANY_TIES = 0.01  # share of a set's questions


class Report(NamedTuple):
    """All that a report is made of."""

    model: SubmissionModel
    data: SubmissionData
    submission: Submission
    parts: Parts
    track: Track

    # ---- scores ----

    def scores(self, revision: str, part: str) -> dict[str, float]:
        """A model's scores on a part's sets, by component. Where an official set has another beside it, as a copy of
        it under a longer name, the official one counts."""
        found: dict[str, float] = {}
        for one in sorted(self.data.of(part), key=lambda one: one.name in OFFICIAL[part]):
            done = self.submission.done.get(revision, {}).get(one.label)
            if done is not None:
                found.update(scores_of(one.name, done.figures))
        return found

    def final_scores(self) -> dict[str, dict[str, float]]:
        """The final model's scores by part; GLUE and ages of acquisition belong to the full part."""
        scores = {part: self.scores(FINAL, part) for part in PARTS if self.data.of(part)}
        extra = {}
        if isinstance(mean := self.parts.glue.get("mean"), Mapping):
            extra[GLUE] = mean["accuracy"]
        if isinstance(score := self.parts.aoa.get(AOA), float):
            extra[AOA] = score
        if extra:
            scores[FULL] = scores.get(FULL, {}) | extra
        return scores

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """``(words seen, score)`` by component on the fast sets, fewest words first; the final model is the last point
        where the export says how many words it has seen. Empty without checkpoints."""
        curves: dict[str, list[tuple[float, float]]] = {}
        seen = [(revision.name, (revision.millions or 0) * MILLION) for revision in self.model.checkpoints]
        if seen and (self.model.words_seen or 0) > seen[-1][1]:
            seen.append((FINAL, self.model.words_seen or 0))
        for name, words in seen:
            for component, score in self.scores(name, FAST).items():
                curves.setdefault(component, []).append((words, score))
        return dict(sorted(curves.items(), key=lambda pair: [*COMPONENTS, pair[0]].index(pair[0])))

    # ---- what is missing, and what is allowed ----

    def wanted_checkpoints(self) -> list[str]:
        """The names of the checkpoints that the track asks for, up to the words that the model has seen."""
        reached = self._reached()
        return [revision_name(m) for m in self.track.milestones if reached is None or m <= reached]

    def _reached(self) -> int | None:
        """Millions of words at the last checkpoint that the run could keep; None: the export does not say."""
        seen = self.model.words_seen
        return None if seen is None else milestone(seen, at_end=True)

    def missing(self) -> list[str]:
        """What the track asks for and is not there, a sentence each."""
        found = []
        for part in PARTS:
            there = {one.name for one in self.data.of(part)}
            if not there:
                found.append(f"{part}: no set of it was found in --eval_dir")
            elif absent := [name for name in OFFICIAL[part] if name not in there]:
                found.append(f"{part}: {', '.join(absent)}")
        names = {revision.name for revision in self.model.checkpoints}
        if absent := [name for name in self.wanted_checkpoints() if name not in names]:
            nothing_there = not names and not self.model.left_out
            how = " (python src/export.py --words_seen_checkpoints True exports them)" if nothing_there else ""
            found.append(f"checkpoints: {shortened(absent)}{how}")
        if GLUE in self.parts.why:
            found.append(f"GLUE: {self.parts.why[GLUE]}")
        elif absent := [task for task in GLUE_TASKS if task not in self.parts.glue_predictions]:
            found.append(f"GLUE: {', '.join(absent)}")
        if AOA in self.parts.why:
            found.append(f"age of acquisition: {self.parts.why[AOA]}")
        return found

    def remarks(self) -> list[str]:
        """What is there and is not as the pipeline wants it, a sentence each."""
        found = [f"{folder} was left out: no kind of data that is evaluated here" for folder in self.data.unknown]
        found += self.model.left_out
        for one in self.data.sets:
            if one.name not in OFFICIAL[one.part] and component_of(one.name) not in CORRELATIONS:
                near = [name for name in OFFICIAL[one.part] if component_of(name) == component_of(one.name)]
                found.append(
                    f"{one.label} was evaluated, but it is no name of the pipeline's"
                    + (f"; if it is {near[0]}, rename it" if near else "")
                )
        found += self._of_scoring()
        problems = {**self.submission.problems, **self.parts.problems(self.track)}
        for several in problems.values():
            more = f" (and {len(several) - 1} more like it)" if len(several) > 1 else ""
            found.append(f"{several[0]}{more}: {COLLATED} leaves it out, as the pipeline would")
        asked = {revision_name(millions) for millions in self.track.milestones}
        if others := [revision.name for revision in self.model.checkpoints if revision.name not in asked]:
            found.append(f"{shortened(others)}: not among the checkpoints of {self.track.name}")
        if self.model.checkpoints and any(one.name == "ewok_fast" for one in self.data.of(FAST)):
            found.append(
                "where the pipeline's collate script gives each checkpoint 0 on ewok_fast, it is an old copy (8 July "
                f"2026), which compares whole sentences with their ends. Get today's; {COLLATED} has the right shares"
            )
        if self.model.images:
            found.append(
                "images are part of its training, or may be of the run that it started from: for the multimodal track "
                "the pipeline's collate script asks for vqa, winoground and devbench, too, and "
                f"{COLLATED} is for the tracks of text alone"
            )
        seen, reached = self.model.words_seen, self._reached()
        if reached is not None and (
            late := [one.name for one in self.model.checkpoints if (one.millions or 0) > reached]
        ):
            found.append(f"{shortened(late)}: after more words than the {seen:,} that the final model has seen")
        if reached is not None and reached < self.track.milestones[-1]:
            found.append(
                f"the pipeline's collate script expects all checkpoints up to {self.track.words_seen // MILLION}M; "
                "those beyond the words that this model has seen are null in the collated file, as the rules allow"
            )
        return found

    def _of_scoring(self) -> list[str]:
        """What makes the final model's scores mean less than they seem to."""
        found = []
        if not self.submission.begins_with_special:
            found.append(
                "the tokenizer puts no BOS before a text: the first token of each sentence is never scored, as in the "
                "pipeline"
            )
        for one in self.data.sets:
            ties = self.submission.done[FINAL][one.label].figures.get("ties") or 0
            items = len(one.data.items.get(one.name, ()))
            if ties > _MANY_TIES * items:
                found.append(
                    f"{one.label}: {ties:,} of {items:,} questions are ties, whose answers are drawn: the model "
                    "does not tell these candidates apart"
                )
        return found

    def allowance(self) -> list[tuple[str, str, str, str]]:
        """Rows: what the track limits, its limit, what this model has, and a verdict."""
        track, model = self.track, self.model
        wanted = self.wanted_checkpoints()
        names = {revision.name for revision in model.checkpoints}
        there = sum(name in names for name in wanted)
        return [
            (
                "words of the corpus",
                f"{track.corpus_words:,}",
                _or_unknown(model.corpus_words),
                _verdict(model.corpus_words, track.corpus_words),
            ),
            ("passes", f"{track.passes}", _or_unknown(model.passes), _verdict(model.passes, track.passes)),
            (
                "words seen, all passes",
                f"{track.words_seen:,}",
                _or_unknown(model.words_seen),
                _verdict(model.words_seen, track.words_seen),
            ),
            (
                "checkpoints asked for" + ("" if model.words_seen is None else " up to there"),
                f"{len(wanted)}",
                f"{there}",
                "complete" if there == len(wanted) else f"{len(wanted) - there} missing",
            ),
        ]

    # ---- output ----

    def comparison(self, all_columns: bool) -> tuple[list[str], list[list[str]]]:
        """The columns and rows of the table beside published models.

        Args:
            all_columns: every component of which anybody has a figure; otherwise those of this model.
        """
        own = self.final_scores()
        rows: list[tuple[str, str, str, Mapping[str, float]]] = [
            (
                f"{self.model.name}: {what}",
                "" if self.model.words_seen is None else _millions(self.model.words_seen),
                "",
                own[part],
            )
            for part, what in ((FULL, "full sets"), (FAST, "fast sets"))
            if part in own
        ]
        rows += [(one.name, f"{one.words} x 10", one.source.date, one.figures) for one in PUBLISHED]
        counted = [figures for *_, figures in (rows if all_columns else rows[: len(own)])]
        shown = [name for name in COMPONENTS if any(name in figures for figures in counted)]
        shown += sorted({name for figures in own.values() for name in figures} - set(COMPONENTS))
        columns = ["model", "words seen", "date", *(COMPONENTS.get(name, name) for name in shown)]
        cells = [[*about, *(formatted(name, figures.get(name)) for name in shown)] for *about, figures in rows]
        return columns, cells

    def terminal(self) -> str:
        """What the command prints."""
        lines = [format_table(*self.comparison(all_columns=False), title="beside published models (full sets)")]
        lines.append(format_table(("allowed", self.track.name, "this model", ""), self.allowance()))
        lines += _listed("missing:", self.missing()) + _listed("remarks:", self.remarks())
        return "\n\n".join(line for line in lines if line)

    def as_markdown(self) -> str:
        """The content of ``report.md``."""
        parts = [
            f"# {markdown(self.model.name)}: BabyLM submission, {self.track.name}",
            _bullets("Missing", self.missing()) or "## Missing\n\nNothing.",
            _bullets("Remarks", self.remarks()),
            "## What the track allows\n\n"
            + format_markdown(("", self.track.name, "this model", "verdict"), self.allowance()),
            "## Beside published models\n\n"
            + format_markdown(*self.comparison(all_columns=True))
            + f"\n\n{UNITS} {CAVEAT}\n\nSources: "
            + "; ".join(f"{source.name}, {source.date}" for source in dict.fromkeys(p.source for p in PUBLISHED))
            + ".",
        ]
        if self.curves():
            parts.append(f"## Learning curve\n\nThe fast sets.\n\n![scores against words seen]({CURVE})")
            parts.append(self._checkpoint_table())
        parts.append(
            f"## Files\n\n- `{RESULTS}/{markdown(self.model.name)}/{COLLATED}`: to be uploaded; beside it the "
            f"predictions as the official pipeline stores them\n- `results.json`: all figures\n- `{KEPT}`: what a "
            "second call goes on from; delete it when the submission is done"
        )
        return "\n\n".join(part for part in parts if part) + "\n"

    def _checkpoint_table(self) -> str:
        by_name = {revision.name: self.scores(revision.name, FAST) for revision in self.model.checkpoints}
        by_name["final"] = self.scores(FINAL, FAST)
        shown = list(self.curves())
        rows = [[name, *(formatted(one, scores.get(one)) for one in shown)] for name, scores in by_name.items()]
        return format_markdown(["checkpoint", *(COMPONENTS.get(one, one) for one in shown)], rows)

    def as_json(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        sets = {
            revision.name: {
                part: {
                    one.name: self.submission.done[revision.name][one.label].figures
                    for one in sets_of(revision, self.data)
                    if one.part == part
                }
                for part in PARTS
            }
            for revision in self.model.revisions
        }
        seconds = {
            name: {label: round(done.seconds, 2) for label, done in found.items()}
            for name, found in self.submission.done.items()
        }
        return {
            "model": self.model.name,
            "track": self.track.name,
            "words_seen": self.model.words_seen,
            "passes": self.model.passes,
            "corpus_words": self.model.corpus_words,
            "scores": self.final_scores(),
            "curves": {name: [list(point) for point in points] for name, points in self.curves().items()},
            "sets": sets,
            GLUE: dict(self.parts.glue),
            AOA: dict(self.parts.aoa),
            "missing": self.missing(),
            "remarks": self.remarks(),
            "seconds": seconds,
        }


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return ["\n".join([title, *(f"  - {printable(line, 1000)}" for line in lines)])] if lines else []


def _bullets(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {markdown(line)}" for line in lines) if lines else ""


def _or_unknown(value: int | None) -> str:
    return "not in the export" if value is None else f"{value:,}"


def _verdict(value: int | None, limit: int) -> str:
    if value is None:
        return "check it yourself"
    return "within" if value <= limit else "MORE THAN ALLOWED"


def _millions(words: int) -> str:
    return f"{words / MILLION:.1f}M"
