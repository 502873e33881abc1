"""The losses by hand, and their gradients on a bandit whose best policy is known in closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.rl.losses import (
    baseline_advantages,
    branch_loss,
    entropy,
    group_advantages,
    group_loss,
    has_spread,
    kl_to,
    label_loss,
    log_prob,
)
from cospec.rl.types import Decisions, KnownBranches
from cospec.rl.updates import update
from tests.rl.conftest import train_config

if TYPE_CHECKING:
    from collections.abc import Callable

MODERATE = torch.linspace(-12, 12, 49, dtype=torch.float64)
EXTREME = torch.tensor([-1e4, -300.0, -88.0, -30.0, 30.0, 88.0, 300.0, 1e4])
CLIP = 0.2


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- advantages --------------------------------------------------------------------------------


def test_an_advantage_is_the_reward_minus_the_mean_of_its_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.9, 0.5, 0.5, -0.1]])
    found = group_advantages(rewards)
    assert found[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert found[1].tolist() == pytest.approx([0.45, 0.05, 0.05, -0.55], abs=1e-6)


def test_a_group_without_spread_has_exactly_no_advantage() -> None:
    """Its mean may miss its value by a rounding error, of which Adam would make whole steps."""
    values = torch.arange(1, 200) * 0.05 - 5
    rewards = torch.cat([values[:, None].expand(-1, 7), torch.tensor([[0.0] * 6 + [1.0]])])
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert centred[:-1].any(), "no rounding error: this test says nothing"
    found = group_advantages(rewards)
    assert not found[:-1].any() and found[-1].all()
    assert has_spread(rewards).tolist() == [False] * len(values) + [True]


def test_a_group_of_one_has_no_advantage() -> None:
    assert group_advantages(torch.tensor([[3.0], [0.1]])).tolist() == [[0.0], [0.0]]


def test_the_running_baseline_follows_the_rewards_of_the_rounds() -> None:
    """By hand: the mean of the first round, then 0.9 of it and 0.1 of the next one's."""
    found, running = baseline_advantages(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), None)
    assert found.tolist() == [[0.5, -0.5], [0, 0]] and running == 0.5
    found, running = baseline_advantages(torch.tensor([[1.0, 1.0]]), running)
    assert found.tolist() == [[0.5, 0.5]] and running == pytest.approx(0.55)


def test_rewards_that_are_all_the_same_give_reinforce_exactly_no_advantage() -> None:
    """Found: their mean may miss them by a rounding error, of which Adam makes whole steps."""
    rewards = (torch.arange(1, 200) * 0.05 - 5)[:, None, None].expand(-1, 7, 1)
    assert (rewards - rewards.mean(dim=1, keepdim=True)).any(), "this test says nothing"
    for same in rewards:
        first, running = baseline_advantages(same, None)
        assert not first.any() and not baseline_advantages(same, running)[0].any()
    assert baseline_advantages(same + 1e-4, running)[0].all()


# --- the coin ----------------------------------------------------------------------------------


def test_the_coin_is_that_of_a_bernoulli_distribution() -> None:
    coin = Bernoulli(logits=MODERATE)
    for bit in (True, False):
        keep = torch.full(MODERATE.shape, bit)
        torch.testing.assert_close(log_prob(MODERATE, keep), coin.log_prob(keep.double()))
    torch.testing.assert_close(entropy(MODERATE), coin.entropy())
    for reference in (MODERATE.flip(0), MODERATE, MODERATE + 1, torch.zeros_like(MODERATE)):
        expected = kl_divergence(coin, Bernoulli(logits=reference))
        torch.testing.assert_close(kl_to(MODERATE, reference), expected)


def test_the_divergence_is_from_the_policy_to_the_reference_and_not_back() -> None:
    """By hand, p = 1/2 and r = 1/4: ln(2)/2 + ln(2/3)/2."""
    half, quarter = torch.zeros(1), torch.tensor([-math.log(3)])
    assert float(kl_to(half, quarter)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    assert float(kl_to(quarter, half)) == pytest.approx(
        0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), abs=1e-6
    )


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    logits = EXTREME.clone().requires_grad_()
    keep = torch.tensor([True, False]).repeat(4)
    references = (EXTREME.flip(0), torch.zeros(8), EXTREME)
    parts = [
        log_prob(logits, keep),
        log_prob(logits, ~keep),
        entropy(logits),
        *(kl_to(logits, reference) for reference in references),
    ]
    for part in parts:
        assert part.isfinite().all()
        (gradient,) = torch.autograd.grad(part.sum(), logits)
        assert gradient.isfinite().all()
    big = EXTREME.abs()
    unlikely = log_prob(EXTREME, EXTREME < 0)
    torch.testing.assert_close(unlikely, -big, rtol=1e-6, atol=0)
    assert entropy(EXTREME).abs().max() < 1e-5
    torch.testing.assert_close(kl_to(EXTREME, -EXTREME), big, rtol=1e-6, atol=1e-5)


