"""The trust region: budgets are kept, σ waits for the mean, parts of the KL divergence are torch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch as th
from torch.distributions import Independent, Normal, kl_divergence

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.gippo.alpha_step import Spent
from sb3_gippo.gippo.trust_region import (
    ARRIVED,
    AdaptiveRate,
    TrustRegionSettings,
    TrustRegionStep,
    kl_parts,
    natural_displacement,
    std_freedom,
)
from sb3_gippo.on_policy.actor import Actor, gaussian
from tests.helpers import small


def normal(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def test_moving_mean_or_sigma_alone_the_parts_are_the_kl_divergence() -> None:
    mean, std = normal(50, 3), normal(50, 3, seed=1).exp()
    other_mean, other_std = mean + normal(50, 3, seed=2), std * (0.3 * normal(50, 3, seed=3)).exp()

    def kl(new_mean: th.Tensor, new_std: th.Tensor) -> float:
        old, new = (Independent(Normal(m, s), 1) for m, s in ((mean, std), (new_mean, new_std)))
        return kl_divergence(old, new).mean().item()

    assert kl_parts((mean, std), (other_mean, std))[0].item() == pytest.approx(kl(other_mean, std))
    assert kl_parts((mean, std), (mean, other_std))[1].item() == pytest.approx(kl(mean, other_std))
    assert [part.item() for part in kl_parts((mean, std), (mean, std))] == [0.0, 0.0]


def test_the_displacement_has_the_kl_divergence_it_should() -> None:
    whitened = normal(200, 2)
    displacement = natural_displacement(whitened, kl=0.3)
    assert 0.5 * displacement.square().sum(1).mean().item() == pytest.approx(0.3)
    assert th.allclose(displacement, displacement[0, 0] / whitened[0, 0] * whitened)
    assert not natural_displacement(th.zeros(4, 2), kl=0.3).any()


def test_a_rate_follows_its_budget() -> None:
    rate = AdaptiveRate()
    rate.update(2.0, 1.0)
    assert rate.scale == pytest.approx(1 / 1.5)
    rate.update(1.0, 1.0)
    assert rate.scale == pytest.approx(1 / 1.5)
    for _ in range(40):
        rate.update(0.1, 1.0)
    assert rate.scale == AdaptiveRate.MAX_SCALE
    rate.update(math.nan, 1.0)
    assert rate.scale < AdaptiveRate.MAX_SCALE


@pytest.mark.parametrize("distance, expected", [(0.0, 1.0), (0.9 * ARRIVED, 1.0), (1.5 * ARRIVED, 0.5), (3 * ARRIVED, 0.0)])
def test_sigma_is_free_as_far_as_the_mean_has_arrived(distance: float, expected: float) -> None:
    assert std_freedom(distance) == pytest.approx(expected)
    assert std_freedom(math.inf) == 0


def test_gradients_that_are_not_trusted_hold_nothing() -> None:
    step = TrustRegionStep(Actor(small().policy), 1.0, TrustRegionSettings(kl=1.0, std_kl=0.1), 1.0)
    step.std_freedom = 0.0
    assert step.trusted_std_freedom(spent=0.0) == 1.0 and step.trusted_std_freedom(spent=1.0) == 0.0
    assert step.ppo_budgets(Spent(0.0, 0.0), progress_remaining=1.0) == (1.0, 0.1)
    assert step.ppo_budgets(Spent(1.0, 1.0), progress_remaining=1.0) == (step.PPO_SHARE, 0.0)
    step.std_freedom = 1.0
    assert step.ppo_budgets(Spent(0.25, 0.5), progress_remaining=1.0) == (0.75, 0.05)


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("env_id", ["CartPoleSwingUp-v0", "DeJongContext-v0"])
def test_no_iteration_leaves_the_trust_region(env_id: str, state_dependent_std: bool) -> None:
    """However large the rates: α-step and PPO step together, on the batch they were made from."""
    made: list[tuple[float, float]] = []

    class Watched(GIPPO):
        def train(self) -> None:
            observations = self.rollout_buffer.gradient_batch().observations  # type: ignore[attr-defined]
            with th.no_grad():
                before = gaussian(self.policy, observations)
            super().train()
            with th.no_grad():
                made.append(tuple(part.item() for part in kl_parts(before, gaussian(self.policy, observations))))  # type: ignore[arg-type]

    kwargs: dict[str, Any] = {"squash_actions": True, "state_dependent_std": state_dependent_std}
    env = make_vec_env(env_id, 16, seed=0)
    model = Watched(
        "MlpPolicy",
        env,
        0.1,
        8,
        32,
        alpha=1.0,
        alpha_kwargs={"learning_rate": 0.3, "kl": 0.1, "std_kl": 0.01},
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
    )
    model.learn(10 * 8 * 16)
    # The lengths of the two steps add up at the most: a share s and what it leaves make (√s + √(1 - s))² ≤ 2 budgets.
    mean, std = (max(part) for part in zip(*made))
    assert 0.01 < mean < 2 * 0.1 * 1.1
    assert std < 2 * 0.01 * 1.1
