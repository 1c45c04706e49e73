"""What the strict pipeline of BabyLM 2026 calls things: sets, their sizes, checkpoints, files, and the collated JSON.

Of ``babylm-org/babylm-eval``, strict, as it was on 8 July 2026: with Global PIQA, without WUG, and with entity tracking
without the questions that offer "nothing".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitgen.checkpoint.format import REVISION_PREFIX
from bitgen.training.budget import MILLION

FULL, FAST = "full_eval", "fast_eval"
PARTS = (FULL, FAST)
FINAL = "main"  # how the pipeline calls the final model among the revisions
BACKEND = "causal"
COLLATED = f"all_full_preds_and_fast_scores_{BACKEND}.json"
PREDICTIONS = "predictions.json"
# Questions of each fine-tuning task, and words in contexts of ages of acquisition at each checkpoint.
GLUE_TASKS = {"boolq": 1635, "mnli": 4908, "mrpc": 204, "multirc": 2424, "qqp": 20_215, "rte": 139, "wsc": 52}
AOA_WORDS = 8_005
GLUE, AOA = "glue", "aoa"
AOA_FOLDER = "AoA_word"
SURPRISAL, AOA_SCORE = "surprisal", "aoa_score"
READING = "reading"


class OfficialSet(NamedTuple):
    """A set of the pipeline: its ``key`` in the collated file, its ``folder`` of results, how many sub-tasks and items
    it has, and in ``each`` how many items every sub-task has, where that is one number."""

    key: str
    folder: str
    subtasks: int
    items: int
    each: int | None = None


_IN_BOTH = {
    "global_piqa_parallel": OfficialSet(
        "global_piqa_parallel", "global_piqa_parallel/global_piqa_parallel", 103, 103, 1
    ),
    "global_piqa_nonparallel": OfficialSet(
        "global_piqa_nonparallel", "global_piqa_nonparallel/global_piqa_nonparallel", 100, 100, 1
    ),
    READING: OfficialSet(READING, READING, 1, 1_726),
}
# In the order of the collated file.
OFFICIAL: dict[str, dict[str, OfficialSet]] = {
    FULL: {
        "blimp_filtered": OfficialSet("blimp", "blimp/blimp_filtered", 67, 59_875),
        "supplement_filtered": OfficialSet("blimp_supplement", "blimp/supplement_filtered", 5, 5_218),
        "ewok_filtered": OfficialSet("ewok", "ewok/ewok_filtered", 11, 7_618),
        "entity_tracking": OfficialSet("entity_tracking_filtered", "entity_tracking/entity_tracking", 18, 6_780),
        "comps": OfficialSet("comps", "comps/comps", 4, 91_028),
        **_IN_BOTH,
    },
    FAST: {
        "blimp_fast": OfficialSet("blimp", "blimp/blimp_fast", 67, 13_400, 200),
        "supplement_fast": OfficialSet("blimp_supplement", "blimp/supplement_fast", 5, 250, 50),
        "ewok_fast": OfficialSet("ewok", "ewok/ewok_fast", 11, 1_100, 100),
        "entity_tracking_fast": OfficialSet(
            "entity_tracking_filtered", "entity_tracking/entity_tracking_fast", 6, 2_238
        ),
        **_IN_BOTH,
    },
}


class Track(NamedTuple):
    """What a track allows: words of the corpus, and passes through it."""

    name: str
    corpus_words: int
    passes: int = 10

    @property
    def words_seen(self) -> int:
        """Words that a model may see, all passes counted."""
        return self.corpus_words * self.passes

    @property
    def milestones(self) -> list[int]:
        """The checkpoints that are asked for, in millions of words seen."""
        millions = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
        return [number for number in millions if number * MILLION <= self.words_seen]


TRACKS = {track.name: track for track in (Track("strict-small", 10 * MILLION), Track("strict", 100 * MILLION))}


def revision_name(millions: int) -> str:
    """The name of the checkpoint after so many million words."""
    return f"{REVISION_PREFIX}{millions}M"


def size_problems(part: str, name: str, predictions: Mapping[str, Any]) -> list[str]:
    """Where the predictions of an official set are not as many as those of the official files; none for other sets."""
    official = OFFICIAL[part].get(name)
    if official is None:
        return []
    counts = {subtask: len(found["predictions"]) for subtask, found in predictions.items()}
    total, problems = sum(counts.values()), []
    if len(counts) != official.subtasks:
        problems.append(f"{part}/{name} has {len(counts)} sub-tasks, the official set {official.subtasks}")
    if total != official.items:
        problems.append(f"{part}/{name} has {total:,} items, the official set {official.items:,}")
    elif official.each is not None:
        problems += [
            f"{part}/{name}: {subtask} has {count} items, in the official set {official.each}"
            for subtask, count in counts.items()
            if count != official.each
        ]
    return problems


def differences(predictions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """As :func:`size_problems`, of all sets by name, whichever part they are of."""
    return [
        problem
        for name, found in predictions.items()
        for part in PARTS
        if name in OFFICIAL[part] and (part == FULL or name not in OFFICIAL[FULL])
        for problem in size_problems(part, name, found)
    ]


def glue_problems(predictions: Mapping[str, Any]) -> dict[str, list[str]]:
    """As :func:`size_problems`, of the fine-tuning tasks that were done, by task."""
    counts = {task: len(found["predictions"]) for task, found in predictions.items() if task in GLUE_TASKS}
    return {
        task: [f"{GLUE}/{task} has {count:,} questions, the official set {GLUE_TASKS[task]:,}"]
        for task, count in counts.items()
        if count != GLUE_TASKS[task]
    }


def aoa_problems(surprisal: Mapping[str, Any], track: Track) -> list[str]:
    """Where surprisals of ages of acquisition are not of the track's checkpoints, or not of as many words."""
    counts = Counter(row["step"] for row in surprisal["results"])
    wanted = [revision_name(millions) for millions in track.milestones]
    problems = []
    if sorted(counts) != sorted(wanted):
        problems.append(
            f"{AOA} is of {len(counts)} checkpoints; the pipeline takes the {len(wanted)} of the track alone"
        )
    if counts and set(counts.values()) != {AOA_WORDS}:
        count = next(count for count in counts.values() if count != AOA_WORDS)
        problems.append(f"{AOA} has {count:,} words in contexts, the official set {AOA_WORDS:,}")
    return problems


