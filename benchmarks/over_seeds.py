"""One benchmark's lines of several models, trained alike from several seeds, as one line for each measure:

    python benchmarks/over_seeds.py seed42.jsonl seed43.jsonl seed44.jsonl

Reads the JSON lines that a benchmark printed for each model, and prints {"name": .., (what else names the measure),
"value": mean over models, "interval": half of a 95% interval, "lowest": .., "highest": .., "models": count}. The
interval is over models (Student's t, one degree of freedom less than models), so it shows how much the seed of a
training matters; what the choice of questions adds is in each model's own lines. --markdown prints a table instead,
a column for each number of facts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

# Of a line; the rest of it names what was measured.
_MEASURED = {"value", "interval", "low", "high", "episodes", "questions"}
_COMBINED = {"value", "interval", "lowest", "highest", "models"}  # of the lines that are printed


def lines_of(path: str) -> dict[str, float]:
    """Values of a file, by what names them.

    Raises:
        SystemExit: a line is no measure, or is there twice; the message names it.
    """
    found: dict[str, float] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        sys.exit(f"{path} cannot be read: {error}")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            value = entry["value"]
            if value is not None:  # which could not be measured
                value = float(value)
        except (ValueError, KeyError, TypeError):
            sys.exit(f"{path}, line {number} is no JSON object with a number as its value. Give a benchmark's output.")
        key = json.dumps({name: part for name, part in entry.items() if name not in _MEASURED})
        if key in found:
            sys.exit(f"{path}, line {number}: {key} is there twice. Give each model's output in a file of its own.")
        if value is not None:
            found[key] = value
    return found


def combined(values: list[float]) -> dict[str, Any]:
    """Mean and spread of one measure over models."""
    from scipy import stats

    half = None  # one model says nothing of other seeds
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    extremes = {"lowest": min(values), "highest": max(values), "models": len(values)}
    return {"value": statistics.fmean(values), "interval": half, **extremes}


def as_table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each name, a column for each number of facts; mean ± interval (lowest)."""
    columns = sorted({line.get("facts", 0) for line in lines})
    rows: dict[str, dict[int, str]] = {}
    for line in lines:
        half = "" if line["interval"] is None else f" ±{line['interval']:.1f}"
        more = [f"{name} {part}" for name, part in line.items() if name not in {"name", "facts", *_COMBINED}]
        cell = f"{line['value']:.1f}{half} ({line['lowest']:.1f})"
        rows.setdefault(", ".join([line["name"], *more]), {})[line.get("facts", 0)] = cell
    text = [f"| facts | {' | '.join(map(str, columns))} |", f"|---|{'---:|' * len(columns)}"]
    text += [f"| {name} | {' | '.join(cells.get(c, '') for c in columns)} |" for name, cells in rows.items()]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON lines of one model each")
    parser.add_argument("--markdown", action="store_true", help="a table: mean, interval and the lowest of the models")
    flags = parser.parse_args()
    models = [lines_of(path) for path in flags.files]
    shared = [key for key in models[0] if all(key in model for model in models)]
    if left_out := len({key for model in models for key in model}) - len(shared):
        print(f"left out, as not every model has them: {left_out}", file=sys.stderr)
    lines = [{**json.loads(key), **combined([model[key] for model in models])} for key in shared]
    print(as_table(lines) if flags.markdown else "\n".join(map(json.dumps, lines)))


if __name__ == "__main__":
    main()
