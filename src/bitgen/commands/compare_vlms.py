"""Train several recipes of models of parts and compare them: `python src/compare_vlms.py --config FILE`."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.machine.threads import threads_of_this_process

os.environ.update(threads_of_this_process().variables)  # before torch is imported

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.guards.arguments import Parser

logger = logging.getLogger("compare_vlms")
TABLE, PICTURE = "comparison.json", "comparison.png"

_HELP = """\
Train several recipes of src/train_vlm.py, one after the other, each in a process and folder of its own, and compare
them: a table, comparison.json and comparison.png (score against trained parameters, and against tokens of a picture) in
the output folder. What is finished is not trained again and what was interrupted goes on: give the same command once more.

the file:
  recipe: configs/vlm_quick.yaml         the base: a YAML file of src/train_vlm.py
  grid: {connector: [mlp, linear], adapter: [lora, dora]}    all combinations; or
  runs: [{name: first, connector: mlp}, ...]                 runs by name
  settings: {scenes_train: 5000}         settings of all of them
  max_steps: 100                         at most so many steps of each stage
  score: loss                            what to compare by: loss, right, bleu4 ... of the last stage's validation
  output_dir, log_dir                    where to
A setting replaces the recipe's, and a stage's own, but where a stage has it switched off (none)."""

_EXAMPLES = """\
examples:
  python src/compare_vlms.py --config configs/vlm_matrix.yaml
  python src/compare_vlms.py --config configs/vlm_matrix.yaml --max_steps 10 --output_dir try --log_dir try/logs

exit status: 0, or 1 where a run failed (the table says why; the others are trained all the same)."""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = Parser(description=_HELP, epilog=_EXAMPLES, **layout)
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML file of above")
    parser.add_argument("--output_dir", metavar="DIR", help="instead of the file's")
    parser.add_argument("--log_dir", metavar="DIR", help="instead of the file's")
    parser.add_argument("--max_steps", type=int, metavar="N", help="instead of the file's")
    parser.add_argument("--score", metavar="NAME", help="instead of the file's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train what is not finished, and print and write the comparison; returns the exit status."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_config_error():
        from bitgen.tasks.comparison import read_comparison, run_all

        limits = {name: value for name, value in vars(flags).items() if name != "config"}
        comparison = read_comparison(flags.config, limits)
        records, stopped = run_all(comparison)
        if stopped:
            logger.warning("stopped; the same command goes on with it")
            return 128 + stopped
        print(table(records, comparison.score))
        try:
            _write(records, comparison.folder, comparison.score)
        except ValueError as error:
            raise ConfigError(f"{error}; the results are in the table above") from error
    return 1 if any(record.get("error") for record in records) else 0


def table(records: list[dict[str, Any]], score: str) -> str:
    """A row for each recipe, and the reasons of those that failed."""
    from bitgen.show.tables import format_table

    def number(record: dict[str, Any], name: str, written: str) -> str:
        return written.format(record[name]) if record.get(name) is not None else "-"

    rows = [
        [
            record["name"],
            number(record, "score", "{:.4g}"),
            number(record, "trained_parameters", "{:,}"),
            number(record, "picture_tokens", "{:,}"),
            number(record, "seconds", "{:,.0f}"),
            f"{record['peak_memory_bytes'] / 1e9:.2f} GB" if record.get("peak_memory_bytes") else "-",
        ]
        for record in records
    ]
    heads = ["recipe", score, "trained parameters", "tokens of a picture", "seconds", "peak memory"]
    failed = [f"{record['name']} failed: {record['error']}" for record in records if record.get("error")]
    return "\n".join([format_table(heads, rows), *failed])


def _write(records: list[dict[str, Any]], folder: Path, score: str) -> None:
    from PIL import Image

    from bitgen.machine.files import write_whole
    from bitgen.show.comparison import comparison_picture

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TABLE, (json.dumps({"score": score, "recipes": records}, indent=2) + "\n").encode())
    shown = [record for record in records if record["score"] is not None]
    if not shown:
        return
    picture = comparison_picture(
        [record["name"] for record in shown],
        [record["score"] for record in shown],
        {
            "trained parameters of the last stage": [record["trained_parameters"] for record in shown],
            "tokens of a picture": [record["picture_tokens"] for record in shown],
        },
        score,
        f"{len(shown)} recipes: {score} on held-out data against what each takes",
    )
    content = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(content, "PNG", optimize=True)
    write_whole(folder / PICTURE, content.getvalue())
