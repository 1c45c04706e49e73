"""What a memory gives to be said: nothing recalled changes nothing, to the bit; what is recalled is looked at."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from bitgen.model.configuration_bitgen import FUSION_KINDS
from bitgen.model.modeling_bitgen import BitGenModel, StackOutput
from bitgen.model.parameter_roles import GATE, MATRIX
from bitgen.model.recall import Recall
from bitgen.model.recalled import Beside, Reader, Recalled
from support.speaking import RECALL, random_recalled

LENGTH, STILL = 8, dict(dropout=0.0, compressor_dropout=0.0)
ROWS = [[True, True, False], [False, False, False], [True, False, False], [False, False, False]]
NONE = [[False] * 3] * 4
every_fusion = pytest.mark.parametrize("fusion", FUSION_KINDS)
in_both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
with_and_without = pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])


@pytest.fixture
def speaker(open_model):
    """``speaker(**changes)``: a model that can recall."""

    return lambda **changes: open_model(**(RECALL | changes))


def inputs(with_image: bool = True, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor | None]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, LENGTH), generator=random)
    return ids, torch.randn(rows, 9, 16, generator=random) if with_image else None


def logits(
    model: BitGenModel,
    ids: torch.Tensor,
    image: torch.Tensor | None,
    recalled: Recalled | None = None,
    chunks: list[int] | None = None,
) -> torch.Tensor:
    """In one pass, or in ``chunks`` with a cache; the memory layer's noise is drawn from one seed."""
    torch.manual_seed(5)
    with torch.no_grad():
        if chunks is None:
            return said_by(model, model.run_stack(ids, None, image, recalled=recalled))
        cache, parts, done = DynamicCache(), [], 0
        for chunk in ids.split(chunks, dim=1):
            given = recalled._replace(after=ids[:, :done]) if recalled is not None and done else recalled
            output = model.run_stack(chunk, None, image, cache=cache, recalled=given)
            parts.append(said_by(model, output))
            done += chunk.shape[1]
        return torch.cat(parts, dim=1)


def said_by(model: BitGenModel, output: StackOutput) -> torch.Tensor:
    """Logits of a pass, with what the pointer adds to them."""
    states = output.hidden_states
    return model.lm_logits(states if output.said is None else torch.cat([states, output.said.to(states.dtype)], dim=-1))


# ---- nothing recalled ----


@every_fusion
@in_both_modes
@with_and_without
@pytest.mark.parametrize("chunks", [None, [3, 1, 4]], ids=["whole", "cached"])
def test_a_network_that_recalls_nothing_is_the_one_without_recall(
    open_model, speaker, fusion, training, with_image, chunks
) -> None:
    speaks = speaker(fusion=fusion, **STILL).train(training)
    plain = open_model(fusion=fusion, **STILL).train(training)
    state = {name: tensor for name, tensor in speaks.state_dict().items() if not name.startswith("recall.")}
    plain.load_state_dict(state)
    ids, image = inputs(with_image)
    expected = logits(plain, ids, image, chunks=chunks)
    assert torch.equal(logits(speaks, ids, image, chunks=chunks), expected)
    assert torch.equal(logits(speaks, ids, image, random_recalled(speaks.recall, NONE), chunks), expected)


@every_fusion
@in_both_modes
@with_and_without
@pytest.mark.parametrize("chunks", [None, [3, 1, 4]], ids=["whole", "cached"])
def test_rows_that_recalled_nothing_are_what_they_are_without(speaker, fusion, training, with_image, chunks) -> None:
    model = speaker(fusion=fusion, **STILL).train(training)
    ids, image = inputs(with_image)
    plain = logits(model, ids, image, chunks=chunks)
    said = logits(model, ids, image, random_recalled(model.recall, ROWS), chunks)
    for row, present in enumerate(ROWS):
        assert torch.equal(said[row], plain[row]) == (not any(present))
        assert any(present) == bool((said[row] - plain[row]).abs().amax(dim=-1).min() > 1e-3)


