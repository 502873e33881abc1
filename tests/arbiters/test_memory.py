"""CSD: its memory of mismatches, its gate by hand, and the files that it takes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from safetensors.torch import save_file

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.arbiters import CSD, AlwaysDraft, AlwaysTarget
from cospec.arbiters.memory import mismatch_pairs, read_memory, write_memory
from cospec.cli.common.options import PairOptions
from cospec.errors import ArbiterError
from cospec.evaluation.audit.dataset import write_dataset
from cospec.models import ModelPair
from cospec.types import Needs
from tests.arbiters.test_rules import logits_of, mismatches
from tests.conftest import TableModel, random_table

ALL_PAIRS = torch.tensor(list(itertools.product(range(4), repeat=2)))
PROMPTS = [[i % 4] for i in range(16)]
TEMPERATURES = [0.0, 0.5, 1.0, 2.0]
GREEDY = SamplingConfig(max_new_tokens=24)


@pytest.fixture
def pair():
    return ModelPair(TableModel(random_table(4, seed=0)), TableModel(random_table(4, seed=1)))


def test_csd_keeps_a_recurring_pair_that_the_target_finds_probable_enough():
    """By hand: p(x) - ratio * max p is 0.3 - 0.06, 0.05 - 0.09, 0.3 - 0.06 and 0.3 - 0.04. The
    draft says 1. The target's best token is 0, 0, 2 and 3: of the pairs (1, 0), (1, 2) and (1, 3)
    the memory has three, two and none, beside two of (0, 1).
    """
    p = [[0.6, 0.3, 0.1, 0], [0.9, 0.05, 0.05, 0], [0.1, 0.3, 0.6, 0], [0.1, 0.3, 0.2, 0.4]]
    pairs = torch.tensor([[1, 0], [0, 1], [1, 2], [1, 0], [0, 1], [1, 2], [1, 0]])
    batch = mismatches(4, target_logits=logits_of(p))
    ruling = CSD(frequency=1, ratio=0.1).remembering(pairs).rule(batch)
    assert ruling.score.tolist() == pytest.approx([0.24, -0.04, 0.24, 0.26])
    assert ruling.keep_draft.tolist() == [True, False, True, False]
    for frequency, kept in {
        0: [True, False, True, False],
        2: [True] + [False] * 3,
        3: [False] * 4,
    }.items():
        rule = CSD(frequency, 0.1).remembering(pairs)
        assert rule.rule(batch).keep_draft.tolist() == kept
    assert CSD(1, 0.05).remembering(pairs).rule(batch).keep_draft.tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert CSD() == CSD(6, 0.01) and CSD().needs == Needs.TARGET_LOGITS


def test_an_empty_memory_keeps_nothing():
    batch = mismatches(2, target_logits=logits_of([[0.5, 0.4, 0.1]] * 2))
    assert not CSD(0, 0).remembering(mismatch_pairs([])).rule(batch).keep_draft.any()


def test_csd_is_lossless_with_a_ratio_of_one(pair):
    sampling = [
        dataclasses.replace(GREEDY, temperature=t, seed=0) for _ in PROMPTS for t in TEMPERATURES
    ]
    prompts = [prompt for prompt in PROMPTS for _ in TEMPERATURES]
    done = Engine(pair, CSD(0, 1).remembering(ALL_PAIRS)).generate(prompts, sampling)
    exact = Engine(pair, AlwaysTarget()).generate(prompts, sampling)
    assert [c.token_ids for c in done] == [c.token_ids for c in exact]
    for first in range(len(TEMPERATURES)):
        some = done[first :: len(TEMPERATURES)]
        assert sum(c.stats.num_mismatches for c in some) > 50
    assert sum(c.stats.num_overrides for c in done) == 0


def test_csd_with_every_pair_and_no_gate_is_always_draft(pair):
    done = Engine(pair, CSD(0, 0).remembering(ALL_PAIRS)).generate(PROMPTS, GREEDY)
    loose = Engine(pair, AlwaysDraft()).generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in done] == [c.token_ids for c in loose]
    assert any(c.stats.num_overrides for c in loose)


def test_a_text_does_not_depend_on_its_batch(pair):
    """The memory does not go on counting: texts before and beside a text do not change it."""
    exact = Engine(pair, AlwaysTarget()).generate(PROMPTS, GREEDY)
    rule = CSD(2, 0.01).remembering(mismatch_pairs(exact))
    together = Engine(pair, rule, batch_size=16).generate(PROMPTS, GREEDY)
    alone = [c for prompt in PROMPTS for c in Engine(pair, rule).generate([prompt], GREEDY)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert sum(c.stats.num_overrides for c in together) > 0


def test_mismatches_are_those_that_were_reached(pair):
    done = Engine(pair, AlwaysTarget(), num_speculative_tokens=4).generate(PROMPTS, GREEDY)
    pairs = mismatch_pairs(done)
    assert len(pairs) == sum(c.stats.num_mismatches for c in done)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    table = torch.stack([random_table(4, seed=0).argmax(1), random_table(4, seed=1).argmax(1)], 1)
    expected = {(d, t) for t, d in table.tolist() if t != d}
    assert set(map(tuple, pairs.tolist())) <= expected


def test_a_file_of_mismatches_is_a_memory(tmp_path):
    path = tmp_path / "memory.safetensors"
    write_memory(path, ALL_PAIRS)
    pairs, weights = read_memory(path)
    assert torch.equal(pairs, ALL_PAIRS) and weights.tolist() == [1] * len(ALL_PAIRS)
    arbiter = load_arbiter(f"csd:frequency=3,memory={path}")
    assert arbiter == CSD(3, 0.01, str(path))
    assert arbiter.name == f"csd:frequency=3,ratio=0.01,memory={path}"
    assert load_arbiter(arbiter.name) == arbiter


def test_a_memory_of_another_pair_is_refused_and_one_that_does_not_say_is_not(pair, tmp_path):
    """Found: token ids that meant something else were looked up without a word."""
    path = tmp_path / "memory.safetensors"
    spec, other = f"csd:memory={path}", ModelPair(pair.draft, pair.target)
    write_memory(path, ALL_PAIRS, pair.fingerprint)
    assert load_arbiter(spec, pair) == load_arbiter(spec)
    with pytest.raises(ArbiterError, match=r"are of another pair, .* count those of this pair"):
        load_arbiter(spec, other)
    write_memory(path, ALL_PAIRS, f"{pair.fingerprint}-int8")
    assert load_arbiter(spec, pair).pairs.tolist() == ALL_PAIRS.tolist(), "the same models"
    write_dataset(path, [], ["some"], {"fingerprint": pair.fingerprint})
    with pytest.raises(ArbiterError, match="are of another pair"):
        load_arbiter(spec, other)
    for older in (
        lambda: write_memory(path, ALL_PAIRS),
        lambda: write_dataset(path, [], ["x"], {}),
    ):
        older()
        assert load_arbiter(spec, other) == load_arbiter(spec)
    assert load_arbiter("csd", other) == CSD()


def test_a_data_set_of_an_audit_is_a_memory(tmp_path):
    path = tmp_path / "audit.safetensors"
    told = dict(position=0, draft_correct=True, target_correct=False, features=[0.5])
    found = [[told | dict(draft_id=7, target_id=9)] * 2, [told | dict(draft_id=5, target_id=7)]]
    records = [{"id": str(i), "mismatches": each} for i, each in enumerate(found)]
    write_dataset(path, records, ["some"], {})
    assert CSD(memory=str(path)).pairs.tolist() == [[7, 9], [7, 9], [5, 7]]
    write_dataset(path, records, ["some"], {"temperature": "0.7"})
    with pytest.raises(ArbiterError, match=r"an audit at temperature 0\.7, whose target tokens"):
        CSD(memory=str(path))


def test_a_mismatch_counts_as_often_as_the_number_that_it_stands_for(tmp_path):
    """Found: an audit of some branches counted each of them once, whatever it stood for.

    By hand: 3 of the 8 mismatches of the first problem were played, 1 of the 3 of the second, and
    all of the third. (1, 0) counts 8, (1, 2) counts 3 and (1, 3) once.
    """
    path = tmp_path / "audit.safetensors"
    told = dict(position=0, draft_correct=True, target_correct=False, features=[0.5], draft_id=1)
    found = [(8, [0, 0, 0]), (3, [2]), (1, [3])]
    records = [
        {"id": str(number), "num_mismatches": number,
         "mismatches": [told | dict(target_id=token) for token in tokens]}
        for number, tokens in found
    ]  # fmt: skip
    write_dataset(path, records, ["some"], {})
    p = [[0.6, 0.3, 0.1, 0], [0.1, 0.3, 0.6, 0], [0.1, 0.3, 0.2, 0.4]]
    batch = mismatches(3, target_logits=logits_of(p))
    kept = {
        0: [True, True, True],
        1: [True, True, False],
        2: [True, True, False],
        3: [True, False, False],
        7: [True, False, False],
        8: [False, False, False],
    }
    for frequency, expected in kept.items():
        rule = CSD(frequency, 0.1, str(path))
        assert rule.rule(batch).keep_draft.tolist() == expected
    assert len(CSD(memory=str(path)).pairs) == 5
    assert CSD(memory=str(path)).weights.tolist() == pytest.approx([8 / 3] * 3 + [3, 1])


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], [1.0, 0.0]])
def test_weights_that_are_none_are_refused(tmp_path, weights):
    path, ids = tmp_path / "memory.safetensors", torch.tensor([1, 2])
    tensors = {"draft_id": ids, "target_id": ids.flip(0), "weight": torch.tensor(weights)}
    save_file(tensors, path)
    with pytest.raises(ArbiterError, match="a positive number for each of its 2 mismatches"):
        load_arbiter(f"csd:memory={path}")


def test_a_memory_that_is_none_is_refused_at_once(tmp_path):
    path = tmp_path / "memory.safetensors"
    with pytest.raises(ArbiterError, match=r"memory\.safetensors', which is no file; it must be"):
        load_arbiter(f"csd:memory={path}")
    with pytest.raises(ArbiterError, match=r"memory of arbiter csd is '\.', which is no file"):
        load_arbiter("csd:memory=")
    path.write_text("no safetensors")
    with pytest.raises(ArbiterError, match=r"memory\.safetensors': .*cospec audit --dataset"):
        load_arbiter(f"csd:memory={path}")
    save_file({"draft_id": torch.tensor([1])}, path)
    with pytest.raises(ArbiterError, match="target_id"):
        load_arbiter(f"csd:memory={path}")
    save_file({"draft_id": torch.tensor([1]), "target_id": torch.tensor([1.5])}, path)
    with pytest.raises(ArbiterError, match="two lists of whole numbers"):
        load_arbiter(f"csd:memory={path}")


def test_only_a_benchmark_may_leave_the_memory_out(pair):
    options = PairOptions(target="some/target", draft="some/draft")
    with pytest.raises(ArbiterError, match=r"only cospec bench fills.*csd:memory=FILE"):
        options.find_arbiter("csd")
    assert options.find_arbiter("csd", has_tune=True) == "csd"
    with pytest.raises(ArbiterError, match="only cospec bench fills"):
        Engine(pair, load_arbiter("csd")).generate(PROMPTS, GREEDY)
