"""What a model that speaks from a memory says after it was taught, on held-out things, names and wordings. Prints JSON
lines {"name": .., "facts": .., "slots": .., "value": mean, "interval": half of a 95% interval, "episodes": count, ..}:

  says_KIND        share of the answers that hold what was taught, in percent: of `taught` pictures (efficacy), new
                   pictures of the thing `alone`, `with` another or of `two` taught ones, a `question` about a picture,
                   a `sentence` that was told, asked for in other words or (`sentence_back`) from its other end; of
                   photographs the `same` and another `view`
  whole_KIND       captions that hold the name and are right in all but sizes and background
  recalled_KIND    answers for which the right facts, and no others, were recalled
  unchanged_KIND   answers about nothing that was taught that are, word for word, those without a memory
  everyday_KIND    says_KIND of sentences in which names that people and places have stand for the invented ones; with
                   `told_` before it where the right facts are handed over
  chained_KIND     the same of questions about people of whom two sentences tell: "Blick belongs to Anna", "Anna lives
                   in Oslo"
  written_KIND     the same of sentences and questions that begin with a capital, and end with a full stop or a mark
  led_in_KIND      the same of questions behind other words ("do you know who owns Blick?"); plain_KIND: of these
                   without them; led_in_, plain_ and everyday_left_alone: of those about nobody, that recall nothing;
                   misspelt_, another_relation_left_alone: of those about a name with one letter changed, and about
                   something else of the same name
  together_KIND    says_KIND of sentences that are asked for with a picture that was taught something else;
                   `its_owner`, `its_name_in_captions`: of pictures whose name was also told of, answers to "who owns
                   NAME?" and captions; `_asks_the_picture`: questions that are left to the picture; `_recalls_it`:
                   questions that training has no words for and that recall what was told of the name
  edited, edited_old   after about a third of the facts got other names (of every second one, those asked about
                   directly): answers that hold the new one; the old one; `_taught`: of the taught pictures themselves
  forgotten, forgotten_state   after half of the facts were forgotten: answers that are those of a memory which never
                   held them; largest difference of the one memory from the other
  forgotten_plain  of the answers about what was forgotten, those that are the ones without a memory
  nearest_neighbour_KIND   says_KIND with a store of facts in place of the memory, which gives the nearest one's value
                   and keeps the newest where the bytes of a memory of these slots hold no more
  direct_KIND      says_KIND where reading allows for noise, as for a cue that was never written
  told_KIND, told_whole_KIND   says_KIND and whole_KIND where the right facts are recalled whatever the cue means: what
                   is missing to 100 is saying (beyond capacity also reading), the rest of what says_KIND misses finding
  prompted_KIND    says_KIND of the same model without a memory, whose prompt is the taught text
  said_, unchanged_pictures, _sentences   with a part `changed` in the trained model: the probability above which a fact
                   is recalled (`gate`), `no words`, the `noise` of reading, `no pointer`, `no cross-attention`
  empty_memory     share of the answers with an empty memory that are not those without a memory (0)
  teach_seconds, fine_tuning_seconds, fine_tuning_over_teaching   CPU seconds to encode and write facts and to read one;
                   to fine-tune until as many are said, at the best of three rates; their ratio. null: not reached,
                   in `at_least` seconds
  calibration      of all answers about `pictures` or `sentences` whose surest fact has a probability in a bin: percent
                   that recall what is asked for and nothing else; their mean probability; how many they are
  addresses_seconds, fine_tuning_over_first   what a memory's matrices of addresses cost once, before the first fact;
                   the ratio with them
  write_ms, read_ms   one more fact; one cue; sums_ms, prepare_ms: what the first of each computes once
  token_ms         one more token of a text about a picture, by the facts that were recalled (0: none)

Means are over several episodes for each of three seeds, which count alike; intervals are over episodes."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from memory_speaks_ablations import reading, without_parts
from memory_speaks_calibration import calibration
from memory_speaks_costs import cost_of_a_token, costs
from memory_speaks_edits import edited_and_forgotten
from memory_speaks_episodes import SEEDS, episodes, report
from memory_speaks_names import WAYS
from memory_speaks_together import asked_together
from memory_speaks_training import teaching_and_tuning

from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import Episode
from bitgen.memory.answering import Answer, Speaker, measures, says
from bitgen.memory.associative import AssociativeMemory
from bitgen.objectives.recall import SIMILAR, RecallObjective
from bitgen.trained import Trained, open_model

PICTURES, SENTENCES = (1, 8, 16, 32, 64, 128), (1, 8, 16, 32, 64, 127)  # with the one picture beside them: 128
_MOST_THINGS = 76  # that an episode of scenes can teach
SLOTS = (32, 128)
_FEWEST = 16  # facts of a seed's episodes
_FEW = 12  # queries about pictures, or about sentences, in an episode of one fact


def said_after_teaching(
    objective: RecallObjective, trained: Trained, data: PairDataset | None, count: int, compared: bool = True
) -> None:
    """What is said, by the number of facts; ``compared``: and of slots, with what it is compared with."""
    pictures = [facts for facts in PICTURES if data is not None or facts <= _MOST_THINGS]
    plans: list[tuple[dict[str, int], int]] = [({"pictures": facts, "sentences": 0}, facts) for facts in pictures]
    plans += [({"pictures": 1, "sentences": facts, "picture_queries": 1}, facts) for facts in SENTENCES]
    sure: tuple[list[Answer], list[Answer]] = ([], [])
    for sizes, facts in plans:
        if facts == 1:  # then as many episodes as facts
            sizes |= {"sentence_queries" if sizes["sentences"] else "picture_queries": _FEW}
        for slots in SLOTS if compared else SLOTS[-1:]:
            found: dict[str, list[float]] = {}
            for seed in SEEDS:
                for dataset, episode in episodes(trained, data, seed, max(count, _FEWEST // facts), **sizes):
                    speaker = Speaker(objective, dataset, slots)
                    told = sizes["sentences"] > 0
                    for name, value in _measured(speaker, episode, told, compared, sure[told]).items():
                        found.setdefault(name, []).append(value)
            for name, values in found.items():
                report(name, values, facts=facts, slots=slots)
    for about, answers in zip(("pictures", "sentences"), sure, strict=True):
        for bin, (mean, right, count) in calibration(answers).items():
            line = {"name": "calibration", "about": about, "bin": bin, "probability": mean}
            print(json.dumps(line | {"value": right, "answers": count}), flush=True)


def _measured(speaker: Speaker, episode: Episode, told: bool, compared: bool, sure: list[Answer]) -> dict[str, float]:
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    answers = speaker.ask(memory, episode, tensors)
    asked = [answer for answer in answers if answer.query.kind.startswith("sentence") == told]
    sure += asked if not compared or speaker.space.slots == SLOTS[-1] else []
    measured = measures(asked)
    if not compared:
        return measured
    space = memory.space
    held = sum(sums.nbytes for sums in memory.precision) // (4 * sum(space.halves))  # facts, float32, of these bytes
    newest = AssociativeMemory.empty(space).written(memory.pairs[-held:])
    first = len(memory) - len(newest)
    # What the newest facts' store does not hold is not found in it: rows are those of the newest.
    others = {
        "nearest_neighbour": speaker.ask(
            newest, _shifted(episode, first), tensors, plain=False, read=lambda rows: newest.halves(1)[rows]
        ),
        "direct": speaker.ask(memory, episode, tensors, plain=False, read=reading(memory, SIMILAR)),
        "told": speaker.ask(memory, episode, tensors, plain=False, told=True),
    }
    for kind, given in others.items():
        for name, value in measures([a for a in given if a.query.kind.startswith("sentence") == told]).items():
            if name.startswith("says_"):
                measured[name.replace("says", kind)] = value
            elif name.startswith("whole_") and kind == "told":
                measured[f"told_{name}"] = value
    return measured


def _shifted(episode: Episode, first: int) -> Episode:
    """The same episode for a store whose first row is the fact ``first``."""
    queries = tuple(replace(query, facts=tuple(row - first for row in query.facts)) for query in episode.queries)
    return replace(episode, queries=queries)


def other_sentences(objective: RecallObjective, trained: Trained, data: PairDataset | None, count: int) -> None:
    """16 sentences about people and places as they are called, where invented names are only like them; sentences that
    tell of each other's people; questions behind other words; and what is nearly, but not, what was taught."""
    found: dict[str, list[float]] = {}
    sizes: dict[str, Any] = dict(pictures=1, sentences=16, picture_queries=1)
    for seed in SEEDS:
        for kind, changed, chained in WAYS:
            for dataset, made in episodes(trained, data, seed, 2 * count, **sizes, chained=chained):
                episode, speaker = changed(made) if changed else made, Speaker(objective, dataset)
                tensors = speaker.tensors(episode)
                memory = speaker.teach(tensors)
                for told in (False, True):
                    answers = speaker.ask(memory, episode, tensors, plain=False, told=told)
                    if chained:
                        answers = [answer for answer in answers if _in_two(episode, answer)]
                    for name, value in measures(answers).items():
                        if name.startswith("says_sentence"):
                            line = f"{'told_' * told}{kind}_{name.removeprefix('says_')}"
                            found.setdefault(line, []).append(value)
                        elif name == "recalled_sentence_unknown" and not told:
                            found.setdefault(f"{kind}_left_alone", []).append(value)
    for name, values in found.items():
        report(name, values, facts=16, slots=128)