def test_the_other_things_that_it_does_know_nothing_of_recall(open_model, speaker) -> None:
    speaks, plain = speaker(), open_model()
    plain.load_state_dict({k: v for k, v in speaks.state_dict().items() if not k.startswith("recall.")})
    ids, mask = inputs()[0], torch.ones(4, LENGTH, dtype=torch.long)
    features = torch.randn(4, 9, 6)
    with torch.no_grad():
        for one, other in zip(speaks.encode_image(None, features), plain.encode_image(None, features), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(speaks.encode_text(ids, mask), plain.encode_text(ids, mask))
        tokens = speaks.pool_image_tokens(speaks.encode_image(None, features).image_tokens)
        assert torch.equal(speaks.match(tokens, ids, mask), plain.match(tokens, ids, mask))


# ---- something recalled ----


@every_fusion
@in_both_modes
@with_and_without
def test_logits_do_not_depend_on_later_tokens(speaker, fusion, training, with_image) -> None:
    model = speaker(fusion=fusion, **STILL).train(training)
    ids, image = inputs(with_image)
    recalled = random_recalled(model.recall, [[True, True, False]] * 4)
    before = logits(model, ids, image, recalled)
    for position in range(LENGTH - 1):
        changed = ids.clone()
        changed[:, position + 1 :] = (changed[:, position + 1 :] + 7) % 50
        after = logits(model, changed, image, recalled)
        assert (before - after)[:, : position + 1].abs().max() < 1e-5
        assert (before - after)[:, position + 1 :].abs().amax(dim=(0, 2)).min() > 1e-3


@every_fusion
def test_a_token_that_is_not_there_changes_nothing(speaker, fusion) -> None:
    model = speaker(fusion=fusion)
    ids, image = inputs()
    recalled = random_recalled(model.recall, ROWS)
    said = logits(model, ids, image, recalled)
    other = torch.where(recalled.present[..., None], recalled.tokens, 100 * torch.randn_like(recalled.tokens))
    assert torch.equal(logits(model, ids, image, Recalled(other, recalled.present)), said)
    wider = Recalled(F.pad(recalled.tokens, (0, 0, 0, 5), value=7.0), F.pad(recalled.present, (0, 5)))
    torch.testing.assert_close(logits(model, ids, image, wider), said, atol=1e-5, rtol=0)
    there = Recalled(recalled.tokens, torch.ones_like(recalled.present))
    assert (logits(model, ids, image, there) - said).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_order_of_recalled_tokens_does_not_matter(speaker) -> None:
    """Their places are in the tokens themselves."""
    model = speaker()
    ids, image = inputs()
    recalled = random_recalled(model.recall, [[True, True, False]] * 4)
    turned = Recalled(recalled.tokens.flip(1), recalled.present.flip(1))
    said = logits(model, ids, image, recalled)
    torch.testing.assert_close(logits(model, ids, image, turned), said, atol=1e-5, rtol=0)


@every_fusion
@with_and_without
@pytest.mark.parametrize("chunks", [[1] * 8, [3, 1, 4], [8], [7, 1]])
def test_cached_decoding_equals_one_pass(speaker, fusion, with_image, chunks) -> None:
    model = speaker(fusion=fusion)
    ids, image = inputs(with_image)
    recalled = random_recalled(model.recall, ROWS)
    whole = logits(model, ids, image, recalled)
    torch.testing.assert_close(logits(model, ids, image, recalled, chunks), whole, atol=1e-5, rtol=1e-6)


def test_rows_do_not_see_what_others_recalled(speaker) -> None:
    model = speaker()
    ids, image = inputs()
    recalled = random_recalled(model.recall, ROWS)
    said = logits(model, ids, image, recalled)
    for row in range(4):
        only = slice(row, row + 1)
        alone = logits(model, ids[only], image[only], Recalled(recalled.tokens[only], recalled.present[only]))
        torch.testing.assert_close(alone, said[only], atol=1e-5, rtol=1e-6)


def test_gradients_of_rows_that_recalled_nothing_are_finite(speaker) -> None:
    model = speaker(**STILL).train()
    ids, image = inputs()
    recalled = random_recalled(model.recall, ROWS)
    recalled.tokens.requires_grad_()
    said_by(model, model.run_stack(ids, None, image, recalled=recalled)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    reached = recalled.tokens.grad.abs().sum(dim=-1) > 0
    assert torch.equal(reached, recalled.present)


# ---- keys and values ----


@pytest.fixture
def recall(speaker) -> Recall:
    return speaker().recall


def text(length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts, the first one the longest, and their mask."""
    ids = torch.randint(3, 50, (3, length), generator=torch.Generator().manual_seed(2))
    return ids, (torch.arange(length) < torch.tensor([[length], [4], [2]])).long()


def test_keys_have_length_one_and_do_not_see_padding(recall) -> None:
    ids, mask = text()
    image = inputs()[1][:3]
    other = torch.where(mask > 0, ids, (ids + 7) % 50)

    def pictured(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return recall.taught_image_key(image[: len(ids)], ids, mask)

    with torch.no_grad():
        for key in (recall.text_keys, pictured):
            keys = key(ids, mask)
            assert keys.shape == (3, RECALL["recall_dim"])
            torch.testing.assert_close(keys.norm(dim=-1), torch.ones(3))
            torch.testing.assert_close(key(other, mask), keys, atol=1e-5, rtol=0)
            torch.testing.assert_close(key(ids[:2, :6], mask[:2]), keys[:2], atol=1e-5, rtol=0)
            assert torch.pdist(keys).min() > 1e-3
        torch.testing.assert_close(recall.text_keys(ids[1:, :4], mask[1:, :4]), recall.text_keys(ids, mask)[1:])
        tokens = recall.image_keys(image)
        assert tokens.shape == (3, 9, RECALL["recall_dim"])
        torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(3, 9))


def test_the_key_of_a_text_knows_the_order_of_its_words(recall) -> None:
    ids = torch.tensor([[5, 6, 7], [7, 6, 5]])
    with torch.no_grad():
        one, other = recall.text_keys(ids, torch.ones_like(ids))
    assert (one - other).norm() > 1e-3


def test_the_key_of_a_taught_picture_is_a_mean_of_its_tokens_keys_which_the_text_weighs(recall) -> None:
    ids, mask = text()
    image = inputs()[1][:1].expand(3, -1, -1)
    with torch.no_grad():
        keys = recall.taught_image_key(image, ids, mask)
        assert torch.pdist(keys).min() > 1e-4, "of one picture, but of what its text is about"
        same = image[:, :1].expand(-1, 9, -1)
        alone = recall.taught_image_key(same, ids, mask)
        torch.testing.assert_close(alone, recall.image_keys(same)[:, 0], atol=1e-5, rtol=0)
        # Inside the cone of its tokens: no further from them than they are from one another.
        tokens = recall.image_keys(image)
        assert ((keys[:, None] @ tokens.mT).amax(dim=(1, 2)) >= (tokens @ tokens.mT).amin(dim=(1, 2))).all()


def test_a_value_gives_its_own_tokens_back_and_no_more_than_it_can_hold(recall) -> None:
    ids = torch.tensor([[0, 7, 9, 11, 13, 15], [0, 20, 21, 22, 23, 24], [0, 30, 31, 32, 33, 34]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        values = recall.values(ids, mask)
        assert values.shape == (3, recall.value_width) == (3, 12)
        given, kept = values.view(3, 3, 4), mask[:, 1:4] > 0
        torch.testing.assert_close(given.norm(dim=-1), kept.float())
        assert torch.equal(given[kept], recall.codes()[ids[:, 1:4]][kept]) and not given[~kept].any()
        found = recall.value_logits(values)
        assert found.shape == (3, 3, 50)
        assert torch.equal(found.argmax(dim=-1)[kept], ids[:, 1:4][kept])
        # What is left out, and padding, are no part of it.
        assert torch.equal(recall.values(ids[:, :4], mask[:, :4]), values)
        short = recall.values(ids[:, :3], mask[:, :3])
        assert torch.equal(short[2], values[2]) and not short.view(3, 3, 4)[:, 2].any()


def recalled_of(recall: Recall, seen: torch.Tensor, present: torch.Tensor, ids: torch.Tensor) -> Recalled:
    """Of one row: facts of texts ``[R, T]``, recalled by what was ``seen [R, D]``."""
    values = recall.values(ids, torch.ones_like(ids))
    return recall.tokens(values[None], seen[None], present[None])


def test_tokens_of_a_value_know_their_number_and_what_they_were_recalled_by(recall) -> None:
    random = torch.Generator().manual_seed(6)
    ids, both = torch.tensor([[0, 5, 5, 5], [0, 9, 8, 7]]), torch.tensor([True, True])
    seen = torch.randn(2, 16, generator=random)
    seen[1] = 0  # a text was the cue
    elsewhere = torch.where(seen != 0, torch.randn(2, 16, generator=random), 0.0)
    with torch.no_grad():
        tokens, there, _ = recalled_of(recall, seen, both, ids)
        assert tokens.shape[:2] == (1, 6) and there.all()
        other = recalled_of(recall, elsewhere, both, ids).tokens
        assert (tokens - other)[0, :3].abs().amax(dim=-1).min() > 1e-4 and torch.equal(tokens[0, 3:], other[0, 3:])
        assert torch.pdist(tokens[0, :3]).min() > 1e-3, "equal words at other places in the text"
        _, one, _ = recalled_of(recall, seen, torch.tensor([True, False]), ids)
        assert one.tolist() == [[True] * 3 + [False] * 3]
        assert not recalled_of(recall, seen, torch.tensor([False, False]), ids).present.any()


def test_what_is_seen_knows_the_token_and_its_place_in_the_picture(recall) -> None:
    image = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(6))
    image[:, 5] = image[:, 2]  # the same thing, elsewhere
    at = torch.tensor([[2, 5, 8], [0, 0, 2]])
    with torch.no_grad():
        seen = recall.seen(image, at)
        for row in range(2):
            for place in range(3):
                token = image[row, at[row, place]]
                torch.testing.assert_close(seen[row, place], recall.where(token) + recall.spot[at[row, place]])
        assert (seen[0, 0] - seen[0, 1]).abs().max() > 1e-3 and torch.equal(seen[1, 0], seen[1, 1])


def test_behind_the_end_of_a_text_there_is_nothing(recall) -> None:
    ids = torch.tensor([[0, 5], [0, 9]])
    with torch.no_grad():
        _, there, _ = recalled_of(recall, torch.zeros(2, 16), torch.tensor([True, True]), ids)
    assert there.tolist() == [[True, False, False] * 2]


def pointed(
    recall: Recall, hidden: torch.Tensor, recalled: Recalled, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """What the pointer says after each token of a text."""
    given: Beside | None = recall.beside(recalled, ids, mask)
    assert given is not None
    return recall.pointer(hidden, given)


def held_by(
    recall: Recall, codes: torch.Tensor, before: torch.Tensor, behind: torch.Tensor, text: list[int]
) -> list[float]:
    """Whether a text holds a recalled token, it behind the one before it, and it before the next, by the definition,
    token by token."""
    ways = [0.0, 0.0, 0.0]
    for at, said in enumerate(text):
        now, last = recall.codes()[said], recall.codes()[text[at - 1]] if at else torch.zeros(4)
        found = (now @ codes, (now @ codes) * (last @ before), (now @ behind) * (last @ codes))
        ways = [max(way, min(max(2 * float(cosine) - 1, 0), 1)) for way, cosine in zip(ways, found, strict=True)]
    return ways


def test_a_reader_against_plain_loops(recall) -> None:
    """One softmax a head over the recalled tokens, where what the text holds already weighs more or less."""
    ids, text = torch.tensor([[0, 7, 8, 9], [0, 7, 20, 7]]), [5, 7, 8, 20]
    reader: Reader = recall.readers[0]
    with torch.no_grad():
        reader.held.weight.mul_(10)
        recalled = recalled_of(recall, torch.randn(2, 16), torch.tensor([True, True]), ids)
        hidden = torch.randn(1, len(text), 16)
        found = reader(hidden, recall.beside(recalled, torch.tensor([text])))
        looked_at, code, one, _, _, behind, _ = recalled.tokens[0].split([16, 4, 4, 4, 4, 4, 1], dim=-1)
        for at in range(len(text)):
            state = reader.norm(hidden[0, at])
            query, worth = reader.query(state), reader.held(state)
            heads, size, parts = reader.num_heads, 16 // reader.num_heads, []
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                scores, values = [], []
                for token in range(len(code)):
                    key, value = reader.key_value(looked_at[token]).chunk(2)
                    held = held_by(recall, code[token], one[token], behind[token], text[: at + 1])
                    score = query[mine] @ key[mine] / size**0.5
                    scores.append(score + worth[3 * head : 3 * head + 3] @ torch.tensor(held))
                    values.append(value[mine])
                parts.append(torch.stack(scores).softmax(dim=0) @ torch.stack(values))
            read = reader.output(torch.cat(parts))
            expected = hidden[0, at] + read + reader.mlp(hidden[0, at] + read)
            torch.testing.assert_close(found[0, at], expected, atol=1e-5, rtol=1e-5)


def test_a_reader_knows_which_of_two_names_was_said(recall) -> None:
    """The same state, after one name and after the other: what is read differs, as where the two stand does."""
    two = torch.tensor([[0, 7], [0, 9]])
    with torch.no_grad():
        recalled = recalled_of(recall, torch.randn(2, 16), torch.tensor([True, True]), two)
        state = torch.randn(1, 1, 16)
        read = {}
        for name in (7, 9, 11):
            given = recall.beside(recalled._replace(after=torch.tensor([[name]])), torch.tensor([[5]]))
            read[name] = recall.readers[0](state, given)
    assert (read[7] - read[9]).abs().max() > 1e-4 and (read[7] - read[11]).abs().max() > 1e-4


def test_who_has_said_the_tokens_before_goes_on_with_the_next_of_the_text(recall) -> None:
    """What a pointer that has learned nothing says already: a text goes on as it was taught."""
    ids = torch.tensor([[0, 7, 8, 9], [0, 7, 20, 21], [0, 30, 8, 31]])
    with torch.no_grad():
        recall.pointer.query.weight.zero_()
        recall.pointer.follow.fill_(50.0)
        recalled = recalled_of(recall, torch.zeros(3, 16), torch.tensor([True, True, True]), ids)
        for said, wanted in (([7, 8], 9), ([7, 20], 21), ([30, 8], 31)):
            asked = torch.tensor([said])
            points = pointed(recall, torch.randn(1, 2, 16), recalled, asked)
            assert int(recall.said_logits(points)[0, -1].argmax()) == wanted
            last = pointed(recall, torch.randn(1, 1, 16), recalled._replace(after=asked[:, :1]), asked[:, 1:])
            assert int(recall.said_logits(last)[0, -1].argmax()) == wanted


def test_a_name_that_has_two_letters_twice_is_said_to_its_end(speaker) -> None:
    """Of "abcabd", whoever has said "cab" goes on with "d"."""
    recall, (a, b, c, d) = speaker(recall_tokens=6).recall, (7, 8, 20, 21)
    with torch.no_grad():
        recall.pointer.query.weight.zero_()
        recall.pointer.covered.weight.zero_()
        recall.pointer.covered.bias.zero_()
        recall.pointer.follow.fill_(50.0)
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), torch.tensor([[0, a, b, c, a, b, d]]))
        logits = []
        for worth in (50.0, 0.0):
            recall.pointer.follow[2] = worth
            points = pointed(recall, torch.randn(1, 3, 16), recalled, torch.tensor([[c, a, b]]))
            logits.append(recall.said_logits(points)[0, -1])
    assert int(logits[0].argmax()) == d
    torch.testing.assert_close(logits[1][c], logits[1][d], msg="two tokens alone do not tell")


def test_what_stands_before_a_fact_is_a_space_where_the_tokenizer_has_one(speaker) -> None:
    ids = torch.tensor([[0, 5, 6, 9]])
    for space in (None, 40):
        recall = speaker(recall_space=space).recall
        with torch.no_grad():
            tokens = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), ids).tokens[0]
            codes = {None: torch.zeros(4)} | {token: recall.codes()[token] for token in (5, 6, 9, 40)}
        text = [None, None, space, 5, 6, 9]
        for number, given in enumerate(tokens[:, -21:-5].split(4, dim=1)):  # of each, and of the three before it
            expected = torch.stack([codes[text[3 + at - number]] for at in range(3)])
            torch.testing.assert_close(given, expected)


def test_a_fact_is_said_from_its_first_word_in_an_answer(speaker) -> None:
    """Of "abc d abe", asked about "abe", "abc": an answer begins behind a space, and so does each word but one."""
    recall, (space, a, b, c, d, e) = speaker(recall_tokens=9, recall_space=40).recall, (40, 7, 8, 20, 21, 22)
    ids = torch.tensor([[0, a, b, c, space, d, space, a, b, e]])
    with torch.no_grad():
        recall.pointer.query.weight.zero_()
        recall.pointer.covered.weight.zero_()
        recall.pointer.covered.bias.copy_(torch.tensor([0.0, -40.0, 0.0]))  # what the question holds is not the answer
        recall.pointer.follow.fill_(50.0)
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), ids)
        question = [9, space, a, b, e, 11]
        for said, wanted in (([space, a, b], c), ([space, a, b, c], space)):
            points = pointed(
                recall, torch.randn(1, len(question + said), 16), recalled, torch.tensor([question + said])
            )
            assert int(recall.said_logits(points)[0, -1].argmax()) == wanted


def test_the_first_letters_of_a_name_that_was_asked_about_are_not_the_answer(speaker) -> None:
    """Of "ab likes cd", asked "of cd?": "c" stands behind another word than there, but before "d" in both."""
    recall, (likes, a, b, c, d, e) = speaker(recall_tokens=9, recall_code=64).recall, (40, 7, 8, 20, 21, 22)
    with torch.no_grad():
        ids = torch.tensor([[0, a, b, likes, c, d, e]])
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), ids)
        beside = recall.beside(recalled, torch.tensor([[9, c, d, 11]]))
    assert beside is not None
    held = beside.held[0, :, :6] > 0.5
    assert held[-1, :, 2].nonzero().flatten().tolist() == [3] and not held[-1, 3, 1]
    assert held[-1, :, 0].nonzero().flatten().tolist() == [3, 4]
    assert not held[1, :, 2].any(), "the next is not said yet"


def test_the_next_of_a_facts_last_token_is_none_of_another_fact(speaker) -> None:
    recall = speaker(recall_code=64).recall
    two = torch.tensor([[0, 7, 8, 9], [0, 20, 21, 22]])
    with torch.no_grad():
        recalled = recalled_of(recall, torch.zeros(2, 16), torch.tensor([True, True]), two)
        beside = recall.beside(recalled, torch.tensor([[9, 20, 21]]))
    assert beside is not None
    assert (beside.held[0, -1, :, 2] > 0.5).nonzero().flatten().tolist() == [3]


def word_so_far(recall: Recall, text: list[int], token: int, before: list[torch.Tensor], depth: int) -> float:
    """How surely a text ends with all tokens of a recalled token's word that stand before it; 0 where none do."""
    found = float(depth > 0)
    for steps in range(depth):
        word = recall.codes()[text[-1 - steps]] if steps < len(text) else torch.zeros(4)
        found *= float(word @ before[steps][token])
    return min(1.0, max(0.0, 2 * found - 1))


def pointed_at(recall: Recall, hidden: torch.Tensor, recalled: Recalled, text: list[int]) -> torch.Tensor:
    """What the pointer says after the last token of ``text``, by its definition, token by token."""
    pointer, codes = recall.pointer, recall.codes()
    state = pointer.norm(hidden)
    worth = pointer.covered(state)
    looked_at, code, *before, behind, depth = recalled.tokens[0].split([16, 4, 4, 4, 4, 4, 1], dim=-1)
    scores, goes_on = [], []
    for token in range(len(code)):
        held = held_by(recall, code[token], before[0][token], behind[token], text)
        score, follows = pointer.query(state) @ pointer.key(looked_at[token]) / 4, 1.0
        one = float((2 * (codes[text[-1]] @ before[0][token]) - 1).clamp(0, 1))
        goes_on.append(word_so_far(recall, text, token, before, int(depth[token])))
        so_far = max(
            float((2 * (codes[text[at]] @ code[token]) - 1).clamp(0, 1))
            * (word_so_far(recall, text[:at], token, before, int(depth[token])))
            for at in range(len(text))
        )
        # Begun again, or in its middle, or said again.
        score = score - 3 * min(1, held[2] * (1 - one) + float(depth[token] > 0) - goes_on[-1] * (1 - so_far))
        for steps, worth_it in enumerate(pointer.follow):
            word = codes[text[-1 - steps]] if steps < len(text) else torch.zeros(4)
            follows = follows * (word @ before[steps][token])
            score = score + worth_it * follows
        scores.append(score + worth @ torch.tensor(held))
    weights = torch.stack(scores).softmax(dim=0)
    sure = pointer.gate(state) + sum(
        weights[at] * (pointer.sure(looked_at[at]) + 3 * goes_on[at]) for at in range(len(code))
    )
    return sure.sigmoid() * (weights @ code)


@pytest.mark.parametrize("words", ["2" * 50, "1" * 8 + "2" * 8 + "0" * 4 + "1" * 30])
def test_the_pointer_against_plain_loops(speaker, words: str) -> None:
    recall = speaker(recall_words=words).recall
    ids = torch.tensor([[0, 7, 8, 9], [0, 7, 20, 7]])
    text = [5, 7, 8, 20, 7, 9]
    with torch.no_grad():
        for parameter in (recall.pointer.covered.weight, recall.pointer.sure.weight):
            parameter.mul_(10)
        recalled = recalled_of(recall, torch.randn(2, 16), torch.tensor([True, True]), ids)
        hidden = torch.randn(1, len(text), 16)
        said = pointed(recall, hidden, recalled, torch.tensor([text]))
        for at in range(len(text)):
            expected = pointed_at(recall, hidden[0, at], recalled, text[: at + 1])
            torch.testing.assert_close(said[0, at], expected, atol=1e-5, rtol=1e-5)


def test_padding_is_no_token_of_the_text(recall) -> None:
    ids = torch.tensor([[0, 7, 8, 9]])
    with torch.no_grad():
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), ids)
        hidden = torch.randn(1, 4, 16)
        alone = pointed(recall, hidden[:, 2:], recalled, torch.tensor([[5, 7]]))
        padded, mask = torch.tensor([[8, 9, 5, 7]]), torch.tensor([[0, 0, 1, 1]])
        torch.testing.assert_close(pointed(recall, hidden, recalled, padded, mask)[:, 2:], alone)
        cached = recalled._replace(after=torch.tensor([[-1, -1, 5]]))
        torch.testing.assert_close(pointed(recall, hidden[:, 3:], cached, padded[:, 3:]), alone[:, 1:])
        held = recalled._replace(after=torch.tensor([[8, 9, 5]]))
        assert (pointed(recall, hidden[:, 3:], held, padded[:, 3:]) - alone[:, 1:]).abs().max() > 1e-5


def test_a_name_that_the_text_holds_is_not_begun_again(recall) -> None:
    """Of a fact "7 8 9", asked about 7, the rest is left to be said; of two facts the one that is missing."""
    with torch.no_grad():
        recall.pointer.query.weight.zero_()
        recall.pointer.follow.zero_()
        recall.pointer.covered.weight.zero_()
        recall.pointer.covered.bias.copy_(torch.tensor([-50.0, 0.0, 0.0]))
        recalled = recalled_of(recall, torch.zeros(2, 16), torch.tensor([True, True]), torch.tensor([[0, 7], [0, 9]]))
        for said, wanted in ((7, 9), (9, 7)):
            points = pointed(recall, torch.randn(1, 2, 16), recalled, torch.tensor([[said, 5]]))
            assert int(recall.said_logits(points)[0, -1].argmax()) == wanted


NAME, OTHER = (7, 8), (20, 21)


def beginning(recall: Recall, said: list[int], fact: list[int]) -> list[bool]:
    """Which tokens of a fact would break a word, said now behind a text."""
    with torch.no_grad():
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), torch.tensor([[0, *fact]]))
        beside = recall.beside(recalled, torch.tensor([said]))
    assert beside is not None
    return (beside.breaks[0, -1, : len(fact)] > 0.5).tolist()


