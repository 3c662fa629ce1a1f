"""Gradients made worse on purpose: each corruption does what it says, and GIPPO notices."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from benchmarks.corrupt import CorruptGradients, Corruption
from sb3_gippo import GIPPO, make_vec_env


def apply(action_bar: th.Tensor, **kwargs: Any) -> th.Tensor:
    return Corruption(**kwargs).apply(action_bar, th.Generator().manual_seed(0))


def test_each_corruption_does_what_it_says() -> None:
    true = th.randn(1000, 3, generator=th.Generator().manual_seed(1))
    rms = true.square().mean().sqrt()
    assert th.equal(apply(true), true)
    assert th.equal(apply(true, scale=-1.0), -true)
    assert not apply(true, scale=0.0).any()
    assert th.allclose(apply(true, bias=2.0), true + 2 * rms)
    assert (apply(true, noise=3.0) - true).std().item() == pytest.approx(3 * rms.item(), rel=0.05)
    half = apply(true, scale=-1.0, dimensions=(0, 2))
    assert th.equal(half[:, [0, 2]], -true[:, [0, 2]]) and th.equal(half[:, 1], true[:, 1])


def graph() -> VecEnv:
    return make_vec_env("DeJongContext-v0", 8, seed=0)


def dense() -> VecEnv:
    return DummyVecEnv([lambda: gym.make("DeJongContext-v0") for _ in range(8)])


@pytest.mark.parametrize("make", [graph, dense])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_rollouts_gradients_are_the_corrupted_ones(make: Any, normalize: bool) -> None:
    def gradients(**corruption: Any) -> np.ndarray:
        env = make()
        env.seed(0)
        env = CorruptGradients(env, **corruption)
        env = VecNormalize(env, norm_reward=False) if normalize else env
        model = GIPPO("MlpPolicy", env, n_steps=4, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(32)
        return model.rollout_buffer.action_gradients

    np.testing.assert_array_equal(gradients(scale=-1.0), -gradients())


def test_delayed_gradients_are_those_of_an_earlier_step() -> None:
    env = CorruptGradients(graph(), delay=1)
    env.env_method("set_differentiable", True)
    env.reset()
    bars = []
    for _ in range(3):
        env.step(np.zeros((8, 4), dtype=np.float32))
        assert env.step_gradient is not None
        zero = th.zeros(8, 4)
        bars.append((env.step_gradient.vjp(zero, zero, th.ones(8))[1], env.venv.step_gradient.vjp(zero, zero, th.ones(8))[1]))  # type: ignore[attr-defined]
    assert th.equal(bars[0][0], bars[0][1])
    assert th.equal(bars[1][0], bars[0][1]) and th.equal(bars[2][0], bars[1][1])


def test_impossible_corruptions_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        CorruptGradients(graph(), noise=-1.0)


@pytest.mark.parametrize("corruption", [{"scale": -1.0}, {"scale": 0.0, "noise": 1.0}])
def test_alpha_falls_to_its_floor_where_gradients_mislead_and_rises_where_they_are_good(corruption: dict[str, float]) -> None:
    def final(**kwargs: Any) -> float:
        env = CorruptGradients(make_vec_env("DeJongContext-v0", 64, seed=0), **kwargs)
        model = GIPPO("MlpPolicy", env, n_steps=1, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(64 * 40)
        assert model.alpha_step is not None
        return model.alpha_step.alpha

    assert final(**corruption) < 0.1
    assert final() == 1.0
