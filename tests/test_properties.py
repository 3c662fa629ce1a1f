"""Laws that hold for whatever numbers come: budgets, linearity of the sweep, the two forms of a gradient, units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gippo_envs.step_gradient import GraphStepGradient
from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.common.optimizers import copies
from sb3_gippo.gippo.alpha_step import virtual_log_prob
from sb3_gippo.gippo.signal import read_signal
from sb3_gippo.gippo.trust_region import kl_parts, natural_displacement, pull_back
from sb3_gippo.rollout.adjoint import action_gradients
from sb3_gippo.rollout.collector import rounding
from sb3_gippo.rollout.step_gradient import DenseStepGradient

settings.register_profile("suite", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
seeds = st.integers(0, 2**31 - 1)
sizes = st.floats(1e-6, 1e6)


def normal(seed: int, *shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


@given(seeds, sizes, sizes, st.floats(1e-8, 10), st.floats(1e-8, 10), st.booleans(), st.booleans())
def test_a_pull_back_never_exceeds_its_budgets(
    seed: int, mean_size: float, std_size: float, kl: float, std_kl: float, coupled: bool, broken: bool
) -> None:
    """For any step of a linear policy with a state-dependent σ, finite or not."""
    features = normal(seed, 30, 3)
    mean, std = (th.nn.Parameter(normal(seed + index, 3, 2)) for index in (1, 2))

    def gaussian() -> tuple[th.Tensor, th.Tensor]:
        log_std = features @ std + (0.1 * features @ mean if coupled else 0.0)
        return features @ mean, log_std.clamp(-20, 20).exp()

    with th.no_grad():
        old, before = gaussian(), [copies([mean]), copies([std])]
        mean.add_(mean_size * normal(seed + 3, 3, 2))
        std.add_(std_size * normal(seed + 4, 3, 2))
        if broken:
            mean[0, 0] = math.nan
        pull_back(gaussian, old, [[mean], [std]], before, (kl, std_kl), coupled)
        parts = kl_parts(old, gaussian())
    assert parts[0] <= kl * 1.002 and parts[1] <= std_kl * 1.002


class Linear:
    """A step gradient of constant matrices."""

    def __init__(self, seed: int, n_envs: int):
        blocks: dict[str, tuple[int, ...]] = {"state_state": (2, 2), "state_action": (2, 1), "obs_state": (3, 2)}
        blocks.update(reward_state=(2,), reward_action=(1,))
        arrays = {key: 0.5 * normal(seed + i, n_envs, *shape) for i, (key, shape) in enumerate(blocks.items())}
        empty = np.zeros((n_envs, 1)), np.zeros((n_envs, 3)), np.zeros(n_envs)
        self.dense = DenseStepGradient(arrays, 2, *empty)
        leaves = normal(seed + 50, n_envs, 2).requires_grad_(), normal(seed + 51, n_envs, 1).requires_grad_()

        def product(name: str, vector: th.Tensor) -> th.Tensor:
            return th.einsum("eij,ej->ei", arrays[name], vector)

        following = product("state_state", leaves[0]) + product("state_action", leaves[1])
        reward = (arrays["reward_state"] * leaves[0]).sum(1) + (arrays["reward_action"] * leaves[1]).sum(1)
        self.graph = GraphStepGradient(leaves, (following, product("obs_state", leaves[0]), reward), *empty)


def sweep(gradients: list[Any], reward: th.Tensor, value: th.Tensor, continues: th.Tensor, reaction: th.Tensor) -> th.Tensor:
    steps, n_envs = reward.shape
    ones = th.ones(steps, n_envs, 1, dtype=th.float64), th.ones(steps, n_envs, 3, dtype=th.float64)
    react = lambda t, bar: bar @ reaction  # noqa: E731
    return action_gradients(gradients, *ones, reward, value, react, th.ones_like(continues), continues, 0.9, 0.8)


@given(seeds, st.floats(-100, 100), st.integers(1, 6))
def test_the_sweep_is_linear_in_rewards_and_values_and_dense_is_graph(seed: int, factor: float, steps: int) -> None:
    models = [Linear(seed + 1000 * t, 3) for t in range(steps)]
    continues = normal(seed, steps, 3) > -0.5
    continues[-1] = False
    rewards, values = [normal(seed + i, steps, 3) for i in (1, 2)], [normal(seed + i, steps, 3, 3) for i in (3, 4)]
    reaction = normal(seed + 5, 1, 3)
    dense, graph = [m.dense for m in models], [m.graph for m in models]
    one, other = (sweep(dense, r, v, continues, reaction) for r, v in zip(rewards, values))
    mixed = sweep(dense, rewards[0] + factor * rewards[1], values[0] + factor * values[1], continues, reaction)
    th.testing.assert_close(mixed, one + factor * other, rtol=1e-9, atol=1e-9 * (1 + abs(factor)) * mixed.abs().max().item())
    th.testing.assert_close(sweep(graph, rewards[0], values[0], continues, reaction), one, rtol=1e-10, atol=1e-12)


@given(seeds, sizes)
def test_the_step_and_its_judgement_do_not_depend_on_the_unit_of_the_reward(seed: int, unit: float) -> None:
    advantages, noise, whitened = normal(seed, 40), normal(seed + 1, 40, 2), normal(seed + 2, 40, 2)
    displacement = natural_displacement(whitened, 0.3)
    th.testing.assert_close(natural_displacement(unit * whitened, 0.3), displacement, rtol=1e-9, atol=1e-12)
    assert 0.5 * displacement.square().sum(1).mean().item() <= 0.3 * (1 + 1e-9)
    features = normal(seed + 3, 40, 4)
    one = read_signal(features, noise, whitened, advantages)
    other = read_signal(features, noise, unit * whitened, unit * advantages)
    np.testing.assert_allclose(other[1:], one[1:], rtol=1e-6)
    th.testing.assert_close(other.whitened, unit * one.whitened, rtol=1e-9, atol=0)


@settings(max_examples=3)
@given(st.sampled_from([0.125, 8.0, 1024.0]))
def test_a_training_does_not_depend_on_the_unit_of_the_reward(unit: float) -> None:
    """A window of one step, whose advantages hold nothing but rewards: powers of 2 leave no rounding."""

    class Scaled(GIPPO):
        unit = 1.0

        def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
            done = super().collect_rollouts(*args, **kwargs)
            self.rollout_buffer.advantages = self.unit * self.rollout_buffer.advantages
            self.rollout_buffer.action_gradients = self.unit * self.rollout_buffer.action_gradients
            return done

    policies = []
    for scale in (1.0, unit):
        env = make_vec_env("DeJongContext-v0", 16, seed=0)
        # Without value loss, and without the 1e-8 that SB3 adds to the advantages' deviation.
        kwargs: dict[str, Any] = {"vf_coef": 0.0, "normalize_advantage": False, "learning_rate": 0.0}
        model = Scaled("MlpPolicy", env, n_steps=1, batch_size=16, n_epochs=1, seed=0, device="cpu", **kwargs)
        model.unit = scale
        policies.append(model.learn(10 * 16).policy.state_dict())
    for name, value in policies[0].items():
        if "value" not in name:
            th.testing.assert_close(policies[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e4, 1e4)), hnp.arrays(np.float64, 20, elements=st.floats(-1e4, 1e4)))
def test_the_virtual_policy_lies_between_the_two_or_is_the_alpha_policy(old: np.ndarray, alpha: np.ndarray) -> None:
    found = virtual_log_prob(th.as_tensor(old), th.as_tensor(alpha)).numpy()
    assert (found >= np.minimum(old, alpha) - 1e-9).all() and (found <= np.maximum(old, alpha) + 1e-9).all()
    far = np.abs(old - alpha) > 4
    np.testing.assert_array_equal(found[far], alpha[far])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e30, 1e30)))
def test_what_float32_keeps_of_a_number_is_within_rounding(numbers: np.ndarray) -> None:
    kept = numbers.astype(np.float32)
    assert (np.abs(kept - numbers) <= rounding(numbers, kept)).all()
    larger = np.abs(numbers).max(axis=1, keepdims=True)
    changed = numbers + np.sign(numbers + 0.5) * (1e-6 * larger + 1e-37)
    assert (np.abs(changed - numbers).max(axis=1, keepdims=True) > rounding(numbers, kept)).all()