def test_a_word_that_the_text_holds_would_be_begun_again_unless_the_text_goes_on_to_it(speaker) -> None:
    recall = speaker(recall_tokens=9, recall_code=64).recall
    fact = [*OTHER, 30, *NAME, 31]
    assert beginning(recall, [5, *NAME, 6], fact) == [False, False, False, True, False, False]
    assert beginning(recall, [5, NAME[0], 9, 6], fact) == [False] * 6, "its first token alone may be another name's"
    assert beginning(recall, [5, *NAME, 6, 30], fact) == [False] * 6, "30 goes before it"
    assert beginning(recall, [5, *NAME, 6, *OTHER], fact)[:3] == [True, False, False], "said by now"


def test_where_a_space_is_a_token_words_are_begun_behind_it(speaker) -> None:
    space = 40
    recall = speaker(recall_tokens=12, recall_code=64, recall_space=space).recall
    fact = [*OTHER, space, 30, space, *NAME]
    again = beginning(recall, [5, space, *NAME, 6, space], fact)
    assert again == [False] * 5 + [True, False]
    assert not beginning(recall, [5, space, *NAME, 6, space, 30, space], fact)[5], "the fact goes on to it"
    assert beginning(recall, [5, space, *OTHER, 6, space], fact)[0], "the first word stands behind a space, too"


