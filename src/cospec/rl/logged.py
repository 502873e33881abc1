"""Further training from production logs: decisions that were served, and a reward for each request.

A server that explores rules now and then by the policy's own coin and logs the probability of its
ruling. Weighted by the ratio of both probabilities, each logged ruling then also tells about the
policy that is being trained (importance weighting, truncated as in Ionides 2008). As in a round of
rollouts, the advantage of a request's rulings is its reward minus a mean: the mean of its group if
the rewards name groups (answers to one prompt), else the mean of all requests.

The log says nothing about costs. If time matters, it has to be in the rewards.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.errors import ConfigError
from cospec.results import parse_json
from cospec.rl.losses import entropy, kl_to, log_prob, logged_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.arbiters.learned import LearnedArbiter
    from cospec.arbiters.policy import Correction, Policy
    from cospec.results import Json
    from cospec.rl.config import TrainConfig

MAX_WEIGHT = 10.0
"""Largest importance weight; larger ones are cut."""
_HEAD = "cospec_decisions"
_MOST = torch.finfo(torch.float32).max


class LoggedData(NamedTuple):
    """Decisions of requests with a reward."""

    features: Tensor
    """(N, F)"""
    keep: Tensor
    """Rulings for the draft, (N,) bool."""
    probability: Tensor
    """Probability of the ruling when it was made, (N,)."""
    advantage: Tensor
    """Advantage of the decision's request, (N,)."""
    counts: Json
    """Requests and decisions in the log, and how many of them are used."""


@dataclass(frozen=True, slots=True)
class Rewarded:
    """Reward of a request, and its group."""

    reward: float
    group: str
    """Requests are compared within their group."""
    num_tokens: int | None = None
    """Length of the answer; decisions after it are left out. None to use all decisions."""


def read_rewards(path: Path) -> dict[str, Rewarded]:
    """Read rewards: a JSON object a line, with ``request_id``, ``reward``, and maybe ``group``.

    A request with several answers (``n``) has a line for each, with its ``index`` in the response.
    ``num_tokens`` is the length of an answer that a stop string ended.

    Raises:
        ConfigError: The file cannot be read, a line is no such object, or two lines tell a request
            different things.
    """
    found: dict[str, Rewarded] = {}
    for number, row in _rows(path):
        reward, name = row.get("reward"), row.get("request_id")
        is_number = isinstance(reward, int | float) and abs(reward) < float("inf")
        if not isinstance(name, str) or reward is None or not is_number:
            raise ConfigError(
                f"{path}, line {number}: {row!r}; it must have a request_id (text) and a reward "
                "(a finite number)."
            )
        index, num_tokens = row.get("index"), row.get("num_tokens")
        for key, value in {"index": index, "num_tokens": num_tokens}.items():
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if value is not None and not is_count:
                raise ConfigError(
                    f"{path}, line {number}: {key} is {value!r}; it must be a whole number from 0 "
                    "on: index is that of a choice in the response, num_tokens its length."
                )
        if index is not None:
            name = f"{index}_{name}"  # as vLLM calls them
        group = row.get("group")  # null is none
        rewarded = Rewarded(float(reward), "" if group is None else str(group), num_tokens)
        if found.setdefault(name, rewarded) != rewarded:
            raise ConfigError(
                f"{path}, line {number}: {row!r}, and an earlier line gives that request the "
                f"reward {found[name].reward}, the group {found[name].group!r} and "
                f"num_tokens={found[name].num_tokens}; keep one line."
            )
    return found


