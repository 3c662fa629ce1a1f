"""What every environment promises: Gymnasium's rules, exact gradients, and one result whichever face it is used by."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import gippo_envs
from gippo_envs import BatchedEnv, SingleEnv
from tests.reference import LinearQuadratic

FUNCTIONS = ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0", "Rosenbrock-v0", "Rastrigin-v0"]
IDS = [*FUNCTIONS, "CartPoleSwingUp-v0"]
KEYS = ("state_state", "state_action", "obs_state", "obs_action", "reward_state", "reward_action")


def single(env_id: str, **kwargs: Any) -> SingleEnv:
    env = gym.make(env_id, **kwargs).unwrapped
    assert isinstance(env, SingleEnv)
    env.reset(seed=0)
    return env


def batched(env_id: str, n_envs: int, **kwargs: Any) -> BatchedEnv:
    env = gym.make_vec(env_id, num_envs=n_envs, **kwargs)
    assert isinstance(env, BatchedEnv)
    env.reset(seed=0)
    return env


def samples(env: SingleEnv, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """:return: states (n, state_size), away from the starts, and actions (n, action_dim) inside their box"""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(env.core.dtype)
    shapes = (n, env.core.state_size), (n, env.core.action_dim)
    return rng.normal(scale=2.0, size=shapes[0]).astype(dtype), rng.uniform(-0.99, 0.99, size=shapes[1]).astype(dtype)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("differentiable", [False, True])
# The cart-pole's speeds have no bound.
@pytest.mark.filterwarnings("ignore:.*A Box observation space m.*imum value is -?infinity:UserWarning")
def test_passes_the_checkers_of_gymnasium_and_sb3(env_id: str, differentiable: bool) -> None:
    gymnasium_check_env(gym.make(env_id, differentiable=differentiable).unwrapped, skip_render_check=env_id in FUNCTIONS)
    sb3_check_env(gym.make(env_id, differentiable=differentiable))


@pytest.mark.parametrize("package", ["gippo_envs", "sb3_gippo"])
def test_the_import_registers_and_gippo_envs_alone_needs_no_sb3(package: str) -> None:
    program = f"""
import sys, gymnasium as gym, {package}
for env_id in {IDS}:
    gym.make(env_id).reset(seed=0)
    gym.make_vec(env_id, num_envs=2).reset(seed=0)