def _in_two(episode: Episode, answer: Answer) -> bool:
    """Whether two sentences tell of whom a question is about."""
    name = re.findall(r"\b[A-Z]\w*", answer.query.prompt)
    return bool(name) and sum(name[0] in text.split() for text, picture in episode.taught if picture is None) == 2


def prompted(objective: RecallObjective, trained: Trained, data: PairDataset | None, count: int) -> None:
    """The same model without a memory, whose prompt is what the memory would have read."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for dataset, episode in episodes(trained, data, seed, count, pictures=16, sentences=16):
            speaker = Speaker(objective, dataset)
            tensors = speaker.tensors(episode)
            tokens, hits = objective.image_tokens(tensors["query_pictures"]), {}
            for sees in (True, False):
                queries = [q for q in episode.queries if (q.picture is not None) == sees and q.facts]
                images = [row for row, q in enumerate(q for q in episode.queries if q.picture is not None) if q.facts]
                told = [" ".join(episode.taught[fact][0] for fact in q.facts) for q in queries]
                texts = [f"{text} {q.prompt}".strip() for text, q in zip(told, queries, strict=True)]
                said = speaker.say(texts, tokens[images] if sees else None, None)
                for query, text in zip(queries, said, strict=True):
                    hits.setdefault(query.kind, []).append(100.0 * says(Answer(query, text, text, (), 0.0)))
            for kind, values in hits.items():
                found.setdefault(f"prompted_{kind}", []).append(statistics.fmean(values))
    for name, values in found.items():
        report(name, values, facts=32)


def ablations(objective: RecallObjective, trained: Trained, data: PairDataset | None, count: int) -> None:
    """16 pictures and 16 sentences, with one part changed."""
    found: dict[tuple, list[float]] = {}
    for seed in SEEDS:
        for dataset, episode in episodes(trained, data, seed, count, pictures=16, sentences=16):
            for (changed, level), shares in without_parts(Speaker(objective, dataset), episode).items():
                for name, value in shares.items():
                    found.setdefault((name, changed, level), []).append(value)
    for (name, changed, level), values in found.items():
        report(name, values, facts=32, slots=128, changed=changed, level=level)


def empty_memory(objective: RecallObjective, trained: Trained, data: PairDataset | None) -> None:
    """Whether an answer with an empty memory is another than without one, answer by answer."""
    for dataset, episode in episodes(trained, data, SEEDS[0], 1):
        speaker = Speaker(objective, dataset)
        tensors = speaker.tensors(episode)
        answers = speaker.ask(AssociativeMemory.empty(speaker.space), episode, tensors)
        other = [float(answer.said != answer.plain) for answer in answers]
        report("empty_memory", [statistics.fmean(other)], answers=len(other))


def seconds_of_teaching(objective: RecallObjective, trained: Trained, data: PairDataset | None) -> None:
    """CPU seconds of teaching against fine-tuning."""
    for facts in (1, 16, 64) if data is None else (1, 16, 64, 128):
        for dataset, episode in episodes(trained, data, SEEDS[0], 1, pictures=facts, sentences=0):
            for name, line in teaching_and_tuning(Speaker(objective, dataset), episode).items():
                print(json.dumps({"name": name, "facts": facts, **line}), flush=True)


def main() -> None:
    """Measure everything, or what --only names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run of configs/memory_scenes.yaml or such")
    parser.add_argument("--data", metavar="DIR", help="held-out features; without it the built-in scenes")
    parser.add_argument("--episodes", type=int, default=4, metavar="N", help="for each seed (default: 4)")
    parser.add_argument("--num_beams", type=int, default=1, metavar="N", help="of answers (default: 1, greedy)")
    parser.add_argument(
        "--only",
        help="said, brief (what is said, in 128 slots, compared with nothing), sentences, together, edited, prompted, "
        "ablations, empty, training or costs, with commas between",
    )
    flags = parser.parse_args()
    torch.set_num_threads(1)
    Speaker.beams = flags.num_beams
    trained = open_model(flags.model)
    objective = RecallObjective(trained.model).eval()
    data = PairDataset(flags.data, trained.processor) if flags.data else None
    sections = {
        "empty": lambda: empty_memory(objective, trained, data),
        "sentences": lambda: other_sentences(objective, trained, data, flags.episodes),
        "together": lambda: asked_together(trained, data, flags.episodes),
        "edited": lambda: edited_and_forgotten(objective, trained, data, flags.episodes),
        "prompted": lambda: prompted(objective, trained, data, flags.episodes),
        "ablations": lambda: ablations(objective, trained, data, flags.episodes),
        "training": lambda: seconds_of_teaching(objective, trained, data),
        "costs": lambda: (costs(objective), cost_of_a_token(objective)),
        "said": lambda: said_after_teaching(objective, trained, data, flags.episodes),
        "brief": lambda: said_after_teaching(objective, trained, data, flags.episodes, compared=False),
    }
    unknown = set(flags.only.split(",")) - set(sections) if flags.only else set()
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; choose from {', '.join(sections)}")
    for name, section in sections.items():
        if name in flags.only.split(",") if flags.only else name != "brief":  # which is a part of `said`
            section()


if __name__ == "__main__":
    main()
