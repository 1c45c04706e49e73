"""How many parameters, in which part of the network, and which of them train in which phase."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from bitgen.model.parameter_roles import ADAPTER_KINDS, VISION
from bitgen.stages import Role, Stage

from .tables import format_markdown, format_table

if TYPE_CHECKING:
    from bitgen.model.modeling_bitgen import BitGenModel

COMPONENTS = {
    "vision_base": "vision encoder (pretrained)",
    "lora": "LoRA adapters",
    "compressor": "feature compressor",
    "fusion": "cross-modal fusion",
    "memory": "episodic memory",
    "recall": "recall (speaks from a memory)",
    "decoder": "text decoder",
    "embeddings": "text embeddings",
    "heads": "pooling, projections and heads",
}
START_MARKER, END_MARKER = "<!-- parameters:start -->", "<!-- parameters:end -->"
_COLUMNS = ("component", "parameters", "trained in phase 1", "trained in phase 2")


@dataclass(frozen=True)
class ComponentCount:
    """Numbers of parameters of one component: all, and those trained in each phase."""

    total: int
    phase1: int
    phase2: int


@dataclass(frozen=True)
class ParameterTable:
    """Counts by component, in the order of the forward pass, and their sum."""

    components: dict[str, ComponentCount]

    @property
    def total(self) -> ComponentCount:
        counts = self.components.values()
        return ComponentCount(
            sum(c.total for c in counts), sum(c.phase1 for c in counts), sum(c.phase2 for c in counts)
        )

    def to_text(self) -> str:
        """For the start of a run and parameters.txt."""
        return format_table(_COLUMNS, self._rows(), title="Parameters")

    def to_markdown(self) -> str:
        """For LORA_ARCHITECTURE.md, between its markers."""
        return format_markdown(_COLUMNS, self._rows())

    def to_dict(self) -> dict[str, dict[str, int]]:
        """For parameters.json: component -> total, phase1, phase2; with `total` as one more entry."""
        counts = {name: asdict(count) for name, count in self.components.items()}
        return {**counts, "total": asdict(self.total)}

    def write(self, folder: str | Path) -> None:
        """Write parameters.json and parameters.txt into the run's folder, made when missing.

        Raises:
            ValueError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "parameters.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            (folder / "parameters.txt").write_text(self.to_text() + "\n", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"--output_dir {folder}: cannot write the parameter table there ({error.strerror or error}). "
                "Choose a folder that you may write to, or free space and permissions on this one."
            ) from error

    def _rows(self) -> list[tuple[str, str, str, str]]:
        labelled = [(COMPONENTS.get(name, name), count) for name, count in self.components.items()]
        labelled.append(("total", self.total))
        return [(label, f"{c.total:,}", f"{c.phase1:,}", f"{c.phase2:,}") for label, c in labelled]


def count_parameters(
    model: BitGenModel,
    extra: Mapping[str, Iterable[nn.Parameter]] | None = None,
    stage: Stage | None = None,
    roles: Mapping[str, Role] | None = None,
) -> ParameterTable:
    """Count each parameter once, under the component that the model names for it.

    The phase the model is in does not matter. Without a stage, what `model.adapter_names()` lists trains in phase 2
    alone, other weights of the vision tower never, and of the rest what requires a gradient trains in both. Works on
    the meta device.

    Args:
        stage: what trains, and in which phase, is what its groups say. One of a single phase has that for both.
        roles: of an objective's parameters (the model's under ``model.``), of which those that no loss reaches do not
            train.
        extra: parameters that live outside the model, as component -> parameters: the objective's log-temperature, so
            that the sum is what the optimizer holds.
    """
    total: Counter[str] = Counter()
    phase1: Counter[str] = Counter()
    phase2: Counter[str] = Counter()
    own = model.roles()
    for name, parameter in model.named_parameters():
        role, size = own[name], parameter.numel()
        component = role.part
        assert component in COMPONENTS, f"{name} is counted under the unknown component {component!r}"
        total[component] += size
        adapts = role.kind in ADAPTER_KINDS
        if stage is None:
            starts = [1] if adapts else [0] if component != VISION else []
        else:
            of_stage = (roles or {}).get(f"model.{name}") or Role(*role)
            starts = [group.start for group in stage.groups if of_stage.reached and group.takes(of_stage)][:1]
        if starts and (adapts or parameter.requires_grad):
            phase2[component] += size
            if starts[0] == 0:
                phase1[component] += size
    for component, parameters in (extra or {}).items():
        for parameter in parameters:
            for counter in (total, phase1, phase2) if parameter.requires_grad else (total,):
                counter[component] += parameter.numel()
    order = [*COMPONENTS, *(name for name in total if name not in COMPONENTS)]
    return ParameterTable(
        {name: ComponentCount(total[name], phase1[name], phase2[name]) for name in order if total[name]}
    )


def table_in_document(document: str) -> str:
    """The text between the two parameter markers of a document.

    Raises:
        ValueError: the document has not exactly one pair of markers in order.
    """
    before, start, rest = document.partition(START_MARKER)
    table, end, after = rest.partition(END_MARKER)
    if not start or not end or START_MARKER in rest or END_MARKER in before + after:
        raise ValueError(f"expected one parameter table between {START_MARKER} and {END_MARKER}")
    return table.strip()
