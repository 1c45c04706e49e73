"""How close stage 1 comes to the bare encoder: speed and memory of both phases beside their floors, in one run.

Prints one JSON line each for
  floor_forward            the bare DINOv2's forward under no_grad,
  phase1                   a whole training micro-step with the adapters frozen,
  floor_forward_backward   bare PEFT-DINOv2, forward and backward,
  phase2                   a whole training micro-step with the adapters trained,
  phase1_other_precision   phase1 in fp32 where the others run in bf16 (left out in fp32),
  phase1_cached            phase1 reading a bf16 feature cache at the tower's grid, without the tower,
  phase1_cached_pool7      the same with features averaged to 7 x 7,
with samples_per_sec (median over the rounds), ratio_to_floor (median over the rounds of the phase's speed over its
floor's in the same round) or, of the cached ones, ratio_to_phase1 (over the faster of the live precisions) and split
(shares of their time), and peak_memory_gb. All take turns, so that a machine that slows down slows all of them.

A training micro-step is Stage1Objective's forward and backward (contrastive, matching and memory losses over a full
queue), the updates of queue and memory, and its share of the optimizer step. Weights, images and captions are random:
neither speed nor memory depends on them. All towers use the same base weights, counted once.

peak_memory_gb: on a GPU what PyTorch had allocated at most; on a CPU the process's resident memory at its highest while
the section ran (sampled every 5 ms), libraries and the other sections' adapters and optimizer states included.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from cached_sections import Split, cached_batches, random_cache
from measuring import CACHED, FLOOR_OF, LIVE, measure, profile

from bitgen.config import Config
from bitgen.feature_cache.source import drop_base
from bitgen.machine.devices import Precision, choose_device, resolve_precision
from bitgen.machine.ranks import Processes
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import DINOV2_BASE, random_vision_config
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.vision_encoder import resolve_lora_targets
from bitgen.objectives.feature_queue import FeatureQueue, QueueEntries
from bitgen.objectives.stage1 import Stage1Objective
from bitgen.stages import Phase, Stage
from bitgen.tasks.stage1 import groups
from bitgen.training.optimizer import build_optimizer, freeze_and_unfreeze

logger = logging.getLogger("stage1_throughput")

# Tokens of a caption, BOS and EOS included: the range that most of Flickr8k's and COCO's fall into.
CAPTION_TOKENS = (9, 22)


def random_captions(config: BitGenConfig, count: int) -> tuple[Tensor, Tensor]:
    """input_ids, attention_mask [count, T] of random captions, padded to the longest."""
    lengths = torch.randint(*CAPTION_TOKENS, (count,))
    longest = int(lengths.max())
    return torch.randint(config.vocab_size, (count, longest)), (torch.arange(longest) < lengths[:, None]).long()


def random_batch(config: BitGenConfig, batch_size: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of random images with one random caption each, as the collator would give it."""
    input_ids, attention_mask = random_captions(config, batch_size)
    batch = {
        "pixel_values": torch.randn(batch_size, 3, config.image_size, config.image_size),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "image_ids": torch.arange(batch_size),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def full_queue(config: BitGenConfig, size: int, device: torch.device) -> FeatureQueue:
    """A queue as it is for nearly all of a run: full, of other images than the batch's."""
    queue = FeatureQueue(size, config.embed_dim, config.max_seq_len, config.pooled_tokens)
    image_features, text_features = nn.functional.normalize(torch.randn(2, size, config.embed_dim), dim=-1)
    tokens = torch.randn(size, config.pooled_tokens, config.embed_dim).to(torch.bfloat16)
    image_ids = 1_000_000 + torch.arange(size)
    queue.enqueue(QueueEntries(image_features, text_features, image_ids, *random_captions(config, size), tokens))
    return queue.to(device)


def training_section(
    config: Config,
    model: BitGenModel,
    precision: Precision,
    device: torch.device,
    batch_size: int,
    phase: int,
    cache_folder: Path | None = None,
    split: Split | None = None,
) -> Callable[[], None]:
    """One optimizer step's worth of training micro-steps of a phase, as a function of nothing.

    With ``cache_folder`` its images come from a feature cache made there, and the tower is given up.
    """
    split = split or Split()
    objective = Stage1Objective(model, config.objective, memory_alpha=config.memory.memory_alpha).to(device)
    # Steps of the second phase, whatever their number: a group has started or it has not.
    stage, step_number = Stage("stage1", groups(config, 1), 2, 2, phases=(Phase(0), Phase(1))), phase - 1
    freeze_and_unfreeze(objective, objective.roles(), stage, step_number)
    objective.train()
    optimizer = build_optimizer(objective, objective.roles(), stage)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    objective.queue = full_queue(model.config, config.objective.queue_size, device)
    alone = Processes(0, 1, device)
    batch = random_batch(model.config, batch_size, device)
    next_batch: Callable[[], dict[str, Tensor]] = lambda: batch  # noqa: E731
    if cache_folder is not None:
        drop_base(model)
        next_batch = cached_batches(random_cache(model.config, cache_folder), batch)

    def step() -> None:
        outputs = []
        for _ in range(config.training.grad_accum_steps):
            with split.part("read"):
                images = next_batch()
            with split.part("forward"), precision.autocast():
                output = objective(images)
            with split.part("backward"):
                (output.loss / config.training.grad_accum_steps).backward()
            outputs.append(output)
        with split.part("update"):
            nn.utils.clip_grad_norm_(trained, config.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            objective.advance([output.update for output in outputs], alone)

    return step


def forward_section(
    tower: nn.Module, precision: Precision, pixel_values: Tensor, micro_steps: int
) -> Callable[[], None]:
    """As many bare forwards as a training section has micro-steps."""

    def forward() -> None:
        with torch.no_grad(), precision.autocast():
            for _ in range(micro_steps):
                tower(pixel_values)

    return forward


def forward_backward_section(
    tower: nn.Module, precision: Precision, pixel_values: Tensor, micro_steps: int
) -> Callable[[], None]:
    """As many bare forwards and backwards; the cheapest loss that reaches every patch."""

    def forward_backward() -> None:
        for _ in range(micro_steps):
            with precision.autocast():
                hidden = tower(pixel_values).last_hidden_state
            hidden.float().square().mean().backward()
        for parameter in tower.parameters():
            parameter.grad = None

    return forward_backward


def bare_tower(config: BitGenConfig, base: dict[str, Tensor], lora: bool) -> nn.Module:
    """DINOv2 as transformers builds it, with PEFT's adapters around it or without, on the given base weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModel

    settings = dict(config.vision_config)
    tower = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    share_base(tower, base)
    if not lora:
        return tower.eval()
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=resolve_lora_targets(tower),
    )
    return get_peft_model(tower, adapters).train()


def base_weights(tower: nn.Module) -> dict[str, Tensor]:
    """The tower's own weights under their names without PEFT's wrapping."""
    return {n.replace(".base_layer.", "."): p.data for n, p in tower.named_parameters() if "lora_" not in n}


def share_base(tower: nn.Module, base: dict[str, Tensor]) -> None:
    """Let a tower use base weights that are in memory already."""
    for name, parameter in tower.named_parameters():
        if "lora_" not in name:
            parameter.data = base[name.replace(".base_layer.", ".")]


def build_sections(
    config: Config,
    model_config: BitGenConfig,
    precision: Precision,
    device: torch.device,
    batch_size: int,
    cache_folder: Path,
    splits: dict[str, Split],
) -> dict[str, Callable[[], None]]:
    """The sections by name, each a function that runs `grad_accum_steps` batches."""
    models = [BitGenModel(model_config).to(device) for _ in range(2)]
    base = base_weights(models[0].vision_encoder.tower)
    share_base(models[1].vision_encoder.tower, base)
    floors = [bare_tower(model_config, base, lora).to(device) for lora in (False, True)]
    pixel_values = random_batch(model_config, batch_size, device)["pixel_values"]
    micro_steps = config.training.grad_accum_steps
    sections = {
        "floor_forward": forward_section(floors[0], precision, pixel_values, micro_steps),
        "phase1": training_section(config, models[0], precision, device, batch_size, phase=1),
        "floor_forward_backward": forward_backward_section(floors[1], precision, pixel_values, micro_steps),
        "phase2": training_section(config, models[1], precision, device, batch_size, phase=2),
    }
    if precision.name != "fp32":
        full = Precision("fp32", device.type)
        sections["phase1_other_precision"] = training_section(config, models[0], full, device, batch_size, phase=1)
    for name, grid in CACHED.items():
        pooled = BitGenConfig(vision_config=model_config.vision_config, feature_pool=grid)
        model, splits[name] = BitGenModel(pooled).to(device), Split()
        sections[name] = training_section(
            config, model, precision, device, batch_size, 1, cache_folder / name, splits[name]
        )
    return sections


def main() -> None:
    """Parse the flags, measure, print a JSON line a section; everything else goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vision", choices=("base", "small"), default="base", help="base: DINOv2-base's shape; small: a quick look"
    )
    parser.add_argument("--batch_size", type=int, help="images of a micro-step (default: 16 on a CPU, 128 on a GPU)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of all (default: 3)")
    parser.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 where the device has it"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU when there is one"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure these sections and what they are compared with"
    )
    parser.add_argument("--profile", action="store_true", help="afterwards, log where each section's time goes")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if flags.rounds < 1 or (flags.batch_size is not None and flags.batch_size < 2):
        parser.error("--rounds must be at least 1 and --batch_size at least 2 (a contrastive loss needs two pairs)")

    config = Config().replace(precision=flags.precision, device=flags.device)
    device = choose_device(config.training.device)
    precision = resolve_precision(config.training.precision, device)
    batch_size = flags.batch_size or (128 if device.type == "cuda" else 16)
    torch.manual_seed(0)
    vision = DINOV2_BASE if flags.vision == "base" else random_vision_config(96, 4, 4, 14, 224)
    model_config = BitGenConfig(vision_config=vision)
    logger.info("%s, %s, batches of %d, DINOv2 %s", device, precision.name, batch_size, flags.vision)

    splits: dict[str, Split] = {}
    with tempfile.TemporaryDirectory() as folder:
        sections = build_sections(config, model_config, precision, device, batch_size, Path(folder), splits)
        if flags.only:
            wanted = {*flags.only, *(FLOOR_OF[n] for n in flags.only if n in FLOOR_OF)}
            wanted |= set(LIVE) if wanted & set(CACHED) else set()
            if unknown := set(flags.only) - set(sections):
                parser.error(f"--only knows {', '.join(sections)}, not {', '.join(unknown)}")
            sections = {name: section for name, section in sections.items() if name in wanted}

        def forget() -> None:
            for split in splits.values():
                split.seconds.clear()

        samples = batch_size * config.training.grad_accum_steps
        for result in measure(sections, device, samples, flags.rounds, forget):
            split = splits.get(result["name"])
            print(json.dumps({**result, "split": split.shares()} if split else result), flush=True)
        if flags.profile:
            profile(sections, device)


if __name__ == "__main__":
    main()
