"""What the parts of a run promise one another. The training loop knows these and nothing else.

A :class:`Task` builds a :class:`Run` from a configuration: an :class:`Objective` around the model, a
:class:`BatchSource`, a stage (``stages.py``) and a :class:`Validator`. A language model, or reinforcement (a source
that plays out episodes, and its objective), is another task, not another trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from bitgen.machine.ranks import Processes
from bitgen.stages import Role, Stage

State = dict[str, Any]


class Counts(NamedTuple):
    """What a batch holds. ``supervised``: what its loss is a mean over, so that micro-batches and ranks can be weighted
    by it; None: they weigh alike."""

    samples: int
    words: int
    tokens: int
    supervised: int | None = None


class Skipped(NamedTuple):
    """A record that was replaced: why, and the message that names it."""

    reason: str
    message: str


class Batch(NamedTuple):
    """A micro-batch: ``inputs`` for the objective, its counts, the ``indices`` of its samples (for messages), and the
    records that others stand in for."""

    inputs: dict[str, Tensor]
    counts: Counts
    indices: Tensor
    skipped: Sequence[Skipped] = ()


class Output(NamedTuple):
    """What a forward gives: the ``loss``, ``metrics`` (detached scalars), and an ``update`` that goes back to
    :meth:`Objective.advance` unread."""

    loss: Tensor
    metrics: dict[str, Tensor]
    update: Any = None


class HeldOutResult(NamedTuple):
    """``scalars`` under their ``val/`` names, ``pictures`` and ``texts`` by name, and the ``score`` (more is better)
    that the best checkpoint is chosen by, with its standard error (see ``Progress.is_best``)."""

    scalars: dict[str, float]
    pictures: dict[str, Tensor]
    texts: dict[str, str]
    score: float
    error: float = 0.0


class Objective(Protocol):
    """A loss and the state that belongs to it: an ``nn.Module`` whose ``model`` is what is trained.

    ``parallel.wrap`` wraps it, and a micro-step is one call of what comes out.
    """

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, inputs: dict[str, Tensor]) -> Output: ...

    def begin(self, done: float, logged: bool) -> None:
        """Before each step: the share of the stage that lies behind, for schedules, and whether the step's metrics will
        be logged, for those that cost time."""

    def advance(self, updates: Sequence[Any], ranks: Processes) -> None:
        """After each optimizer step: take in the updates of its micro-steps. All ranks call it together."""

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name in the objective."""

    def base_names(self) -> set[str]:
        """Names in ``model`` of weights that no run changes: they are stored once for all checkpoints."""

    def state(self) -> State:
        """What resuming needs beside the model's weights: plain values and tensors."""

    def load_state(self, state: State) -> None:
        """Take over what :meth:`state` gave. Raises ``ValueError`` for that of another objective."""

    def flops(self, inputs: dict[str, Tensor]) -> float | None:
        """Estimate of the operations of a micro-step on these inputs, forward and backward; None: there is none."""


class BatchSource(Protocol):
    """Where batches come from. Which samples a batch holds is a function of the step, so that a run resumes exactly.

    ``size``: samples an epoch. ``steps_per_epoch``: optimizer steps. ``steady``: every batch reaches every trainable
    parameter. ``batches_per_step``: micro-batches of an optimizer step. ``max_bad_fraction``: share of the samples that
    may stand in for bad records.
    """

    size: int
    max_bad_fraction: float
    steps_per_epoch: int
    batches_per_step: int

    @property
    def steady(self) -> bool: ...

    def prepare(self, stage: Stage, step: int, validates: bool) -> None:
        """Long work before the first step, such as filling a cache; ``validates``: a validation of the step before
        comes first. It may be interrupted and goes on at the next start."""

    def enter(self, phase: int) -> None:
        """A phase begins; called before its parameters are frozen or unfrozen."""

    def start(self, stage: Stage, step: int) -> None:
        """Batches from ``step`` on; called at the start of a run and of each phase."""

    def draw(self) -> list[Batch]:
        """The micro-batches of the next step."""

    def stop(self) -> None:
        """End what works in the background."""

    def name_of(self, index: int) -> str:
        """How messages call a sample."""

    def describe(self) -> str:
        """How much data there is."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to see the same batches."""

    def state(self, stage: Stage, step: int) -> State:
        """Where it stands, and what else resuming needs; where that is the step alone, for the record."""

    def load_state(self, state: State) -> None:
        """Take over what :meth:`state` gave, before :meth:`start`."""


Validator = Callable[[Objective, int], HeldOutResult]
"""``(objective, phase)``: validates on held-out data, in the phase of the step just taken."""


class Run(NamedTuple):
    """What a task hands to the loop.

    Args:
        validator: None: there is no validation data.
        identity: what must be the same on resume for a run to go on as the same run, by the words that a message says.
        files: name -> text of what goes into each checkpoint beside weights and state.
        fingerprints: what a thing is by its content (name -> hash), which must be the same on resume too; checkpoints
            from before a fingerprint was taken go on without it.
        banner: rows for the start of the log; ``parameters`` the table after them.
        summary: ``(steps done, words seen) -> rows`` for the end of the log.
        score_text: what a validation's score says.
        next_commands: (what for, command) to try afterwards.
        eval_steps: validate every so many steps; None: the settings say it.
        defaults: of all settings, by name: what one was that a checkpoint is too old to know.
        blocks: of the objective, what a sharded run gathers at a time; None: the elements of all lists of modules.
    """

    objective: Objective
    source: BatchSource
    stage: Stage
    validator: Validator | None
    identity: Mapping[str, Any]
    files: Mapping[str, str]
    fingerprints: Mapping[str, str] = {}
    banner: Sequence[tuple[str, object]] = ()
    parameters: str = ""
    summary: Callable[[int, int], Sequence[tuple[str, object]]] = lambda step, words: ()
    score_text: Callable[[float], str] = "score {:.4g}".format
    next_commands: Sequence[tuple[str, str]] = ()
    eval_steps: int | None = None
    defaults: Mapping[str, Any] = {}
    blocks: Callable[[nn.Module], list[nn.Module]] | None = None


class Task(Protocol):
    """A kind of run."""

    def build(self, config: Any, ranks: Processes, fresh: bool) -> Run:
        """Put a run together; the same weights on every rank. ``fresh``: no checkpoint is resumed.

        Raises:
            ValueError: what was asked for cannot be; the message says what to write instead.
        """