def fast_scores(
    key: str, figures: Mapping[str, Any], predictions: Mapping[str, Any], answers: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """A checkpoint's scores on a fast set as the collated file holds them: shares by sub-task instead of percentages.

    As in the pipeline the text of an answer counts: where both candidates are the same text, each is right.

    Args:
        key: of the set in the collated file.
        figures: those of :func:`bitgen.evaluation.babylm.evaluation.evaluate_babylm`.
        answers: the right ones of each sub-task, in the order of the predictions.
    """
    if key == READING:
        return {"spr": _share(figures["self_paced_reading"]), "rt": _share(figures["eye_tracking"])}
    right, counts = {}, {}
    for subtask, found in predictions.items():
        pairs = list(zip(found["predictions"], answers[subtask], strict=True))
        right[subtask] = sum(prediction["pred"].strip() == answer.strip() for prediction, answer in pairs)
        counts[subtask] = len(pairs)
    if key.startswith("global_piqa"):  # each question is a sub-task of its own, and the set has one score
        return {key: sum(right.values()) / sum(counts.values())}
    return {subtask: right[subtask] / counts[subtask] for subtask in predictions}


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def collated(
    full: Mapping[str, Any],
    glue: Mapping[str, Any],
    aoa: Mapping[str, Any],
    fast: Mapping[str, Mapping[str, Any]] | None,
    track: Track,
) -> dict[str, Any]:
    """The content of the collated file. As the pipeline writes it, what is absent is null.

    Args:
        full: predictions of the final model by key of the collated file.
        glue: predictions by task.
        aoa: contents of the files ``surprisal.json`` and ``aoa_score.json`` by their names without the ending.
        fast: for each checkpoint by its name, its :func:`fast_scores` by key; None: no fast set was evaluated.
    """
    content: dict[str, Any] = {official.key: full.get(official.key) for official in OFFICIAL[FULL].values()}
    content["aoa_surprisals"], content[AOA] = aoa.get(SURPRISAL), aoa.get(AOA_SCORE)
    content[GLUE] = {task: glue[task] for task in GLUE_TASKS if task in glue}
    if fast is not None:
        names: Sequence[str] = [revision_name(millions) for millions in track.milestones]
        keys = [official.key for official in OFFICIAL[FAST].values()]
        content["fast_eval_results"] = {key: [fast.get(name, {}).get(key) for name in names] for key in keys}
    return content
