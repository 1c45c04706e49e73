"""What a model can do of what the page offers, and of the rest why not."""

from __future__ import annotations

from bitgen.api import Model, VisionLanguage
from bitgen.evaluation.asking import answers_questions
from bitgen.evaluation.talking import eyes
from bitgen.trained import CAPTIONS, MATCHING, RETRIEVAL

DESCRIBE, SEARCH, MATCH, REMEMBER, ASK, WHERE = "Describe", "Search", "Match", "Remember", "Ask", "Where"
ABILITIES = (DESCRIBE, SEARCH, MATCH, REMEMBER, ASK, WHERE)
_LEARNED = {DESCRIBE: CAPTIONS, SEARCH: RETRIEVAL, MATCH: MATCHING, REMEMBER: RETRIEVAL}
_NO_EYES = (
    "the model was trained on features computed earlier and has no vision tower: it cannot look at pictures. A model "
    "that was trained on pictures can."
)
_NO_QUESTIONS = (
    "the model was not trained to answer questions about pictures. src/train_stage2_reasoning.py trains one "
    "(docs/reasoning.md)."
)
_OF_PARTS = "a vision-language model of parts was not trained for it. Models of stage 1 can do it."


def why_not(model: Model | VisionLanguage) -> dict[str, str]:
    """Of what the model cannot do a sentence that says why."""
    if isinstance(model, VisionLanguage):
        return _why_parts_cannot(model)
    trained = model.trained
    if trained.model.config.takes_features:
        return dict.fromkeys(ABILITIES, _NO_EYES)
    found = {
        ability: f"{trained.untrained[what]}."
        for ability, what in _LEARNED.items()
        if what in trained.untrained
    }  # fmt: skip
    if not answers_questions(trained):
        found |= dict.fromkeys((ASK, WHERE), _NO_QUESTIONS)
    return found


def _why_parts_cannot(model: VisionLanguage) -> dict[str, str]:
    found = dict.fromkeys((SEARCH, MATCH, REMEMBER, WHERE), _OF_PARTS)
    try:
        eyes(model.trained)
    except ValueError as error:
        found |= dict.fromkeys((DESCRIBE, ASK), str(error))
    return found
