"""Several recipes of models of parts, trained one after the other, and what each came to."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitgen.config.values import ConfigError, coerce, read_yaml, suggest
from bitgen.config.vlm import StageRun, VlmConfig, flat_settings_of, stages_of
from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.machine.files import write_whole
from bitgen.machine.memory import peak_resident_bytes
from bitgen.machine.stopping import SIGNALS, StopSignals
from bitgen.run import RunFailed
from bitgen.show.monitor import METRICS_FILE
from bitgen.tasks.recipe import DONE, changed_since, train_recipe
from bitgen.trained_vlm import open_vlm

logger = logging.getLogger(__name__)

RECORD = "comparison.json"  # in a recipe's folder: how long it trained, and what it came to
_KEYS = ("recipe", "output_dir", "log_dir", "settings", "grid", "runs", "max_steps", "score")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Compared:
    """A recipe of a comparison; ``differs``: its settings that the others have otherwise."""

    name: str
    differs: dict[str, str]
    stages: list[StageRun]
    folder: Path


@dataclass(frozen=True)
class Comparison:
    """All recipes of one, the file's folder for results, and the scalar of validation that they are compared by."""

    recipes: list[Compared]
    folder: Path
    score: str


def read_comparison(path: str | Path, limits: Mapping[str, Any] | None = None) -> Comparison:
    """The recipes that a YAML file lists: a base ``recipe`` and a ``grid`` of settings, or a list of ``runs``.

    A setting of the grid replaces that of the stages that have it, but where one has it switched off (``none``); where
    no stage has it, the base's. ``stages`` replaces the base's list as a whole.

    Args:
        limits: what is not None beats the file's ``output_dir``, ``log_dir``, ``max_steps`` (of each stage), ``score``.

    Raises:
        ConfigError: the file cannot be used; the message says what to write.
    """
    content = read_yaml(path)
    content = content if isinstance(content, dict) else {}
    if unknown := [key for key in content if key not in _KEYS]:
        raise ConfigError(f"{path} has {printable(unknown[0], 40)!r}.{suggest(str(unknown[0]), _KEYS)}")
    content |= {key: value for key, value in (limits or {}).items() if value is not None}
    if "recipe" not in content or ("grid" in content) == ("runs" in content):
        raise ConfigError(f"{path}: write recipe: a YAML file of src/train_vlm.py, and grid or runs.")
    base = VlmConfig.load(content["recipe"])
    most = content.get("max_steps")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ConfigError(f"max_steps is {printable(most, 40)!r}. Write a number of steps, at least 1.")
    folder, logs = (Path(str(content.get(key) or getattr(base.output, key))) for key in ("output_dir", "log_dir"))
    shared = content.get("settings") or {}
    recipes: list[Compared] = []
    for name, differs in _listed(content, path):
        if name in [recipe.name for recipe in recipes]:
            raise ConfigError(f"{path}: two runs are named {name}. Give each one a name of its own.")
        places = {"output_dir": str(folder / name), "log_dir": str(logs / name)}
        try:
            stages = _stages(base, {**shared, **differs}, places, most)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}: {error}") from error
        shown = {key: str(value) for key, value in differs.items() if key != "stages"}  # a list fits in no table
        recipes.append(Compared(name, shown, stages, folder / name))
    return Comparison(recipes, folder, str(content.get("score", "loss")))


