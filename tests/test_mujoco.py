"""MujocoGradient: derivatives of MuJoCo tasks as they are, and tasks as they were."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_gippo import GIPPO, GradientChannelError, check_differentiable_env

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("imageio")
from sb3_gippo import MujocoGradient  # noqa: E402
from sb3_gippo.differences.stencil import stencil  # noqa: E402
from sb3_gippo.mujoco.coordinates import Coordinates  # noqa: E402
from tests.mujoco_task import Juggler  # noqa: E402

TASKS: dict[str, Callable[[], gym.Env]] = {
    "InvertedPendulum": lambda: gym.make("InvertedPendulum-v5"),
    "Hopper": lambda: gym.make("Hopper-v5"),
    "HalfCheetah": lambda: gym.make("HalfCheetah-v5"),
    "Ant": lambda: gym.make("Ant-v5"),
    "user's": Juggler,
}


# MuJoCo's whole state, and what it has computed from it: by its own functions, nothing of the project's.
def copied(task: Any) -> Any:
    data = mujoco.MjData(task.model)
    mujoco.mj_copyData(data, task.model, task.data)
    return data


def integration_state(task: Any) -> np.ndarray:
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(task.model, spec))
    mujoco.mj_getState(task.model, task.data, state, spec)
    return state


def random_action(task: Any, rng: np.random.Generator, share: float = 0.8) -> np.ndarray:
    """Well inside the bounds, and a float32 number, as agents send."""
    return (share * rng.uniform(task.action_space.low, task.action_space.high)).astype(np.float32)


def to_vector(quaternion: np.ndarray) -> np.ndarray:
    """The rotation vector of a unit quaternion (w, x, y, z)."""
    w, v = quaternion[0], quaternion[1:]
    if w < 0:
        w, v = -w, -v
    return 2 * np.arctan2(np.linalg.norm(v), w) * v / np.linalg.norm(v)


def to_quaternion(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector)
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * vector / angle])


def x_of(task: Any) -> np.ndarray:
    """x as documented, for tasks whose qpos0 has no rotation."""
    q, q0, parts = task.data.qpos, task.model.qpos0, []
    for kind, start in zip(task.model.jnt_type, task.model.jnt_qposadr):
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            parts += [q[start : start + 3] - q0[start : start + 3], to_vector(q[start + 3 : start + 7])]
        elif kind == mujoco.mjtJoint.mjJNT_BALL:
            parts.append(to_vector(q[start : start + 4]))
        else:
            parts.append(q[start : start + 1] - q0[start : start + 1])
    return np.concatenate([*parts, task.data.qvel, task.data.act])


def restore(task: Any, before: Any, x: np.ndarray, lag: float = 0.0) -> None:
    """Everything as in ``before``, but positions, velocities and activations as x says; bodies ``lag`` seconds behind."""
    model, data = task.model, task.data
    mujoco.mj_copyData(data, model, before)
    q, start = model.qpos0.copy(), 0
    for kind, address in zip(model.jnt_type, model.jnt_qposadr):
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            q[address : address + 3] += x[start : start + 3]
            q[address + 3 : address + 7] = to_quaternion(x[start + 3 : start + 6])
            start += 6
        elif kind == mujoco.mjtJoint.mjJNT_BALL:
            q[address : address + 4] = to_quaternion(x[start : start + 3])
            start += 3
        else:
            q[address] += x[start]
            start += 1
    assert start == model.nv
    data.qpos[:], data.qvel[:], data.act[:] = q, x[start : 2 * start], x[2 * start :]
    mujoco.mj_integratePos(model, data.qpos, data.qvel, -lag)
    mujoco.mj_forward(model, data)
    data.qpos[:] = q
    data.qacc_warmstart[:] = before.qacc_warmstart


def central_jacobian(task: Any, action: np.ndarray, step: float, lag: float) -> np.ndarray:
    """Rows: next x, observation, reward. Columns: x, action."""
    before, random, memory = copied(task), task.np_random.bit_generator.state, getattr(task, "memory", None)
    z = np.concatenate([x_of(task), action.astype(np.float64)])
    n, columns = len(z) - len(action), []
    for i in range(len(z)):
        ends = []
        for sign in (1, -1):
            moved = z.copy()
            moved[i] += sign * step
            restore(task, before, moved[:n], lag)
            task.np_random.bit_generator.state, task.memory = random, copy.deepcopy(memory)
            observation, reward, *_ = task.step(moved[n:])
            ends.append(np.concatenate([x_of(task), observation, [reward]]))
        columns.append((ends[0] - ends[1]) / (2 * step))
    mujoco.mj_copyData(task.data, task.model, before)
    task.np_random.bit_generator.state, task.memory = random, memory
    return np.stack(columns, axis=1)


def as_matrix(grad: dict[str, np.ndarray]) -> np.ndarray:
    return np.block(
        [
            [grad["state_state"], grad["state_action"]],
            [grad["obs_state"], grad["obs_action"]],
            [grad["reward_state"], grad["reward_action"]],
        ]
    )


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Per row (an output of the step), against the row's largest entry."""
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-3)
    return float((np.abs(found - expected) / scale).max())