def read_log(path: Path, rewards: dict[str, Rewarded], names: Sequence[str]) -> LoggedData:
    """Read the decisions of requests that have a reward.

    Args:
        path: Log of ``cospec serve --decisions``.
        rewards: Rewards by request id, as in the response; the log's ids have suffixes.
        names: Names of the features of the arbiter that is trained.

    Raises:
        ConfigError: The log has other features or no probabilities, or no request has a reward.
    """
    torn: list[int] = []
    rows = _rows(path, torn)
    _check_head(path, next(rows, (1, {}))[1], names)
    used: list[tuple[Json, str, Rewarded]] = []
    requests, answered = set[str](), dict[str, Rewarded]()
    num_decisions = num_without = 0
    for number, row in rows:
        if _HEAD in row:  # from another server that shares the file
            _check_head(path, row, names)
            continue
        num_decisions += 1
        requests.add(str(row.get("request_id")))
        if row.get("probability") is None:  # no arbiter was asked, as near the context's end
            num_without += 1
            continue
        _check_row(path, number, row, len(names))
        if (found := _find(rewards, str(row["request_id"]))) is None:
            continue
        answered[found[0]] = found[1]
        end = found[1].num_tokens
        if end is not None and row.get("position", 0) >= end:  # the engine ran on for a moment
            continue
        if 0 < row["probability"] < 1:  # else a safety rule or a request's setting decided
            used.append((row, *found))
    if num_decisions == num_without > 0:
        raise ConfigError(
            f"{path} has no probability: the server ruled by a threshold, which says nothing about "
            "the other ruling. Serve with --explore 0.1 or so, and train on that log."
        )
    if not used:
        raise ConfigError(
            f"none of the {len(requests)} requests in {path} has a reward and a ruling by chance; "
            f"the rewards name {len(rewards)} requests, such as {next(iter(rewards), 'none')!r}."
        )
    kept = [one for one in used if _is_finite(one[0]["features"])]
    if not kept:
        raise ConfigError(
            f"all {len(used)} decisions of {path} have features that are NaN or infinite; serve "
            "the pair in another dtype (float16 overflows where bfloat16 does not)."
        )
    counts = {
        "num_requests": len(requests),
        "num_decisions": num_decisions,
        "num_non_finite_decisions": len(used) - len(kept),
        "num_torn_lines": len(torn),
    }
    return _data(kept, _advantages(answered, rewards), counts)


def _data(
    used: Sequence[tuple[Json, str, Rewarded]], advantages: dict[str, float], counts: Json
) -> LoggedData:
    """Return decisions with their advantages.

    Args:
        used: Decisions, each with its request and the request's reward.
        advantages: Advantages of the answers, by request.
        counts: Counts of the whole log.
    """
    keep = torch.tensor([row["keep_draft"] for row, _, _ in used])
    p_keep = torch.tensor([row["probability"] for row, _, _ in used], dtype=torch.float32)
    num_used = len({name for _, name, _ in used})
    return LoggedData(
        torch.tensor([row["features"] for row, _, _ in used], dtype=torch.float32),
        keep,
        torch.where(keep, p_keep, 1 - p_keep),
        torch.tensor([advantages[name] for _, name, _ in used]),
        {
            **counts,
            "num_requests_used": num_used,
            "num_decisions_used": len(used),
            "mean_reward": sum(v.reward for v in {n: v for _, n, v in used}.values()) / num_used,
        },
    )


def train_on_log(
    arbiter: LearnedArbiter, data: LoggedData, config: TrainConfig
) -> tuple[LearnedArbiter, Json]:
    """Train a copy of an arbiter's policy on logged decisions.

    Args:
        arbiter: Arbiter that training starts from; not changed.
        data: Decisions from `read_log`.
        config: Optimizer, and the weights of entropy and divergence.

    Returns:
        The trained arbiter, and metrics: among them the mean weight of the rulings at the end, the
        share of weights that are cut, and the effective number of decisions.

    Raises:
        ConfigError: Rewards do not differ within any group, so there is nothing to learn.
    """
    if not data.advantage.any():  # Adam would follow the entropy bonus alone, in whole steps
        raise ConfigError(
            f"the rewards of the {data.counts['num_requests_used']} requests with a ruling by "
            "chance do not differ within any group; give rewards that do, or leave out 'group' "
            "where each request is the only one of its group."
        )
    policy = copy.deepcopy(arbiter.policy).cpu()
    learns: Policy | Correction = policy
    seen = data.features
    with torch.no_grad():
        start = policy(seen)
        if policy.config.correction:  # all else stays as rounds have left it
            learns, seen = policy.correction, policy.corrigible(seen)
    learns.requires_grad_(True)
    objective, rate = config.objective, config.optimizer.learning_rate
    optimizer = torch.optim.AdamW(
        learns.parameters(), lr=rate, weight_decay=config.optimizer.weight_decay
    )
    old, dropout = data.probability.log(), torch.Generator().manual_seed(config.seed)
    for _ in range(config.optimizer.num_epochs):
        logits = learns(seen, dropout)
        loss = logged_loss(logits, data.keep, old, data.advantage, MAX_WEIGHT)
        loss = loss + objective.kl_weight * kl_to(logits, start).mean()
        loss = loss - objective.entropy_bonus * entropy(logits).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learns.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        logits = policy(data.features)
        weight = (log_prob(logits, data.keep) - old).exp()
    policy.requires_grad_(False)
    metrics: Json = {
        **data.counts,
        "loss": float(loss.detach()),
        "kl_to_start": float(kl_to(logits, start).mean()),
        "mean_weight": float(weight.mean()),
        "share_cut": float((weight > MAX_WEIGHT).float().mean()),
        "effective_decisions": float(weight.sum() ** 2 / (weight**2).sum()),
    }
    return replace(arbiter, policy=policy), metrics


