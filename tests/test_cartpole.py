"""Cart-pole swing-up obeys its equations of motion, and its reward, spaces and picture are as documented."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from gippo_envs import BatchedEnv, SingleEnv
from gippo_envs.physics.cartpole import CartPoleSwingUp

FREE = {"cart_damping": 0.0, "pole_damping": 0.0, "armature": 0.0, "rail": 1e6, "dtype": "float64"}


def advance(core: CartPoleSwingUp, state: Any, force: float = 0.0, steps: int = 1) -> np.ndarray:
    """:return: the states along the way, (steps + 1, 4)"""
    states = [th.as_tensor(np.array([state]), dtype=core.torch_dtype)]
    action = th.tensor([[force / core.max_force]], dtype=core.torch_dtype)
    for _ in range(steps):
        states.append(core.step(states[-1], action)[0])
    return th.cat(states).numpy()


def reference_step(state: np.ndarray, force: float, frozen: bool = False) -> np.ndarray:
    """The documented equations with their numbers, and a linear solver: 4 substeps of semi-implicit Euler."""
    position, velocity = state[:2].copy(), state[2:].copy()
    h = 1 / 240
    for substep in range(4):
        x, angle = position
        if substep == 0 or not frozen:
            coupling = 1.25 * math.cos(angle)
        mass = np.array([[52.5 + 0.01, coupling], [coupling, 0.833854 + 0.01]])
        spring = 100.0 * (max(-4.0 - x, 0.0) - max(x - 4.0, 0.0))
        push = force - velocity[0] + spring + 1.25 * velocity[1] ** 2 * math.sin(angle)
        twist = 12.2625 * math.sin(angle) - velocity[1]
        velocity = velocity + h * np.linalg.solve(mass, [push, twist])
        position = position + h * velocity
    return np.concatenate([position, velocity])


@pytest.mark.parametrize("frozen", [False, True])
def test_one_step_is_the_equations_solved_independently(frozen: bool) -> None:
    core = CartPoleSwingUp(dtype="float64", frozen_mass_matrix=frozen)
    rng = np.random.default_rng(0)
    for _ in range(50):
        state = rng.normal(scale=[4.0, 3.0, 3.0, 5.0])  # beyond both ends of the rail as well
        force = rng.uniform(-1000, 1000)
        np.testing.assert_allclose(
            advance(core, state, force)[1], reference_step(state, force, frozen), rtol=1e-12, atol=1e-12
        )


def test_the_frozen_mass_matrix_is_another_integrator_of_the_same_equations() -> None:
    state = [0.0, -2.0, 1.0, 4.0]
    steps = 24
    apart = []
    for substeps in (4, 8):  # at a given step the mass matrix is frozen for as long, whatever the substeps
        ends = [
            advance(CartPoleSwingUp(dtype="float64", substeps=substeps, frozen_mass_matrix=f), state, 500, steps)[-1]
            for f in (0, 1)
        ]
        apart.append(np.abs(ends[0] - ends[1]).max())
    assert min(apart) > 1e-3
    shorter = {"dtype": "float64", "dt": 1 / 960}
    ends = [advance(CartPoleSwingUp(frozen_mass_matrix=f, **shorter), state, 500, 16 * steps)[-1] for f in (False, True)]
    assert np.abs(ends[0] - ends[1]).max() < min(apart) / 10


def energy(core: CartPoleSwingUp, states: np.ndarray) -> np.ndarray:
    _, angle, speed, spin = states.T
    moment = core.pole_mass * core.pole_length / 2
    inertia = core.pole_inertia + moment * core.pole_length / 2
    kinetic = (
        0.5 * (core.cart_mass + core.pole_mass) * speed**2 + moment * speed * spin * np.cos(angle) + 0.5 * inertia * spin**2
    )
    return kinetic + moment * core.gravity * np.cos(angle)


def test_energy_and_momentum_are_kept_in_the_limit_of_short_substeps() -> None:
    start = [0.3, 0.6, 0.5, -1.0]
    drifts = []
    for substeps in (4, 16, 64):
        core = CartPoleSwingUp(substeps=substeps, cart_mass=3.0, **FREE)
        states = advance(core, start, steps=120)
        energies = energy(core, states)
        drifts.append(np.abs(energies - energies[0]).max() / np.ptp(core.pole_mass * core.gravity * np.cos(states[:, 1]) / 2))
        momentum = (core.cart_mass + core.pole_mass) * states[:, 2] + 1.25 * states[:, 3] * np.cos(states[:, 1])
    assert np.ptp(states[:, 1]) > 3, "the pole swings widely"
    assert drifts[1] < drifts[0] / 3 and drifts[2] < drifts[1] / 3 and drifts[2] < 5e-3, drifts
    np.testing.assert_allclose(momentum, momentum[0], atol=2e-2)


def test_small_swings_have_the_period_of_a_compound_pendulum() -> None:
    half_period = math.pi * math.sqrt(0.833854 / 12.2625)
    core = CartPoleSwingUp(cart_mass=1e12, dt=half_period / 200, substeps=10, **FREE)
    states = advance(core, [0.0, -math.pi + 0.01, 0.0, 0.0], steps=200)
    assert states[-1, 1] + math.pi == pytest.approx(-0.01, rel=1e-3)
    assert abs(states[100, 1] + math.pi) < 1e-4


def test_rest_stays_rest_and_upright_is_unstable() -> None:
    core = CartPoleSwingUp(dtype="float64")
    for angle in (0.0, -math.pi):
        np.testing.assert_allclose(advance(core, [0.7, angle, 0.0, 0.0], steps=60)[-1], [0.7, angle, 0.0, 0.0], atol=1e-11)
    assert abs(advance(core, [0.0, 1e-3, 0.0, 0.0], steps=60)[-1, 1]) > 1e-2
    assert abs(advance(core, [0.0, -math.pi + 1e-3, 0.0, 0.0], steps=60)[-1, 1] + math.pi) < 1e-3


def test_damping_brings_a_free_cart_to_rest_exponentially() -> None:
    core = CartPoleSwingUp(dtype="float64", cart_damping=52.5, armature=0.0, pole_mass=0.0, rail=1e6, substeps=100)
    speeds = advance(core, [0.0, 0.0, 2.0, 0.0], steps=60)[:, 2]
    np.testing.assert_allclose(speeds, 2.0 * np.exp(-52.5 / 50 * np.arange(61) / 60), rtol=1e-4)


def test_the_rail_ends_push_back_and_nothing_does_in_between() -> None:
    core = CartPoleSwingUp(dtype="float64", cart_damping=0.0)
    hanging = -math.pi
    for side in (1.0, -1.0):
        assert side * advance(core, [side * 4.5, hanging, 0.0, 0.0])[1, 2] < 0
        assert advance(core, [side * 3.9, hanging, 0.0, 0.0])[1, 2] == pytest.approx(0.0, abs=1e-12)


def test_reward_is_that_of_the_state_after_the_step() -> None:
    env = gym.make("CartPoleSwingUp-v0", dtype="float64")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        observation, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 1))
        x, speed, sine, cosine, spin = observation
        angle = math.atan2(sine, cosine)
        assert reward == pytest.approx(-(angle**2) - 0.1 * spin**2 - 0.05 * x**2 - 0.1 * speed**2, rel=1e-12)
        np.testing.assert_allclose(env.unwrapped.get_state()[[0, 2, 3]], [x, speed, spin])  # type: ignore[attr-defined]
        assert not terminated and not truncated


def test_full_turns_change_nothing_but_the_state() -> None:
    core = CartPoleSwingUp(dtype="float64")
    action = th.tensor([[0.3]], dtype=th.float64)
    results = []
    for turns in (0, 1, -2):
        state = th.tensor([[0.1, 2.9 + 2 * math.pi * turns, -0.4, 1.5]], dtype=th.float64)
        following, reward, _ = core.step(state, action)
        results.append((core.observe(following), reward))
        assert abs(following[0, 1] - state[0, 1]) < 0.1, "the angle of the state is not wrapped"
    for observation, reward in results[1:]:
        th.testing.assert_close(observation, results[0][0], rtol=1e-12, atol=1e-12)
        th.testing.assert_close(reward, results[0][1], rtol=1e-12, atol=1e-12)


def test_actions_beyond_the_box_push_no_harder() -> None:
    core = CartPoleSwingUp(dtype="float64")
    np.testing.assert_array_equal(
        advance(core, [0.0, 1.0, 0.0, 0.0], 5000.0)[1], advance(core, [0.0, 1.0, 0.0, 0.0], 1000.0)[1]
    )


def test_starts_hang_within_the_spread() -> None:
    states = CartPoleSwingUp(dtype="float64").initial_state(4000, th.Generator().manual_seed(0)).numpy()
    center, width = np.array([0.0, -math.pi, 0.0, 0.0]), np.array([math.pi, math.pi, 0.5, 0.5])
    offsets = (states - center) / width
    assert np.abs(offsets).max() < 0.5
    np.testing.assert_allclose(offsets.mean(0), 0.0, atol=0.03)
    np.testing.assert_allclose(offsets.std(0), 1 / math.sqrt(12), rtol=0.03)


def test_episodes_last_240_steps_in_both_faces() -> None:
    env = gym.make("CartPoleSwingUp-v0")
    env.reset(seed=0)
    together = gym.make_vec("CartPoleSwingUp-v0", num_envs=2)
    together.reset(seed=0)
    for step in range(1, 241):
        *_, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
        *_, all_terminated, all_truncated, _ = together.step(np.zeros((2, 1), dtype=np.float32))
        assert (terminated, truncated) == (False, step == 240)
        assert (all_terminated.tolist(), all_truncated.tolist()) == ([False] * 2, [step == 240] * 2)


CONSTANTS = {
    "dt": 0.01,
    "substeps": 2,
    "gravity": 3.7,
    "cart_mass": 10.0,
    "pole_mass": 4.0,
    "pole_length": 2.0,
    "pole_inertia": 0.5,
    "armature": 1.0,
    "cart_damping": 9.0,
    "pole_damping": 0.0,
    "rail": 0.5,
    "rail_stiffness": 10.0,
    "max_force": 50.0,
    "frozen_mass_matrix": True,
}


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_every_constant_is_a_keyword_and_matters(name: str) -> None:
    ends = []
    for kwargs in ({}, {name: CONSTANTS[name]}):
        env = gym.make("CartPoleSwingUp-v0", dtype="float64", **kwargs)
        batched = gym.make_vec("CartPoleSwingUp-v0", num_envs=1, dtype="float64", **kwargs)
        assert isinstance(env.unwrapped, SingleEnv) and isinstance(batched, BatchedEnv)
        env.reset(seed=0)
        batched.reset(seed=0)
        state = np.array([4.2, 1.0, 0.5, 2.0])
        env.unwrapped.set_state(state)
        batched.set_state(state[None])
        env.step(np.array([0.5]))
        batched.step(np.array([[0.5]]))
        ends.append(env.unwrapped.get_state())
        np.testing.assert_array_equal(ends[-1], batched.get_state()[0])
    assert not np.array_equal(*ends)


def test_the_start_spreads_are_keywords() -> None:
    env = gym.make("CartPoleSwingUp-v0", start_spread=0.0, start_speed_spread=0.0, dtype="float64")
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation, [0.0, 0.0, 0.0, -1.0, 0.0], atol=1e-12)


def test_wrong_constants_end_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^substeps must be at least 1, not 0\.$"):
        gym.make("CartPoleSwingUp-v0", substeps=0)
    for name in ("dt", "cart_mass", "pole_length"):
        with pytest.raises(ValueError, match=rf"^{name} must be positive, not 0\.0\.$"):
            gym.make("CartPoleSwingUp-v0", **{name: 0.0})
    for name in ("pole_mass", "pole_inertia", "armature", "cart_damping", "pole_damping", "rail", "rail_stiffness"):
        with pytest.raises(ValueError, match=rf"^{name} must be 0 or positive, not -1\.0\.$"):
            gym.make("CartPoleSwingUp-v0", **{name: -1.0})
    with pytest.raises(TypeError, match="pole_lenght"):
        gym.make("CartPoleSwingUp-v0", pole_lenght=1.0)


def test_the_picture_shows_cart_and_pole() -> None:
    env = gym.make("CartPoleSwingUp-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.metadata["render_fps"] == 60 == round(1 / CartPoleSwingUp.dt)
    pictures = {}
    for name, state in {
        "left": [-2.0, 0.0, 0.0, 0.0],
        "right": [2.0, 0.0, 0.0, 0.0],
        "hanging": [-2.0, math.pi, 0.0, 0.0],
    }.items():
        env.unwrapped.set_state(np.array(state))  # type: ignore[attr-defined]
        pictures[name] = np.asarray(env.render())
        assert pictures[name].shape == (300, 600, 3) and pictures[name].dtype == np.uint8
    dark = {name: np.argwhere(picture.max(2) < 80) for name, picture in pictures.items()}  # the cart
    wood = {name: np.argwhere((picture == (202, 152, 101)).all(2)) for name, picture in pictures.items()}  # the pole
    # 4 m are 4 · 60 pixels, and the pole ends 1 m above or below.
    assert dark["right"][:, 1].mean() - dark["left"][:, 1].mean() == pytest.approx(240, abs=1)
    hinge = dark["left"][:, 0].mean()
    assert hinge - wood["left"][:, 0].min() == pytest.approx(60, abs=6)
    assert wood["hanging"][:, 0].max() - hinge == pytest.approx(60, abs=6)
    batched = gym.make_vec("CartPoleSwingUp-v0", num_envs=2, render_mode="rgb_array")
    batched.reset(seed=0)
    frames = batched.render()
    assert frames is not None and len(frames) == 2 and not np.array_equal(frames[0], frames[1])
