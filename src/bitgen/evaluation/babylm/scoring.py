"""Log-probabilities of tokens in context, each computed once and without a softmax over rows that nobody reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bitgen.evaluation.babylm.models import LanguageModel, PackedInputs
from bitgen.evaluation.babylm.packing import Row, TokenSequence, pack, slots_of

logger = logging.getLogger(__name__)

# Floats of logits held at once: about the size of a core's cache, where the passes over them cost little.
LOGITS_AT_ONCE = 2**21
# Log-probabilities of packed rows may differ from those of plain passes by rounding alone.
TOLERANCE = 1e-3
_SAMPLES = 8


class Scorer:
    """Asks a model for the log-probabilities of tokens.

    Packed rows need a model that takes any mask and any positions, and whose logits are its head's output. Whether it
    does is tried on a few of the sequences; one that does not is read as the official pipeline reads it, only sorted
    by length.

    Args:
        batch_tokens: tokens of one forward pass.
    """

    def __init__(self, model: LanguageModel, device: torch.device, batch_tokens: int = 4096) -> None:
        self.model, self.device, self.batch_tokens = model, device, batch_tokens

    @torch.inference_mode()
    def score(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """Natural log-probabilities, float32, of the wanted tokens of each sequence.

        Raises:
            ValueError: a sequence is longer than the model's context, and the model refuses it; or the model gives NaN.
        """
        starts = slots_of(sequences)
        answers = np.zeros(starts[-1], dtype=np.float32)
        limit = self.model.max_length
        fits = [limit is None or len(sequence.inputs) <= limit for sequence in sequences]
        short = [index for index, fit in enumerate(fits) if fit]
        long = [index for index, fit in enumerate(fits) if not fit]

        chosen = [sequences[index] for index in short]
        rows = pack(chosen)
        found = self._packed(chosen, rows) if self._reads_packed(chosen, rows) else self._plain(chosen)
        for index, answer in zip(short, _split(found, chosen), strict=True):
            answers[starts[index] : starts[index + 1]] = answer
        for index in long:  # one by one, so that a refusal names the text
            answers[starts[index] : starts[index + 1]] = self._too_long(sequences[index])
        by_sequence = _split(answers, sequences)
        for sequence, answer in zip(sequences, by_sequence, strict=True):
            # Of equals the first wins, and that is the right one: a broken model would excel.
            if np.isnan(answer).any():
                raise ValueError(
                    f"{sequence.origin}: the model's probabilities are NaN: its weights are damaged, or its training "
                    "diverged. Evaluate an earlier checkpoint"
                )
        return by_sequence

    def _reads_packed(self, sequences: Sequence[TokenSequence], rows: Sequence[Row]) -> bool:
        """Whether packed rows give what plain passes give: tried on neighbours in the tree, on the longest row, and on
        the longest sequence.

        The long ones show a model that attends within a window: by places in the row (GPT-Neo), or by positions.
        """
        ordered = sorted((sequence for sequence in sequences if sequence.wanted), key=lambda sequence: sequence.ids)
        last = max(len(ordered) - 2, 0)
        firsts: Iterable[int] = np.linspace(0, last, _SAMPLES // 2).astype(int) if ordered else []
        neighbours = [sequence for first in firsts for sequence in ordered[first : first + 2]]
        longest = max(rows, key=len, default=Row())
        together = np.unique(np.searchsorted(slots_of(sequences), longest.slots, side="right") - 1)
        deepest = max(sequences, key=lambda sequence: len(sequence.inputs), default=None)
        deep = [deepest] if deepest is not None else []
        for samples in (neighbours, [sequences[index] for index in together], deep):
            expected = self._plain(samples, quiet=True)
            try:
                packed = self._packed(samples, pack(samples), quiet=True)
            except Exception as error:  # what a model raises at arguments that it does not know is its own affair
                reason = f"{type(error).__name__}: {error}"
                break
            if np.isnan(expected).any():
                return True
            difference = np.abs(packed - expected).max(initial=0)
            if difference > TOLERANCE:
                reason = f"log-probabilities differ by {difference:.2g}"
                break
        else:
            return True
        logger.info("the model does not read packed rows (%s): plain passes, slower", reason)
        return False

    def _too_long(self, sequence: TokenSequence) -> np.ndarray:
        try:
            states = self.model.states_of_long(torch.tensor(sequence.inputs, device=self.device))
            if states is None:
                return self._plain([sequence], quiet=True)
            wanted = np.array(sequence.wanted, dtype=np.int64)
            return self._log_probs(states, wanted - 1, np.array([sequence.ids[position] for position in wanted]))
        except (IndexError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{sequence.origin}: {len(sequence.inputs)} tokens, and the model reads {self.model.max_length}. It "
                f"refuses more ({error}), in the official pipeline too: use a model with a longer context"
            ) from error

    # ---- packed rows ----

    def _packed(self, sequences: Sequence[TokenSequence], rows: Sequence[Row], quiet: bool = False) -> np.ndarray:
        answers = np.zeros(slots_of(sequences)[-1], dtype=np.float32)
        rows = sorted(rows, key=len, reverse=True)
        for batch in self._batches(rows, [len(row) for row in rows], quiet):
            hidden = self.model.hidden_states(self._inputs(batch)).flatten(0, 1)  # (B * N, D)
            size = len(batch[0])
            nodes = np.concatenate([np.array(row.nodes) + size * place for place, row in enumerate(batch)])
            targets, slots = (
                np.concatenate([row.targets for row in batch]),
                np.concatenate([row.slots for row in batch]),
            )
            answers[slots] = self._log_probs(hidden, nodes, targets)
        return answers

    def _inputs(self, rows: Sequence[Row]) -> PackedInputs:
        """Rows of at most the first one's length, padded on the right."""
        size = len(rows[0])
        ids = np.zeros((len(rows), size), dtype=np.int64)
        positions = np.zeros_like(ids)
        visible = np.empty((len(rows), size, size), dtype=bool)
        for place, row in enumerate(rows):
            ids[place, : len(row)], positions[place, : len(row)] = row.tokens, row.depths
            visible[place] = row.visible(size)
        return PackedInputs(*(torch.from_numpy(array).to(self.device) for array in (ids, positions, visible)))

    def _log_probs(self, hidden: Tensor, nodes: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Log-probabilities of ``targets [P]`` at the rows ``nodes [P]`` of ``hidden [R, D]``; each row of logits is
        made once however many targets it has."""
        order = np.argsort(nodes, kind="stable")
        needed, first = np.unique(nodes[order], return_index=True)
        bounds = [*first.tolist(), len(nodes)]
        answers = np.empty(len(nodes), dtype=np.float32)
        chunk, start = 1, 0
        while start < len(needed):
            end = min(start + chunk, len(needed))
            logits = self.model.head(hidden[torch.from_numpy(needed[start:end]).to(self.device)]).float()
            which = order[bounds[start] : bounds[end]]
            places = torch.from_numpy(np.searchsorted(needed[start:end], nodes[which])).to(self.device)
            wanted = logits[places, torch.from_numpy(targets[which]).to(self.device)]
            answers[which] = (wanted - logits.logsumexp(dim=-1)[places]).cpu().numpy()
            chunk, start = max(1, LOGITS_AT_ONCE // logits.shape[-1]), end
        return answers

    # ---- plain passes ----

    def _plain(self, sequences: Sequence[TokenSequence], quiet: bool = False) -> np.ndarray:
        starts = slots_of(sequences)
        answers = np.zeros(starts[-1], dtype=np.float32)
        order = sorted((i for i, s in enumerate(sequences) if s.wanted), key=lambda i: -len(sequences[i].inputs))
        for batch in self._batches(order, [len(sequences[i].inputs) for i in order], quiet):
            inputs = [torch.tensor(sequences[i].inputs) for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(self.device)
            lengths = torch.tensor([len(tokens) for tokens in inputs], device=self.device)
            mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
            logits = self.model.logits(ids, mask)
            for place, index in enumerate(batch):
                wanted = torch.tensor(sequences[index].wanted, device=self.device)
                rows = logits[place, wanted - 1].float()
                targets = torch.tensor([sequences[index].ids[position] for position in wanted], device=self.device)
                log_probs = rows.gather(1, targets[:, None])[:, 0] - rows.logsumexp(dim=-1)
                answers[starts[index] : starts[index + 1]] = log_probs.cpu().numpy()
        return answers

    def _batches(self, items: Sequence, lengths: Sequence[int], quiet: bool) -> Iterable[list]:
        """Items of falling length, as many at a time as ``batch_tokens`` allow once padded to the first."""

        def batches() -> Iterator[list]:
            start = 0
            while start < len(items):
                count = max(1, self.batch_tokens // lengths[start])
                yield list(items[start : start + count])
                progress.update(min(count, len(items) - start))
                start += count

        progress = tqdm(total=len(items), desc="scoring", leave=False, disable=True if quiet else None)
        return batches()


def _split(answers: np.ndarray, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
    return np.split(answers, slots_of(sequences)[1:-1]) if sequences else []