# --- losses ------------------------------------------------------------------------------------


def clipped_by_hand(p: float, old: float, bit: bool, advantage: float) -> tuple[float, bool]:
    """PPO's objective for one toss, with the probability of the draft's token now and then."""
    ratio = p / old if bit else (1 - p) / (1 - old)
    if advantage > 0 and ratio > 1 + CLIP:
        return (1 + CLIP) * advantage, True
    if advantage < 0 and ratio < 1 - CLIP:
        return (1 - CLIP) * advantage, True
    return ratio * advantage, False


CASES = [
    (p, old, bit, advantage)
    for p, old in [(0.5, 0.5), (0.55, 0.5), (0.9, 0.5), (0.1, 0.5), (0.3, 0.2), (0.99, 0.02)]
    for bit in (True, False)
    for advantage in (1.0, -0.5, 0.0)
]


def tosses() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, bits, old log-probabilities and advantages of CASES."""
    p, old, bit, advantage = (torch.tensor(column) for column in zip(*CASES, strict=True))
    logits = p.double().logit().requires_grad_()
    return logits, bit, log_prob(old.double().logit(), bit), advantage.double()


def test_the_group_loss_is_the_clipped_surrogate_worked_by_hand() -> None:
    by_hand = [clipped_by_hand(*case) for case in CASES]
    loss, fraction = group_loss(*tosses(), CLIP)
    assert float(loss.detach()) == pytest.approx(-sum(value for value, _ in by_hand) / len(CASES))
    num_clipped = sum(is_clipped for _, is_clipped in by_hand)
    assert 0 < num_clipped < len(CASES)
    assert float(fraction) == pytest.approx(num_clipped / len(CASES))


def test_a_clipped_toss_has_no_gradient_and_every_other_one_that_of_its_ratio() -> None:
    logits, bit, old, advantage = tosses()
    (gradient,) = torch.autograd.grad(group_loss(logits, bit, old, advantage, CLIP)[0], logits)
    for i, case in enumerate(CASES):
        p, old_p, keep, a = case
        slope = p * (1 - p) / old_p if keep else -p * (1 - p) / (1 - old_p)
        is_clipped = clipped_by_hand(*case)[1]
        expected = 0.0 if is_clipped else -slope * a / len(CASES)
        assert float(gradient[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9), case


def test_the_branch_loss_is_the_expected_reward_negated() -> None:
    """Up to a constant: what the target's token earns, which no policy changes."""
    p = torch.tensor([0.1, 0.5, 0.9, 0.7], dtype=torch.float64)
    draft, target = torch.tensor([1.0, 0.0, 1.0, 0.3]), torch.tensor([0.0, 1.0, 1.0, 0.8])
    weight = torch.tensor([1.0, 0.5, 0.25, 2.0])
    expected = (weight * (p * draft + (1 - p) * target)).sum() / weight.sum()
    constant = (weight * target).sum() / weight.sum()
    found = branch_loss(p.logit(), draft - target, weight)
    assert float(found) == pytest.approx(float(constant - expected))


def test_decisions_of_weight_zero_do_not_count_and_none_at_all_cost_nothing() -> None:
    logits, delta = torch.tensor([0.3, 4.0]), torch.tensor([1.0, -1.0])
    one = branch_loss(logits[:1], delta[:1], torch.ones(1))
    assert branch_loss(logits, delta, torch.tensor([1.0, 0.0])) == one
    nothing = torch.zeros(0)
    assert float(branch_loss(nothing, nothing, nothing)) == 0