@pytest.mark.parametrize("name", list(TASKS))
def test_jacobians_are_those_of_the_tasks_own_step(name: str) -> None:
    env = MujocoGradient(TASKS[name](), differentiable=True)
    task, rng = env.unwrapped, np.random.default_rng(1)
    env.reset(seed=1)
    lag = 0.0 if task.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4 else task.model.opt.timestep
    smooth = touching = 0
    for _ in range(4):
        for _ in range(5):
            if task.step(random_action(task, rng))[2]:
                env.reset()
                task.step(random_action(task, rng))
        action = random_action(task, rng)
        coarse, fine = (central_jacobian(task, action, step, lag) for step in (1e-5, 1e-6))
        contacts = task.data.ncon
        grad = env.step(action)[4]["grad"]
        # Where a contact begins or ends within the difference, no derivative exists and the two disagree; elsewhere the error
        # of the fine one is a hundredth of their difference.
        if relative_error(coarse, fine) < 2e-3:
            smooth += 1
            touching += contacts > 0
            assert relative_error(as_matrix(grad), fine) < 1e-4
    assert smooth >= 2
    assert touching > 0 or name == "InvertedPendulum"


def test_central_differences_are_more_exact() -> None:
    errors = {}
    for central in (False, True):
        env = MujocoGradient(gym.make("HalfCheetah-v5"), differentiable=True, central=central, epsilon=1e-6)
        task, rng = env.unwrapped, np.random.default_rng(1)
        env.reset(seed=1)
        for _ in range(20):
            task.step(random_action(task, rng))
        action = random_action(task, rng)
        expected = central_jacobian(task, action, 1e-7, task.model.opt.timestep)
        errors[central] = relative_error(as_matrix(env.step(action)[4]["grad"]), expected)
    assert errors[True] < 1e-5 < errors[False]


def returned_gradient(env: MujocoGradient, actions: list[np.ndarray]) -> np.ndarray:
    """d(sum of rewards)/d(first action) by the chain rule, and the steps are made."""
    grads = [env.step(action)[4]["grad"] for action in actions]
    state_bar = np.zeros(len(env.get_state()))
    for grad in reversed(grads):
        action_bar = grad["reward_action"] + grad["state_action"].T @ state_bar
        state_bar = grad["reward_state"] + grad["state_state"].T @ state_bar
    return action_bar


