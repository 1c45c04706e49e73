"""Evaluate a checkpoint: retrieval, image-text matching, the episodic memory, BabyLM; as JSON and as a table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from bitgen.build import SCENES, LoadedModel, load_model
from bitgen.config import ConfigError, exit_on_config_error
from bitgen.data.dataset import PairDataset
from bitgen.data.scenes import ScenesDataset
from bitgen.evaluation.babylm.evaluation import evaluate_babylm, read_evaluation_data
from bitgen.evaluation.babylm.models import is_model_folder, load_model_folder, run_language_model
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.encode import Runner
from bitgen.evaluation.matching import matching_metrics, rerank_metrics
from bitgen.evaluation.memory import memory_metrics
from bitgen.evaluation.results import Results, check_writable, write_results
from bitgen.evaluation.retrieval import rank_split, retrieval_metrics
from bitgen.evaluation.tables import tables
from bitgen.export.folder import check_tokenizer
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.training.checkpoint import DamagedCheckpoint, resolve_checkpoint, verify
from bitgen.training.distributed import choose_device, resolve_precision

logger = logging.getLogger("evaluate")

BABYLM = "babylm"
TASKS = ("retrieval", "matching", "memory", BABYLM)

_HELP = """\
Evaluate a checkpoint on a held-out split, or on the BabyLM sets: results as JSON in --output, and as a table.

tasks, separated by commas:
  retrieval  R@1, 5, 10 and median rank, text to image (t2i) and image to text (i2t), by cosine over the whole split,
             then with each query's --rerank_top_k best candidates put in order by the matching head (reranked_*).
             *_ci95 are 95% bootstrap intervals that resample images, each with all its captions.
  matching   itm_acc: balanced accuracy of the matching head on the true pairs and, for each image and each caption, its
             most similar wrong partner in the whole split; itm_acc_cosine: that of cosine at its best threshold.
             The memory's figures come along where the checkpoint has a memory.
  memory     memory_utilization: how evenly the slots are read; memory_quality: how exactly an episode reads back.
  babylm     the BabyLM sets in --eval_dir (BLiMP, supplement, entity tracking, WUG, EWoK, reading), each item decided
             as by the official pipeline; float32 whatever --precision says. --checkpoint may also be an export, or any
             folder that AutoModelForCausalLM loads (code in it is run).