def test_the_label_loss_is_the_weighted_cross_entropy_worked_by_hand() -> None:
    """Probabilities 1/2, 3/4 and 1/4 of keeping: the labels' surprise is ln 2, ln 4 and ln 4."""
    logits = torch.tensor([0.0, math.log(3), -math.log(3)])
    label, weight = torch.tensor([True, False, True]), torch.tensor([1.0, 2.0, 0.5])
    expected = (1 + 2 * 2 + 0.5 * 2) * math.log(2) / 3.5
    assert float(label_loss(logits, label, weight)) == pytest.approx(expected)
    nothing = torch.zeros(0)
    assert float(label_loss(nothing, nothing.bool(), nothing)) == 0


def test_a_step_down_the_label_loss_raises_what_should_be_kept_and_lowers_the_rest() -> None:
    logits = torch.tensor([0.0, 2.0, -2.0, 1.0]).requires_grad_()
    label, weight = torch.tensor([True, False, True, False]), torch.tensor([1.0, 2.0, 0.5, 0.0])
    (gradient,) = torch.autograd.grad(label_loss(logits, label, weight), logits)
    torch.testing.assert_close(gradient, weight * (logits.sigmoid() - label.float()) / 3.5)
    assert gradient.sign().tolist() == [-1, 1, -1, 0]


POINT = 2 * random(24, seed=6)
BITS = torch.arange(24) % 3 == 0
OLD = log_prob(POINT + 0.3 * random(24, seed=4), BITS)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_prob": lambda x: log_prob(x, BITS).sum(),
    "entropy": lambda x: entropy(x).sum(),
    "kl_to": lambda x: kl_to(x, random(24, seed=1)).sum(),
    "branch_loss": lambda x: branch_loss(x, random(24, seed=2), random(24, seed=3).abs()),
    "label_loss": lambda x: label_loss(x, BITS, random(24, seed=3).abs()),
    "group_loss": lambda x: group_loss(x, BITS, OLD, random(24, seed=5), CLIP)[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, point, step = LOSSES[name], POINT.clone().requires_grad_(), 1e-6
    (gradient,) = torch.autograd.grad(loss(point), point)
    for i, unit in enumerate(torch.eye(24, dtype=torch.float64)):
        rise = loss(POINT + step * unit) - loss(POINT - step * unit)
        assert float(gradient[i]) == pytest.approx(float(rise) / (2 * step), rel=1e-5, abs=1e-8)
    assert gradient.abs().max() > 1e-3


# --- a bandit with a known optimum -------------------------------------------------------------
#
# One decision a rollout. Each of 4 groups of problems has its own features and its own reward for
# the target's and the draft's token, so that the expected reward of a policy that keeps the draft's
# with probability p_c is J = mean over c of (1 - p_c) r_c0 + p_c r_c1, its gradient in the logit of
# c is p_c (1 - p_c) (r_c1 - r_c0) / 4, and the best policy keeps where r_c1 > r_c0.

KINDS = torch.tensor(
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -1.0, 1.0]]
).double()
REWARDS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.3, 0.9], [0.8, 0.7]]).double()
BEST = [True, False, True, False]
DELTA = REWARDS[:, 1] - REWARDS[:, 0]
WEIGHTS = torch.tensor([0.4, -0.9, 0.2]).double()
GROUP_SIZE = 4


def analytic_gradient(weights: Tensor) -> Tensor:
    """Gradient of J in the weights of a linear policy, by the formula above and the chain rule."""
    p = torch.sigmoid(KINDS @ weights)
    return KINDS.T @ (p * (1 - p) * DELTA) / len(KINDS)


def sampled_gradients(weights: Tensor, num_rounds: int, *, clip: float) -> Tensor:
    """The negated gradient of the group loss of each of many rounds, (rounds, 3).

    A round is a group of GROUP_SIZE rollouts of a problem of each kind.
    """
    generator = torch.Generator().manual_seed(11)
    kinds = torch.arange(4).repeat_interleave(GROUP_SIZE)
    gradients = []
    for _ in range(num_rounds):
        w = weights.clone().requires_grad_()
        logits = KINDS[kinds] @ w
        uniforms = torch.rand(len(kinds), generator=generator, dtype=torch.float64)
        keep = uniforms < torch.sigmoid(logits.detach())
        rewards = REWARDS[kinds, keep.long()].view(4, GROUP_SIZE)
        advantages = group_advantages(rewards).flatten()
        loss, _ = group_loss(logits, keep, log_prob(logits.detach(), keep), advantages, clip)
        gradients.append(-torch.autograd.grad(loss, w)[0])
    return torch.stack(gradients)