@pytest.mark.parametrize(
    "name, integrator, tolerance",
    [("Hopper", None, 1e-4), ("Ant", "mjINT_EULER", 1e-4), ("user's", None, 1e-4), ("Ant", None, 0.03)],
)
def test_steps_chain_to_the_gradient_of_a_return(name: str, integrator: str | None, tolerance: float) -> None:
    # Ant and the user's task are rewarded by differences of positions that lag behind the state. With RK4 they lag by the
    # difference of two of its stages, which is no function of the state and is left out.
    env = MujocoGradient(TASKS[name](), differentiable=True)
    task, rng = env.unwrapped, np.random.default_rng(2)
    if integrator is not None:
        task.model.opt.integrator = getattr(mujoco.mjtIntegrator, integrator)
    env.reset(seed=2)
    for _ in range(12):
        task.step(random_action(task, rng))
    actions = [random_action(task, rng).astype(np.float64) for _ in range(5)]
    before, random, memory = copied(task), task.np_random.bit_generator.state, getattr(task, "memory", None)

    def returned(first: np.ndarray) -> float:
        mujoco.mj_copyData(task.data, task.model, before)
        task.np_random.bit_generator.state, task.memory = random, copy.deepcopy(memory)
        return sum(task.step(action)[1] for action in [first, *actions[1:]])

    expected = np.empty(len(actions[0]))
    for i, unit in enumerate(np.eye(len(expected))):
        expected[i] = (returned(actions[0] + 1e-6 * unit) - returned(actions[0] - 1e-6 * unit)) / 2e-6
    returned(actions[0])
    mujoco.mj_copyData(task.data, task.model, before)
    task.np_random.bit_generator.state, task.memory = random, memory
    found = returned_gradient(env, actions)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ["Hopper", "Ant", "user's"])
def test_asking_for_gradients_leaves_the_task_untouched_to_the_last_bit(name: str) -> None:
    bare, env = TASKS[name](), MujocoGradient(TASKS[name](), differentiable=True)
    ours, theirs = env.unwrapped, bare.unwrapped
    env.action_space.seed(3)
    data, lists = ours.data, getattr(ours, "memory", {}).get("heights")
    episodes = 0
    np.testing.assert_array_equal(env.reset(seed=3)[0], bare.reset(seed=3)[0])
    for step in range(60):
        action = env.action_space.sample()
        sent = action.copy()
        found, expected = env.step(action), bare.step(action)
        np.testing.assert_array_equal(action, sent)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:4] == expected[1:4]
        grad = found[4].pop("grad")
        assert grad["reward"].dtype == np.float64 and grad["reward"] == found[1]
        np.testing.assert_array_equal(grad["obs"], found[0])
        assert found[4] == expected[4]
        np.testing.assert_array_equal(integration_state(ours), integration_state(theirs))
        for computed in ("qacc", "xpos", "cfrc_ext", "actuator_force", "sensordata"):
            np.testing.assert_array_equal(getattr(ours.data, computed), getattr(theirs.data, computed))
        assert ours.np_random.bit_generator.state == theirs.np_random.bit_generator.state
        if found[2] or step % 25 == 24:
            episodes += 1
            np.testing.assert_array_equal(env.reset()[0], bare.reset()[0])
    assert episodes >= 2
    assert ours.data is data and ours._np_random is ours.np_random
    assert getattr(ours, "memory", {}).get("heights") is lists
    assert vars(ours).keys() == vars(theirs).keys()


def test_a_step_that_raises_leaves_the_task_as_it_was() -> None:
    class Fragile(Juggler):
        def step(self, action: Any) -> Any:
            outcome = super().step(action)
            if self.data.qpos[0] > 0:
                raise ZeroDivisionError
            return outcome

    env = MujocoGradient(Fragile(), differentiable=True)
    env.reset(seed=0)
    env.unwrapped.data.qpos[0] = 0.2
    before, memory = integration_state(env.unwrapped), copy.deepcopy(env.unwrapped.memory)
    with pytest.raises(ZeroDivisionError):
        env.step(np.zeros(2))
    np.testing.assert_array_equal(integration_state(env.unwrapped), before)
    assert env.unwrapped.memory == memory


def test_nothing_is_drawn_for_gradients() -> None:
    class Drawn(Juggler):
        pictures = 0

        def render(self) -> None:
            type(self).pictures += 1

    env = MujocoGradient(Drawn(render_mode="human"), differentiable=True)
    env.reset(seed=0)
    pictures = Drawn.pictures
    env.step(np.zeros(2))
    assert Drawn.pictures == pictures + 1


