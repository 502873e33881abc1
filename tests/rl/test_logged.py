"""Training on what a server logged: which logs are taken, and that it improves a policy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import cospec
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.config import DecodeConfig
from cospec.engine import Engine
from cospec.errors import ConfigError
from cospec.features import SCALAR_NAMES, make_features
from cospec.models.bundled import bundled_home
from cospec.rl.logged import read_log, read_rewards, train_on_log
from cospec.rl.losses import logged_loss
from cospec.tasks.jsonl import jsonl
from cospec.vllm_plugin.decisions import DecisionLog
from cospec.vllm_plugin.settings import DecisionLogSettings
from tests.rl.conftest import arbiter, coin, train_config

NAMES = list(SCALAR_NAMES)
HEAD = {"cospec_decisions": 1, "arbiter": "policy", "features": NAMES}


def row(request="cmpl-a-0-1f2e3d4c", keep=True, probability=0.5, feature=0.0, **more):
    features = [feature] * len(NAMES)
    made = {"request_id": request, "keep_draft": keep, "features": features, **more}
    return made if probability is None else made | {"probability": probability}


def write(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def rewards(folder, *rows):
    made = [dict(zip(("request_id", "reward", "group"), each, strict=False)) for each in rows]
    return read_rewards(write(folder, "rewards.jsonl", made))


def test_decisions_find_the_reward_of_their_request(tmp_path) -> None:
    given = rewards(tmp_path, ("cmpl-a", 1.0), ("chatcmpl-b", 0.0), ("nobody", 5.0))
    rows = [
        row(),
        row("chatcmpl-b-9a8b7c6d", keep=False, probability=0.25),
        row("cmpl-without-reward-0-1f2e3d4c"),
        row(probability=0.0, keep=False),
        row(probability=1.0),
        row(probability=None),  # nobody was asked
        row(probability=0.0, keep=False) | {"features": [None] * len(NAMES)},
    ]
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.keep.tolist() == [True, False]
    assert data.probability.tolist() == [0.5, 0.75]
    assert data.advantage.tolist() == [0.5, -0.5]
    assert data.counts["num_requests"] == 3 and data.counts["num_requests_used"] == 2
    assert data.counts["num_decisions"] == 7 and data.counts["num_decisions_used"] == 2


def test_a_reward_is_of_the_request_that_has_its_whole_id(tmp_path) -> None:
    given = rewards(tmp_path, ("chatcmpl-job", 1.0), ("cmpl-x", 3.0))
    rows = [row("chatcmpl-job-1-1f2e3d4c"), row("chatcmpl-job-1f2e3d4c"), row("cmpl-x-1-1f2e3d4c")]
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.advantage.tolist() == [-1.0, 1.0], "of job, and of the second prompt of x"


def test_each_of_several_answers_has_its_own_reward(tmp_path) -> None:
    lines = [
        {"request_id": "cmpl-a", "index": 0, "reward": 0.0},
        {"request_id": "cmpl-a", "index": 1, "reward": 1.0},
        {"request_id": "chatcmpl-b", "index": 0, "reward": 5.0},
    ]
    given = read_rewards(write(tmp_path, "rewards.jsonl", lines))
    rows = [row("1_cmpl-a-0-1f2e3d4c"), row("0_cmpl-a-0-1f2e3d4c"), row("chatcmpl-b-9a8b7c6d")]
    rows += [row("0_cmpl-a-1-1f2e3d4c")]  # of another prompt
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.advantage.tolist() == [-1.0, -2.0, 3.0]
    for name in ("index", "num_tokens"):
        with pytest.raises(ConfigError, match=f"{name} is 'x'"):
            read_rewards(write(tmp_path, "wrong.jsonl", [lines[0] | {name: "x"}]))


def test_decisions_after_the_end_of_an_answer_are_left_out(tmp_path) -> None:
    """Found: an engine writes on for a moment after a stop string, which its worker cannot see."""
    lines = [{"request_id": "a", "reward": 1.0, "num_tokens": 5}, {"request_id": "b", "reward": 0}]
    given = read_rewards(write(tmp_path, "rewards.jsonl", lines))
    rows = [row(name, position=position) for name in "ab" for position in (4, 5)]
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.advantage.tolist() == [0.5, -0.5, -0.5]


def test_with_one_answer_to_each_of_several_prompts_a_choice_is_a_prompt(tmp_path) -> None:
    lines = [{"request_id": "cmpl-a", "index": i, "reward": 3.0 * i} for i in range(3)]
    given = read_rewards(write(tmp_path, "rewards.jsonl", lines))
    rows = [row(f"cmpl-a-{i}-1f2e3d4c") for i in (2, 0, 1)]
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.advantage.tolist() == [3.0, -3.0, 0.0]


def test_half_a_line_of_a_killed_server_is_passed_over(tmp_path) -> None:
    path = write(tmp_path, "log", [HEAD, row(), HEAD, row(keep=False)])
    whole = path.read_text().splitlines()
    halves = whole[0][:20], whole[1][:30], whole[3][:50]
    path.write_text("\n".join([halves[0], *whole[:2], halves[1], *whole[2:], halves[2]]))
    data = read_log(path, rewards(tmp_path, ("cmpl-a", 1.0)), NAMES)
    assert data.keep.tolist() == [True, False]
    assert data.counts["num_torn_lines"] == 3


def test_decisions_whose_features_are_not_finite_are_left_out_and_counted(tmp_path) -> None:
    """Found: one null ended the training, and NaN or 1e300 made every weight NaN."""
    given = rewards(tmp_path, ("a", 1.0), ("b", 0.0))
    bad = [row("a") | {"features": [None, *[0.0] * (len(NAMES) - 1)]}]
    bad += [row("b", feature=value) for value in (float("nan"), float("-inf"), 1e300)]
    data = read_log(write(tmp_path, "log", [HEAD, row("a"), *bad, row("b")]), given, NAMES)
    assert data.features.isfinite().all() and len(data.keep) == 2
    assert data.counts["num_decisions"] == 6 and data.counts["num_decisions_used"] == 2
    assert data.counts["num_non_finite_decisions"] == 4
    with pytest.raises(ConfigError, match=r"all 4 decisions of .* are NaN or infinite"):
        read_log(write(tmp_path, "log", [HEAD, *bad]), given, NAMES)


def test_requests_are_compared_within_their_group(tmp_path) -> None:
    given = rewards(tmp_path, ("a", 1.0, "x"), ("b", 0.0, "x"), ("c", 9.0, "y"))
    rows = [row("a"), row("b"), row("c")]
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    assert data.advantage.tolist() == [0.5, -0.5, 0.0]


def test_a_group_of_null_is_no_group(tmp_path) -> None:
    """Found: all such requests were one group, with those that are not in the log."""
    lines = [
        {"request_id": name, "reward": r, "group": None} for name, r in (("a", 1.0), ("b", 0.0))
    ]
    path = write(tmp_path, "rewards", [*lines, {"request_id": "c", "reward": 9.0, "group": None}])
    data = read_log(write(tmp_path, "log", [HEAD, row("a"), row("b")]), read_rewards(path), NAMES)
    assert data.advantage.tolist() == [0.5, -0.5]


def test_a_group_is_all_its_answers_those_without_a_free_ruling_too(tmp_path) -> None:
    given = rewards(tmp_path, ("a", 1.0, "x"), ("b", 0.0, "x"))
    data = read_log(
        write(tmp_path, "log", [HEAD, row("a", probability=1.0), row("b")]), given, NAMES
    )
    assert data.advantage.tolist() == [-0.5]
    assert data.counts["num_requests_used"] == 1 and data.counts["mean_reward"] == 0.0


def test_a_ruling_of_a_cut_weight_still_teaches() -> None:
    """Explored rulings have the largest weights, and were once left out by the cut."""
    logits = torch.zeros(2, requires_grad=True)
    keep, old = torch.tensor([True, True]), torch.tensor([0.02, 0.5]).log()
    logged_loss(logits, keep, old, torch.ones(2), 10.0).backward()
    assert logits.grad.tolist() == pytest.approx([-10 * 0.5 / 2, -1 * 0.5 / 2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HEAD, row(probability=None)], "log has no probability.*--explore"),
        ([row()], "does not begin with the head"),
        ([HEAD | {"features": NAMES[1:]}, row()], "features, and the arbiter sees"),
        ([HEAD, row(probability=1.5)], "must have been possible"),
        ([HEAD, row(probability=0.0)], "must have been possible"),
        ([HEAD | {"features": None}, row()], "with 0 features, and the arbiter sees"),
        ([HEAD | {"features": 3}, row()], "with no features, and the arbiter sees"),
        ([HEAD, row() | {"features": [0.0]}], "is damaged"),
        ([HEAD, row(feature="0.0")], "is damaged"),
        ([HEAD, row() | {"position": None}], "is damaged"),
        ([HEAD, {k: v for k, v in row().items() if k != "request_id"}], "needs a request_id"),
        ([HEAD, row("other")], "none of the 1 requests"),
    ],
)
def test_a_log_that_cannot_be_learned_from_is_refused(tmp_path, rows, message) -> None:
    given = rewards(tmp_path, ("cmpl-a", 1.0))
    with pytest.raises(ConfigError, match=message):
        read_log(write(tmp_path, "log", rows), given, NAMES)


@pytest.mark.parametrize("reward", [None, "good", float("inf")])
def test_a_reward_that_is_no_number_is_refused(tmp_path, reward) -> None:
    with pytest.raises(ConfigError, match=r"line 1: .* must have a request_id"):
        rewards(tmp_path, ("cmpl-a", reward))


def test_two_rewards_of_one_request_are_refused_if_they_differ(tmp_path) -> None:
    """Found: the last one won."""
    assert len(rewards(tmp_path, ("a", 1.0), ("a", 1.0), ("b", 0.0))) == 2
    for other in (("a", 0.0), ("a", 1.0, "x")):
        with pytest.raises(ConfigError, match=r"line 2: .* reward 1.0, the group '' and"):
            rewards(tmp_path, ("a", 1.0), other)


def test_a_file_of_rewards_may_have_blank_lines_and_the_mark_of_windows(tmp_path) -> None:
    path = tmp_path / "rewards.jsonl"
    a, b = '{"request_id": "a", "reward": 1}', '{"request_id": "b", "reward": 0}'
    lines = ["", a, " ", b, "", ""]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    assert list(read_rewards(path)) == ["a", "b"]
    path.write_text("\n\n3", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 3 is '3'; it must be a JSON object"):
        read_rewards(path)


def test_the_weights_undo_the_way_in_which_the_log_was_drawn(tmp_path) -> None:
    """Keeping is worth nothing, but the server kept most where the answer was right anyway."""
    torch.manual_seed(0)
    keep = torch.rand(4000) < 0.9
    is_right = torch.rand(4000) < 0.5
    rows = [row(f"r{i}", bool(keep[i]), 0.9, feature=float(i % 7)) for i in range(len(keep))]
    given = rewards(tmp_path, *[(f"r{i}", float(is_right[i])) for i in range(len(keep))])
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    start = arbiter(coin(0.0), explore=0.0)
    config = train_config(num_epochs=200, learning_rate=0.02, entropy_bonus=0.2)
    trained, metrics = train_on_log(start, data, config)
    p = torch.sigmoid(trained.policy(data.features)).mean()
    assert 0.25 < p < 0.75 and metrics["share_cut"] == 0


def test_only_the_correction_of_a_policy_is_trained_where_it_has_one(tmp_path) -> None:
    """Found: a few hundred decisions moved what many worked solutions had taught."""
    rows = [row(f"r{i}", keep=i % 2 == 0, feature=float(i)) for i in range(8)]
    given = rewards(tmp_path, *[(f"r{i}", float(i % 2)) for i in range(8)])
    data = read_log(write(tmp_path, "log", [HEAD, *rows]), given, NAMES)
    start = arbiter(Policy(len(NAMES), PolicyConfig(correction=True)), explore=0.0)
    trained, _ = train_on_log(start, data, train_config(num_epochs=3))
    after = trained.policy.state_dict()
    for name, before in start.policy.state_dict().items():
        assert torch.equal(after[name], before) != name.startswith("correction"), name


def log_of(pair, task, examples, answers, policy, folder, seed):
    """Write the log of a server that explores, and count how often the target's answers stayed."""
    log = DecisionLog(
        DecisionLogSettings(str(folder / f"log{seed}")), policy.name, policy.features.names
    )
    exploring = replace(policy, explore=1.0)
    engine = Engine(pair, exploring, DecodeConfig(num_speculative_tokens=8, batch_size=32))
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    sampling = cospec.SamplingConfig(max_new_tokens=100, seed=seed)
    verdicts = []
    for done, example in zip(engine.generate(prompts, sampling), examples, strict=True):
        name = f"cmpl-{seed}-{done.index}"
        is_same = task.score(example, done.text).extracted == answers[example.id]
        verdicts.append({"request_id": name, "reward": float(is_same), "group": example.id})
        reached = [m for step in done.trace for m in step.mismatches if m.is_reached]
        if not reached:
            continue
        score = torch.tensor([m.score for m in reached])
        columns = {
            "positions": [m.position for m in reached],
            "block_positions": [m.block_position for m in reached],
            "draft_ids": [m.draft_id for m in reached],
            "target_ids": [m.target_id for m in reached],
            "keep_draft": [m.keep_draft for m in reached],
        }
        is_open = torch.tensor([m.is_open for m in reached])
        log.add(
            [f"{name}-0-{done.index:08x}"] * len(reached),
            torch.ones(len(reached), dtype=torch.bool),
            **{key: torch.tensor(values) for key, values in columns.items()},
            score=score,
            features=torch.stack([m.features for m in reached]),
            probability=torch.where(is_open, exploring.keep_probability(score), 0.0),
        )
    log.close()
    return verdicts, sum(one["reward"] for one in verdicts)