All figures but ranks are percentages. Ties count against the model."""

_EXAMPLES = """\
examples:
  python src/evaluate.py --checkpoint checkpoints/quickstart --data scenes --output results.json
      the best checkpoint of the quickstart, on its held-out scenes
  python src/evaluate.py --checkpoint checkpoints/stage1/step-00001000 --data data/my/val --task retrieval
      one checkpoint, retrieval alone, on a folder written by data_prep/
  python src/evaluate.py --checkpoint my-model --task babylm --eval_dir evaluation_data/fast_eval
      the BabyLM fast sets, on an exported model"""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without reading anything."""
    parser = argparse.ArgumentParser(
        description=_HELP, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a run's --output_dir (its best, else its newest checkpoint) or one step-NNNNNNNN folder; for babylm also "
        "the folder of a Hugging Face model",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder written by data_prep/, or 'scenes' for the built-in held-out scenes; babylm needs none",
    )
    parser.add_argument("--eval_dir", metavar="DIR", help="the folder of the BabyLM sets: blimp_fast, reading ...")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="where babylm's decisions go: by folder, what the official predictions.json holds (default: nowhere)",
    )
    parser.add_argument(
        "--task", default="retrieval,matching", metavar="LIST", help="tasks from above (default: retrieval,matching)"
    )
    parser.add_argument(
        "--output", default="results.json", metavar="FILE", help="where the JSON goes (default: results.json)"
    )
    parser.add_argument(
        "--rerank_top_k",
        type=int,
        default=16,
        metavar="K",
        help="candidates that the matching head puts in order; 0: no re-ranking (default: 16)",
    )
    parser.add_argument(
        "--rerank_cosine_weight",
        type=float,
        metavar="X",
        help="re-rank by matching logit + X * cosine; 0: the matching head alone (default: 1 / itm_temperature of the "
        "run. Negatives were drawn in proportion to exp(cosine / itm_temperature), so the head learned what that "
        "leaves over)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples behind each interval; 0: no intervals (default: 1000)",
    )
    parser.add_argument("--max_images", type=int, metavar="N", help="evaluate on the first N images only")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=128,
        metavar="N",
        help="samples of a forward pass; changes speed and memory alone (default: 128)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes that decode images (default: as in training, 0 for features)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU when there is one (default)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32", "fp16"),
        default="auto",
        help="auto: bf16 where the device has it (default)",
    )
    flags = parser.parse_args(argv)
    flags.task = [task.strip() for task in flags.task.split(",") if task.strip()]
    unknown = [task for task in flags.task if task not in TASKS]
    if unknown or not flags.task:
        what = f"unknown task {unknown[0]!r}" if unknown else "no task given"
        parser.error(f"--task: {what}; choose from {', '.join(TASKS)}, separated by commas")
    others = [task for task in flags.task if task != BABYLM]
    if others and flags.data is None:
        parser.error(f"--task {others[0]} needs --data")
    if BABYLM in flags.task and flags.eval_dir is None:
        parser.error(f"--task {BABYLM} needs --eval_dir")
    for name, least in (
        ("rerank_top_k", 0),
        ("bootstrap", 0),
        ("batch_size", 1),
        ("max_images", 1),
        ("num_workers", 0),
    ):
        value = getattr(flags, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; it must be at least {least}")
    return flags


def device_of(flags: argparse.Namespace) -> torch.device:
    """Where to evaluate.

    Raises:
        ConfigError: the flags ask for a GPU where there is none.
    """
    device = choose_device(flags.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here. Write --device auto or cpu.")
    if device.type != "cuda" and flags.precision == "fp16":
        raise ConfigError("--precision fp16 needs a GPU. Write --precision auto.")
    return device


def load_checkpoint(path: str) -> LoadedModel:
    """The model that `--checkpoint` means, its files checked against what was written.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    if not Path(path).exists():
        raise ConfigError(
            f"--checkpoint {path}: there is no such folder. Give a run's --output_dir or a checkpoint in it."
        )
    folder = resolve_checkpoint(path)
    try:
        verify(folder)
        loaded = load_model(folder)
    except DamagedCheckpoint as error:
        raise ConfigError(
            f"--checkpoint {folder} is damaged: {error}. Give another checkpoint of {folder.parent}."
        ) from error
    except ValueError as error:
        raise ConfigError(f"--checkpoint {folder} cannot be used: {error}") from error
    logger.info("checkpoint %s", folder)
    return loaded


def load_split(source: str, loaded: LoadedModel, max_images: int | None) -> PairDataset:
    """The held-out split that `--data` names, as this model takes it.

    Raises:
        ValueError: it cannot be read, or holds another kind of input than the checkpoint was trained on.
    """
    sizes, config = loaded.model.config, loaded.config
    processor = BitGenProcessor(loaded.tokenizer, sizes.image_size, sizes.max_seq_len)
    if source == SCENES:
        dataset = ScenesDataset(
            "val", min(config.data.scenes_val, max_images or config.data.scenes_val), config.training.seed, processor
        )
    else:
        dataset = PairDataset(source, processor, max_images=max_images)
    wanted = (
        f"features of {sizes.feature_tokens} x {sizes.feature_dim}, computed as its training data were"
        if sizes.takes_features
        else "images"
    )
    if (dataset.kind == "features") != sizes.takes_features:
        raise ConfigError(
            f"--data {source} holds {dataset.kind}, and this checkpoint takes {wanted}: name such a folder."
        )
    if sizes.takes_features and tuple(dataset.feature_shape) != (sizes.feature_tokens, sizes.feature_dim):
        tokens, width = dataset.feature_shape
        raise ConfigError(f"--data {source} holds features of {tokens} x {width}, and this checkpoint takes {wanted}.")
    return dataset


def evaluate(loaded: LoadedModel, dataset: PairDataset, device: torch.device, flags: argparse.Namespace) -> Results:
    """All figures asked for, by task."""
    settings = loaded.config.replace(precision=flags.precision)
    precision = resolve_precision(settings, device)
    workers = flags.num_workers
    if workers is None:
        workers = settings.data.num_workers if dataset.kind == "images" else 0
    model = loaded.model.to(device)
    if "memory" in flags.task and model.memory is None:
        raise ConfigError("this checkpoint has no memory (use_memory was False): leave memory out of --task")
    if not settings.objective.itm_weight:
        logger.warning("itm_weight was 0 in training: the matching head is untrained, its figures mean nothing")

    runner = Runner(model, flags.batch_size, device, precision.autocast, workers)
    logger.info(
        "encoding %d images and %d captions on %s in %s",
        dataset.image_count,
        dataset.num_captions,
        device,
        precision.name,
    )
    try:
        encoded = runner.encode(dataset)
    except (
        ValueError
    ) as error:  # a record that cannot be read; a worker's error carries its traceback before the message
        raise ConfigError(str(error).rsplit("Error: ", 1)[-1].strip()) from error
    ranking = rank_split(encoded, top_k=max(flags.rerank_top_k, 1), device=device)
    results: Results = {}
    if "retrieval" in flags.task:
        results["retrieval"] = retrieval_metrics(encoded, ranking, flags.bootstrap)
        if flags.rerank_top_k:
            weight = flags.rerank_cosine_weight
            if weight is None:
                weight = 1 / settings.objective.itm_temperature
            logger.info("re-ranking the best %d of each query by logit + %.3g x cosine", flags.rerank_top_k, weight)
            results["retrieval"] |= rerank_metrics(runner, encoded, ranking, weight, flags.bootstrap)
    if "matching" in flags.task:
        results["matching"] = matching_metrics(runner, encoded, ranking)
    if "memory" in flags.task or ("matching" in flags.task and model.memory is not None):
        results["memory"] = memory_metrics(runner, encoded)
    return results


def evaluate_language(flags: argparse.Namespace, device: torch.device) -> tuple[Results, Results]:
    """The figures of the BabyLM sets, and the decisions behind them.

    Raises:
        ValueError: sets or model cannot be read, or do not go together.
    """
    data = read_evaluation_data(flags.eval_dir)
    if is_model_folder(flags.checkpoint):
        model, encoder = load_model_folder(flags.checkpoint, device)
    else:
        loaded = load_checkpoint(flags.checkpoint)
        check_tokenizer(loaded, resolve_checkpoint(flags.checkpoint))
        model, encoder = run_language_model(loaded, device)
    return evaluate_babylm(data, encoder, Scorer(model, device, batch_tokens=32 * flags.batch_size))


def main(argv: list[str] | None = None) -> None:
    """Read the flags, evaluate, write the JSON, print the table."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_config_error():
        for name, path in (("output", flags.output), ("predictions", flags.predictions)):
            try:
                if path is not None:
                    check_writable(path)
            except ValueError as error:
                raise ConfigError(f"--{name} {error}") from error
        device = device_of(flags)
        results, predictions = {}, {}
        try:
            if flags.data is not None and flags.task != [BABYLM]:
                loaded = load_checkpoint(flags.checkpoint)
                dataset = load_split(flags.data, loaded, flags.max_images)
            if BABYLM in flags.task:
                results[BABYLM], predictions = evaluate_language(flags, device)
        except ValueError as error:  # what a person asked for cannot be
            raise ConfigError(str(error)) from error
        if flags.task != [BABYLM]:
            if "matching" in flags.task and dataset.image_count < 2:
                raise ConfigError("matching needs at least two images: with one, no caption is wrong")
            results = evaluate(loaded, dataset, device, flags) | results
        print(tables(results, flags.rerank_top_k))  # before writing: a disk that is full must not lose it
        for name, path, content in (("output", flags.output, results), ("predictions", flags.predictions, predictions)):
            try:
                if path is not None:
                    write_results(content, path)
            except ValueError as error:
                raise ConfigError(f"--{name} {error}; the results are in the table above") from error
    logger.info("results in %s", flags.output)


if __name__ == "__main__":
    main()
