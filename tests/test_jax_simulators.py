"""JAX environments that others wrote: dÂ/da through the real rollout against differences of the advantage's definition.

Their packages are no part of the extra, and some compile for minutes: ``make test-simulators`` installs them and runs this.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from gymnasium import spaces

from sb3_gippo import JaxEnv, JaxVecEnv, check_differentiable_vec_env, from_brax, from_func_env
from sb3_gippo.jax import JaxBatchedEnv
from tests.reference import difference_gradients
from tests.test_action_gradients import assert_close, rollout

pytestmark = pytest.mark.filterwarnings("ignore")
N_ENVS = 2
ITERATIONS = 4
"""of MJX's solver"""


@pytest.fixture(autouse=True, scope="module")
def x64_and_quick_to_compile() -> Iterator[None]:
    flags = ("jax_enable_x64", "jax_disable_most_optimizations")
    for flag in flags:
        jax.config.update(flag, True)
    yield
    for flag in flags:
        jax.config.update(flag, False)


@pytest.fixture(autouse=True)
def mjx_loops_by_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/simulators.md has it."""
    try:
        from mujoco.mjx._src import solver
    except ImportError:
        return
    scan = lambda cond, body, init: solver._while_loop_scan(cond, body, init, ITERATIONS)  # noqa: E731
    lax = SimpleNamespace(**{**vars(jax.lax), "while_loop": scan})
    monkeypatch.setattr(solver, "jax", SimpleNamespace(**{**vars(jax), "lax": lax}))


def phys2d() -> JaxEnv:
    from gymnasium.envs.phys2d.pendulum import PendulumFunctional

    class Pendulum(PendulumFunctional):
        observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        action_space = spaces.Box(-2.0, 2.0, (1,), np.float64)

        def initial(self, rng: jax.Array, params: Any = None) -> jax.Array:
            return super().initial(rng, params).astype(jnp.float64)

    return from_func_env(Pendulum())


def brax(name: str) -> JaxEnv:
    envs = pytest.importorskip("brax.envs")
    return from_brax(envs.get_environment(name, backend="spring"))


def mujoco_hopper() -> Any:
    mujoco = pytest.importorskip("mujoco")
    from gymnasium.envs import mujoco as gymnasium_mujoco

    return mujoco.MjModel.from_xml_path(f"{gymnasium_mujoco.__path__[0]}/assets/hopper.xml")


def mjx_hopper() -> JaxEnv:
    """Gymnasium's hopper on MJX, its foot in the ground."""
    mujoco, mjx, model = pytest.importorskip("mujoco"), pytest.importorskip("mujoco.mjx"), mujoco_hopper()
    model.opt.iterations, model.opt.ls_iterations = ITERATIONS, 4
    on_device = mjx.put_model(model)
    start = mjx.put_data(model, mujoco.MjData(model))

    def reset(key: jax.Array) -> Any:
        q = jnp.asarray(model.qpos0) + 0.01 * jax.random.normal(key, (model.nq,))
        return {"q": q.at[1].add(-0.06), "v": jnp.zeros(model.nv)}

    def step(state: Any, action: jax.Array, key: jax.Array) -> Any:
        data = start.replace(qpos=state["q"], qvel=state["v"], ctrl=action)
        data = mjx.step(on_device, data)
        return {"q": data.qpos, "v": data.qvel}, data.qvel[0] - 1e-3 * jnp.square(action).sum(), data.qpos[1] < 0.5

    def observe(state: Any) -> jax.Array:
        return jnp.concatenate([state["q"][1:], state["v"]])

    box = lambda size, bound: spaces.Box(-bound, bound, (size,), np.float64)  # noqa: E731
    return JaxEnv(reset, step, observe, box(model.nq - 1 + model.nv, np.inf), box(model.nu, 1.0))


class Replay:
    """A step from any state, for the differences: the environment alone, what its state carries beside floats included."""

    def __init__(self, env: JaxEnv, known: JaxBatchedEnv):
        self.action_space = env.action_space
        self.env = JaxBatchedEnv(env, N_ENVS)
        self.env.reset(seed=0)
        self.env._memory = known._memory  # the same integers and keys go with the same floats

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, None]:
        self.env.set_state(np.repeat(state.numpy(), N_ENVS, axis=0))
        self.env.set_differentiable(True)
        self.env.step(np.repeat(action.numpy(), N_ENVS, axis=0))
        gradient = self.env.step_gradient
        assert gradient is not None
        self.seen = th.tensor(gradient.observation[:1])
        return th.tensor(gradient.next_state[:1]), th.tensor(gradient.reward[:1]), None

    def observe(self, state: th.Tensor) -> th.Tensor:
        return self.seen


SIMULATORS: dict[str, Any] = {
    "phys2d pendulum": phys2d,
    "brax inverted pendulum": lambda: brax("inverted_pendulum"),
    "brax hopper": lambda: brax("hopper"),
    "mjx hopper": mjx_hopper,
}


@pytest.mark.parametrize("name", SIMULATORS)
def test_action_gradients_through_the_real_rollout(name: str) -> None:
    env = SIMULATORS[name]()
    for normalized in (False, True):
        vec_env: Any = JaxVecEnv(env, N_ENVS, 5)
        batched = vec_env.env
        vec_env = VecNormalize(vec_env) if normalized else vec_env
        model, record = rollout(vec_env, 6, policy_kwargs={"squash_actions": normalized})
        assert np.array(record.truncated).any()
        expected = difference_gradients(model, Replay(env, batched), record)  # type: ignore[arg-type]
        # VecNormalize rounds observations and rewards to float32.
        assert_close(model, expected, 1e-5 if normalized else 1e-6)


def test_the_checker_passes_gymnasiums() -> None:
    report = check_differentiable_vec_env(JaxBatchedEnv(phys2d(), 2, 20), n_episodes=2, max_steps=4)
    assert report.transitions == 6


def test_mjx_with_few_iterations_is_mujoco() -> None:
    mujoco, env, model = pytest.importorskip("mujoco"), mjx_hopper(), mujoco_hopper()
    data = mujoco.MjData(model)
    state = env.reset(jax.random.key(0))
    data.qpos[:], data.qvel[:] = state["q"], state["v"]
    step, touched = jax.jit(env.step), False
    for t in range(100):
        action = np.sin(np.arange(3) + 0.1 * t)
        state, _, _ = step(state, jnp.asarray(action), jax.random.key(0))
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        touched |= data.ncon > 0
    assert touched
    np.testing.assert_allclose(state["q"], data.qpos, atol=1e-3)
