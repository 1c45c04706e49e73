"""What a checkpoint's episodic memory does on a split: how evenly it is read, how well it keeps what is written."""

import torch
from torch import Tensor

from bitgen.evaluation.encode import EncodedSplit, Runner
from bitgen.model.episodic_memory import readback_error, slot_utilization

# Enough for two digits; each episode costs a pseudo-inverse and a K x K solve.
MAX_EPISODES = 64


def memory_metrics(runner: Runner, encoded: EncodedSplit) -> dict[str, float]:
    """Utilization and quality of the memory over the true pairs of a split, in percent.

    memory_utilization: exp(entropy of the mean squared read weights over the slots) / K, over all real tokens of all
    captions fused with their images, read from the checkpoint's running state.
    memory_quality: 1 - relative error of reading an episode back after writing it into the prior, averaged over
    episodes of at most min(K, C) codes, one pair an image. `memory_quality_unwritten` is the same for reading, from
    those memories, codes that were not written: near memory_quality, the memory returns anything and recalls nothing.

    Raises ValueError for a model without a memory.
    """
    memory = runner.model.memory
    if memory is None:
        raise ValueError("this checkpoint has no memory (use_memory was False): leave `memory` out of --task")
    usage, codes = read_split(runner, encoded)
    return {
        # The function squares and averages: the root of a mean square stands for all the weights in it.
        "memory_utilization": 100.0 * slot_utilization(usage.sqrt()[None]).item(),
        **_quality(runner, codes[_first_caption(encoded)]),
    }


def read_split(runner: Runner, encoded: EncodedSplit) -> tuple[Tensor, Tensor]:
    """Mean squared read weight of each slot [K] and the codes [S, C] of all captions with their images."""
    texts = torch.arange(encoded.num_texts)
    memory = runner.model.memory
    assert memory is not None
    squared, positions = torch.zeros(memory.gpm.slots, dtype=torch.float64), 0
    codes = torch.empty(len(texts), memory.gpm.dim)
    for part, mask, fused in runner.fuse(encoded, texts, encoded.caption_image[texts]):
        assert fused.read_weights is not None and fused.codes is not None
        squared += (fused.read_weights.double().square() * mask.unsqueeze(-1)).sum(dim=(0, 1)).cpu()
        positions += int(mask.sum())
        codes[part] = fused.codes.float().cpu()
    return (squared / positions).float(), codes


def _first_caption(encoded: EncodedSplit) -> Tensor:
    """Row of one caption of each image [N]."""
    rows = torch.full((encoded.num_images,), encoded.num_texts)
    return rows.scatter_reduce(0, encoded.caption_image, torch.arange(encoded.num_texts), "amin")


@torch.no_grad()
def _quality(runner: Runner, codes: Tensor) -> dict[str, float]:
    """Write-then-read over episodes of codes [N, C], neighbours in an episode spread over the split."""
    memory = runner.model.memory
    assert memory is not None
    size = min(memory.gpm.slots, memory.gpm.dim, len(codes))
    count = min(len(codes) // size, MAX_EPISODES)
    written, unwritten = [], []
    for first in range(count):
        episode = codes[first::count][:size].to(runner.device)
        posterior, _ = memory.gpm.write(episode, memory.direct_writing)
        reader = memory.reader(posterior.mean)
        written.append(1 - readback_error(episode, reader))
        if count > 1:
            other = codes[(first + 1) % count :: count][:size].to(runner.device)
            unwritten.append(1 - readback_error(other, reader))
    metrics = {"memory_quality": 100.0 * torch.stack(written).mean().item()}
    if unwritten:
        metrics["memory_quality_unwritten"] = 100.0 * torch.stack(unwritten).mean().item()
    return metrics
