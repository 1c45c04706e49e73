"""Does a trained model's memory help it? One model, its memory changed in five ways. Prints JSON lines
{"name": .., "episodes": .., "slots": .., "value": .., "memory": .., "change": .., "standard_error": ..}:

  memory         on: the running state as trained. off: what is read is not added (gate 0). prior: the state emptied.
                 support: the prior with the other captions of the same image written first, each with its image, never
                 the caption in question. support_of_others: the same of another image, for "any filled memory".
  episodes       pairs that were written first, at most
  change         against `on`, and its standard error: paired, over images (text: over sequences)
  matching_*     of --matching: `t2i` and `i2t` R@1 in percent of the matching head alone, among the 16 nearest by
                 cosine; `accepted`, true pairs, and `rejected`, the most similar wrong ones, in percent. A pair is read
                 with its image's support
  retrieval_*    R@1 by cosine. Image features never pass through the memory, texts do; there is no pair to support
  caption_loss   of --captions: nats a token of each caption given its image; caption_bleu4, caption_cider: of captions
                 written greedily, against each image's first caption, which the support then leaves out; `changed`:
                 share of captions, in percent, that differ from those of `on`. BLEU's standard error: bootstrap
  text_loss      of --text: nats a token of packed text, which nothing is ever written from
  gate, read_out mean absolute gate, and the length of what the memory adds relative to what it is added to

In the layer a read is the part of a position's code that lies in the rows of the state; support changes the rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import sacrebleu
import torch
from memory_codes import report
from memory_ways import ALONE, WAYS, Compared, gate_closed, reader_of, reading_from, write_supports
from pycocoevalcap.cider.cider import Cider
from torch import Tensor

from bitgen.commands.evaluate import load_split
from bitgen.data.dataset import PairDataset
from bitgen.data.text_blocks import causal_document_mask, collate_blocks
from bitgen.evaluation.caption_metrics import words
from bitgen.evaluation.encode import EncodedSplit, Runner, image_batches, image_input
from bitgen.evaluation.generation import LONGEST, generate_texts, language_model
from bitgen.evaluation.language import SEQUENCES, split_by_source
from bitgen.evaluation.matching import hard_pairs, reranked
from bitgen.evaluation.memory_metrics import read_split
from bitgen.evaluation.retrieval import Ranking, rank_split
from bitgen.model.episodic_memory import MemoryReader
from bitgen.model.likelihood import IGNORED, next_token_labels, sequence_log_probs
from bitgen.model.sequence_layout import SequenceLayout
from bitgen.tasks.stage1_parts import build_text
from bitgen.trained import Trained, open_model

BATCH, NEAREST, RESAMPLES = 128, 16, 200


# ---------------------------------------------------------------- matching and retrieval


@torch.no_grad()
def match(
    runner: Runner, encoded: EncodedSplit, texts: Tensor, images: Tensor, readers: Callable[..., MemoryReader]
) -> Tensor:
    """The matching head's logit differences ``[S]`` of pairs of rows."""
    scores, model = torch.empty(len(texts)), runner.model
    for part in encoded.lengths[texts].argsort(stable=True).split(BATCH):
        ids, mask = encoded.tokens_of(texts[part])
        tokens = encoded.image_tokens[images[part]].float()
        logits = model.match(tokens, ids, mask, readers(texts[part], images[part]))
        scores[part] = logits[:, 1] - logits[:, 0]
    return scores


