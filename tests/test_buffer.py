"""GradientRolloutBuffer is SB3's buffer with a window of gradients beside, and every row belongs to its transition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_gippo import GradientChannelError
from sb3_gippo.rollout.buffer import GradientRolloutBuffer

STEPS, N_ENVS = 4, 3
OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float32)


def filled(cls: type[RolloutBuffer]) -> Any:
    """A full buffer in which the numbers say which step and environment they belong to."""
    buffer = cls(STEPS, OBSERVATIONS, ACTIONS, device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=N_ENVS)
    for step in range(STEPS):
        name = np.array([10.0 * step + env for env in range(N_ENVS)])
        if isinstance(buffer, GradientRolloutBuffer):
            done = np.array([step == 1, False, False])
            columns = np.stack([name, name], axis=1)
            gradient: Any = SimpleNamespace(state_size=2, step=step)
            buffer.add_step_gradient(gradient, columns, ~done, done, columns, columns, name)
        starts = np.array([step == 2, False, False], dtype=np.float32)
        pair = np.stack([name, -name], axis=1)
        buffer.add(pair, pair, name, starts, th.as_tensor(0.1 * name), th.as_tensor(-name))
    buffer.compute_returns_and_advantage(th.ones(N_ENVS), np.zeros(N_ENVS))
    return buffer


def test_without_gradients_it_is_sb3s_buffer() -> None:
    ours, theirs = filled(GradientRolloutBuffer), filled(RolloutBuffer)
    for name in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for seed in (0, 1):
        np.random.seed(seed)
        mine = list(ours.get(5))
        np.random.seed(seed)
        for one, other in zip(mine, theirs.get(5), strict=True):
            assert all(th.equal(a, b) for a, b in zip(one, other))


def test_each_step_is_filed_with_its_gradient() -> None:
    buffer = filled(GradientRolloutBuffer)
    assert [gradient.step for gradient in buffer.step_gradients] == list(range(STEPS))
    for name in ("next_observations", "action_scale", "observation_scale"):
        assert getattr(buffer, name)[2, 1].tolist() == [21.0, 21.0]
    assert buffer.reward_scale[2, 1] == 21.0
    assert buffer.bootstrap.tolist() == [[True] * 3, [False, True, True], [True] * 3, [True] * 3]
    # The window ends after its last step, whatever the episodes do.
    assert buffer.continues.tolist() == [[True] * 3, [False, True, True], [True] * 3, [False] * 3]


def test_rows_of_the_batch_belong_together() -> None:
    buffer = filled(GradientRolloutBuffer)
    buffer.noise = buffer.actions + 100
    buffer.action_gradients = buffer.actions + 200
    advantages = {buffer.actions[t, env, 0]: buffer.advantages[t, env] for t, env in np.ndindex(STEPS, N_ENVS)}
    batch = buffer.gradient_batch()
    assert sorted(batch.actions[:, 0].tolist()) == sorted(advantages)
    assert th.equal(batch.observations, batch.actions)
    assert th.equal(batch.noise, batch.actions + 100)
    assert th.equal(batch.action_gradients, batch.actions + 200)
    assert batch.advantages.flatten().tolist() == [advantages[name] for name in batch.actions[:, 0].tolist()]


def test_the_batch_is_in_the_order_sb3_flattens_to() -> None:
    buffer = filled(GradientRolloutBuffer)
    batch = buffer.gradient_batch()
    next(buffer.get())
    assert np.array_equal(batch.actions.numpy(), buffer.actions)
    with pytest.raises(AssertionError, match="flattened already"):
        buffer.gradient_batch()


def test_a_state_that_changes_its_size_from_step_to_step_is_refused() -> None:
    buffer = GradientRolloutBuffer(STEPS, OBSERVATIONS, ACTIONS, device="cpu", n_envs=N_ENVS)
    pair, flags = np.zeros((N_ENVS, 2)), np.ones(N_ENVS, dtype=bool)

    def add(state_size: int) -> None:
        gradient: Any = SimpleNamespace(state_size=state_size)
        buffer.add_step_gradient(gradient, pair, flags, ~flags, pair, pair, pair[:, 0])
        buffer.add(pair, pair, pair[:, 0], pair[:, 0], th.zeros(N_ENVS), th.zeros(N_ENVS))

    add(3)
    with pytest.raises(
        GradientChannelError, match=r"changed its size from 3 to 4 in step 1 of the window: it must keep its size"
    ):
        add(4)
    buffer.reset()
    add(4)


def test_reset_forgets_the_window() -> None:
    buffer = filled(GradientRolloutBuffer)
    buffer.reset()
    assert buffer.step_gradients == []
    arrays = ("noise", "action_gradients", "next_observations", "bootstrap", "continues", "action_scale", "reward_scale")
    assert not any(getattr(buffer, name).any() for name in arrays)


def test_without_gradients_it_takes_no_more_memory_than_sb3s() -> None:
    pictures = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    sizes = []
    for cls in (GradientRolloutBuffer, RolloutBuffer):
        buffer = cls(64, pictures, spaces.Discrete(2), device="cpu", n_envs=2)
        sizes.append(sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray)))
    assert sizes[0] == sizes[1]
