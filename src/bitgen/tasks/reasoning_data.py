"""What a run of stage 2 asks, and how its answers are validated on what it never asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid

from bitgen.config import Config
from bitgen.config.sources import SCENES, SORT_OF_CLEVR
from bitgen.data.questions.folder import FolderQuestions
from bitgen.data.questions.records import QuestionFolder
from bitgen.data.questions.shown import PictureShown
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.rationales import checked_clauses
from bitgen.data.scenes.reasoning import SceneReasoning
from bitgen.data.scenes.sort_of_clevr import SortOfClevr
from bitgen.data.scenes.tables import FEWEST, render_table
from bitgen.evaluation.asked import Model, boxes_of_folder, first_questions, score_folder, score_pictures
from bitgen.evaluation.asking import readable
from bitgen.evaluation.reasoning import Answerer, Judged, Split, accuracy, by_hops, clause_measures, problems
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.objectives.reasoning import ReasoningObjective
from bitgen.protocols import HeldOutResult, Objective, Validator
from bitgen.show.boxes import draw_boxes
from bitgen.show.tables import format_markdown
from bitgen.tasks.rollouts import Reward, reward_of

# Questions of a validation, and how many of them, and of their pictures, are shown.
_VALIDATED, _SHOWN, _DRAWN = 400, 12, 6
_SIDE = 240  # pixels of a picture that is shown

AskedAbout = SceneReasoning | SortOfClevr | FolderQuestions


def asked_pictures(config: Config, processor: BitGenProcessor) -> AskedAbout:
    """What the run asks about.

    Raises:
        ValueError: a folder that cannot be read, or has no question about a picture.
    """
    settings, seed = config.reasoning, config.training.seed
    assert settings.question_data is not None
    share = 0.0 if settings.rationale == "none" else settings.rationale_share
    per_picture = settings.questions_per_picture
    if settings.question_data == SORT_OF_CLEVR:
        return SortOfClevr(processor, seed, "train", min(per_picture, 20), share)
    if settings.question_data != SCENES:
        return FolderQuestions(settings.question_data, processor, seed, per_picture, share)
    return SceneReasoning(
        processor,
        seed,
        config.data.scenes_train,
        per_picture,
        share,
        settings.grounding_share,
        settings.caption_share,
        settings.max_hops,
        settings.max_objects,
    )


def fingerprints_of(asked: object) -> dict[str, str]:
    """What must be the same by its content when a run goes on; of what is drawn nothing."""
    return {"questions": asked.reader.fingerprint} if isinstance(asked, FolderQuestions) else {}


def validator_of(config: Config, processor: BitGenProcessor) -> Validator | None:
    """What asks held-out questions; None: there are none.

    Raises:
        ValueError: a folder that cannot be read.
    """
    settings = config.reasoning
    source, thinks, sees = settings.question_val_data, settings.rationale == "clauses", settings.picture_shown
    if source is None:
        return None
    if source == SCENES:
        # Scenes and questions of the sizes that training has, and none that evaluation asks.
        split = Split("validation", objects=(FEWEST, settings.max_objects), hops=(0, settings.max_hops))
        return SceneValidator(split, config.training.seed, processor, thinks, reward_of(settings.process_weight), sees)
    if source == SORT_OF_CLEVR:
        pictures = SortOfClevr(processor, config.training.seed, "validation")
        return _AskedValidator(
            [pictures[SampleKey(index)] for index in range(_VALIDATED // 20)], processor, thinks, sees
        )
    return _FolderValidator(QuestionFolder(source), processor, thinks, sees)


class SceneValidator:
    """Asks about scenes that training never drew, and looks for things in them."""

    def __init__(
        self, split: Split, seed: int, processor: BitGenProcessor, thinks: bool, reward: Reward, sees: PictureShown
    ) -> None:
        self.split, self.seed, self.processor, self.thinks, self.reward = split, seed, processor, thinks, reward
        self.sees = sees
        self.problems = problems(split, _VALIDATED, seed)

    def __call__(self, objective: Objective, phase: int) -> HeldOutResult:
        assert isinstance(objective, ReasoningObjective)
        objective.eval()
        answerer = Answerer(objective.model, self.processor, self.sees)
        scalars, score, samples = {}, 0.0, []
        for name, thinks in _ways(self.thinks):
            samples = answerer.answer(self.problems, thinks)
            score = scalars[f"val/{name}"] = accuracy(samples)
            scalars |= {f"val/{name}_{hops}_hops": value for hops, value in by_hops(samples).items()}
        if self.thinks:
            scalars |= {f"val/{name.replace(' ', '_')}": value for name, value in clause_measures(samples).items()}
        where = answerer.where(_VALIDATED, self.seed, split=self.split)
        scalars |= {f"val/where_{name.replace(' ', '_')}": value for name, value in where.items()}
        texts = {"samples/answers": _table(samples, self.reward)}
        return HeldOutResult(scalars, {"samples/boxes": _drawn(samples)}, texts, score)


def _ways(thinks: bool) -> list[tuple[str, bool]]:
    """How questions are put, the way that the model is judged by last."""
    return [("direct", False), ("rationale", True)] if thinks else [("direct", False)]


def _table(samples: Sequence[Judged], reward: Reward) -> str:
    rows = [
        (
            one.problem.question.text,
            _marked(one),
            one.reply.answer or "",
            one.problem.question.answer,
            f"{one.clauses[0]} of {one.clauses[1]}",
            f"{reward(one):.3g}",
        )
        for one in samples[:_SHOWN]
    ]
    heads = ("question", "rationale (+: the clause holds, -: it does not)", "answer", "right answer", "hold", "reward")
    return format_markdown(heads, rows)


def _marked(one: Judged) -> str:
    """A rationale, with a mark before each clause for whether it holds."""
    said = checked_clauses(one.problem.scene, one.problem.question.steps, one.reply.rationale or "")
    return "; ".join(f"{'+' if holds else '-'} {clause}" for clause, holds in said)


def _drawn(samples: Sequence[Judged]) -> Tensor:
    """The first pictures with the boxes that the rationales speak of, uint8 ``[3, H, W]``."""
    shown = []
    for one in samples[:_DRAWN]:
        picture = render_table(one.problem.scene, _SIDE, one.problem.key)
        shown.append(pil_to_tensor(draw_boxes(picture, readable(one.reply).boxes)))
    return make_grid(torch.stack(shown), nrow=3)


def _said(records: Sequence[dict[str, Any]]) -> str:
    """The first answers, of questions without a program to check a rationale by."""
    columns = ("question", "rationale", "answer", "right_answer")
    rows = [[one[column] or "" for column in columns] for one in records[:_SHOWN]]
    return format_markdown([column.replace("_", " ") for column in columns], rows)


class _AskedValidator:
    """Puts questions whose answers are known to the word."""

    def __init__(self, pictures: Sequence, processor: BitGenProcessor, thinks: bool, sees: PictureShown) -> None:
        self.pictures, self.processor, self.thinks, self.sees = pictures, processor, thinks, sees

    def __call__(self, objective: Objective, phase: int) -> HeldOutResult:
        assert isinstance(objective, ReasoningObjective)
        objective.eval()
        model, score = Model(objective.model, self.processor, self.sees), 0.0
        scalars: dict[str, float] = {}
        records: list[dict[str, Any]] = []
        for name, thinks in _ways(self.thinks):
            figures, records = score_pictures(model, self.pictures, thinks)
            score = scalars[f"val/{name}"] = figures["all"]
            scalars |= {f"val/{name}_{family}": value for family, value in figures.items() if family != "all"}
        return HeldOutResult(scalars, {}, {"samples/answers": _said(records)}, score)


class _FolderValidator:
    """Puts the questions of a folder: those that are answered in words, and those that are answered with a box."""

    def __init__(self, folder: QuestionFolder, processor: BitGenProcessor, thinks: bool, sees: PictureShown) -> None:
        self.folder, self.processor, self.thinks = folder, processor, thinks and folder.has_rationales
        self.sees = sees
        self.kinds = [boxes for boxes in (False, True) if first_questions(folder, 1, boxes)]
        if not self.kinds:
            raise ValueError(f"{folder.folder} has no question about a picture")

    def __call__(self, objective: Objective, phase: int) -> HeldOutResult:
        assert isinstance(objective, ReasoningObjective)
        objective.eval()
        model, score = Model(objective.model, self.processor, self.sees), 0.0
        scalars: dict[str, float] = {}
        texts: dict[str, str] = {}
        if True in self.kinds:
            figures = boxes_of_folder(model, self.folder, _VALIDATED)
            score = figures["acc@.5"]
            scalars |= {f"val/where_{what.replace(' ', '_')}": value for what, value in figures.items()}
        for name, thinks in _ways(self.thinks) if False in self.kinds else []:
            figures, records = score_folder(model, self.folder, _VALIDATED, thinks)
            texts["samples/answers"] = _said(records)
            score = scalars[f"val/{name}"] = next(iter(figures.values()))
            scalars |= {f"val/{name}_{what}": value for what, value in figures.items()}
        return HeldOutResult(scalars, {}, texts, score)
