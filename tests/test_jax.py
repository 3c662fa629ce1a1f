"""Environments in JAX: gradients through the real rollout, any pytree, float32 and float64, and what is refused."""

from __future__ import annotations

import builtins
import copy
import importlib
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from sb3_gippo import (
    GIPPO,
    DifferentiableVecEnv,
    GradientChannelError,
    JaxEnv,
    JaxVecEnv,
    check_differentiable_vec_env,
    from_brax,
    from_func_env,
    make_vec_env,
)
from sb3_gippo.jax import JaxBatchedEnv
from sb3_gippo.jax.batched import to_jax, to_torch
from tests.reference import LinearQuadratic, difference_gradients
from tests.test_action_gradients import assert_close, rollout

CORE = LinearQuadratic(limit=2.5)
A, B, SCALE = CORE.a.numpy(), CORE.b.numpy(), np.array([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def reset(key: jax.Array) -> Any:
    """A pytree with everything in it: floats, an integer, a bool, a random key."""
    x = jax.random.normal(key, (3,))
    return {"x": x[:2], "rest": (x[2], jnp.int32(0), jnp.bool_(True), jax.random.fold_in(key, 1))}


def vector(state: Any) -> jax.Array:
    return jnp.append(state["x"], state["rest"][0])


def step(state: Any, action: jax.Array, key: jax.Array) -> Any:
    before = vector(state)
    x = jnp.asarray(A, before.dtype) @ before + jnp.asarray(B, before.dtype) @ action
    reward = -jnp.square(x).sum() - 0.1 * jnp.square(action).sum() + 0.3 * before[0] * action[0]
    _, count, flag, own = state["rest"]
    return {"x": x[:2], "rest": (x[2], count + 1, ~flag, own)}, reward, jnp.abs(x[0]) > 2.5


def observe(state: Any) -> jax.Array:
    x = vector(state)
    return x * jnp.asarray(SCALE, x.dtype)


def box(size: Any, bound: float = np.inf, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(-bound, bound, size if isinstance(size, tuple) else (size,), dtype)


def linear(dtype: Any = np.float32, **changes: Any) -> JaxEnv:
    return JaxEnv(reset, step, observe, box(3, dtype=dtype), box(2, 2.0, dtype))._replace(**changes)


@pytest.mark.parametrize("normalized", [False, True])
def test_action_gradients_through_the_real_rollout(x64: None, normalized: bool) -> None:
    env: Any = JaxVecEnv(linear(np.float64), 3, 5)
    env = VecNormalize(env) if normalized else env
    model, record = rollout(env, 12, policy_kwargs={"squash_actions": normalized})
    dones, truncated = np.array(record.dones), np.array(record.truncated)
    assert (dones[:-1] & truncated[:-1]).any() and (dones[:-1] & ~truncated[:-1]).any()
    # JAX sorts the leaves by their names: rest before x.
    record.states = [[state[[1, 2, 0]] for state in states] for states in record.states]
    # VecNormalize rounds observations and rewards to float32.
    assert_close(model, difference_gradients(model, CORE, record), 1e-5 if normalized else 1e-6)


def test_float32_is_the_default_and_agrees_to_its_rounding() -> None:
    env = JaxVecEnv(linear(), 3, 5)
    model, record = rollout(env, 6)
    record.states = [[state[[1, 2, 0]] for state in states] for states in record.states]
    assert env.env.get_state().dtype == model.rollout_buffer.step_gradients[0].observation.dtype == np.float32
    assert_close(model, difference_gradients(model, CORE, record), 1e-4)


def noisy(state: Any, action: jax.Array, key: jax.Array) -> Any:
    following, reward, terminated = step(state, action * (1 + 0.1 * jax.random.normal(key)), key)
    return following, reward + jax.random.normal(key), terminated


def test_the_checker_passes_it_with_noise_as_well(x64: None) -> None:
    env = JaxBatchedEnv(linear(np.float64, step=noisy), 2, 5)
    report = check_differentiable_vec_env(env, n_episodes=2, max_steps=6)
    assert report.unjudged == 0 and report.transitions == 6 and report.error < 0.1


def test_gymnasiums_functional_environments(x64: None) -> None:
    from gymnasium.envs.phys2d.pendulum import PendulumFunctional, PendulumParams

    heavy = from_func_env(PendulumFunctional(), PendulumParams(m=2.0))
    report = check_differentiable_vec_env(JaxBatchedEnv(heavy, 2, 20), n_episodes=2, max_steps=4)
    assert report.transitions == 6
    light, state = from_func_env(PendulumFunctional()), jnp.array([0.1, 0.0])
    speeds = [env.step(state, jnp.ones(1), jax.random.key(0))[0][1] for env in (light, heavy)]
    gravity = 15.0 * np.sin(0.1) * 0.05
    np.testing.assert_allclose(speeds, [gravity + 3.0 * 0.05, gravity + 1.5 * 0.05], rtol=1e-5)


def test_ids_become_it_through_make_vec_env() -> None:
    env = make_vec_env("phys2d/Pendulum-v0", 3, seed=0, env_kwargs={"render_mode": None})
    assert isinstance(env, DifferentiableVecEnv) and isinstance(env.env, JaxBatchedEnv)
    assert env.get_attr("max_episode_steps") == [200] * 3
    model = GIPPO("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=0, device="cpu").learn(48)
    assert model._has_gradients and model.rollout_buffer.action_gradients.any()
    # Two actions have no derivative: PPO's separate environments.
    separate = make_vec_env("phys2d/CartPole-v1", 2, env_kwargs={"render_mode": None})
    assert isinstance(separate, DummyVecEnv)


def test_no_copies_on_the_cpu() -> None:
    env = JaxBatchedEnv(linear(), 64, 5)
    env.set_differentiable(True)
    env.reset(seed=0)
    env.step(np.zeros((64, 2), dtype=np.float32))
    gradient = env.step_gradient
    assert gradient is not None

    def address(array: Any) -> int:
        return array.unsafe_buffer_pointer()

    pairs = [
        (gradient.state, gradient.inputs[0]),
        (gradient.next_state, gradient.next_vector),
        (gradient.observation, gradient.seen),
        (gradient.reward, gradient.rewards),
        (gradient.action, gradient.inputs[2]),
    ]
    for shown, held in pairs:
        assert shown.__array_interface__["data"][0] == address(held)
    bar = th.ones(64, 3)
    assert bar.data_ptr() % 64 == 0, "torch aligns what it allocates"
    assert address(to_jax(bar, gradient.seen)) == bar.data_ptr()
    assert to_torch(gradient.next_vector).data_ptr() == address(gradient.next_vector)
    # What is not aligned, or of another type, is copied, and right.
    apart = th.arange(193, dtype=th.float32)[1:].reshape(64, 3)
    for other in (apart, apart.double()):
        np.testing.assert_array_equal(to_jax(other, gradient.seen), apart)


def test_what_was_handed_out_may_be_written_into() -> None:
    env = JaxBatchedEnv(linear(), 2, 5)
    env.set_differentiable(True)
    observations, _ = env.reset(seed=0)
    observations[:] = 9.0
    outcome = env.step(np.zeros((2, 2)))
    gradient = env.step_gradient
    assert gradient is not None
    before = gradient.vjp(None, th.ones(2, 3), th.ones(2))
    kept = [bar.clone() for bar in before]
    for array in outcome[:4]:
        array[:] = 1
    for bar in before:
        bar.fill_(7.0)
    for one, other in zip(gradient.vjp(None, th.ones(2, 3), th.ones(2)), kept):
        assert th.equal(one, other)


def test_seeds_and_copies() -> None:
    def run(env: Any, n: int = 8) -> np.ndarray:
        return np.concatenate([np.append(*env.step(np.full((2, 2), 0.3))[:2]) for _ in range(n)])

    def fresh(seed: int) -> Any:
        env = JaxVecEnv(linear(step=noisy), 2, 3)
        env.seed(seed)
        env.reset()
        return env

    one, same, other = fresh(0), fresh(0), fresh(1)
    first = run(one)
    np.testing.assert_array_equal(first, run(same))
    assert (first != run(other)).any()
    twins = [copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
    expected = run(one)
    for twin in twins:
        np.testing.assert_array_equal(run(twin), expected)


def test_several_dimensions_and_action_repeat() -> None:
    def repeat(state: Any, action: jax.Array, key: jax.Array) -> Any:
        def once(x: Any, _: Any) -> Any:
            x = 0.9 * x + 0.1 * action
            return x, -jnp.square(x).sum()

        x, rewards = jax.lax.scan(once, state, None, 4)
        return x, rewards.sum(), False

    env = JaxVecEnv(
        JaxEnv(lambda key: jax.random.normal(key, (2, 3)), repeat, lambda x: x.T, box((3, 2)), box((2, 3), 1.0)), 4, 5
    )
    env.seed(0)
    assert env.reset().shape == (4, 3, 2)
    model = GIPPO("MlpPolicy", env, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    assert model._has_gradients
    report = check_differentiable_vec_env(env.env, n_episodes=1, max_steps=3)
    assert report.entries == report.transitions * (6 + 6 + 1) * 12


def test_what_is_drawn_per_episode_stays_for_the_episode() -> None:
    def step(state: Any, action: jax.Array, key: jax.Array) -> Any:
        x, mass = state
        return (x + action / mass, mass), -jnp.square(x).sum(), False

    env = JaxBatchedEnv(
        JaxEnv(
            lambda key: (jnp.zeros(1), jax.random.uniform(key, (), minval=1.0, maxval=2.0)),
            step,
            lambda s: s[0],
            box(1),
            box(1),
        ),
        3,
        4,
    )
    env.reset(seed=0)
    masses = []
    for _ in range(12):
        masses.append(env.get_state()[:, 1])
        env.step(np.zeros((3, 1)))
    assert [len(np.unique(np.array(masses)[:, index])) for index in range(3)] == [3, 3, 3]


def while_loop(state: Any, action: jax.Array, key: jax.Array) -> Any:
    _, action = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 0.9), (0, action))
    return step(state, action, key)


REFUSED = {
    "text": (
        {"reset": lambda key: {"name": "hopper"}},
        r"The leaf \['name'\] of the state is of type str: a state is made of",
    ),
    "half": (
        {"reset": lambda key: jnp.zeros(3, jnp.bfloat16)},
        "The leaf the state of the state is bfloat16: a state is made of",
    ),
    "complex": ({"reset": lambda key: (jnp.zeros(2, jnp.complex64),)}, r"The leaf \[0\] of the state is complex64"),
    "double": (
        {"reset": lambda key: jnp.zeros(3, jnp.float64)},
        r'float64, while JAX .* jax.config.update\("jax_enable_x64", True\)',
    ),
    "double space": (
        {"observation_space": box(3, dtype=np.float64)},
        r"observation space is float64, while JAX computes in float32",
    ),
    "grows": (
        {"step": lambda s, a, k: ({**s, "x": jnp.zeros(3)}, jnp.float32(0), False)},
        r"The leaf \['x'\] of the state is \(3,\) of float32 after step\(\), and \(2,\) of float32 after reset\(\)",
    ),
    "another tree": ({"step": lambda s, a, k: (s["x"], jnp.float32(0), False)}, r"reset\(\) one .*: they must be built alike"),
    "two": (
        {"step": lambda s, a, k: (s, 0.0)},
        r"step\(\) has returned a tuple of 2; expected was \(state, reward, terminated\)",
    ),
    "reward": (
        {"step": lambda s, a, k: (s, jnp.zeros(1), False)},
        r"returned a reward \(1,\) of float32; expected was a float \(\)",
    ),
    "terminated": ({"step": lambda s, a, k: (s, 0.0, 0.0)}, r"returned terminated \(\) of float32; expected was a bool \(\)"),
    "observation": ({"observe": lambda s: jnp.zeros(4)}, r"observe\(\) has returned an array \(4,\); expected was \(3,\)"),
    "discrete": ({"action_space": spaces.Discrete(2)}, r"The action space is Discrete\(2\): a gradient needs a Box"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_ends_in_a_sentence(case: str) -> None:
    changes, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        JaxVecEnv(linear(**changes), 2)


def test_a_while_loop_ends_in_a_sentence_only_where_gradients_are_asked_for() -> None:
    env = JaxVecEnv(linear(step=while_loop), 2)
    env.reset()
    env.step(np.zeros((2, 2)))
    env.env_method("set_differentiable", True)
    with pytest.raises(GradientChannelError, match=r"through a lax\.while_loop .*: write the loop as lax\.scan"):
        env.step(np.zeros((2, 2)))


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jax":
            raise ImportError("No module named 'jax'")
        return found(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(("sb3_gippo.jax", "sb3_gippo.vec_env.jax"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'need jax: pip install "sb3-gippo\[jax\]"'):
        getattr(importlib.import_module("sb3_gippo"), "JaxVecEnv")  # noqa: B009


@dataclass(frozen=True)
class BraxState:
    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any


jax.tree_util.register_dataclass(BraxState)


class LikeBrax:
    """What Brax's environments have: a state of everything, and done as a float."""

    observation_size: Any = 3
    action_size = 2
    backend = "spring"

    def __init__(self, iterations: int = 4):
        ranges = np.array([[-2.0, 2.0], [-1.0, 0.5]])
        self.sys = SimpleNamespace(actuator=SimpleNamespace(ctrl_range=ranges), opt=SimpleNamespace(iterations=iterations))

    def reset(self, key: jax.Array) -> BraxState:
        state = reset(key)
        return BraxState(state, observe(state), jnp.zeros(()), jnp.zeros(()))

    def step(self, state: BraxState, action: jax.Array) -> BraxState:
        following, reward, over = step(state.pipeline_state, action, jax.random.key(0))
        return BraxState(following, observe(following), reward, over.astype(jnp.float32))


def test_braxs_environments() -> None:
    env = from_brax(LikeBrax())
    assert env.action_space == spaces.Box(np.array([-2.0, -1.0], np.float32), np.array([2.0, 0.5], np.float32))
    assert env.observation_space == box(3)
    ours, own = JaxBatchedEnv(env, 2, 9), JaxBatchedEnv(linear(), 2, 9)
    for one in (ours, own):
        one.set_differentiable(True)
        one.reset(seed=0)
    for _ in range(9):
        action = np.full((2, 2), 0.3, np.float32)
        outcomes = [one.step(action) for one in (ours, own)]
        for found, expected in zip(outcomes[0][:4], outcomes[1][:4]):
            np.testing.assert_array_equal(found, expected)
        bars = [one.step_gradient.vjp(None, th.ones(2, 3), th.ones(2))[1] for one in (ours, own) if one.step_gradient]
        assert len(bars) == 2 and th.equal(*bars) and bars[0].any()


def test_braxs_environments_in_float64(x64: None) -> None:
    env = from_brax(LikeBrax())
    assert env.observation_space.dtype == env.action_space.dtype == np.float64
    report = check_differentiable_vec_env(JaxBatchedEnv(env, 2, 5), n_episodes=1, max_steps=3)
    assert report.transitions == 3


def test_braxs_environments_that_do_not_fit() -> None:
    several = LikeBrax()
    several.observation_size = {"state": 3, "privileged": 9}
    with pytest.raises(ValueError, match="must be one vector"):
        from_brax(several)
    mjx = LikeBrax(iterations=1)
    from_brax(mjx)
    mjx.backend = "mjx"
    with pytest.warns(UserWarning, match="one iteration.* contacts are wrong"):
        from_brax(mjx)
