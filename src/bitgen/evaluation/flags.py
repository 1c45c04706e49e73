"""The command line of `src/evaluate.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bitgen.evaluation.babylm.glue.data import GLUE, GLUE_TASKS
from bitgen.evaluation.babylm.items import LATEST, YEARS
from bitgen.evaluation.generation import SEARCH_RANGES
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.flags import boolean, check_ranges
from bitgen.guards.numbers import finite_float

RETRIEVAL, MATCHING, MEMORY, CAPTIONING, BABYLM = "retrieval", "matching", "memory", "captioning", "babylm"
VQA = "vqa"
REASONING, GROUNDING = "reasoning", "grounding"
RERANK_TOP_K = 16
TASKS = (RETRIEVAL, MATCHING, MEMORY, CAPTIONING, BABYLM, GLUE, VQA, REASONING, GROUNDING)
_BY_DEFAULT = f"{RETRIEVAL},{MATCHING}"

_HELP = """\
Evaluate a checkpoint on a held-out split, or on the BabyLM sets: results as JSON in --output, and as a table.

tasks, separated by commas:
  retrieval  R@1, 5, 10 and median rank, text to image (t2i) and image to text (i2t), by cosine over the whole split,
             then with each query's --rerank_top_k best candidates put in order by the matching head, cosine and,
             where the model learned to write, how likely it finds the caption given the image (reranked_*).
             *_ci95 are 95% bootstrap intervals that resample images, each with all its captions.
  matching   itm_acc: balanced accuracy of the matching head on the true pairs and, for each image and each caption, its
             most similar wrong partner in the whole split; itm_acc_cosine: that of cosine at its best threshold.
             itm_acc_calibrated: of head, cosine and caption likelihood (as in re-ranking) together, weighed by a
             regression on the pairs of other images; itm_acc_cosine_calibrated: of cosine alone in the same way. It is
             far above itm_acc_cosine, as cosine chose the wrong pairs: compare the two.
             With --data scenes also swapped_text, _image and _group: of 200 pairs of scenes whose captions have the
             same words in another order, how often each picture gets its caption, each caption its picture, and both
             (Winoground's scores; by chance 25, 25 and 17).
             The memory's figures come along where the checkpoint has a memory.
  memory     memory_utilization: how evenly the slots are read; memory_quality: how exactly an episode reads back.
  captioning BLEU-4, chrF, ROUGE-L and CIDEr of the captions that the model writes, against all captions of an image,
             on lower-case words without punctuation; as papers print them (CIDEr x 100). A contact sheet (PNG) shows 24
             images with their captions. With --data scenes also right_*: how many captions are right, and in what.
  babylm     the BabyLM sets in --eval_dir (BLiMP, supplement, EWoK, entity tracking, COMPS, GlobalPIQA, reading,
             WUG), each item decided as by the official pipeline of --babylm_year; float32 whatever --precision says.
             --checkpoint may also be any folder that AutoModelForCausalLM loads; Python code that it brings is run with
             --trust_remote_code True alone. Ages of acquisition need several checkpoints: src/submit.py. Each finished
             set is kept beside --output until all is written: the same command goes on where it was interrupted.
  glue       the (Super)GLUE tasks of BabyLM in --eval_dir (glue_filtered): the whole model learns each of them, with a
             new head on the last token, by the settings of the official script. It classifies the valid file after each
             epoch, and the best epoch counts. Means over --seeds; float32. All tasks take a model of 7M parameters some
             12 hours of one CPU core, three quarters of them multirc. Each finished epoch and task is kept: the same
             command goes on where it was interrupted. --checkpoint: as of babylm.
  reasoning  of models of stage 2 (src/train_stage2_reasoning.py), with --data scenes: percent of questions about new
             scenes that are answered right at once (direct) and after a rationale, by hops and by what training never
             had; the same with another scene's picture; clauses of right answers that hold. On a folder of
             data_prep/questions.py: accuracy by the rules of VQA v2. --max_images: the first N
             questions of each kind (default: 1,000).
  grounding  of such models: boxes of things in scenes with others, or of a folder of data_prep/grounding.py.

A vision-language model of parts (src/train_vlm.py) has other tasks; without --task its captions are scored:
  captioning BLEU-1 to 4, ROUGE-L, METEOR and CIDEr of its answers, with how they were searched for; of scenes right_*.
  vqa        accuracy of its answers by the rules of VQA v2, on a folder of conversations; the answers that the folder
             lists are several people's.
  retrieval  of the first --max_images images (default: 100), each with its first caption: the log-likelihood of each
             caption and its end, given each image, by teacher forcing. t2i: a caption ranks the images. i2t: an image
             ranks the captions by likelihood; i2t_gain: by likelihood over the mean likelihood given any of the images.
  --shuffle_images True shows each question another image: what is left of the figures is known without seeing.
All figures but ranks, CIDEr, mean IoU (0 to 1) and counts are percentages. Ties count against the model."""

_EXAMPLES = """\
examples:
  python src/evaluate.py --checkpoint checkpoints/quickstart --data scenes --output results.json
      the best checkpoint of the quickstart, on its held-out scenes
  python src/evaluate.py --checkpoint checkpoints/stage1/step-00001000 --data data/my/val --task retrieval
      one checkpoint, retrieval alone, on a folder written by data_prep/
  python src/evaluate.py --checkpoint checkpoints/stage1 --data data/my/val --task captioning --images photos
      captions; --images gives the contact sheet its pictures where the dataset holds features
  python src/evaluate.py --checkpoint my-model --task babylm --eval_dir evaluation_data/fast_eval
      the BabyLM fast sets, on an exported model
  python src/evaluate.py --checkpoint my-model --task glue --eval_dir evaluation_data/full_eval --seeds 42 43 44
      the (Super)GLUE tasks, each learned three times; --glue_tasks rte wsc: the two smallest alone"""


# Of whole numbers, both ends included. The upper ends are beyond use: what is more would fill memory, or never end.
_RANGES = {
    "rerank_top_k": (0, 100_000),
    "bootstrap": (0, 1_000_000),
    "batch_size": (1, 65_536),
    "max_images": (1, 10**12),
    "num_workers": (0, 1024),
    "glue_epochs": (1, 10_000),
    **SEARCH_RANGES,
}


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as it can be without reading anything."""
    parser = Parser(
        description=_HELP, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a run's --output_dir (its best, else its newest checkpoint), one step-NNNNNNNN folder or an export; for "
        "babylm and glue also the folder of any Hugging Face model",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="a folder written by data_prep/, or 'scenes' for the built-in held-out scenes; babylm and glue need none",
    )
    parser.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="babylm, glue: run the Python code that a --checkpoint folder brings, where it is no export of BitGen; "
        "read that code first (default: False)",
    )
    parser.add_argument(
        "--eval_dir", metavar="DIR", help="the folder of the BabyLM sets: blimp_fast, reading ..., glue_filtered"
    )
    parser.add_argument(
        "--babylm_year",
        type=int,
        choices=YEARS,
        default=LATEST,
        help=f"babylm: by the rules of which year's challenge (default: {LATEST}). 2025 asks EWoK for the target and "
        "takes all of entity tracking, and of equal candidates the first wins",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="where captioning's captions go, as the list that COCO's loadRes reads (with COCO's numbers where "
        "data_prep/coco.py knew them, else the images' names); and babylm's decisions, by folder what the official "
        "predictions.json holds, and under glue what it holds of glue's tasks (the first seed's). All together: one "
        "object, the list under captioning (default: nowhere)",
    )
    parser.add_argument(
        "--task", metavar="LIST", help="tasks from above (default: retrieval,matching; of models of parts: captioning)"
    )
    parser.add_argument(
        "--shuffle_images",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="models of parts: a control, each question with another image (default: False)",
    )
    parser.add_argument(
        "--output", default="results.json", metavar="FILE", help="where the JSON goes (default: results.json)"
    )
    parser.add_argument(
        "--rerank_top_k",
        type=int,
        metavar="K",
        help="candidates that the matching head puts in order; 0: no re-ranking (default: 16, whose figures are left "
        "out, with a warning, where cosine alone ranks better)",
    )
    parser.add_argument(
        "--rerank_cosine_weight",
        type=finite_float,
        metavar="X",
        help="re-rank by matching logit + X * cosine (default: 1 / itm_temperature of the run. Negatives were drawn in "
        "proportion to exp(cosine / itm_temperature), so the head learned what that leaves over). An itm_likelihood "
        "run re-ranks by its log-likelihood ratio + X * cosine (default: 1 / temperature, as training left it)",
    )
    parser.add_argument(
        "--rerank_text_weight",
        type=finite_float,
        metavar="X",
        help="and + X * (log p(caption | image) - log p(caption)), what the image adds to the caption's likelihood in "
        "nats; with both weights 0 matching alone decides (default: 1 with --captioner or if the run had a "
        "text_loss_weight, else 0, as with itm_likelihood, which ranks by this ratio already)",
    )
    parser.add_argument(
        "--captioner",
        metavar="PATH",
        help="a run, checkpoint or export whose model judges how likely a caption is, in re-ranking and "
        "itm_acc_calibrated: a model trained to write alone knows most about it",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples behind each interval; 0: no intervals (default: 1000)",
    )
    parser.add_argument(
        "--num_beams", type=int, default=3, metavar="N", help="beams of captioning's search; 1: greedy (default: 3)"
    )
    parser.add_argument(
        "--length_penalty",
        type=finite_float,
        metavar="X",
        help="models of parts: beams are compared by log-likelihood / tokens^X; above 0 favours long answers "
        "(default: 1)",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=40, metavar="N", help="longest caption in tokens (default: 40)"
    )
    parser.add_argument(
        "--contact_sheet",
        metavar="FILE.png",
        help="where captioning's sheet goes (default: next to --output, as results_captions.png)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="the original image files, named by image id, for the contact sheet; a dataset of features has no pixels",
    )
    parser.add_argument("--max_images", type=int, metavar="N", help="evaluate on the first N images only")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=128,
        metavar="N",
        help="samples of a forward pass, except of reasoning and grounding; changes speed and memory alone "
        "(default: 128)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes that decode images (default: as in training, 0 for features)",
    )
    add_device_flag(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32", "fp16"),
        default="auto",
        help="auto: bf16 where the device has it (default); reasoning and grounding are always in fp32",
    )
    _add_glue_flags(parser)
    flags = parser.parse_args(argv)
    flags.task_by_default = flags.task is None
    flags.task = _BY_DEFAULT if flags.task is None else flags.task
    flags.task = [task.strip() for task in flags.task.split(",") if task.strip()]
    unknown = [task for task in flags.task if task not in TASKS]
    if unknown or not flags.task:
        what = f"unknown task {unknown[0]!r}" if unknown else "no task given"
        parser.error(f"--task: {what}; choose from {', '.join(TASKS)}, separated by commas")
    others = [task for task in flags.task if task not in (BABYLM, GLUE)]
    if others and flags.data is None:
        parser.error(f"--task {others[0]} needs --data")
    if of_sets := [task for task in flags.task if task in (BABYLM, GLUE) and flags.eval_dir is None]:
        parser.error(f"--task {of_sets[0]} needs --eval_dir")
    _check_glue_flags(parser, flags)
    if not Path(flags.output).name:
        parser.error(f"--output {flags.output!r} is not the name of a file")
    if flags.contact_sheet is None:
        flags.contact_sheet = str(Path(flags.output).with_suffix("")) + "_captions.png"
    elif not flags.contact_sheet.lower().endswith(".png"):
        parser.error(f"--contact_sheet {flags.contact_sheet}: it is written as a PNG; give a name that ends in .png")
    check_ranges(parser, flags, _RANGES)
    if flags.length_penalty is not None and not -100 <= flags.length_penalty <= 100:
        parser.error(f"--length_penalty is {flags.length_penalty:g}; it must be from -100 to 100")
    if flags.length_penalty is not None and flags.num_beams == 1:
        parser.error("--length_penalty compares beams, and --num_beams is 1: write more beams, or leave it out")
    return flags


