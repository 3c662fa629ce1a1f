"""PE: its neighbours are samples of the policy with advantages to first order, and without them it is PPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env

from sb3_gippo import PE
from sb3_gippo.pe.pe import neighbours
from tests.helpers import SETTINGS, cartpole, collected, logged


def model(**kwargs: Any) -> PE:
    return PE("MlpPolicy", cartpole(), **{**SETTINGS, **kwargs})


def assert_same_policy(one: PPO, other: PPO) -> None:
    for name, value in one.policy.state_dict().items():
        assert th.equal(other.policy.state_dict()[name], value), name
    assert one._n_updates == other._n_updates > 0


def test_radius_0_equals_ppo_bit_for_bit() -> None:
    theirs, ours = PPO("MlpPolicy", cartpole(), **SETTINGS).learn(96), model(radius=0).learn(96)
    assert_same_policy(theirs, ours)
    assert ours.env is not None and ours.env.get_attr("differentiable") == [False] * 4
    enriched = model(radius=0.1).learn(96)
    assert any(not th.equal(a, b) for a, b in zip(theirs.policy.parameters(), enriched.policy.parameters()))


@pytest.mark.filterwarnings("ignore:PE trains without gradients:UserWarning")
def test_without_gradients_it_equals_ppo_bit_for_bit() -> None:
    theirs, ours = (
        algorithm("MlpPolicy", sb3_make_vec_env("Pendulum-v1", 4, seed=1), **SETTINGS).learn(96) for algorithm in (PPO, PE)
    )
    assert_same_policy(theirs, ours)


def test_it_says_how_to_ask_for_ppo() -> None:
    with pytest.warns(UserWarning, match=r"PE trains without gradients, as plain PPO: .* Pass `radius=0` if that is"):
        PE("MlpPolicy", sb3_make_vec_env("Pendulum-v1", 4), **SETTINGS).learn(32)


def window(radius: float, seed: int = 0) -> tuple[Any, tuple[th.Tensor, th.Tensor], tuple[th.Tensor, ...]]:
    """:return: a window of cart-pole, its policy, and neighbours"""
    buffer: Any = collected(model()).rollout_buffer
    actions, noise = th.as_tensor(buffer.actions), th.as_tensor(buffer.noise)
    std = th.full_like(actions, 0.7)
    mean = actions - std * noise
    drawn = th.randn(mean.shape, generator=th.Generator().manual_seed(seed))
    return buffer, (mean, std), neighbours(buffer, (mean, std), radius, drawn)


def test_at_radius_0_a_neighbour_is_the_sample_itself() -> None:
    buffer, (mean, std), (actions, advantages, log_probs) = window(0.0)
    np.testing.assert_allclose(actions, buffer.actions, atol=1e-6)
    np.testing.assert_allclose(advantages, buffer.advantages, rtol=1e-4, atol=1e-4)
    expected = th.distributions.Normal(mean, std).log_prob(th.as_tensor(buffer.actions)).sum(2)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5)


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0])
def test_a_neighbours_advantage_is_its_own_to_first_order(radius: float) -> None:
    """Of a linear advantage it is exact, of a quadratic one the error is the square of the distance."""
    buffer, policy, _ = window(radius)
    drawn, center = th.randn(policy[0].shape, generator=th.Generator().manual_seed(1)), 0.3
    for curvature in (0.0, -2.0):
        of = lambda a, c=curvature: 3 * a[..., 0] + c / 2 * (a[..., 0] - center) ** 2  # noqa: E731
        buffer.advantages = of(buffer.actions)
        buffer.action_gradients = 3 + curvature * (buffer.actions - center)
        actions, advantages, log_probs = neighbours(buffer, policy, radius, drawn)
        distance = actions[..., 0] - th.as_tensor(buffer.actions[..., 0])
        assert distance.abs().max() > 0.1 * radius
        error = of(actions) - advantages
        assert th.allclose(error, curvature / 2 * distance**2, atol=2e-4)
        assert th.allclose(log_probs, th.distributions.Normal(*policy).log_prob(actions).sum(2))


def test_neighbours_are_samples_of_the_same_policy() -> None:
    """Their noise has mean 0 and variance 1, and √(1 - radius²) of it is the sample's, all within 4 standard errors."""
    buffer, _, _ = window(0.5)
    n, radius = 40000, 0.6
    own, drawn = np.random.default_rng(0).normal(size=(2, 1, n, 1)).astype(np.float32)
    mean, std = th.full((1, n, 1), 0.4), th.full((1, n, 1), 2.0)
    buffer.noise, buffer.actions = own, (0.4 + 2 * own)
    buffer.advantages, buffer.action_gradients = np.zeros((1, n), np.float32), np.zeros((1, n, 1), np.float32)
    actions, _, _ = neighbours(buffer, (mean, std), radius, th.as_tensor(drawn))
    noise = ((actions - mean) / std).numpy()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs((noise**2).mean() - 1) < 4 * (2 / n) ** 0.5
    together = noise * own
    assert abs(together.mean() - 0.8) < 4 * together.std() / n**0.5


def test_the_enriched_window_is_the_sampled_one_with_copies_beside_it() -> None:
    pe = model(n_neighbours=2)
    collected(pe)
    sampled: Any = pe.rollout_buffer
    assert pe.actor is not None
    enriched = pe._enriched(pe.actor, sampled)
    assert (enriched.buffer_size, enriched.n_envs) == (8, 12)
    for name in ("observations", "returns", "values"):
        for copy in np.split(getattr(enriched, name), 3, axis=1):
            np.testing.assert_array_equal(copy, getattr(sampled, name))
    parts = {name: np.split(getattr(enriched, name), 3, axis=1) for name in ("actions", "advantages", "log_probs")}
    for name, (first, second, third) in parts.items():
        np.testing.assert_array_equal(first, getattr(sampled, name))
        assert np.abs(second - first).max() > 0 and np.abs(third - second).max() > 0, name
        assert first.dtype == second.dtype == getattr(sampled, name).dtype
    rows = sum(len(batch.actions) for batch in enriched.get(16))
    assert rows == 3 * 32


def test_ppos_minibatches_come_from_the_enriched_window_which_is_put_back() -> None:
    pe = model(n_epochs=1, batch_size=16)
    window = pe.rollout_buffer
    seen: list[Any] = []

    class Watched(PE):
        def _train_ppo(self) -> None:
            seen.append(self.rollout_buffer)
            super()._train_ppo()

    pe.__class__ = Watched
    pe.learn(64)
    assert [buffer.n_envs for buffer in seen] == [8, 8] and pe.rollout_buffer is window
    assert pe._n_updates == 2 and {"train/action_grad_norm", "train/approx_kl", "train/critic_loss"} <= logged(pe).keys()
    pe.policy.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pe.learn(32)
    assert pe.rollout_buffer is window
