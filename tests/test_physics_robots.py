"""The robots: their motion, gradients, rewards, starts, ends and pictures."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

mujoco = pytest.importorskip("mujoco", reason="robots are read by MuJoCo")
pytest.importorskip("warp", reason="robots are simulated by Warp")

from gippo_envs.physics import dynamics  # noqa: E402
from gippo_envs.physics.ant import Ant  # noqa: E402
from gippo_envs.physics.half_cheetah import HalfCheetah  # noqa: E402
from gippo_envs.physics.hopper import Hopper  # noqa: E402
from gippo_envs.physics.humanoid import Humanoid  # noqa: E402
from gippo_envs.physics.robot import Robot  # noqa: E402
from gippo_envs.physics.walker2d import Walker2d  # noqa: E402
from sb3_gippo import GIPPO, check_differentiable_env, make_vec_env  # noqa: E402

ROBOTS: list[type[Robot]] = [Hopper, HalfCheetah, Walker2d, Ant, Humanoid]
SIZES = {"Hopper": (11, 3), "HalfCheetah": (17, 6), "Walker2d": (17, 6), "Ant": (37, 8), "Humanoid": (64, 17)}
every_robot = pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.__name__)


def in_contact(core: Robot, n: int) -> th.Tensor:
    """:return: states (n, state_size) after half a second, when the robots have landed"""
    state = core.initial_state(n, th.Generator().manual_seed(1))
    for _ in range(30):
        state, _, _ = core.step(state, th.zeros(n, core.action_dim, dtype=state.dtype))
    return state


def normal_force(core: Robot, state: th.Tensor) -> th.Tensor:
    """:return: of the ground on the whole robot (n,), N"""
    q, v = core.position(state).unbind(1), core.velocity(state).unbind(1)
    moving = dynamics.move(core.tree, q, v, core.constants)
    return sum((th.as_tensor(dynamics.contact(body, core.constants)[1][2]) for body in moving), th.zeros(len(state)).double())


@every_robot
def test_a_second_in_the_air_is_mujocos(robot: type[Robot]) -> None:
    steps = 1000
    nothing = {"contact_stiffness": 0.0, "contact_damping": 0.0, "friction": 0.0, "limit_stiffness": 0.0}
    core = robot(dtype="float64", dt=1 / steps, substeps=1, **nothing)
    model = core.model
    model.opt.timestep = 1 / steps
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    disable = mujoco.mjtDisableBit
    model.opt.disableflags |= disable.mjDSBL_CONTACT | disable.mjDSBL_LIMIT | disable.mjDSBL_EULERDAMP
    data = mujoco.MjData(model)
    state = core.initial_state(1, th.Generator().manual_seed(0))
    action = np.random.default_rng(0).uniform(-0.3, 0.3, core.action_dim)
    data.qpos[:], data.qvel[:] = core.position(state)[0], core.velocity(state)[0]
    data.qfrc_applied[[motor.v for motor in core.tree.motors]] = action * [motor.gear for motor in core.tree.motors]
    start = data.qpos.copy()
    for _ in range(steps):
        mujoco.mj_step(model, data)
        state, _, _ = core.step(state, th.as_tensor(action)[None])
    assert np.abs(data.qpos - start).max() > 1
    np.testing.assert_allclose(core.position(state)[0], data.qpos, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(core.velocity(state)[0], data.qvel, rtol=1e-7, atol=1e-7)


@every_robot
@pytest.mark.parametrize("steps", [1, 8, 32])
def test_gradients_in_contact_are_central_differences(robot: type[Robot], steps: int) -> None:
    n = 8
    core = robot(dtype="float64")
    state = in_contact(core, n)
    assert (normal_force(core, state) > 0).double().mean() > 0.5
    generator = th.Generator().manual_seed(2)
    actions = 0.5 * (2 * th.rand(steps, n, core.action_dim, generator=generator, dtype=th.float64) - 1)
    direction = th.randn(actions.shape, generator=generator, dtype=th.float64)
    push = th.randn(state.shape, generator=generator, dtype=th.float64)

    def total(state: th.Tensor, actions: th.Tensor) -> th.Tensor:
        earned = th.zeros(n, dtype=th.float64)
        for action in actions:
            state, reward, _ = core.step(state, action)
            earned = earned + reward + core.observe(state).sum(1)
        return earned

    state.requires_grad_()
    actions.requires_grad_()
    by_state, by_action = th.autograd.grad(total(state, actions).sum(), (state, actions))
    with th.no_grad():
        for slope, moves in (
            ((by_state * push).sum(1), (push, th.zeros_like(actions))),
            ((by_action * direction).sum((0, 2)), (th.zeros_like(state), direction)),
        ):
            ends = [total(state + sign * 1e-7 * moves[0], actions + sign * 1e-7 * moves[1]) for sign in (1, -1)]
            differences = (ends[0] - ends[1]) / 2e-7
            scale = differences.abs().median()
            assert scale > 0
            # Where the ground is touched just between the two ends, the slope jumps: not in the median.
            assert ((slope - differences).abs() / scale).median() < 1e-5


@pytest.mark.parametrize("robot", [Hopper, Ant], ids=lambda robot: robot.__name__)
@pytest.mark.parametrize("steps", [1, 8, 32])
def test_in_contact_where_no_foot_lands_every_gradient_is_the_central_difference(robot: type[Robot], steps: int) -> None:
    core = robot(dtype="float64")
    start = core.initial_state(4, th.Generator().manual_seed(0))
    generator = th.Generator().manual_seed(1)
    for _ in range(40):
        action = 2 * th.rand(4, core.action_dim, generator=generator, dtype=th.float64) - 1
        start = core.step(start, 0.3 * action)[0]
    generator = th.Generator().manual_seed(2)
    actions = 0.6 * th.rand(steps, 4, core.action_dim, generator=generator, dtype=th.float64) - 0.3
    direction = th.randn(actions.shape, generator=generator, dtype=th.float64)

    def earned(actions: th.Tensor) -> th.Tensor:
        state, total = start, th.zeros(4, dtype=th.float64)
        for action in actions:
            state, reward, _ = core.step(state, action)
            total = total + reward
        return total

    leaf = actions.clone().requires_grad_()
    found = (th.autograd.grad(earned(leaf).sum(), leaf)[0] * direction).sum((0, 2))
    after, before = (earned(actions + sign * 1e-6 * direction) for sign in (1, -1))
    assert found.abs().min() > 1e-3
    np.testing.assert_allclose(found, (after - before) / 2e-6, rtol=1e-5)


def test_gippo_trains_on_a_robot() -> None:
    vec = make_vec_env("DiffHopper-v0", 4, seed=0, env_kwargs={"dtype": "float64"})
    model = GIPPO("MlpPolicy", vec, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    assert model.logger.name_to_value["train/nonfinite_grad_fraction"] == 0.0
    assert model.logger.name_to_value["train/action_grad_norm"] > 0.0


@pytest.mark.parametrize("name", ["Hopper", "Ant"])
def test_the_checker_finds_nothing(name: str) -> None:
    env = gym.make(f"Diff{name}-v0", dtype="float64")
    report = check_differentiable_env(env, n_episodes=2, max_steps=25, n_checked=2)
    assert report.transitions == 4 and report.entries > 500 and report.unjudged < 0.1 * report.entries, str(report)


@every_robot
def test_batched_is_looped(robot: type[Robot]) -> None:
    core = robot(dtype="float64")
    state = in_contact(core, 3)
    action = th.linspace(-1.5, 1.5, 3 * core.action_dim, dtype=th.float64).reshape(3, -1)
    together = core.step(state, action)
    for k in range(3):
        alone = core.step(state[k : k + 1], action[k : k + 1])
        for one, all_ in zip(alone, together):
            assert th.equal(one[0], all_[k])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_robot_goes_its_way_whoever_is_computed_beside_it(dtype: str) -> None:
    core = Hopper(dtype=dtype)
    state = in_contact(core, 13)
    action = th.rand(13, 3, generator=th.Generator().manual_seed(0), dtype=state.dtype)

    def outcome(indices: list[int]) -> th.Tensor:
        x, u = state[indices].requires_grad_(), action[indices].requires_grad_()
        after, reward, _ = core.step(x, u)
        return th.cat([after.detach(), *th.autograd.grad((after.square().sum(1) + reward).sum(), (x, u))], dim=1)

    together = outcome(list(range(13)))
    for few in (1, 3, 8, 9):
        assert th.equal(outcome(list(range(13 - few, 13))), together[-few:]), few
    lost = state.clone()
    lost[4] = math.nan
    alone = core.step(lost, action)[0]
    assert alone[4].isnan().all() and th.equal(alone[:4], together[:4, :12]) and th.equal(alone[5:], together[5:, :12])


def test_steps_without_gradients_are_those_with() -> None:
    core = Ant()
    state, action = core.initial_state(3, th.Generator().manual_seed(0)), th.full((3, 8), 0.4)
    for _ in range(40):
        with_gradients = core.step(state, action.clone().requires_grad_())
        state, *rest = core.step(state, action)
        assert all(th.equal(one, other) for one, other in zip(with_gradients, (state, *rest)))


def test_a_constant_changed_between_steps_counts_from_then_on() -> None:
    core = Hopper(dtype="float64")
    state, action = core.initial_state(1, th.Generator().manual_seed(0)), th.zeros(1, 3, dtype=th.float64)
    before = core.step(state, action)[0]
    core.gravity = 3.7
    changed = core.step(state, action)[0]
    assert not th.equal(changed, before) and th.equal(changed, Hopper(dtype="float64", gravity=3.7).step(state, action)[0])
    core.gravity = 9.81
    assert th.equal(core.step(state, action)[0], before)


@every_robot
def test_random_actions_and_full_ones_leave_all_numbers_finite(robot: type[Robot]) -> None:
    name = robot.__name__
    env = gym.make_vec(f"Diff{name}-v0", num_envs=64, dtype="float64")
    rng = np.random.default_rng(0)
    assert env.observation_space.contains(env.reset(seed=0)[0])
    observation_size, action_size = SIZES[name]
    assert env.observation_space.shape == (64, observation_size) and env.action_space.shape == (64, action_size)
    for step in range(300):
        actions = rng.uniform(-1, 1, env.action_space.shape) if step % 50 < 40 else np.sign(rng.normal(size=(64, action_size)))
        observation, reward, *_ = env.step(actions)
        assert np.isfinite(observation).all() and np.isfinite(reward).all() and np.abs(observation).max() < 1e3


@every_robot
def test_a_robot_that_fell_rests_and_the_ground_carries_it(robot: type[Robot]) -> None:
    core = robot(dtype="float64")
    state = core.initial_state(2, th.Generator().manual_seed(0))
    action = th.zeros(2, core.action_dim, dtype=th.float64)
    for _ in range(900):
        state, _, _ = core.step(state, action)
    assert core.velocity(state).abs().max() < 0.05
    weight = core.model.body_mass.sum() * core.gravity
    np.testing.assert_allclose(normal_force(core, state), weight, rtol=0.02)


def test_contact_is_continuous_and_friction_bounded() -> None:
    core = Hopper(dtype="float64")
    heights = th.linspace(-0.05, -0.03, 2001, dtype=th.float64)
    state = th.zeros(len(heights), 12, dtype=th.float64)
    state[:, 1], state[:, 6], state[:, 7] = heights, 3.0, -0.5
    q, v = core.position(state).unbind(1), core.velocity(state).unbind(1)
    foot = dynamics.move(core.tree, q, v, core.constants)[-1]
    (along, _, up) = dynamics.contact(foot, core.constants)[1]
    touching = up > 0
    assert touching[0] and not touching[-1]
    assert up.diff().abs().max() < 1.0 and along.diff().abs().max() < 1.0
    depth = -(heights + 0.04)[touching]  # of both ends of the foot
    th.testing.assert_close(up[touching], 2 * depth * (2e4 + 1e3 * 0.5), rtol=1e-6, atol=1e-6)
    assert (along[touching] <= 0).all() and (along.abs() <= 0.9 * up + 1e-9).all()
    assert (along.abs()[depth.argmax()] > 0.85 * 0.9 * up[0]).all(), "at 3 m/s it slips"


def test_masses_are_diffrls() -> None:
    for core, mass in ((Hopper(), 15.82001), (Ant(), 182.17602), (HalfCheetah(), 21.184)):
        assert core.model.body_mass.sum() == pytest.approx(mass, rel=1e-5)
    masses = {link.mass for link in Ant().tree.links if link.mass}
    np.testing.assert_allclose(sorted(masses), sorted([7.83155, 13.51844, 96.77605]), rtol=1e-4)
    assert [motor.v for motor in Ant().tree.motors] == list(range(6, 14))
    assert {motor.gear for motor in Hopper().tree.motors} == {200.0}


def test_the_hoppers_reward_start_and_end() -> None:
    core = Hopper(dtype="float64")
    state = core.initial_state(500, th.Generator().manual_seed(0))
    assert state.shape == (500, 12) and 0.045 < state.abs().max() < 0.05
    action = th.full((1, 3), 0.5, dtype=th.float64)
    for z, pitch, speed in ((0.1, 0.2, 1.5), (-0.4, 0.0, 0.0), (0.9, -0.7, -2.0)):
        now = th.zeros(1, 12, dtype=th.float64)
        now[0, 1], now[0, 2], now[0, 6] = z, pitch, speed
        above = min(max(z + 0.3, -1), 0.3)
        height = -200 * above**2 if above < 0 else above
        expected = speed + height + 1 - (pitch / (math.pi / 6)) ** 2 - 0.1 * 0.75
        assert float(core.reward(now, action)) == pytest.approx(expected)
        assert th.equal(core.observe(now), now[:, 1:])
    for z, ends in ((-0.46, True), (-0.44, False), (math.nan, True)):
        now[0, 1] = z
        assert bool(core.terminated(now)) is ends


def test_the_ants_reward_observation_start_and_end() -> None:
    core = Ant(dtype="float64")
    states = core.initial_state(500, th.Generator().manual_seed(0))
    assert states.shape == (500, 15 + 14 + 8) and not states[:, 29:].any()
    th.testing.assert_close(states[:, 3:7].norm(dim=1), th.ones(500, dtype=th.float64))
    turn = 2 * th.acos(states[:, 3].clamp(max=1.0))
    assert 0.9 * math.pi / 24 < turn.max() <= math.pi / 24 + 1e-9
    half = math.radians(90) / 2
    state = core.initial_state(1, th.Generator().manual_seed(0))
    state[0, :7] = th.tensor([3.0, 0.0, 0.6, math.cos(half), 0.0, 0.0, math.sin(half)], dtype=th.float64)  # facing y
    state[0, 15:21] = th.tensor([1.0, 2.0, 3.0, 0.4, 0.5, 0.6], dtype=th.float64)
    observation = core.observe(state)[0]
    assert float(observation[0]) == pytest.approx(0.6)
    np.testing.assert_allclose(observation[5:11], [1.0, 2.0, 3.0, -0.5, 0.4, 0.6], atol=1e-7)
    np.testing.assert_allclose(observation[19:27], 0.1 * state[0, 21:29])
    np.testing.assert_allclose(observation[27:29], [1.0, 0.0], atol=1e-7)
    action = th.ones(1, 8, dtype=th.float64)
    assert float(core.reward(state, action)) == pytest.approx(1.0 + 0.1 + 0.0 + 0.6 - 0.27)
    after, _, ended = core.step(state, 3 * action)
    assert (core.observe(after)[0, 29:] == 1).all(), "the clipped action"
    state[0, 2] = 0.2
    assert not ended and bool(core.terminated(state))


def test_the_humanoids_height_counts_and_lost_states_earn_nothing() -> None:
    core = Humanoid(dtype="float64")
    state = core.initial_state(4, th.Generator().manual_seed(0))
    state[:, :2], state[:, 3:7] = 0.0, th.tensor([1.0, 0.0, 0.0, 0.0])
    state[:, 2] = th.tensor([1.3, 0.8, 0.7, 1.3], dtype=th.float64)
    state[:, 24] = 0.5
    state[3, 24] = 2e6
    reward = core.reward(state, th.zeros(4, 17, dtype=th.float64))
    np.testing.assert_allclose(reward, [0.5 + 1.1 + 1.0, 0.5 + 1.1 - 200 * 0.04**2, 0.5 + 1.1 - 200 * 0.14**2, 0.0])
    assert core.terminated(state).tolist() == [False, False, True, True]


@pytest.mark.parametrize("robot", [HalfCheetah, Walker2d], ids=lambda robot: robot.__name__)
def test_the_other_planar_robots_earn_their_speed(robot: type[Robot]) -> None:
    core = robot(dtype="float64")
    state = core.initial_state(2, th.Generator().manual_seed(0))
    faster = state.clone()
    faster[:, 9] += 1.0
    action = th.ones(2, 6, dtype=th.float64)
    th.testing.assert_close(core.reward(faster, action) - core.reward(state, action), th.ones(2, dtype=th.float64))
    th.testing.assert_close(core.reward(state, 0 * action) - core.reward(state, action), th.full((2,), 0.6).double())
    assert th.equal(core.observe(state), state[:, 1:])


CHANGED: dict[str, Any] = {
    **{"dt": 0.01, "substeps": 8, "gravity": 3.7, "contact_stiffness": 1e4, "contact_damping": 10.0, "friction": 0.2},
    **{"slip_damping": 100.0, "limit_stiffness": 10.0, "start_spread": 0.01, "start_speed_spread": 0.01},
    **{"low": -0.9, "action_cost": 1.0, "upright": 1.0},
}


@pytest.mark.parametrize("name", CHANGED)
def test_every_constant_is_a_keyword_that_matters_without_a_new_kernel(name: str) -> None:
    ends = []
    for kwargs in ({}, {name: CHANGED[name]}):
        env = gym.make("DiffHopper-v0", dtype="float64", **kwargs)
        core: Any = env.unwrapped.core  # type: ignore[attr-defined]
        state = core.initial_state(1, th.Generator().manual_seed(0))
        if not name.startswith("start"):
            state[0] = th.tensor([0.0, -0.3, 0.1, 0.2, -0.3, 0.1, 2.0, -1.0, 0.1, 0.2, 0.3, 0.4])
        ends.append(th.cat([*(part.double().flatten() for part in core.step(state, th.full((1, 3), 0.3).double()))]))
    assert not th.equal(*ends)


def test_the_models_constants_are_keywords() -> None:
    core = Hopper(strength=100.0, mass=20.0, root_damping=0.0, joint_damping=0.0, armature=0.5)
    assert {motor.gear for motor in core.tree.motors} == {100.0} and set(core.tree.armature) == {0.5}
    assert core.tree.damping == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0) and core.model.body_mass.sum() == pytest.approx(20.0)
    ant = Ant(hip_range=0.1, ankle_range=(0.2, 0.3), joint_damping=0.0)
    assert [link.limits for link in ant.tree.links if link.limits] == [
        *((-0.1, 0.1), (0.2, 0.3), (-0.1, 0.1), (-0.3, -0.2)),
        *((-0.1, 0.1), (-0.3, -0.2), (-0.1, 0.1), (0.2, 0.3)),
    ]


def test_wrong_constants_end_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^substeps must be at least 1, not 0\.$"):
        gym.make("DiffHopper-v0", substeps=0)
    with pytest.raises(ValueError, match=r"^dt must be positive, not 0\.0\.$"):
        gym.make("DiffHopper-v0", dt=0.0)
    with pytest.raises(ValueError, match=r"^friction must be 0 or positive, not -1\.0\.$"):
        gym.make("DiffHopper-v0", friction=-1.0)


def test_copies_and_pickles_go_on_as_the_original() -> None:
    env = gym.make_vec("DiffHopper-v0", num_envs=2, dtype="float64")
    env.reset(seed=0)
    env.step(np.zeros((2, 3)))
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(twin.step(np.ones((2, 3)))[0], copy.deepcopy(env).step(np.ones((2, 3)))[0])


def test_float32_is_float64_rounded() -> None:
    double, single = Hopper(dtype="float64"), Hopper()
    state = in_contact(double, 4)
    outcomes = []
    for core in (double, single):
        x = state.to(core.torch_dtype).requires_grad_()
        u = th.full((4, 3), 0.4, dtype=core.torch_dtype, requires_grad=True)
        after, reward, _ = core.step(x, u)
        outcomes.append([part.detach().double() for part in (after, reward, *th.autograd.grad(reward.sum(), (x, u)))])
    for fine, coarse in zip(*outcomes):
        th.testing.assert_close(coarse, fine, rtol=1e-4, atol=1e-4 * float(fine.abs().max()))


def test_pictures_show_the_robot_where_it_is() -> None:
    env = gym.make("DiffHopper-v0", render_mode="rgb_array", dtype="float64")
    env.reset(seed=0)
    pictures = {}
    for name, z in (("low", -0.3), ("high", 0.5)):
        env.unwrapped.set_state(np.array([5.0, z, *np.zeros(10)]))  # type: ignore[attr-defined]
        pictures[name] = np.asarray(env.render())
        assert pictures[name].shape == (360, 480, 3) and pictures[name].dtype == np.uint8
    limbs = {name: np.argwhere((picture == (204, 153, 102)).all(2)) for name, picture in pictures.items()}
    assert all(len(pixels) > 500 for pixels in limbs.values())
    assert all(abs(pixels[:, 1].mean() - 240) < 30 for pixels in limbs.values()), "the camera follows"
    ground = {name: np.argwhere((picture == (225, 225, 220)).all(2))[:, 0].min() for name, picture in pictures.items()}
    assert ground["high"] - limbs["high"][:, 0].max() > 20 > ground["low"] - limbs["low"][:, 0].max()
    for name in ("Ant", "Humanoid"):
        other = gym.make_vec(f"Diff{name}-v0", num_envs=1, render_mode="rgb_array")
        other.reset(seed=0)
        frames = other.render()
        assert frames is not None and len(np.unique(np.asarray(frames[0]).reshape(-1, 3), axis=0)) > 5


def test_pictures_have_the_files_colors_and_what_stands_still() -> None:
    left_leg = pixels(Walker2d(), 18, (178, 76, 153))
    assert len(left_leg) > 300 and len(pixels(Walker2d(), 18, (204, 153, 102))) > 300
    pendulum = Robot("inverted_double_pendulum.xml")
    rail = pixels(pendulum, 6, (76, 76, 178))
    moved = pixels(pendulum, 6, (76, 76, 178), x=0.5)
    assert np.ptp(rail[:, 1]) > 250 and np.ptp(rail[:, 0]) < 15, "two metres, at the same height"
    assert rail[:, 1].min() - moved[:, 1].min() > 50, "the camera follows the cart"


def pixels(core: Robot, size: int, color: tuple[int, int, int], x: float = 0.0) -> np.ndarray:
    """:return: where the robot's picture has this color, (rows, columns) (n, 2)"""
    state = th.zeros(size)
    state[0] = x
    return np.argwhere((np.abs(core.render(state).astype(int) - color) <= 1).all(2))