def test_a_word_is_begun_at_its_first_token_and_gone_on_with(speaker) -> None:
    """Of "ab cde" a word may be begun with a and with c alone; behind c it goes on with d."""
    a, b, space, c, d, e = 7, 8, 40, 20, 21, 22
    words = "".join("0" if token == space else "1" for token in range(50))
    recall = speaker(recall_tokens=9, recall_code=64, recall_words=words).recall
    fact = [a, b, space, c, d, e]
    assert beginning(recall, [5, 6], fact) == [False, True, False, False, True, True]
    assert beginning(recall, [5, c], fact) == [False, True, False, False, False, True]
    with torch.no_grad():
        recalled = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), torch.tensor([[0, *fact]]))
        goes_on = recall.beside(recalled, torch.tensor([[5, c]])).goes_on[0] > 0.5
        assert goes_on[:, :6].tolist() == [[False] * 6, [False] * 4 + [True, False]]
    assert beginning(recall, [5, d], fact) == [False, True, False, False, True, True], "d alone is no beginning"
    assert beginning(recall, [c, d], fact) == [False, True, False, True, True, False], "and c is said"


def test_of_two_names_that_begin_alike_the_one_that_the_text_holds_is_not_gone_on_with(speaker) -> None:
    """Of "abc abd", asked about "abd", behind "ab" it goes on with c; what a name itself repeats is no other one."""
    a, b, c, d, space = 7, 8, 20, 21, 40
    words = "".join("0" if token == space else "1" for token in range(50))
    recall = speaker(recall_tokens=9, recall_code=64, recall_words=words).recall
    fact = [a, b, c, space, a, b, d]
    breaks = beginning(recall, [5, space, a, b, d, space, a, b], fact)
    assert (breaks[2], breaks[6]) == (False, True)
    assert beginning(recall, [5, space, a], [a, a, a, c]) == [False, False, True, True]
    assert beginning(recall, [5, space, a, a], [a, a, a, c])[2:] == [False, True]