def test_gradients_are_absent_until_asked_for() -> None:
    env = MujocoGradient(gym.make("InvertedPendulum-v5"))
    env.reset(seed=0)
    assert "grad" not in env.step(env.action_space.sample())[4]
    env.set_differentiable(True)
    assert "grad" in env.step(env.action_space.sample())[4]
    env.set_differentiable(False)
    assert "grad" not in env.step(env.action_space.sample())[4]


def test_threads_change_nothing_but_the_time() -> None:
    grads = []
    for threads in (1, 3):
        env = MujocoGradient(gym.make("Hopper-v5"), differentiable=True, threads=threads)
        env.reset(seed=4)
        env.action_space.seed(4)
        for _ in range(8):
            grad = env.step(env.action_space.sample())[4]["grad"]
        grads.append(grad)
    for key, array in grads[0].items():
        np.testing.assert_array_equal(grads[1][key], array, err_msg=key)


@pytest.mark.parametrize("name", ["Hopper", "Ant", "user's"])
def test_state_can_be_read_and_set(name: str) -> None:
    env = MujocoGradient(TASKS[name]())
    env.reset(seed=5)
    env.action_space.seed(5)
    for _ in range(10):
        env.step(env.action_space.sample())
    state, position, velocity = env.get_state(), env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
    np.testing.assert_allclose(state, x_of(env.unwrapped), atol=1e-12)
    env.step(env.action_space.sample())
    env.set_state(state)
    np.testing.assert_allclose(env.unwrapped.data.qpos, position, atol=1e-12)
    np.testing.assert_array_equal(env.unwrapped.data.qvel, velocity)


def step_from(env: gym.Env, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float]:
    env.set_state(state)  # type: ignore[attr-defined]
    return env.step(action)[:2]  # type: ignore[return-value]


@pytest.mark.parametrize("integrator", ["mjINT_EULER", "mjINT_IMPLICITFAST", "mjINT_RK4"])
@pytest.mark.parametrize("name", ["Ant", "Humanoid"])
def test_a_state_that_was_read_is_restored_with_what_the_bodies_lag(name: str, integrator: str) -> None:
    # Both are rewarded by the difference of two positions, one of which the step before left behind.
    env = MujocoGradient(gym.make(f"{name}-v5"))
    task = env.unwrapped
    task.model.opt.integrator = getattr(mujoco.mjtIntegrator, integrator)
    env.action_space.seed(6)
    env.reset(seed=6)
    visited = []
    for _ in range(5):
        state, positions, action = env.get_state(), task.data.xpos.copy(), env.action_space.sample()
        visited.append((state, positions, action, env.step(action)))
    env.reset(seed=7)
    for state, positions, action, expected in visited[::-1]:
        env.set_state(state)
        np.testing.assert_allclose(task.data.xpos, positions, atol=1e-12)
        observation, reward = step_from(env, state, action)
        np.testing.assert_allclose(observation, expected[0], rtol=1e-9, atol=1e-9)
        assert reward == pytest.approx(expected[1], rel=1e-9)


def test_states_nearby_lag_as_the_state_that_was_read() -> None:
    env = MujocoGradient(gym.make("Ant-v5"))
    env.action_space.seed(6)
    env.reset(seed=6)
    for _ in range(4):
        env.step(env.action_space.sample())
    state, action = env.get_state(), env.action_space.sample()
    reward = env.step(action)[1]
    assert step_from(env, state + 1e-9, action)[1] == pytest.approx(reward, abs=1e-6)


