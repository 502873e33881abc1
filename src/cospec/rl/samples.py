"""Training data from the models' own answers, for any task with a scorer.

Both models answer problems of the train split, once greedily and then by sampling; the task scores
the answers; and `cospec.rl.solutions` reads them. Such texts use the pair's own words, which worked
solutions by other authors seldom do.

An answer by one model follows that model's tokens nearly everywhere, and one of the two models is
right more often. So the worth of an answer is its reward minus its expected reward. An additive
model of problem and author gives the latter: the mean reward of the problem's answers, plus the
author's mean over all problems minus the mean of both authors. An answer that is right where the
other model fails counts for its author's tokens; one that is wrong where the other model succeeds
counts against them. Over all answers of an author the worths add up to zero, so that no model is
preferred for its general quality. A problem whose answers are all right, or all wrong, tells only
which author did better than usual. A wrong answer puts the blame on all of its tokens where the
models differ; many answers, and the rounds, tell which of them were to blame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cospec.engine import Engine
from cospec.evaluation.problems import encode_problems
from cospec.rl.solutions import Solution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cospec.config import SamplingConfig
    from cospec.models import ModelPair
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task

_LEAST_WORTH = 1e-6
"""Smallest absolute worth of an answer that is read."""


def sample_solutions(
    pair: ModelPair,
    task: Task,
    examples: Sequence[Example],
    config: TrainConfig,
    start: int = 0,
    on_read: Callable[[int], None] = lambda _: None,
) -> list[Solution]:
    """Let both models answer problems, and weigh their answers.

    Args:
        pair: The models.
        task: Makes the prompts and scores the answers.
        examples: Problems that no evaluation uses.
        config: Number of answers, their temperature and length, and the batch size.
        start: Index of the first problem among all that are answered.
        on_read: Called with the number of answers that were made.

    Returns:
        Answers whose worth is not 0. Equal answers, by one model or by both, are merged into one
        with the sum of their worths.
    """
    number = config.warmup.num_samples
    prompts, settings = encode_problems(pair, task, examples, config.rollouts.max_new_tokens)
    batch_size = config.rollouts.batch_size
    engines = Engine.draft_only, Engine.target_only
    answers, rewards = [], []
    for make_engine in engines:
        engine = make_engine(pair, batch_size=batch_size)
        engine.on_finished = on_read
        repeated = [prompt for prompt in prompts for _ in range(number)]
        draws = [
            _draw(one, config.warmup.sample_temperature, start + i, j)
            for i, one in enumerate(settings)
            for j in range(number)
        ]
        rollouts = engine.rollouts(repeated, draws, streams=[0] * len(draws), keep_caches=False)
        done = [rollout.completion for rollout in rollouts]
        answers.append(done)
        scores = [task.score(examples[i // number], one.text) for i, one in enumerate(done)]
        rewards.append([score.reward for score in scores])
    worths = answer_worths(torch.tensor(rewards).view(2, len(examples), number))
    found: dict[tuple[int, ...], Solution] = {}
    for author, done in enumerate(answers):
        for i, one in enumerate(done):
            place = i // number
            ids = [*one.prompt_ids, *one.token_ids]
            worth = float(worths[author, place, i % number])
            known = found.get(tuple(ids))
            total = worth + (known.worth if known else 0.0)
            found[tuple(ids)] = Solution(ids, len(one.prompt_ids), start + place, total)
    return [one for one in found.values() if abs(one.worth) >= _LEAST_WORTH]


def answer_worths(rewards: Tensor) -> Tensor:
    """Return the rewards minus the additive model of problem and author.

    Args:
        rewards: Rewards of the answers, by author, problem and sample, (2, P, S).

    Returns:
        Worths, (2, P, S); they add up to 0 for each author and for each problem.
    """
    of_problem = rewards.mean(dim=(0, 2), keepdim=True)  # (1, P, 1)
    of_author = rewards.mean(dim=(1, 2), keepdim=True)  # (2, 1, 1)
    return rewards - of_problem - of_author + rewards.mean()


def _draw(settings: SamplingConfig, temperature: float, place: int, sample: int) -> SamplingConfig:
    """Return the settings of one sample: the first of each problem is greedy."""
    if sample == 0:
        return settings
    return replace(settings, temperature=temperature, seed=place * 1_000 + sample)