@pytest.mark.slow
def test_a_log_improves_a_policy_on_a_bundled_pair(tmp_path) -> None:
    """A coin is served, and who asks wants the target's own answers; the next policy keeps more."""
    pair = cospec.ModelPair.from_pretrained("bundled:family")
    task = jsonl(str(bundled_home() / "problems.jsonl"), {"scorer": "numeric", "split": "test"})
    examples = task.examples("test", 160)
    engine = Engine(pair, AlwaysTarget(), DecodeConfig(num_speculative_tokens=8, batch_size=32))
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    plain = engine.generate(prompts, cospec.SamplingConfig(max_new_tokens=100))
    answers = {
        example.id: task.score(example, done.text).extracted
        for example, done in zip(examples, plain, strict=True)
    }
    features = make_features("scalar", pair)
    policy = Policy(len(features.names), PolicyConfig(kind="linear", init_logit=0.0))
    served = LearnedArbiter(policy, features, label="policy")
    train, test = examples[:100], examples[100:]
    verdicts, lines = [], []
    for seed in (1, 2, 3):
        verdicts += log_of(pair, task, train, answers, served, tmp_path, seed)[0]
        lines += (tmp_path / f"log{seed}").read_text().splitlines()[int(seed > 1) :]
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + "\n")
    given = read_rewards(write(tmp_path, "rewards.jsonl", verdicts))
    data = read_log(path, given, features.names)
    policy.normalize_by(data.features)
    config = train_config(num_epochs=150, learning_rate=0.05, entropy_bonus=0.0)
    trained, metrics = train_on_log(served, data, config)
    assert metrics["num_decisions_used"] > 200
    before, after = (
        log_of(pair, task, test, answers, who, tmp_path, seed)[1]
        for who, seed in ((served, 10), (trained, 11))
    )
    assert after >= before + 6, (before, after, len(test), metrics)


@pytest.mark.parametrize("groups", [["x", "x", "x"], ["a", "b", "c"]])
def test_rewards_that_tell_nothing_are_refused(tmp_path, groups) -> None:
    """Found: Adam followed the entropy bonus alone, and the arbiter became a coin."""
    names = ["r0", "r1", "r2"]
    given = rewards(tmp_path, *[(n, 0.1, g) for n, g in zip(names, groups, strict=True)])
    data = read_log(write(tmp_path, "log", [HEAD, *map(row, names)]), given, NAMES)
    with pytest.raises(ConfigError, match=r"rewards of the 3 requests .* do not differ within any"):
        train_on_log(arbiter(coin(0.0), explore=0.0), data, train_config())


def test_a_group_has_answers_that_the_log_says_nothing_of(tmp_path) -> None:
    """Found: an answer on which the models agreed has no decision, and was left out of the mean."""
    given = rewards(tmp_path, ("a", 1.0, "x"), ("b", 0.0, "x"))
    data = read_log(write(tmp_path, "log", [HEAD, row("a")]), given, NAMES)
    assert data.advantage.tolist() == [0.5]