def test_training_does_without_what_keeps_words_whole(speaker) -> None:
    recall = speaker(recall_words="1" * 50).recall
    fact, text = torch.tensor([[0, *NAME, 9]]), torch.tensor([[5, *NAME, 6]])
    with torch.no_grad():
        recalled, hidden = recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), fact), torch.randn(1, 4, 16)
        beside = recall.beside(recalled, text)
        zeros = torch.zeros_like(beside.breaks)
        asked = [
            recall.pointer(hidden, beside._replace(**{name: zeros for name in left_out}))
            for left_out in ((), ("breaks",), ("goes_on",), ("breaks", "goes_on"))
        ]
        recall.train()
        assert torch.equal(recall.pointer(hidden, beside), asked[-1])
        assert not recalled_of(recall, torch.zeros(1, 16), torch.tensor([True]), fact).tokens[..., -1].any()
        recall.eval()
    assert all((one - asked[-1]).abs().max() > 1e-6 for one in asked[:-1])


def test_the_log_odds_are_even_at_the_threshold(recall) -> None:
    with torch.no_grad():
        recall.threshold.fill_(0.25)
        odds = recall.logits(torch.tensor([0.25, 0.2, 0.5, 1.0]))
    assert odds[0] == 0 and odds[1] < 0 < odds[2] < odds[3]