def test_gradients_name_the_states_before_and_after_the_step() -> None:
    env = MujocoGradient(Juggler(), differentiable=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    rotation = env.coordinates.rotations[1]
    turning = env.get_state()
    turning[rotation] = [0.0, 0.0, 3.1]  # next to a half turn, which is passed
    turning[env.unwrapped.model.nv + rotation] = [0.0, 0.0, 2.0]
    env.set_state(turning)
    signs: set[float] = set()
    before = None
    for _ in range(8):
        if before is not None:
            np.testing.assert_array_equal(before, env.get_state())
        state = env.get_state()
        grad = env.step(env.action_space.sample())[4]["grad"]
        np.testing.assert_array_equal(grad["state"], state)
        np.testing.assert_array_equal(grad["next_state"], env.get_state())
        before = grad["next_state"]
        signs.add(float(np.sign(before[rotation[2]])))
    assert signs == {-1.0, 1.0}


CHECKED = [
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v4", "Reacher-v5", "Pusher-v5", "Swimmer-v5", "Hopper-v5"),
    *("Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5"),
]


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("env_id", CHECKED)
def test_the_checker_passes_gymnasiums_tasks(env_id: str) -> None:
    env = MujocoGradient(gym.make(env_id))
    report = check_differentiable_env(env, tolerance=1e-2, n_episodes=1, max_steps=8, n_checked=1)
    assert report.transitions == 1 and report.unjudged < 0.02 * report.entries


@pytest.mark.parametrize("key", ["state_state", "state_action", "obs_state", "obs_action", "reward_state", "reward_action"])
def test_the_checker_sees_what_is_wrong_with_a_task(key: str) -> None:
    class Wrong(gym.Wrapper):
        def step(self, action: Any) -> Any:
            outcome = self.env.step(action)
            if "grad" in outcome[4]:
                outcome[4]["grad"][key] = 1.05 * outcome[4]["grad"][key]
            return outcome

    wrong = Wrong(MujocoGradient(gym.make("Ant-v5")))
    with pytest.raises(GradientChannelError, match=rf"The gradient is wrong .*: {key}"):
        check_differentiable_env(wrong, tolerance=1e-2, n_episodes=1, max_steps=8, n_checked=1)


def test_rotations_beyond_a_half_turn_are_followed() -> None:
    coordinates = Coordinates(Juggler().model)
    first, second = coordinates.rotations
    axis = np.array([0.6, 0.0, 0.8])
    x = np.random.default_rng(0).normal(size=(3, coordinates.size))
    x[:, second] = [[0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.1, 0.2, 0.3]]
    x[:, first] = np.outer([np.pi - 1e-6, np.pi - 2e-6, np.pi + 1e-6], axis)
    np.testing.assert_allclose(coordinates.read(coordinates.raw(x)), x, atol=1e-12)


@pytest.mark.parametrize("central", [False, True])
def test_differences_stay_within_the_bounds(central: bool) -> None:
    low, high = np.array([-np.inf, -1.0, -1.0, -1.0]), np.array([np.inf, 1.0, 1.0, 1.0])
    z = np.array([3.0, 1.0, -1.0, 0.5])
    points, above, below, width = stencil(z, low, high, 2**-10, central)
    np.testing.assert_array_equal(points[0], z)
    assert len(points) == (7 if central else 5)
    assert (points >= low).all() and (points <= high).all()
    values = points**2
    derivative = (values[above] - values[below]) / width[:, None]
    exact = 2 * z + np.array([0, -1, 1, 0] if central else [1, -1, 1, 1]) * 2**-10  # z + (z ± ε), or (z + ε) + (z - ε)
    np.testing.assert_allclose(derivative, np.diag(exact), atol=1e-12)


def test_at_a_bound_the_derivative_is_that_of_the_inside() -> None:
    env = MujocoGradient(gym.make("InvertedPendulum-v5"), differentiable=True)
    blocks = {}
    for action in (2.9999, 3.0):
        env.reset(seed=0)
        blocks[action] = env.step(np.array([action], dtype=np.float32))[4]["grad"]["state_action"]
    np.testing.assert_allclose(blocks[3.0], blocks[2.9999], rtol=1e-2)
    assert np.abs(blocks[3.0]).max() > 1e-2


def hopper() -> gym.Env:
    return MujocoGradient(gym.make("Hopper-v5"))


COARSE: dict[str, Any] = {"epsilon": 1e-3, "central": True}
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 1, "device": "cpu"}