def _listed(content: Mapping[str, Any], path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings of the runs."""
    grid, runs = content.get("grid"), content.get("runs")
    if grid is not None:
        if not isinstance(grid, dict) or not grid or not all(isinstance(v, list) and v for v in grid.values()):
            raise ConfigError(f"{path}: grid is no table of lists. Write grid: {{connector: [mlp, linear]}}.")
        products = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        return [
            (re.sub(r"[^A-Za-z0-9_-]", "_", "-".join([f"E{number}", *map(str, chosen.values())]))[:64], chosen)
            for number, chosen in enumerate(products, 1)
        ]
    if not isinstance(runs, list) or not runs:
        raise ConfigError(f"{path}: runs is no list. Write runs: [{{name: first, connector: mlp}}, ...].")
    found = []
    for run in runs:
        name = run.get("name") if isinstance(run, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: a run has no name. Write name: E1 (letters, digits, _ and -) and its settings.")
        found.append((name, {key: value for key, value in run.items() if key != "name"}))
    return found


def _stages(
    base: VlmConfig, settings: Mapping[str, Any], places: Mapping[str, str], most: int | None
) -> list[StageRun]:
    known = flat_settings_of(VlmConfig)
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"there is no setting {printable(name, 40)!r}.{suggest(str(name), known)}")
        written_as = known[name].written_as
        values[name] = coerce(known[name].hint, written_as.text(value) if written_as is not None else value, name)
    listed = values.pop("stages", base.training.stages)
    stages = json.loads(listed) if listed is not None else None
    in_stages = set()
    for stage in stages or []:
        own = {name: value for name, value in values.items() if name in stage and stage[name] != "none"}
        stage |= own
        in_stages |= set(own)
    values = {name: value for name, value in values.items() if name not in in_stages}
    values |= {"stages": json.dumps(stages)} if stages is not None else {}
    found = stages_of(base.replace(**{**values, **places}))
    for stage in found:
        stage.config.validate()
    if most is None:
        return found
    return [
        StageRun(name, config.replace(max_steps=min(most, config.training.max_steps or most))) for name, config in found
    ]


# ---- training ----


def run_all(comparison: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Train what is not finished; returns a record of each recipe, and the signal that stopped the comparison (or 0).

    Each runs in a process of its own, so that its peak memory is its own and what ends it does not end the others.
    """
    records: list[dict[str, Any]] = []
    for number, recipe in enumerate(comparison.recipes, 1):
        if not _is_done(recipe):
            logger.info("%s, %d of %d", recipe.name, number, len(comparison.recipes))
            code, stopped = _trained_apart(recipe)
            if stopped:
                return records, stopped
            if code:
                ended = signal.Signals(-code).name if code < 0 else f"status {code}, as it says above"
                _write(recipe, {**_read(recipe), "error": f"ended with {ended}"})
        records.append(record_of(recipe, comparison.score))
    return records, 0


def _trained_apart(recipe: Compared) -> tuple[int, int]:
    """Train a recipe in a process of its own; returns its exit status, and the signal that stopped it (or 0).

    A signal to this process is passed on, as the one kind that counts once however often it comes.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(recipe,))
    with StopSignals() as stop:
        process.start()
        told = False
        while process.is_alive():
            process.join(0.5)
            if stop.received is not None and not told and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, signal.SIGHUP)
                told = True
    code = process.exitcode or 0
    if stop.received is not None:
        return code, stop.received
    if code > 128 or -code in SIGNALS:
        return code, code - 128 if code > 128 else -code
    return code, 0


def _end_with_the_comparison() -> None:
    """Stop after the current step when the comparison is told to, or gone. What a terminal sends reaches that alone."""
    os.setpgrp()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup is for the comparison
    comparison = multiprocessing.parent_process()
    assert comparison is not None

    def watch() -> None:
        comparison.join()
        os.kill(os.getpid(), signal.SIGHUP)

    threading.Thread(target=watch, daemon=True).start()


def _train(recipe: Compared) -> None:
    """A recipe in this process, resumed where it stopped; its record says what came of it."""
    _end_with_the_comparison()
    known, started, stopped = _read(recipe), time.monotonic(), 0
    record: dict[str, Any] = {"error": None}
    try:
        stopped = train_recipe(recipe.stages, resume=True)
        if not stopped:
            record |= _sizes(recipe)
    except (ConfigError, RunFailed, ValueError, OSError, MemoryError, RuntimeError) as error:
        record["error"] = printable(next(iter(str(error).splitlines()), type(error).__name__), 300)
    except SystemExit as error:
        stopped = int(error.code or 0) - 128 if isinstance(error.code, int) and error.code > 128 else 0
        record["error"] = f"ended with status {error.code}"
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()
    record["seconds"] = known.get("seconds", 0.0) + time.monotonic() - started
    record["peak_memory_bytes"] = max(memory, known.get("peak_memory_bytes", 0))
    if stopped:
        record["error"] = None
    _write(recipe, record)
    if stopped:
        sys.exit(128 + stopped)


def _sizes(recipe: Compared) -> dict[str, Any]:
    """Parameters that the last stage trains, and tokens of a picture."""
    last = recipe.stages[-1].config
    model = open_vlm(last.output.output_dir).model
    parts = last.trained_parts
    named = {name: p for name, p in model.named_parameters() if model.part_of(name) in parts and model.owns(name)}
    trained = sum(p.numel() for name, p in named.items() if model.role_of(name, p).reached)
    return {
        "trained_parameters": trained,
        "picture_tokens": model.connector.tokens(1) if model.connector is not None else 0,
    }


def _is_done(recipe: Compared) -> bool:
    configs = [stage.config for stage in recipe.stages]
    finished = all((Path(config.output.output_dir) / DONE).is_file() for config in configs)
    return finished and not any(map(changed_since, configs)) and "trained_parameters" in _read(recipe)


def _read(recipe: Compared) -> dict[str, Any]:
    try:
        return read_json(recipe.folder / RECORD, dict)
    except (OSError, BadJson):
        return {}


def _write(recipe: Compared, record: Mapping[str, Any]) -> None:
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_whole(recipe.folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def record_of(recipe: Compared, score: str) -> dict[str, Any]:
    """What is known of a recipe: its record, and the scalars of its last stage's last validation.

    ``score`` is None where the recipe failed, or measured no such thing.
    """
    record = {"name": recipe.name, "differs": recipe.differs, **_read(recipe)}
    scores = _last_validation(Path(recipe.stages[-1].config.output.log_dir) / METRICS_FILE)
    if record.get("error") is None and score not in scores:
        known = ", ".join(sorted(scores)) or "nothing"
        record["error"] = f"its last stage measured no {printable(score, 40)} (it has {known})"
    value = scores.get(score) if record.get("error") is None else None
    return {**record, "scores": scores, "score": value}


def _last_validation(path: Path) -> dict[str, float]:
    """The scalars under ``val/`` of the last line of a metrics file that has some."""
    found: dict[str, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a process was killed while it wrote
        own = {name[4:]: value for name, value in entry.items() if name.startswith("val/")}
        found = own or found
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}