@pytest.mark.parametrize("precision", ["bfloat16 under autocast", "bfloat16", "float64"])
def test_what_was_recalled_is_said_in_every_precision(speaker, precision) -> None:
    """One row recalls something and one nothing, whatever the weights' precision is and that of the computation."""
    model = speaker(**STILL).eval()
    ids, image = inputs()
    recalled = random_recalled(model.recall, ROWS)
    expected = logits(model, ids, image, recalled)
    kept = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)
    model = model.to(kept)
    given = Recalled(recalled.tokens.to(kept), recalled.present)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision):
        found = logits(model, ids, image.to(kept), given)
    exact = precision == "float64"
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), expected, atol=1e-4 if exact else 1.5, rtol=1e-4 if exact else 0.1)


# ---- as others see it ----


def test_its_parameters_are_a_part_of_their_own(speaker) -> None:
    model = speaker()
    roles = {name: role for name, role in model.roles().items() if role.part == "recall"}
    assert set(roles) == {name for name, _ in model.named_parameters() if name.startswith("recall.")}
    kinds = {role.kind for role in roles.values()}
    assert MATRIX in kinds and GATE not in kinds
    assert not any(roles[f"recall.{name}"].decays for name in ("threshold", "log_scale"))


def test_without_it_there_is_nothing(open_model) -> None:
    model = open_model()
    assert model.recall is None and not [name for name in model.state_dict() if "recall" in name]
