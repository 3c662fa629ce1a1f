"""What every environment promises: Gymnasium's rules, exact gradients, and one result whichever face it is used by."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import subprocess
import sys
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import gippo_envs
from gippo_envs import BatchedEnv, FunctionalEnv, SingleEnv
from gippo_envs.core import transition
from tests.reference import LinearQuadratic
from tests.second_device import DEVICE, Elsewhere, second_device

FUNCTIONS = ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0", "Rosenbrock-v0", "Rastrigin-v0"]
IDS = [*FUNCTIONS, "CartPoleSwingUp-v0"]
REGISTERED = [env_id for env_id, spec in gym.registry.items() if spec.entry_point == "gippo_envs.core:SingleEnv"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((env_id, {}) for env_id in REGISTERED),
    ("PaceCarC-v0", {"randomize": True}),
    ("PaceCarC-v0", {"lane_softness": 0.5, "max_distance": 71.0}),
]
"""every id, and what else there is to compute; the pace car loses sight of the traffic soon"""
ELSEWHERE = [variant for variant in VARIANTS if not variant[0].startswith("Diff")]
"""what runs on the emulated device: Warp, which computes the robots, knows real ones only"""
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


@pytest.mark.parametrize("env_id", REGISTERED)
@pytest.mark.parametrize("differentiable", [False, True])
def test_passes_the_checkers_of_gymnasium_and_sb3(env_id: str, differentiable: bool) -> None:
    env = gym.make(env_id, differentiable=differentiable, render_mode="rgb_array")
    with warnings.catch_warnings():
        if env_id.startswith(("CartPole", "PaceCar", "Diff")):  # speeds and distances have no bound
            warnings.filterwarnings("ignore", ".*A Box observation space m.*imum value is -?infinity", UserWarning)
        gymnasium_check_env(env.unwrapped)
    sb3_check_env(env, skip_render_check=False)


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
            np.testing.assert_array_equal(np.stack(infos["final_obs"][done]), step.observation.detach().numpy()[done])
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
        arrays = [observations, rewards, terminated, truncated, *infos.get("final_obs", []), env.get_state()]
        kept += [(array, array.copy()) for array in arrays]
        actions[:] *= -1  # nor is what was given shared
        assert env.transition is not None
        assert not np.array_equal(env.transition.action.detach().numpy(), actions)
    for array, kept_copy in kept:
        np.testing.assert_array_equal(array, kept_copy)


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


def assert_same_infos(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert type(found[key]) is type(value)
        if isinstance(value, dict):
            assert_same_infos(found[key], value)
        else:
            assert found[key].dtype == value.dtype and found[key].shape == value.shape
            for one, other in zip(found[key], value):
                np.testing.assert_array_equal(one, other)


def test_the_end_of_episodes_is_told_as_gymnasiums_own_vector_environment_tells_it() -> None:
    n, limit = 5, 3
    ours = BatchedEnv(LinearQuadratic, n, max_episode_steps=limit, limit=2.0)
    singles: Any = [lambda: gym.wrappers.TimeLimit(SingleEnv(LinearQuadratic, limit=2.0), limit)] * n
    theirs = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    assert_same_infos(ours.reset(seed=0)[1], theirs.reset(seed=0)[1])
    rng = np.random.default_rng(0)
    ended = []
    for _ in range(12):
        for env, state in zip(theirs.envs, ours.get_state()):
            env.unwrapped.set_state(state)  # type: ignore[attr-defined]
        actions = rng.uniform(-1, 1, (n, 2))
        *_, terminated, truncated, infos = ours.step(actions)
        *_, their_infos = theirs.step(actions)
        assert_same_infos(infos, their_infos)
        ended.append((terminated | truncated).sum())
    assert {0, n} & set(ended) and len(set(ended)) > 2, "steps in which none, some and all ended"


def twins(env: Any) -> list[Any]:
    return [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]


@pytest.mark.parametrize("env_id, constants", VARIANTS)
@pytest.mark.parametrize("differentiable", [False, True])
def test_copies_go_on_as_the_original_does(env_id: str, constants: dict[str, Any], differentiable: bool) -> None:
    env = batched(env_id, 4, max_episode_steps=9, stagger=True, differentiable=differentiable, **constants)
    alone = single(env_id, differentiable=differentiable, **constants)
    rng = np.random.default_rng(0)

    def play(env: Any, actions: np.ndarray) -> list[Any]:
        results: list[Any] = []
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            results.append((observation, reward, terminated, truncated, env.get_state()))
            if isinstance(env, SingleEnv) and terminated:
                results.append((env.reset()[0],))
        return results

    for face in (env, alone):
        actions = rng.uniform(-1, 1, (25, *face.action_space.shape)).astype(np.float32)  # type: ignore[misc]
        play(face, actions[:5])
        copies = twins(face)  # in the middle of episodes
        expected = play(face, actions[5:])
        for twin in copies:
            for one, other in zip(play(twin, actions[5:]), expected, strict=True):
                for mine, its in zip(one, other, strict=True):
                    np.testing.assert_array_equal(mine, its)


def test_a_copy_leaves_the_graph_where_it_is() -> None:
    env = batched("CartPoleSwingUp-v0", 3, differentiable=True)
    env.step(np.zeros((3, 1), dtype=np.float32))
    assert env.transition is not None and env.transition.reward.requires_grad
    for twin in twins(env):
        assert twin.differentiable and not any(tensor.requires_grad for tensor in twin.transition)
        np.testing.assert_array_equal(twin.transition.reward, env.transition.reward.detach())
        twin.step(np.zeros((3, 1), dtype=np.float32))
        assert twin.transition.reward.requires_grad
    assert env.transition.reward.requires_grad, "the original keeps its own"


def test_gradients_switched_off_are_given_up() -> None:
    env = batched("CartPoleSwingUp-v0", 3, differentiable=True)
    for switch_off in (env.set_differentiable, lambda on: setattr(env, "differentiable", on)):
        env.set_differentiable(True)
        env.step(np.zeros((3, 1), dtype=np.float32))
        assert env.transition is not None
        graph = weakref.ref(env.transition.reward)
        switch_off(False)
        gc.collect()
        assert graph() is None and not any(tensor.requires_grad for tensor in env.transition)


def everything(env_id: str, constants: dict[str, Any], device: str) -> list[np.ndarray]:
    """:return: all that both faces give out, in episodes that end"""
    batch = batched(env_id, 4, max_episode_steps=7, stagger=True, device=device, differentiable=True, **constants)
    alone = single(env_id, device=device, differentiable=True, render_mode="rgb_array", **constants)
    rng = np.random.default_rng(0)
    results: list[Any] = []
    for step in range(9):
        actions = rng.uniform(-1, 1, batch.action_space.shape).astype(np.float32)
        observations, rewards, terminated, truncated, infos = batch.step(actions)
        results += [observations, rewards, terminated, truncated, *infos.get("final_obs", []), batch.get_state()]
        found = batch.transition
        assert found is not None
        outputs = found.next_state.sum() + found.observation.sum() + found.reward.sum()
        results += [bar.cpu() for bar in th.autograd.grad(outputs, (found.state, found.action), materialize_grads=True)]
        observation, reward, ended, _, info = alone.step(actions[0])
        results += [observation, reward, *info["grad"].values(), alone.get_state()]
        if step in (0, 8):
            results += [alone.render()]
        if ended:
            results += [alone.reset()[0]]
    batch.set_state(batch.get_state() + 0.01)
    alone.set_state(alone.get_state() + 0.01)
    results += [batch.step(actions)[0], alone.step(actions[0])[0]]
    assert all(type(result) in (np.ndarray, th.Tensor, float, type(None)) for result in results)
    return results


@pytest.mark.parametrize("env_id, constants", ELSEWHERE)
def test_on_another_device_the_numbers_are_the_same(env_id: str, constants: dict[str, Any]) -> None:
    expected = everything(env_id, constants, "cpu")
    with second_device():
        found = everything(env_id, constants, DEVICE.type)
        env = batched(env_id, 2, device=DEVICE.type, **constants)
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))  # type: ignore[arg-type]
        assert env.transition is not None and all(type(tensor) is Elsewhere for tensor in env.transition)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("env_id, constants", ELSEWHERE)
def test_cores_stay_on_their_device(env_id: str, constants: dict[str, Any]) -> None:
    # A meta tensor has no numbers, but it is torch's own word on what may meet what.
    kwargs = {**gym.spec(env_id).kwargs, **constants}
    core: FunctionalEnv = load_env_creator(kwargs.pop("core"))(**kwargs, device="meta")  # type: ignore[assignment]
    state = core.initial_state(5, th.Generator().manual_seed(0))
    step = transition(core, state, th.zeros(5, core.action_dim, device="meta"), differentiable=True)
    assert all(tensor.is_meta for tensor in (state, core.observe(state), *step))
    (bar,) = th.autograd.grad(step.next_state.sum() + step.reward.sum(), step.action)
    assert bar.is_meta


@pytest.mark.parametrize("env_id", REGISTERED)
@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_does_not_exist_ends_in_one_sentence(env_id: str, device: str) -> None:
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=rf"^device must be one that torch can use here, not '{device}'\.$"):
            make(env_id, device=device)


@dataclass
class Faulty(FunctionalEnv):
    """A point that is pushed along a line, with one fault."""

    fault: str = ""
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        other = {"float32": np.float64, "float64": np.float32}[self.dtype]
        if self.fault != "no state_size":
            self.state_size = 2
        if self.fault != "no observation_space":
            self.observation_space = self.box(-9.0, 9.0, 2)
        if self.fault != "no action_space":
            self.action_space = self.box(-1.0, 1.0, 1)
        if self.fault == "state_size None":
            self.state_size = None  # type: ignore[assignment]
        if self.fault == "observation_space of another type":
            self.observation_space = gym.spaces.Box(-9.0, 9.0, (2,), other)  # type: ignore[arg-type]
        if self.fault == "observation_space of two axes":
            self.observation_space = gym.spaces.Box(-9.0, 9.0, (2, 1), np.dtype(self.dtype).type)
        if self.fault == "device ignored":
            self.device = "meta"

    def another(self, tensor: th.Tensor) -> th.Tensor:
        return tensor.to(th.float32 if self.dtype == "float64" else th.float64)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        state = th.rand(n, 2, generator=generator, dtype=self.torch_dtype)
        if self.fault == "state of another type":
            return self.another(state)
        return state[:, :1] if self.fault == "state too short" else state

    def step(self, state: th.Tensor, action: th.Tensor) -> Any:
        if self.fault == "state written":
            state[:, 0] += 1
        if self.fault == "action written":
            action.numpy()[:] = 0.0
        following = state + 0.1 * action
        reward, terminated = -following.square().sum(1), following[:, 0].abs() > 5.0
        if self.fault == "no terminated":
            return following, reward
        if self.fault == "next state too short":
            following = following[:, 0]
        if self.fault == "next state of another type":
            following = self.another(following)
        if self.fault == "reward a column":
            reward = reward[:, None]
        if self.fault == "reward a number":
            reward = 0.0  # type: ignore[assignment]
        if self.fault == "terminated a bool":
            terminated = False  # type: ignore[assignment]
        if self.fault == "terminated a float":
            terminated = terminated.float()
        return following, reward, terminated

    def observe(self, state: th.Tensor) -> th.Tensor:
        if self.fault == "state written by observe":
            state.clamp_(0.0, 0.1)
        if self.fault == "observation too short":
            return state[:, :1]
        return self.another(state) if self.fault == "observation of another type" else state


FAULTS = {
    "no state_size": "state_size is missing; expected was the length of the state, an int.",
    "state_size None": "state_size is None; expected was the length of the state, an int.",
    "no observation_space": "observation_space is missing; expected was a Box.",
    "no action_space": "action_space is missing; expected was a Box.",
    "observation_space of another type": "observation_space has shape (2,) and type OTHER; "
    "expected were one axis and TYPE, as Faulty.box makes it.",
    "observation_space of two axes": "observation_space has shape (2, 1) and type TYPE; "
    "expected were one axis and TYPE, as Faulty.box makes it.",
    "device ignored": "initial_state has returned a tensor (#, 2) of TYPE on cpu; "
    "expected was a tensor (#, 2) of TYPE on meta.",
    "state of another type": "initial_state has returned a tensor (#, 2) of OTHER on cpu; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "state too short": "initial_state has returned a tensor (#, 1) of TYPE on cpu; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "observation too short": "observe has returned a tensor (#, 1) of TYPE on cpu; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "observation of another type": "observe has returned a tensor (#, 2) of OTHER on cpu; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "state written by observe": "observe has written into the state it was given; expected was a copy.",
    "state written": "step has written into the state it was given; expected was a copy.",
    "action written": "step has written into the action it was given; expected was a copy.",
    "no terminated": "step has returned an object of type tuple; expected was (next state, reward, terminated).",
    "next state too short": "step has returned a tensor (#,) of TYPE on cpu as next state; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "next state of another type": "step has returned a tensor (#, 2) of OTHER on cpu as next state; "
    "expected was a tensor (#, 2) of TYPE on cpu.",
    "reward a column": "step has returned a tensor (#, 1) of TYPE on cpu as reward; "
    "expected was a tensor (#,) of TYPE on cpu.",
    "reward a number": "step has returned an object of type float as reward; expected was a tensor (#,) of TYPE on cpu.",
    "terminated a bool": "step has returned an object of type bool as terminated; expected was a tensor (#,) of bool on cpu.",
    "terminated a float": "step has returned a tensor (#,) of float32 on cpu as terminated; "
    "expected was a tensor (#,) of bool on cpu.",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_cores_fault_is_named_at_its_first_call(fault: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gippo_envs.core._generator", lambda *_: th.Generator())  # "meta" has none
    other = "float64" if dtype == "float32" else "float32"
    faces: list[tuple[str, Any]] = [
        ("1", lambda **kwargs: SingleEnv(Faulty, dtype=dtype, **kwargs)),
        ("3", lambda **kwargs: BatchedEnv(Faulty, 3, dtype=dtype, **kwargs)),
    ]
    for n, make in faces:
        message = FAULTS[fault].replace("#", n).replace("TYPE", dtype).replace("OTHER", other)
        for differentiable in (False, True):
            with pytest.raises(ValueError, match=f"^{re.escape('Faulty.' + message)}$"):
                env = make(fault=fault, differentiable=differentiable)
                env.reset(seed=0)
                env.step(np.zeros((int(n), 1)) + 0.5)


def test_a_core_without_fault_is_looked_at_once() -> None:
    calls: list[str] = []

    class Counting(Faulty):
        def step(self, state: th.Tensor, action: th.Tensor) -> Any:
            calls.append("step")
            return super().step(state, action)

        def observe(self, state: th.Tensor) -> th.Tensor:
            calls.append("observe")
            return super().observe(state)

    for env in (SingleEnv(Counting), BatchedEnv(Counting, 3)):
        actions = np.zeros((getattr(env, "num_envs", 1), 1))
        counts = []
        for call in (env.reset, lambda env=env, actions=actions: env.step(actions)) * 3:
            calls.clear()
            call()
            counts.append((calls.count("step"), calls.count("observe")))
        assert counts == [(0, 2), (2, 2), (0, 1), (1, 1), (0, 1), (1, 1)]


@pytest.mark.parametrize("env_id", REGISTERED)
def test_every_environment_has_a_picture(env_id: str) -> None:
    env, together = single(env_id, render_mode="rgb_array"), batched(env_id, 2, render_mode="rgb_array")
    together.set_state(np.stack([env.get_state()] * 2))
    before = env.render()
    assert before is not None and before.dtype == np.uint8 and before.ndim == 3 and before.std() > 0
    frames = together.render()
    assert frames is not None and len(frames) == 2
    np.testing.assert_array_equal(frames[0], before)
    actions = np.full(together.action_space.shape, 0.5, dtype=np.float32)  # type: ignore[type-var]
    for _ in range(3):
        env.step(actions[0])
    after = env.render()
    assert after is not None and (after != before).any()


def test_the_batchs_picture_is_of_what_the_step_led_to() -> None:
    env = batched("CartPoleSwingUp-v0", 2, max_episode_steps=1, render_mode="rgb_array")
    states = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    env.set_state(states)
    upright = env.render()
    env.step(np.zeros((2, 1), dtype=np.float32))  # ends both episodes
    frames = env.render()
    assert upright is not None and frames is not None
    np.testing.assert_array_equal(np.stack(frames), np.stack(upright))
    env.reset()
    frames = env.render()
    assert frames is not None and (np.stack(frames) != np.stack(upright)).any()