def first_hits(
    encoded: EncodedSplit, ranking: Ranking, score: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Whether each caption finds its image first, and each image a caption, by the head among its candidates."""
    by_text, by_image = ranking.text_candidates, ranking.image_candidates
    texts = torch.arange(encoded.num_texts)[:, None].expand_as(by_text)
    images = torch.arange(encoded.num_images)[:, None].expand_as(by_image)
    found = score(torch.cat([texts.flatten(), by_image.flatten()]), torch.cat([by_text.flatten(), images.flatten()]))
    of_texts, of_images = found[: by_text.numel()].view_as(by_text), found[by_text.numel() :].view_as(by_image)
    right_image, right_text = encoded.caption_image[:, None] == by_text, encoded.caption_image[by_image] == images
    ranks = reranked(ranking.text_ranks, of_texts, right_image), reranked(ranking.image_ranks, of_images, right_text)
    return ranks[0] == 1, ranks[1] == 1


def matching(loaded: Trained, dataset: PairDataset) -> None:
    """The matching head, and retrieval by cosine."""
    if loaded.model.config.itm_likelihood:
        raise SystemExit("--matching takes a run whose matching head reads the last token (itm_likelihood False).")
    model, runner = loaded.model, Runner(loaded.model, BATCH)
    memory, encoded = model.memory, runner.encode(dataset)
    openness(runner, encoded)
    ranking = rank_split(encoded, NEAREST)
    supports = write_supports(memory, read_split(runner, encoded)[1], encoded.caption_image)
    pairs, owner = hard_pairs(encoded, ranking), encoded.caption_image
    support = int(supports.count.max()) - 1
    rows = torch.arange(encoded.num_images)
    figures = {
        name: Compared(name, memory.gpm.slots, support, 100.0)
        for name in ("matching_t2i", "matching_i2t", "matching_accepted", "matching_rejected")
        + ("retrieval_t2i", "retrieval_i2t")
    }

    def add(name: str, way: str, values: Tensor, cluster: Tensor) -> None:
        figures[name].add(way, values.double(), torch.ones(len(values)), cluster)

    for way in WAYS:
        with gate_closed(memory, way == "off"):
            readers = reader_of(memory, way, supports)
            score = lambda texts, images, readers=readers: match(runner, encoded, texts, images, readers)  # noqa: E731
            by_text, by_image = first_hits(encoded, ranking, score)
            logits = score(pairs.texts, pairs.images)
            add("matching_t2i", way, by_text, owner)
            add("matching_i2t", way, by_image, rows)
            add("matching_accepted", way, logits[pairs.labels] > 0, pairs.images[pairs.labels])
            add("matching_rejected", way, logits[~pairs.labels] <= 0, pairs.images[~pairs.labels])
            if way in ALONE:
                with reading_from(memory, readers(rows, rows)):
                    again = rank_split(runner.encode(dataset), 1)
                add("retrieval_t2i", way, again.text_ranks == 1, owner)
                add("retrieval_i2t", way, again.image_ranks == 1, rows)


# ---------------------------------------------------------------- captions


def captions(loaded: Trained, dataset: PairDataset) -> None:
    """Loss of captions, and captions written."""
    model, runner = loaded.model, Runner(loaded.model, BATCH)
    memory, encoded = model.memory, runner.encode(dataset)
    openness(runner, encoded)
    supports = write_supports(memory, read_split(runner, encoded)[1], encoded.caption_image)
    support, owner = int(supports.count.max()) - 1, encoded.caption_image
    loss = Compared("caption_loss", memory.gpm.slots, support)
    references = [[words(dataset.captions_of(row)[0])] for row in range(encoded.num_images)]
    written: dict[str, list[str]] = {}
    for way in WAYS:
        with gate_closed(memory, way == "off"):
            readers = reader_of(memory, way, supports)
            loss.add(way, *caption_losses(runner, encoded, readers), owner)
            written[way] = write_captions(loaded, dataset, readers, supports.first)
    cider = Compared("caption_cider", memory.gpm.slots, support, 100.0)
    of_image = dict(enumerate(references))
    for way, texts in written.items():
        scores = Cider().compute_score(of_image, {row: [text] for row, text in enumerate(texts)})[1]
        cider.add(way, torch.tensor(scores), torch.ones(len(texts)), torch.arange(len(texts)))
        changed = 100 * sum(map(str.__ne__, texts, written["on"])) / len(texts)
        change, error = bleu_change(texts, written["on"], [reference[0] for reference in references])
        more = {} if way == "on" else {"change": change, "standard_error": error, "changed": changed}
        value = bleu(texts, [reference[0] for reference in references])
        report("caption_bleu4", support if "support" in way else 0, memory.gpm.slots, value, memory=way, **more)


@torch.no_grad()
def caption_losses(
    runner: Runner, encoded: EncodedSplit, readers: Callable[..., MemoryReader]
) -> tuple[Tensor, Tensor]:
    """Nats ``[M]`` of each caption given its image, and its tokens ``[M]``."""
    nats, model = torch.empty(encoded.num_texts), runner.model
    for part in encoded.lengths.argsort(stable=True).split(BATCH):
        ids, mask = encoded.tokens_of(part)
        images = encoded.caption_image[part]
        hidden = model.run_stack(ids, mask, encoded.image_tokens[images].float(), readers(part, images)).hidden_states
        nats[part] = -sequence_log_probs(hidden, model.embeddings.token.weight, next_token_labels(ids, mask))
    return nats, encoded.lengths - 1


@torch.no_grad()
def write_captions(
    loaded: Trained, dataset: PairDataset, readers: Callable[..., MemoryReader], first: Tensor
) -> list[str]:
    """Greedy captions, in words, of all images; each reads from the memory of its image's first caption."""
    generator, texts = language_model(loaded.model, loaded.tokenizer), []
    with image_batches(dataset, range(len(first)), BATCH) as batches:
        for rows, batch in zip(torch.arange(len(first)).split(BATCH), batches, strict=True):
            with reading_from(loaded.model.memory, readers(first[rows], rows)):
                image = {image_input(dataset): batch}
                texts += generate_texts(generator, loaded.tokenizer, [""] * len(batch), 1, LONGEST, **image)
    return [words(text) for text in texts]


def bleu(texts: list[str], references: list[str]) -> float:
    return sacrebleu.corpus_bleu(texts, [references], smooth_method="none", tokenize="none", force=True).score


def bleu_change(texts: list[str], before: list[str], references: list[str]) -> tuple[float, float]:
    """Difference, and its standard error over images drawn anew."""
    generator, changes = torch.Generator().manual_seed(0), []
    for _ in range(RESAMPLES if texts != before else 2):
        rows = torch.randint(len(texts), (len(texts),), generator=generator).tolist()
        one, other, wanted = ([part[row] for row in rows] for part in (texts, before, references))
        changes.append(bleu(one, wanted) - bleu(other, wanted))
    return bleu(texts, references) - bleu(before, references), torch.tensor(changes).std().item()


# ---------------------------------------------------------------- text


@torch.no_grad()
def text(loaded: Trained, folder: str) -> None:
    """Loss of packed text: at most so many sequences of each source as validation reads."""
    model, memory = loaded.model, loaded.model.memory
    sources = split_by_source(build_text(loaded.config, folder, loaded.tokenizer), loaded.tokenizer)
    blocks = [part[row] for part in sources.values() for row in range(min(len(part), SEQUENCES))]
    loss = Compared("text_loss", memory.gpm.slots, 0)
    report("gate", 0, memory.gpm.slots, memory.gate.abs().mean().item())
    for way in ALONE:
        with gate_closed(memory, way == "off"):
            reader, nats, tokens = reader_of(memory, way, None)(None, None), [], []
            for start in range(0, len(blocks), 8):
                batch = collate_blocks(blocks[start : start + 8])
                real, seen = batch["attention_mask"], causal_document_mask(batch["document_ids"])
                layout = SequenceLayout(batch["position_ids"], seen, real)
                hidden = model.run_stack(batch["input_ids"], real, reader=reader, layout=layout).hidden_states
                nats.append(-sequence_log_probs(hidden, model.embeddings.token.weight, batch["labels"]))
                tokens.append((batch["labels"] != IGNORED).sum(dim=1))
        loss.add(way, torch.cat(nats), torch.cat(tokens), torch.arange(len(blocks)))


# ---------------------------------------------------------------- all


def openness(runner: Runner, encoded: EncodedSplit) -> None:
    """How far the gate is open, and what comes through it."""
    memory, added = runner.model.memory, []

    def measure(_layer: object, inputs: tuple, outputs: tuple) -> None:
        added.append(((outputs[0] - inputs[0]).norm() / inputs[0].norm()).item())

    hook = memory.register_forward_hook(measure)
    texts = torch.arange(min(encoded.num_texts, BATCH))
    for _ in runner.fuse(encoded, texts, encoded.caption_image[texts]):
        pass
    hook.remove()
    gate = memory.gate.abs()
    report("gate", 0, memory.gpm.slots, gate.mean().item(), largest=gate.max().item())
    report("read_out", 0, memory.gpm.slots, sum(added) / len(added))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = "a run's --output_dir or one checkpoint"
    parser.add_argument("--matching", metavar="DIR", help=f"{run} that matches")
    parser.add_argument("--captions", metavar="DIR", help=f"{run} that writes captions")
    parser.add_argument("--text", metavar="DIR", help=f"{run} that models text")
    parser.add_argument("--data", metavar="DIR", help="held-out pairs by data_prep/, or scenes")
    parser.add_argument("--text_data", metavar="DIR", help="held-out text by data_prep/")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="first images of --data (default: 300)")
    flags = parser.parse_args()
    if (flags.matching or flags.captions) and not flags.data:
        parser.error("--matching and --captions need --data")
    if flags.text and not flags.text_data:
        parser.error("--text needs --text_data")
    torch.set_num_threads(1)
    for path, measure in ((flags.matching, matching), (flags.captions, captions), (flags.text, text)):
        if path is None:
            continue
        loaded = open_model(path)
        if loaded.model.memory is None:
            parser.error(f"{path} has no memory (use_memory was False)")
        measure(loaded, flags.text_data if measure is text else load_split(flags.data, loaded, flags.images))


if __name__ == "__main__":
    main()