def _advantages(answered: dict[str, Rewarded], rewards: dict[str, Rewarded]) -> dict[str, float]:
    """Return rewards minus the mean of their group, by request.

    The mean of a named group covers all its answers, also those that are not in the log since the
    two models agreed.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    met = set(map(id, answered.values()))  # several prompts of one request share a reward
    others = [one for one in rewards.values() if one.group and id(one) not in met]
    for rewarded in [*answered.values(), *others]:
        groups[rewarded.group].append(rewarded.reward)
    # By rounding, the mean of equal rewards may be another number.
    means = {
        group: rewards[0] if len(set(rewards)) == 1 else sum(rewards) / len(rewards)
        for group, rewards in groups.items()
    }
    return {name: rewarded.reward - means[rewarded.group] for name, rewarded in answered.items()}


def _find(rewards: dict[str, Rewarded], logged: str) -> tuple[str, Rewarded] | None:
    """Find the reward of an answer by its logged id, to which vLLM adds -PROMPT and -RANDOM.

    Only ids of completions have the number of a prompt. Each of several answers to a prompt (``n``)
    has its index before the id. Choices of a response are counted over all its prompts, so that
    with one answer each a choice's index is the prompt's number.
    """
    names = [logged, re.sub(r"-[0-9a-f]{8}$", "", logged)]
    prompt = re.fullmatch(r"(\d+_)?(cmpl-.*)-(\d+)", names[-1])
    if prompt is None:
        names.append(f"0_{names[-1]}")
    elif prompt[1] is None:
        names += [prompt[2], f"{prompt[3]}_{prompt[2]}"]
    elif prompt[3] == "0":
        names.append(prompt[1] + prompt[2])
    return next(((logged, rewards[name]) for name in names if name in rewards), None)


def _rows(path: Path, torn: list[int] | None = None) -> Iterator[tuple[int, Json]]:
    """Yield the objects of a JSONL file with their line numbers; blank lines are skipped.

    Lines that cannot be read are skipped too if a list is given for their numbers: a server that is
    killed may leave half of one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows writes a mark first
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    # Not splitlines, which also cuts at U+2028 and the like, inside of strings.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if row is None and torn is not None:
            torn.append(number)
            continue
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number} is {line[:60]!r}; it must be a JSON object.")
        yield number, row


def _check_head(path: Path, head: Json, names: Sequence[str]) -> None:
    if _HEAD not in head:
        raise ConfigError(
            f"{path} does not begin with the head of a log of decisions; pass a file that cospec "
            "serve --decisions wrote."
        )
    features = head.get("features") or []
    if features != list(names):
        found = len(features) if isinstance(features, list) else "no"
        raise ConfigError(
            f"{path} has the decisions of {head.get('arbiter')!r} with {found} features, and the "
            f"arbiter sees {len(names)} others; pass the arbiter that was served, or one with its "
            "features."
        )


def _check_row(path: Path, number: int, row: Json, num_features: int) -> None:
    where = f"{path}, line {number}"
    keep, p = row.get("keep_draft"), row["probability"]
    if not isinstance(p, int | float) or not 0 <= p <= 1 or (p if keep else 1 - p) == 0:
        raise ConfigError(
            f"{where}: keep_draft is {keep} with probability {p}; the ruling must have been "
            "possible."
        )
    features = row.get("features")
    is_whole = (
        isinstance(features, list)
        and len(features) == num_features
        and all(isinstance(x, float | int | None) for x in features)
    )
    is_placed = isinstance(row.get("request_id"), str) and type(row.get("position", 0)) is int
    if not is_placed or not isinstance(keep, bool) or (0 < p < 1 and not is_whole):
        raise ConfigError(
            f"{where} is damaged: it needs a request_id, a whole position, keep_draft and "
            f"{num_features} features."
        )


def _is_finite(features: list[float | None]) -> bool:
    """Return whether all are numbers that float32 holds; a log has null for NaN and infinity."""
    return all(x is not None and abs(x) <= _MOST for x in features)