def test_the_gradient_of_the_branch_loss_is_that_of_the_expected_reward() -> None:
    w = WEIGHTS.clone().requires_grad_()
    loss = branch_loss(KINDS @ w, DELTA, torch.ones(4).double())
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(-gradient, analytic_gradient(WEIGHTS))


def test_the_mean_gradient_of_the_group_loss_is_that_of_the_expected_reward() -> None:
    """Times 1 - 1/G: the mean of a group holds the rollout's own reward.

    The seed is fixed. Under another one each of the 3 components would miss by more than 5 standard
    errors about once in two million runs. A standard error is small enough to tell G from infinity.
    """
    expected = analytic_gradient(WEIGHTS) * (1 - 1 / GROUP_SIZE)
    found = sampled_gradients(WEIGHTS, 2500, clip=CLIP)
    error = found.std(dim=0) / len(found) ** 0.5
    assert (5 * error < expected.abs() / (GROUP_SIZE - 1)).all(), "too few rollouts to tell"
    assert ((found.mean(dim=0) - expected).abs() < 5 * error).all()


def policy() -> Policy:
    return Policy(3, PolicyConfig(hidden_size=8), seed=0)


def learn(loss: Callable[[Tensor], Tensor], network: Policy, num_steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(network(KINDS)).backward()
        optimizer.step()


def rulings(network: Policy) -> list[bool]:
    return (torch.sigmoid(network(KINDS)) > 0.5).tolist()


def test_the_branch_loss_finds_the_best_policy() -> None:
    network = policy()
    assert rulings(network) == [False] * 4
    learn(lambda logits: branch_loss(logits, DELTA, torch.ones(4)), network, 300)
    assert rulings(network) == BEST
    reward = (torch.sigmoid(network(KINDS)).detach() * DELTA + REWARDS[:, 0]).mean()
    assert float(reward) == pytest.approx(float(REWARDS.max(dim=1).values.mean()), abs=0.02)


def test_the_group_loss_finds_the_best_policy() -> None:
    """Rollouts, a few epochs on them, rollouts of the new policy, as the loop does it."""
    network, generator = policy(), torch.Generator().manual_seed(5)
    kinds = torch.arange(4).repeat_interleave(64)
    for _ in range(40):
        with torch.no_grad():
            logits = network(KINDS)[kinds]
        keep = torch.rand(len(kinds), generator=generator) < torch.sigmoid(logits)
        advantages = group_advantages(REWARDS[kinds, keep.long()].view(-1, 16)).flatten()
        old = log_prob(logits, keep)
        learn(
            lambda now, keep=keep, old=old, a=advantages: group_loss(
                now[kinds], keep, old, a, CLIP
            )[0],
            network,
            5,
        )
    assert rulings(network) == BEST


def test_the_entropy_bonus_and_the_divergence_pull_to_the_open_and_to_the_start() -> None:
    """With no reward at all, each alone has its own optimum."""
    start = torch.tensor([-2.0, 0.5, 3.0])
    for loss, best in ((lambda x: -entropy(x), torch.zeros(3)), (lambda x: kl_to(x, start), start)):
        logits = torch.tensor([1.0, -1.0, -1.0], requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(400):
            optimizer.zero_grad()
            loss(logits).sum().backward()
            optimizer.step()
        torch.testing.assert_close(logits.detach(), best, rtol=0, atol=0.02)


@pytest.mark.parametrize("start_logit", [-3.0, 3.0])
@pytest.mark.parametrize("corrects", [False, True])
def test_the_price_of_divergence_pulls_to_the_start_and_not_to_the_last_round(
    start_logit: float, corrects: bool
) -> None:
    shapes = [
        PolicyConfig(kind="linear", init_logit=logit, correction=corrects)
        for logit in (0.0, start_logit)
    ]
    policy, start = (Policy(2, shape) for shape in shapes)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    config = train_config(
        policy=shapes[0],
        num_solutions=1,
        kl_weight=1.0,
        entropy_bonus=0.0,
        learning_rate=0.05,
        num_epochs=20,
    )
    none = torch.zeros(20)
    delta = torch.full((20,), 1e-6)
    known = KnownBranches(x, delta, delta, none.bool(), torch.ones(20))
    update(policy, start, Decisions(x, none.bool(), none), known, config, seed=0)
    with torch.no_grad():
        assert (policy(x) * start_logit > 1).all()