def _add_glue_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("glue")
    group.add_argument(
        "--glue_tasks",
        nargs="+",
        choices=tuple(GLUE_TASKS),
        metavar="TASK",
        help=f"which of {', '.join(GLUE_TASKS)} (default: all that --eval_dir holds)",
    )
    group.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="of the new head, the order and dropout; each learns every task anew (default: 42)",
    )
    group.add_argument(
        "--glue_learning_rate",
        type=finite_float,
        metavar="X",
        help="the peak for every task (default: the official 3e-5)",
    )
    group.add_argument(
        "--glue_epochs", type=int, metavar="N", help="for every task (default: the official 10, and 30 for wsc)"
    )
    group.add_argument(
        "--glue_kept",
        metavar="DIR",
        help="where finished tasks are kept, a small file each; several models may share one folder (default: next to "
        "--output, as results_glue)",
    )


def _check_glue_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    given = ("glue_tasks", "seeds", "glue_learning_rate", "glue_epochs", "glue_kept")
    if GLUE not in flags.task and (named := [name for name in given if getattr(flags, name) is not None]):
        parser.error(f"--{named[0]} is for --task {GLUE}: write that too, or leave it out")
    flags.seeds = [42] if flags.seeds is None else flags.seeds
    if wrong := [seed for seed in flags.seeds if not 0 <= seed < 2**63]:
        parser.error(f"--seeds {wrong[0]}: a seed is a whole number from 0 to {2**63 - 1}")
    if flags.glue_learning_rate is not None and not 0 < flags.glue_learning_rate <= 1:
        parser.error(f"--glue_learning_rate is {flags.glue_learning_rate:g}; it must be above 0 and at most 1")
