"""The parts of the report on adapters: tables as text, figures for JSON, pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from bitgen.machine.devices import choose_device
from bitgen.show.inline import as_image
from bitgen.show.spectra import spectra_picture
from bitgen.show.tables import format_table
from bitgen.vlm.adapter_config import ALL_LINEAR
from bitgen.vlm.adapter_counts import Cost, Layers, adapted, base_bytes, base_parameters, cost, empty_model
from bitgen.vlm.adapter_folder import AdapterFolder, read_adapter, weight_files
from bitgen.vlm.adapters import linear_shape, targets_of
from bitgen.vlm.spectra_report import (
    Spectrum,
    Summary,
    adapter_spectra,
    base_spectra,
    by_name,
    references,
    summaries,
)

_MEGA = 1e6


class Report(NamedTuple):
    """``text`` for the terminal, ``figures`` for JSON, ``pictures`` by the name of their file."""

    text: str
    figures: dict[str, Any]
    pictures: dict[str, Image]


def report(flags: argparse.Namespace) -> Report:
    """All that the flags ask for. ValueError for what a person can mend."""
    device = choose_device(flags.device)
    lm = empty_model(flags.model)
    layers = None if flags.layers is None else tuple(flags.layers)
    names = targets_of(lm, flags.targets, layers)
    adapter = None if flags.adapter is None else read_adapter(flags.adapter)
    if adapter is not None:
        _check(adapter, flags, lm)  # before the long part
    chosen = adapted(lm, flags.targets, layers)
    ranks = sorted(set(flags.rank))
    costs, base = [cost(lm, chosen, rank, flags.kind) for rank in ranks], base_parameters(lm)
    held = base_bytes(lm)
    figures: dict[str, Any] = {
        "model": str(flags.model),
        "kind": flags.kind,
        "targets": flags.targets,
        "base_parameters": base,
        "base_bytes": held,
        "layers": [each._asdict() for each in chosen],
        "ranks": [each._asdict() for each in costs],
    }
    texts = [_layers_table(chosen), _cost_table(flags.kind, costs, base, held)]
    pictures: dict[str, Image] = {}
    if flags.spectra and _has_weights(flags.model):
        groups = by_name(base_spectra(flags.model, names, device))
        _add(texts, figures, pictures, "base_spectra", "Weights of the base", groups, ranks, gaussian=True)
    if adapter is not None:
        title = f"What the adapter adds, {adapter.config.scale:g} B A, r {adapter.config.rank}"
        title += " (without DoRA's magnitude)" if adapter.config.kind == "dora" else ""
        groups = by_name(adapter_spectra(adapter))
        kept = [rank for rank in (1, 2, 4, *ranks) if rank < adapter.config.rank]
        _add(texts, figures, pictures, "adapter_spectra", title, groups, sorted(set(kept)), gaussian=False)
    return Report("\n\n".join(texts), figures, pictures)


def _layers_table(layers: list[Layers]) -> str:
    rows = [(each.name, str(each.layers), f"{each.out:,}", f"{each.into:,}") for each in layers]
    return format_table(("adapted", "layers", "out", "in"), rows, title="Adapted layers")


def _cost_table(kind: str, costs: list[Cost], base: int, held: dict[str, int]) -> str:
    columns = (
        "r",
        "parameters",
        "of the base",
        "weights",
        "gradients",
        "AdamW",
        "with a bf16 base",
        "with a 4-bit base",
    )
    rows = []
    for each in costs:
        training = each.weights + each.gradients + each.optimizer
        cells = [each.weights, each.gradients, each.optimizer, held["bf16"] + training, held["4-bit"] + training]
        shown = [f"{count / _MEGA:,.1f}" for count in cells]
        rows.append((str(each.rank), f"{each.parameters:,}", f"{each.share:.4%}", *shown))
    title = (
        f"{'DoRA' if kind == 'dora' else 'LoRA'} on a base of {base:,} parameters, {held['bf16'] / _MEGA:,.1f} MB in "
        f"bf16, {held['4-bit'] / _MEGA:,.1f} MB in 4 bits (MB of 10^6 bytes; adapters in float32; without activations)"
    )
    return format_table(columns, rows, title=title)


def _has_weights(model: str) -> bool:
    if not Path(model).is_dir():
        return False
    if any(Path(model).glob("*.safetensors")):
        return bool(weight_files(model))
    return False


def _check(adapter: AdapterFolder, flags: argparse.Namespace, lm: Any) -> None:
    layers = adapter.by_layer()
    strange = sorted(set(layers) - set(targets_of(lm, ALL_LINEAR)))
    if strange:
        raise ValueError(f"--adapter {flags.adapter}: it changes {strange[0]}, which {flags.model} does not have")
    for name, parts in layers.items():
        shape, own = (len(parts["lora_B"]), parts["lora_A"].shape[1]), linear_shape(lm.get_submodule(name))
        if shape != own:
            raise ValueError(
                f"--adapter {flags.adapter}: {name} is of {shape[0]} x {shape[1]}, and of {own[0]} x {own[1]} in "
                f"{flags.model}: it was trained on another model"
            )


def _add(
    texts: list[str],
    figures: dict[str, Any],
    pictures: dict[str, Image],
    name: str,
    title: str,
    groups: dict[str, list[Spectrum]],
    ranks: list[int],
    gaussian: bool,
) -> None:
    """A table, figures and a picture of groups of spectra."""
    compared = references(groups) if gaussian else {}
    found = summaries(groups, ranks)
    random = {
        each.name: each
        for each in summaries(
            {group: [Spectrum(group, spectra[0].shape, compared[group])] for group, spectra in groups.items()}
            if compared
            else {},
            ranks,
        )
    }
    texts.append(_spectra_table(title, found, random, ranks))
    figures[name] = [each._asdict() | {"gaussian": _figures(random.get(each.name))} for each in found]
    values = {group: [each.values for each in spectra] for group, spectra in groups.items()}
    pictures[name] = as_image(spectra_picture(values, title, compared or None))


def _spectra_table(title: str, found: list[Summary], random: dict[str, Summary], ranks: list[int]) -> str:
    columns = ("name", "layers", "rank at most", "effective rank", *(f"kept by {rank}" for rank in ranks))
    rows = []
    for each in found:
        rows.append(_row(each.name, each))
        if each.name in random:
            rows.append(_row("  Gaussian", random[each.name]))
    return format_table(columns, rows, title=f"{title}: means over the layers of a name")


def _row(name: str, each: Summary) -> tuple[str, ...]:
    kept = (f"{share:.1%}" for share in each.kept.values())
    return (name, str(each.layers), str(each.most), f"{each.effective_rank:.1f}", *kept)


def _figures(each: Summary | None) -> dict[str, Any] | None:
    return None if each is None else {"effective_rank": each.effective_rank, "kept": each.kept}