def test_gippo_trains_on_hopper() -> None:
    env: Any = hopper()
    model = GIPPO("MlpPolicy", env, **SMALL).learn(48)
    assert model._has_gradients
    assert env._memory.count == 48 / SMALL["n_steps"], "get_state() is dear: once a window is enough"
    gradients = model.rollout_buffer.action_gradients
    assert np.isfinite(gradients).all() and np.abs(gradients).max() > 1e-3
    assert model.alpha_step is not None and model.alpha_step.alpha != model.alpha


def test_gippo_trains_through_the_usual_wrappers() -> None:
    env = make_vec_env("HalfCheetah-v5", 2, seed=1, wrapper_class=MujocoGradient, env_kwargs={"max_episode_steps": 10})
    model = GIPPO("MlpPolicy", VecNormalize(env), **SMALL).learn(64)
    assert model._has_gradients
    assert len(model.ep_info_buffer) > 0


def test_subprocesses_give_the_same_gradients() -> None:
    gradients = []
    for cls in (DummyVecEnv, SubprocVecEnv):
        env = cls([hopper, hopper])  # type: ignore[operator]
        try:
            model = GIPPO("MlpPolicy", env, **SMALL)
            gradients.append(model.learn(32).rollout_buffer.action_gradients)
        finally:
            env.close()
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MujocoGradient(gym.wrappers.RescaleAction(gym.make("Hopper-v5"), np.float32(-2), np.float32(2))),
        lambda: MujocoGradient(gym.wrappers.TransformReward(gym.make("Hopper-v5"), lambda reward: 2 * reward)),
        lambda: gym.wrappers.TransformReward(hopper(), lambda reward: 2 * reward),
        lambda: MujocoGradient(Juggler(), threads=2),
    ],
    ids=["rescaled actions inside", "scaled rewards inside", "scaled rewards outside", "views of arrays and threads"],
)
def test_what_gradients_cannot_follow_is_noticed(make: Callable[[], gym.Env]) -> None:
    with pytest.raises(GradientChannelError):
        GIPPO("MlpPolicy", make(), **SMALL).learn(16)


@pytest.mark.parametrize("rounded", ["actions", "observation", "reward"])
def test_tasks_that_round_to_float32_are_told_so(rounded: str) -> None:
    class Rounding(Juggler):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(np.float32(action) if rounded == "actions" else action)
            if rounded == "observation":
                observation = observation.astype(np.float32)
            return observation, np.float32(reward) if rounded == "reward" else reward, *rest

    fine, coarse = (MujocoGradient(Rounding(), differentiable=True, **kwargs) for kwargs in ({}, COARSE))
    fine.reset(seed=0)
    with pytest.raises(GradientChannelError, match=f"Rounding .* its {rounded}.* float32, which hides differences"):
        fine.step(np.array([0.3, -0.4], dtype=np.float32))
    exact = MujocoGradient(Juggler(), differentiable=True)
    grads = []
    for env in (exact, coarse):
        env.reset(seed=0)
        grads.append(as_matrix(env.step(np.array([0.3, -0.4], dtype=np.float32))[4]["grad"]))
    assert relative_error(grads[1], grads[0]) < 0.02


def test_other_environments_are_refused() -> None:
    with pytest.raises(TypeError, match="PendulumEnv does not"):
        MujocoGradient(gym.make("Pendulum-v1"))
    task = Juggler()
    task.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"needs actions in a Box; those of Juggler are a Discrete\(3\)"):
        MujocoGradient(task)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        MujocoGradient(Juggler(), epsilon=0.0)
    with pytest.raises(ValueError, match=r"shape \(12,\), not \(3,\)"):
        hopper().set_state(np.zeros(3))  # type: ignore[attr-defined]


def test_without_mujoco_the_extra_is_named() -> None:
    code = """
import sys
import sb3_gippo
assert "mujoco" not in sys.modules
sys.modules["mujoco"] = None
sb3_gippo.MujocoGradient
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip().splitlines()[-1].startswith("ImportError: MujocoGradient needs MuJoCo")
    assert "sb3-gippo[mujoco]" in run.stderr