print("stable_baselines3" in sys.modules, "sb3_gippo" in sys.modules, "PIL" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    ours = str(package == "sb3_gippo")
    assert result.stdout.split()[:2] == [ours, ours]
    if package == "gippo_envs":
        assert result.stdout.split()[2] == "False", "drawing is loaded by those who draw only"


def test_an_id_of_ones_own_gets_both_faces() -> None:
    gippo_envs.register_functional(
        "LinearQuadraticOfTest-v0", "tests.reference:LinearQuadratic", max_episode_steps=7, limit=2.0
    )
    try:
        assert single("LinearQuadraticOfTest-v0", limit=3.0).core.limit == 3.0  # type: ignore[attr-defined]
        env = batched("LinearQuadraticOfTest-v0", 3)
        assert env.core.limit == 2.0 and env.max_episode_steps == 7  # type: ignore[attr-defined]
    finally:
        del gym.registry["LinearQuadraticOfTest-v0"]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_numbers_are_the_same_with_gradients_on_and_off(env_id: str, dtype: str) -> None:
    plain, differentiable = single(env_id, dtype=dtype), single(env_id, dtype=dtype, differentiable=True)
    states, actions = samples(plain, 10)
    for state, action in zip(states, actions):
        results = []
        for env in (plain, differentiable):
            env.set_state(state)
            results.append(env.step(action))
        assert "grad" not in results[0][4] and "grad" in results[1][4]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        assert results[0][1:4] == results[1][1:4]
        np.testing.assert_array_equal(plain.get_state(), differentiable.get_state())


@pytest.mark.parametrize("env_id", IDS)
def test_gradients_are_central_differences(env_id: str) -> None:
    env = single(env_id, dtype="float64", differentiable=True)
    states, actions = samples(env, 5)
    step = 1e-6

    def outputs(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        env.set_state(state)
        observation, reward, *_ = env.step(action)
        return np.concatenate([env.get_state(), observation, [reward]])

    n = env.core.state_size
    for state, action in zip(states, actions):
        env.set_state(state)
        observation, reward, _, _, info = env.step(action)
        grad = info["grad"]
        of_state = np.vstack([grad["state_state"], grad["obs_state"], grad["reward_state"]])
        of_action = np.vstack([grad["state_action"], grad["obs_action"], grad["reward_action"]])
        found = np.hstack([of_state, of_action])
        point = np.concatenate([state, action])
        columns = []
        for entry in np.eye(len(point)) * step:
            ahead, behind = point + entry, point - entry
            columns.append((outputs(ahead[:n], ahead[n:]) - outputs(behind[:n], behind[n:])) / (2 * step))
        expected = np.stack(columns, axis=1)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
        # ... and they name the values they were taken at.
        np.testing.assert_array_equal(grad["action"], action)
        np.testing.assert_array_equal(grad["obs"], observation)
        assert grad["reward"] == reward


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batched_equals_looped_number_for_number(env_id: str, dtype: str) -> None:
    looped, together = single(env_id, dtype=dtype), batched(env_id, 9, dtype=dtype, max_episode_steps=None)
    states, actions = samples(looped, 9)
    together.set_state(states)
    observations, rewards, terminated, truncated, infos = together.step(actions)
    assert together.transition is not None
    for index in range(9):
        looped.set_state(states[index])
        observation, reward, ended, cut, _ = looped.step(actions[index])
        assert (ended, cut) == (terminated[index], truncated[index])
        np.testing.assert_array_equal(observation, infos["final_obs"][index] if ended else observations[index])
        assert reward == rewards[index]
        np.testing.assert_array_equal(looped.get_state(), together.transition.next_state[index].numpy())


@pytest.mark.parametrize("env_id", IDS)
def test_the_graph_gives_the_dense_gradients(env_id: str) -> None:
    dense, graph = (single(env_id, dtype="float64", differentiable=True), batched(env_id, 4, dtype="float64"))
    graph.set_differentiable(True)
    states, actions = samples(dense, 4)
    graph.set_state(states)
    graph.step(actions)
    step = graph.transition
    assert step is not None
    inputs = (step.state, step.action)
    by_state, by_action = th.autograd.grad(step.reward.sum(), inputs, allow_unused=True, materialize_grads=True)
    for index in range(4):
        dense.set_state(states[index])
        grad = dense.step(actions[index])[4]["grad"]
        np.testing.assert_allclose(by_state[index], grad["reward_state"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(by_action[index], grad["reward_action"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("env_id", IDS)
def test_float64_is_float64_from_action_to_reward(env_id: str) -> None:
    env = single(env_id, dtype="float64", differentiable=True)
    assert env.observation_space.dtype == env.action_space.dtype == np.float64
    _, actions = samples(env, 1)
    start = env.get_state()
    nudged = actions[0] * (1 + 1e-12)  # a float32 anywhere on the way would swallow it
    first = env.step(actions[0])
    env.set_state(start)
    second = env.step(nudged)
    assert first[1] != second[1]
    assert first[0].dtype == np.float64
    assert {first[4]["grad"][key].dtype for key in (*KEYS, "action", "obs", "reward")} == {np.dtype(np.float64)}
    together = batched(env_id, 2, dtype="float64")
    observations, rewards, *_ = together.step(np.stack([actions[0], nudged]))
    assert observations.dtype == rewards.dtype == np.float64


def test_seeds_fix_the_starts_and_nothing_else_moves_them() -> None:
    env, other = gym.make("CartPoleSwingUp-v0"), gym.make("CartPoleSwingUp-v0")
    first, _ = env.reset(seed=3)
    second, _ = env.reset()
    th.manual_seed(0)
    np.random.seed(0)
    global_state = th.get_rng_state()
    np.testing.assert_array_equal(other.reset(seed=3)[0], first)
    np.testing.assert_array_equal(other.reset()[0], second)
    assert not np.array_equal(first, second)
    assert not np.array_equal(other.reset(seed=4)[0], first)
    assert th.equal(th.get_rng_state(), global_state), "the global generator is the user's"

    together, again = batched("CartPoleSwingUp-v0", 3), batched("CartPoleSwingUp-v0", 3)
    starts, _ = together.reset(seed=3)
    np.testing.assert_array_equal(again.reset(seed=3)[0], starts)
    assert len(np.unique(starts[:, 0])) == 3, "every environment has a start of its own"


def test_batched_resets_in_the_step_that_ends_an_episode() -> None:
    env = BatchedEnv(LinearQuadratic, 50, max_episode_steps=4, differentiable=True, limit=2.0)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    age, seen = np.zeros(50, dtype=int), set()
    for _ in range(12):
        before = env.get_state()
        observations, _, terminated, truncated, infos = env.step(rng.uniform(-1, 1, (50, 2)))
        step = env.transition
        assert step is not None
        age += 1
        done = terminated | truncated
        np.testing.assert_array_equal(terminated, np.abs(step.next_state.detach().numpy()[:, 0]) > 2.0)
        np.testing.assert_array_equal(truncated, (age == 4) & ~terminated)
        # The step's own result is the one before any reset, where it is reported as final_obs ...
        np.testing.assert_array_equal(step.state.detach().numpy(), before)
        if done.any():
            np.testing.assert_array_equal(infos["_final_obs"], done)
            np.testing.assert_array_equal(infos["final_obs"][done], step.observation.detach().numpy()[done])
        # ... and the episodes that go on keep theirs.
        np.testing.assert_array_equal(observations[~done], step.observation.detach().numpy()[~done])
        np.testing.assert_array_equal(observations, env.core.observe(th.from_numpy(env.get_state())).numpy())
        assert (observations[done] != step.observation.detach().numpy()[done]).all()
        age[done] = 0
        seen |= {*(["terminated"] if terminated.any() else []), *(["truncated"] if truncated.any() else [])}
    assert seen == {"terminated", "truncated"}


def test_what_was_returned_is_never_written_to_again() -> None:
    env = batched("CartPoleSwingUp-v0", 3, max_episode_steps=2, differentiable=True)
    kept = []
    actions = np.full((3, 1), 0.5, dtype=np.float32)
    for _ in range(4):
        observations, rewards, terminated, truncated, infos = env.step(actions)
        arrays = [observations, rewards, terminated, truncated, *infos.values(), env.get_state()]
        kept += [(array, array.copy()) for array in arrays]
        actions[:] *= -1  # nor is what was given shared
        assert env.transition is not None
        assert not np.array_equal(env.transition.action.detach().numpy(), actions)
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def test_gradients_switch_on_and_off_at_any_time() -> None:
    env = single("CartPoleSwingUp-v0")
    action = np.zeros(1, dtype=np.float32)
    assert "grad" not in env.step(action)[4]
    env.set_differentiable(True)
    assert "grad" in env.step(action)[4]
    env.set_differentiable(False)
    assert "grad" not in env.step(action)[4]


@pytest.mark.parametrize("env_id", ["DeJong64-v0", "CartPoleSwingUp-v0"])
def test_states_are_set_and_got_back_in_one_piece(env_id: str) -> None:
    env = single(env_id, dtype="float64")
    state = np.arange(env.core.state_size, dtype=np.float64)
    env.set_state(state)
    np.testing.assert_array_equal(env.get_state(), state)
    state += 1
    env.get_state()[:] = 7
    np.testing.assert_array_equal(env.get_state(), state - 1)
    together = batched(env_id, 2, dtype="float64")
    states = np.stack([state, 2 * state])
    together.set_state(states)
    np.testing.assert_array_equal(together.get_state(), states)


@pytest.mark.parametrize("env_id", IDS)
def test_wrong_use_ends_in_one_sentence(env_id: str) -> None:
    env, together = single(env_id), batched(env_id, 2)
    size = env.core.action_dim
    with pytest.raises(
        ValueError, match=rf"^1 action\(s\) of shape \({size},\) were expected, not an array \({size + 1},\)\.$"
    ):
        env.step(np.zeros(size + 1, dtype=np.float32))
    with pytest.raises(ValueError, match=rf"^2 action\(s\) of shape \({size},\) were expected, not an array \({size},\)\.$"):
        together.step(np.zeros(size, dtype=np.float32))
    with pytest.raises(ValueError, match=r"^The state has shape \(\d,\), not \(9,\)\.$"):
        env.set_state(np.zeros(9))
    with pytest.raises(ValueError, match=r"^The states have shape \(2, \d\), not \(9,\)\.$"):
        together.set_state(np.zeros(9))
    with pytest.raises(ValueError, match=r"^dtype must be one of \['float32', 'float64'\], not 'float16'\.$"):
        gym.make(env_id, dtype="float16")
    for number in (0, -1, 2.5):
        with pytest.raises(ValueError, match=rf"^num_envs must be an integer of at least 1, not {number}\.$"):
            gym.make_vec(env_id, num_envs=number)  # type: ignore[arg-type]


def test_use_before_reset_asks_for_reset() -> None:
    action = np.zeros(1, dtype=np.float32)
    for use in ("get_state", "step", "render"):
        env = SingleEnv("gippo_envs.physics.cartpole:CartPoleSwingUp", render_mode="rgb_array")
        together = BatchedEnv("gippo_envs.physics.cartpole:CartPoleSwingUp", 1, render_mode="rgb_array")
        for face in (env, together):
            with pytest.raises(gym.error.ResetNeeded, match=r"^Call reset\(\) before using the environment\.$"):
                getattr(face, use)(*([action] if use == "step" else []))


def test_without_a_render_mode_nothing_is_drawn_and_a_warning_says_so() -> None:
    for env in (single("CartPoleSwingUp-v0"), batched("CartPoleSwingUp-v0", 2)):
        with pytest.warns(UserWarning, match="render_mode"):
            assert env.render() is None
