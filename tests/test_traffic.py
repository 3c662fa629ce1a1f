"""The pace-car environments: the paper's numbers, an independent simulation, and gradients where there are some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.error import DependencyNotInstalled

from gippo_envs import BatchedEnv, SingleEnv
from gippo_envs.core import jacobians, transition
from gippo_envs.traffic.idm import IDM, acceleration, next_speed
from gippo_envs.traffic.pace_car import RANDOMIZED, PaceCar
from sb3_gippo import TorchVecEnv, make_vec_env
from tests.reference import difference_gradients
from tests.test_action_gradients import assert_close, rollout

SCENARIOS = {"A": (1, 1), "B": (2, 4), "C": (3, 9), "D": (4, 16), "E": (10, 10)}


def core(scenario: str = "B", **constants: Any) -> PaceCar:
    lanes, vehicles = SCENARIOS[scenario]
    return PaceCar(**{"lanes": lanes, "vehicles": vehicles, "dtype": "float64", **constants})


def state_of(pace: tuple[float, float, float, float], s: list[float], speeds: list[float]) -> th.Tensor:
    return th.tensor([[*pace, *s, *speeds]], dtype=th.float64)


def action_of(steering: float = 0.0, push: float = 0.0) -> th.Tensor:
    return th.tensor([[steering, push]], dtype=th.float64)


def start(problem: PaceCar, n: int = 1, seed: int = 0, lane: int | None = None) -> th.Tensor:
    options = None if lane is None else {"lane": lane}
    return problem.initial_state(n, th.Generator().manual_seed(seed), options)


def states_of_drives(problem: PaceCar, n: int = 24, steps: int = 60) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """States and actions along drives of a clumsy driver among others at speed, in front of them and across lanes."""
    rng = np.random.default_rng(0)
    state, steering = start(problem, n), np.zeros(n)
    state[:, 0] += th.tensor(rng.uniform(0, 15, n))
    state[:, 3] = th.tensor(rng.uniform(8, 16, n))
    state[:, 4 + problem.vehicles : 4 + 2 * problem.vehicles] = th.tensor(rng.uniform(5, 15, (n, problem.vehicles)))
    alive = th.ones(n, dtype=th.bool)
    for _ in range(steps):
        steering = 0.9 * steering + 0.3 * rng.normal(size=n)
        # Steer back to the road's direction, or the drive is a short one.
        straight = steering - 2 * state[:, 2].numpy()
        action = th.tensor(np.stack([straight, rng.uniform(-0.6, 1.0, n)], 1)).clamp(-0.99, 0.99)
        yield state[alive], action[alive]
        state, _, terminated = problem.step(state, action)
        alive = alive & ~terminated


def simulate(problem: PaceCar, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, set[str]]:
    """One step by loops over vehicles, leaders sought among all vehicles: next state, observation, reward and failures."""
    n, half = problem.vehicles, problem.lane_width / 2
    centers = [problem.lane_width * lane for lane in range(problem.lanes)]
    lane_of = [lane for lane in range(problem.lanes) for _ in range(n // problem.lanes + (lane < n % problem.lanes))]
    x, y, heading, speed = state[:4]
    s, v = state[4 : 4 + n], state[4 + n : 4 + 2 * n]
    constants = np.array([[getattr(problem.idm, name)] * n for name in RANDOMIZED])
    if problem.randomize:
        constants = state[4 + 2 * n :].reshape(len(RANDOMIZED), n)
    present = [k for k in range(n) if s[k] < 1e6]

    def own_lane(x: float, y: float) -> int:
        distances = [abs(y - center) + max(x - 1e6, 0) + max(-x, 0) for center in centers]
        return int(np.argmin(distances)) if min(distances) < half else -1

    next_s, next_v = s.copy(), v.copy()
    for k in present:
        candidates = [(s[j] - s[k], v[j]) for j in present if j != k and lane_of[j] == lane_of[k]]
        candidates.append((x - s[k], speed) if own_lane(x, y) == lane_of[k] else (np.inf, 0.0))
        distance, leader_speed = min((d, lead) for d, lead in [*candidates, (np.inf, 0.0)] if d >= 0)
        a, b, desired, s0, headway = constants[:, k]
        rearmost = min(s[j] for j in present if lane_of[j] == lane_of[k])
        free = 1e6 - s[k] - problem.length / 2 + rearmost - problem.length / 2
        gap, approach = distance - problem.length, v[k] - leader_speed
        if gap > free:
            gap, approach = free, 0.0
        wish = max(s0 + v[k] * headway + v[k] * approach / (2 * math.sqrt(a * b)), 0.0)
        push = a * (1 - (v[k] / desired) ** 4 - (wish / max(gap, 1e-3)) ** 2)
        next_s[k], next_v[k] = s[k] + v[k] * problem.dt, max(v[k] + push * problem.dt, 0.0)

    steering, push = math.radians(20) * action[0], 8 * action[1]
    slip = math.atan(math.tan(steering) / 2)
    if speed > 40:
        push = max(push, 40 - speed)
    if speed < -40:
        push = min(push, -40 - speed)
    x, y = x + speed * math.cos(heading + slip) * problem.dt, y + speed * math.sin(heading + slip) * problem.dt
    heading = heading + speed * math.sin(slip) / (problem.length / 2) * problem.dt
    speed = speed + push * problem.dt

    distances = [math.hypot(x - next_s[k], y - centers[lane_of[k]]) for k in present]
    tests = {
        "collision": min(distances) < problem.collision_distance,
        "far": min(distances) > problem.max_distance,
        "behind": any(x < next_s[k] for k in present),
        "out": own_lane(x, y) == -1,
    }
    failures = {name for name, failed in tests.items() if failed}
    error = np.mean([abs(next_v[k] - 10) / 10 for k in present])
    seen = np.isin(np.arange(n), present)
    observation = np.concatenate(
        [
            [0.0, *np.where(seen, next_s - x, 0.0)],
            [0.0, *np.where(seen, np.array(centers)[lane_of] - y, 0.0)],
            [speed * math.cos(heading), *np.where(seen, next_v, 0.0)],
            [speed * math.sin(heading), *np.zeros(n)],
        ]
    )
    next_state = np.concatenate([[x, y, heading, speed], next_s, next_v, state[4 + 2 * n :]])
    return next_state, observation, -1.0 if failures else 1 - min(error, 1.0), failures


def test_reference_trajectory() -> None:
    # step: x and v of the follower, x and v of the pace car, reward
    expected: dict[int, tuple[float | None, ...]] = {
        1: (None, 1.048833, 50.0, 0.12, 0.104883),
        10: (1.406934, 10.290667, 50.162, 1.2, 0.970933),
        50: (22.499548, 18.829210, 54.41, None, 0.117079),
        100: (49.487714, 16.927667, 67.82, None, 0.307233),
        200: (100.595572, 18.680935, 121.64, None, None),
    }
    env = gym.make("PaceCarA-v0", dtype="float64")
    env.reset(options={"lane": 0})
    for step in range(1, 201):
        reward = env.step(np.array([0.0, 0.5]))[1]
        if step in expected:
            x, _, _, v, s, speed = env.unwrapped.get_state()  # type: ignore[attr-defined]
            for found, value in zip((s, speed, x, v, reward), expected[step]):
                assert value is None or found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "scenario, action, length, total, reason",
    [
        ("A", (0, 0.5), 378, 57.40, "far"),
        ("B", (0, 0), 95, 33.17, "behind"),
        ("C", (0, 1), 222, 51.87, "far"),
        ("D", (0, 0.5), 396, 92.45, "far"),
        ("E", (0, 0), 95, 13.42, "behind"),
    ],
)
def test_constant_action_returns(scenario: str, action: tuple[float, float], length: int, total: float, reason: str) -> None:
    env = gym.make(f"PaceCar{scenario}-v0", dtype="float64")
    env.reset(options={"lane": 0})
    steps, returned, terminated = 0, 0.0, False
    while not terminated:
        before = env.unwrapped.get_state()  # type: ignore[attr-defined]
        _, reward, terminated, truncated, _ = env.step(np.array(action, dtype=np.float64))
        steps, returned = steps + 1, returned + float(reward)
        assert not truncated
    assert steps == length
    assert returned == pytest.approx(total, abs=0.005)
    assert simulate(env.unwrapped.core, before, np.array(action))[3] == {reason}  # type: ignore[attr-defined]


@pytest.mark.parametrize("randomize", [False, True])
@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_equals_an_independent_simulation(scenario: str, randomize: bool) -> None:
    problem = core(scenario, start_gap=8.0, max_distance=24.0, randomize=randomize)
    reasons, followed = set(), 0
    for states, actions in states_of_drives(problem, n=12, steps=50):
        next_states, rewards, terminated = problem.step(states, actions)
        observations = problem.observe(next_states)
        alone = states.clone()
        alone[:, 1] = 1e3
        followed += int((next_states[:, 4:] != problem.step(alone, actions)[0][:, 4:]).any(1).sum())
        for k in range(len(states)):
            state, observation, reward, failures = simulate(problem, states[k].numpy(), actions[k].numpy())
            reasons |= failures
            np.testing.assert_allclose(next_states[k], state, rtol=1e-10, atol=1e-8)
            np.testing.assert_allclose(observations[k], observation, rtol=1e-10, atol=1e-8)
            assert rewards[k].item() == pytest.approx(reward, abs=1e-8)
            assert bool(terminated[k]) == bool(failures)
    assert followed > 20 and reasons, f"the drives show too little: {followed}, {reasons}"


def test_bounds_of_the_pace_cars_acceleration_beyond_its_speed_limit() -> None:
    problem = core("A")
    for speed in (39.0, 41.0, 45.0, 50.0, -39.0, -41.0, -45.0, -50.0):
        for push in (-1.0, -0.3, 0.0, 0.3, 1.0):
            state, action = state_of((60.0, 0.0, 0.0, speed), [0.0], [5.0]), action_of(0.1, push)
            expected = simulate(problem, state[0].numpy(), action[0].numpy())[0]
            np.testing.assert_allclose(problem.step(state, action)[0][0], expected, rtol=1e-12)


def test_actions_are_clipped_to_the_box() -> None:
    state = state_of((60.0, 0.0, 0.0, 5.0), [0.0], [5.0])
    beyond, at = (core("A").step(state, action_of(*action))[0] for action in ((-3.0, 2.0), (-1.0, 1.0)))
    assert th.equal(beyond, at)


VARIANTS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "soft": {"lane_softness": 0.5},
    "randomized": {"randomize": True},
    "both": {"randomize": True, "lane_softness": 0.5},
}


@pytest.mark.parametrize("scenario", ["B", "C"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_gradients_are_central_differences(scenario: str, variant: str) -> None:
    problem = core(scenario, start_gap=8.0, **VARIANTS[variant])
    n = problem.state_size
    reacts, sidewards = 0, 0
    drives = list(states_of_drives(problem, n=4, steps=50))[4::5]
    for state, action in ((s[None], a[None]) for states, actions in drives for s, a in zip(states, actions)):
        grad = jacobians(problem, state, action)
        found = np.block(
            [
                [grad["state_state"], grad["state_action"]],
                [grad["obs_state"], grad["obs_action"]],
                [grad["reward_state"][None], grad["reward_action"][None]],
            ]
        )
        step = 1e-6
        inputs = th.cat([state, action], dim=1)
        nudged = inputs + step * th.cat([th.eye(n + 2), -th.eye(n + 2)]).double()
        following, reward, _ = problem.step(nudged[:, :n], nudged[:, n:])
        outputs = th.cat([following, problem.observe(following), reward[:, None]], dim=1)
        expected = ((outputs[: n + 2] - outputs[n + 2 :]) / (2 * step)).T.numpy()
        # Beside an empty place, 2e6 m away, positions carry few digits.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3 if problem.randomize else 1e-6)
        speeds = grad["state_state"][4 + problem.vehicles : 4 + 2 * problem.vehicles]
        reacts += bool(speeds[:, 0].any() and speeds[:, 3].any())
        sidewards += bool(speeds[:, 1].any())
    assert reacts > 3
    assert sidewards > 3 if problem.lane_softness else sidewards == 0


def test_an_action_moves_the_followers_in_the_next_step_only() -> None:
    problem = core("B", lanes=1, vehicles=2)
    first = state_of((20.0, 0.0, 0.1, 8.0), [0.0, 10.0], [9.0, 9.0])
    step = jacobians(problem, first, action_of(0.2, 0.3))
    np.testing.assert_array_equal(step["state_action"][4:], 0.0)
    np.testing.assert_array_equal(step["reward_action"], 0.0)
    assert step["state_action"][3, 1] == pytest.approx(0.03 * 8)
    second = problem.step(first, action_of(0.2, 0.3))[0]
    through_speed = jacobians(problem, second, action_of())["state_state"][4 + 2 + 1, 3]
    assert through_speed > 0, "a faster pace car lets its follower drive faster"


@pytest.mark.parametrize(
    "case",
    ["pace car alone in its lane", "failure", "reward clipped at 0", "gap floored, follower stopped", "desired gap clipped"],
)
def test_gradients_are_zero_by_nature(case: str) -> None:
    problem = core("B", lanes=2, vehicles=2)
    pace, s, speeds = {
        # The follower of lane 1 keeps its free road, whatever the car in lane 0 does beside it.
        "pace car alone in its lane": ((20.0, 0.5, 0.1, 8.0), [-60.0, 14.0], [9.0, 9.0]),
        "failure": ((130.0, 0.0, 0.0, 8.0), [10.0, 10.0], [9.0, 9.0]),
        "reward clipped at 0": ((40.0, 0.0, 0.0, 8.0), [10.0, 10.0], [60.0, 60.0]),
        "gap floored, follower stopped": ((14.0, 0.0, 0.0, 8.0), [10.0, 10.0], [9.0, 9.0]),
        "desired gap clipped": ((19.0, 0.0, 0.0, 90.0), [10.0, 10.0], [9.0, 9.0]),
    }[case]
    state, action = state_of(pace, s, speeds), action_of(0.1, 0.2)
    grad = jacobians(problem, state, action)
    following, reward, terminated = problem.step(state, action)
    by_pace = grad["state_state"][6:, :4]
    assert not grad["state_state"][4:, 1:3].any(), "lateral position and heading have no effect within a lane"
    if case == "pace car alone in its lane":
        assert not by_pace[1].any()
    elif case == "failure":
        assert terminated and reward == -1
        assert not grad["reward_state"].any()
        assert grad["state_state"].any()
    elif case == "reward clipped at 0":
        assert reward == 0 and not grad["reward_state"].any()
    elif case == "gap floored, follower stopped":
        assert following[0, 6] == 0 and not grad["state_state"][6].any()
    else:
        assert not by_pace[0].any()
        assert grad["state_state"][6, 6] != 0, "the free-road term remains"


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_finite_everywhere(variant: str, dtype: str) -> None:
    problem = core("C", dtype=dtype, **VARIANTS[variant])
    rng = np.random.default_rng(0)
    states = start(problem, 2000).numpy()
    n = problem.vehicles
    states[:, 0] = rng.uniform(-5, 60, 2000)
    states[:, 1] = rng.choice([0, 2, 4, 5.9, 6, 8, -2, 30], 2000)
    states[:, 2], states[:, 3] = rng.normal(size=2000), rng.choice([0, 5, -60, 60], 2000)
    # Bumper to bumper, into one another, and at the very same place as the pace car.
    states[:, 4 : 4 + n] += rng.uniform(0, 4, (2000, n)) * rng.choice([0, 1, 2], (2000, 1))
    states[:200, 0] = states[:200, 4]
    states[:, 4 + n : 4 + 2 * n] = rng.choice([0, 10, 20], (2000, n))
    step = transition(problem, th.tensor(states), th.ones(2000, 2, dtype=problem.torch_dtype), differentiable=True)
    for output in (step.next_state, step.observation, step.reward):
        assert output.isfinite().all()
        for gradient in th.autograd.grad(output.sum(), (step.state, step.action), retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize(
    "reason, pace",
    [
        ("collision", (13.0, 1.5, 0.0, 8.0)),
        ("out", (40.0, -2.1, 0.0, 8.0)),
        ("out", (40.0, 6.1, 0.0, 8.0)),
        ("out", (40.0, 2.0, 0.0, 0.0)),  # on the border between two lanes it is in none
        ("far", (112.0, 0.0, 0.0, 8.0)),
        ("behind", (9.5, 0.0, 0.0, 8.0)),  # of the one in the other lane
    ],
)
def test_failures_terminate(reason: str, pace: tuple[float, float, float, float]) -> None:
    env = gym.make("PaceCar-v0", lanes=2, vehicles=2, dtype="float64", differentiable=True)
    env.reset(options={"lane": 0})
    s = [5.0, 11.0] if reason == "behind" else [11.0, 11.0]
    state, action = state_of(pace, s, [9.0, 9.0])[0].numpy(), np.zeros(2)
    if reason == "behind":
        state[1] = -1.0
    env.unwrapped.set_state(state)  # type: ignore[attr-defined]
    following, _, _, failures = simulate(env.unwrapped.core, state, action)  # type: ignore[attr-defined]
    _, reward, terminated, truncated, info = env.step(action)
    assert reason in failures
    np.testing.assert_allclose(env.unwrapped.get_state(), following, rtol=1e-10)  # type: ignore[attr-defined]
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert not info["grad"]["reward_state"].any()


def hold(observation: np.ndarray) -> np.ndarray:
    """Drive at 10 m/s (one follower: vx of the pace car is entry 4)."""
    push = np.clip(10.0 - observation[..., 4], -1, 1)
    return np.stack([np.zeros_like(push), push], axis=-1)


def test_time_limit_truncates() -> None:
    env = gym.make("PaceCarA-v0", dtype="float64")
    observation, _ = env.reset(seed=0)
    total = 0.0
    for step in range(1, 1001):
        observation, reward, terminated, truncated, _ = env.step(hold(observation))
        total += float(reward)
        assert not terminated and truncated == (step == 1000)
    assert total > 850, "behind a pace car at 10 m/s everybody drives 10 m/s"


def test_time_limit_truncates_the_batch() -> None:
    env = gym.make_vec("PaceCarA-v0", num_envs=3, dtype="float64")
    observation, _ = env.reset(seed=0)
    first = observation.copy()
    for step in range(1, 1001):
        observation, _, terminated, truncated, infos = env.step(hold(observation))
        assert not terminated.any() and truncated.all() == (step == 1000)
    np.testing.assert_array_equal(observation, first)
    np.testing.assert_allclose(np.stack(infos["final_obs"])[:, 4], 10.0, atol=0.1)


def test_lane_option() -> None:
    env = gym.make("PaceCarC-v0")
    for lane in range(3):
        env.reset(options={"lane": lane})
        x, y, heading, speed, *_ = env.unwrapped.get_state()  # type: ignore[attr-defined]
        assert (x, y, heading, speed) == (70.0, 4.0 * lane, 0.0, 0.0)
    for wrong in (3, -1, 0.5, "left"):
        with pytest.raises(ValueError, match="integer from 0 to 2"):
            env.reset(options={"lane": wrong})


def test_starts() -> None:
    for scenario, x in zip("ABCDE", (50.0, 60.0, 70.0, 80.0, 50.0)):
        lanes, vehicles = SCENARIOS[scenario]
        states = start(core(scenario), 500)
        assert states.shape == (500, 4 + 2 * vehicles)
        assert (states[:, 0] == x).all()
        counts = th.bincount((states[:, 1] / 4).long(), minlength=lanes)
        assert len(counts) == lanes and (counts > 0.5 * 500 / lanes).all(), "any lane is as likely as another"
        np.testing.assert_array_equal(states[0, 4 : 4 + vehicles], [10.0 * k for k in range(vehicles // lanes)] * lanes)
        assert not states[:, 4 + vehicles :].any()
    uneven = start(PaceCar(lanes=3, vehicles=4), 1, lane=1)
    assert uneven[0, 4:8].tolist() == [0.0, 10.0, 0.0, 0.0], "what remains goes to the first lanes"
    assert uneven[0, 0] == 50.0


@pytest.mark.parametrize("randomize", [False, True])
def test_batched_is_looped(randomize: bool) -> None:
    problem: dict[str, Any] = {"lanes": 3, "vehicles": 7, "start_gap": 8.0, "dtype": "float64", "randomize": randomize}
    batched = BatchedEnv(PaceCar, 6, **problem)
    batched.reset(seed=1)
    states = batched.get_state()
    singles = [SingleEnv(PaceCar, **problem) for _ in states]
    for env, state in zip(singles, states):
        env.reset()
        env.set_state(state)
    rng = np.random.default_rng(2)
    running = np.ones(6, dtype=bool)
    for _ in range(40):
        actions = rng.uniform([-0.3, -0.5], [0.3, 1.0], (6, 2))
        observations, rewards, terminated, _, infos = batched.step(actions)
        for index in np.flatnonzero(running):
            observation, reward, ended, _, _ = singles[index].step(actions[index])
            shown = infos["final_obs"] if ended else observations
            np.testing.assert_array_equal(observation, shown[index])
            assert (reward, ended) == (rewards[index], terminated[index])
        running &= ~terminated
    assert 0 < running.sum() < 6


@pytest.mark.parametrize("constants", [{"randomize": True}, {"randomize": True, "lane_softness": 0.5}])
def test_action_gradients_stop_at_resets(constants: dict[str, Any]) -> None:
    # Followers close behind react within the window; episodes end by time, or as too far ahead where places are empty.
    constants = {**constants, "lanes": 2, "vehicles": 4, "start_gap": 7.0, "max_distance": 16.0, "dtype": "float64"}
    env = TorchVecEnv(BatchedEnv(PaceCar, 3, max_episode_steps=7, **constants))
    model, record = rollout(env, 17, policy_kwargs={"squash_actions": True})
    dones, truncated = np.array(record.dones), np.array(record.truncated)
    assert (dones[:-2] & truncated[:-2]).any() and (dones[:-2] & ~truncated[:-2]).any()
    assert_close(model, difference_gradients(model, PaceCar(**constants), record), 1e-5)


def test_a_step_after_a_reset_starts_a_graph_of_its_own() -> None:
    env = BatchedEnv(PaceCar, 2, differentiable=True, lanes=2, vehicles=4, dtype="float64")
    env.reset(seed=0)
    states = env.get_state()
    states[0, 0] = 300.0
    env.set_state(states)
    _, _, terminated, _, _ = env.step(np.zeros((2, 2)))
    before = env.transition
    env.step(np.zeros((2, 2)))
    after = env.transition
    assert terminated.tolist() == [True, False] and before is not None and after is not None
    assert before.next_state[0, 0] == 300.0 and after.state[0, 0] == 60.0
    (through,) = th.autograd.grad(after.reward.sum(), before.state, allow_unused=True)
    assert through is None


def test_randomized_episodes() -> None:
    problem = core("D", randomize=True, spread=0.3)
    n = problem.vehicles
    assert problem.observation_space.shape == core("D").observation_space.shape
    states = start(problem, 400, seed=3)
    assert states.shape == (400, problem.state_size) == (400, 4 + 7 * n)
    there = (states[:, 4 : 4 + n] < problem.free_gap).reshape(400, 4, 4)
    assert set(there.sum(2).flatten().tolist()) == {1, 2, 3, 4}
    assert (there[:, :, :-1] >= there[:, :, 1:]).all(), "the foremost places stay empty"
    constants = states[:, 4 + 2 * n :].reshape(400, len(RANDOMIZED), n)
    for index, name in enumerate(RANDOMIZED):
        share = constants[:, index] / getattr(IDM(), name)
        assert 0.7 <= share.min() < 0.71 and 1.29 < share.max() <= 1.3
    # Constants and empty places stay as they are, whatever happens.
    following, _, _ = problem.step(states, th.zeros(400, 2, dtype=th.float64))
    assert th.equal(following[:, 4 + 2 * n :], states[:, 4 + 2 * n :])
    empty = ~there.flatten(1)
    assert th.equal(following[:, 4 : 4 + n][empty], states[:, 4 : 4 + n][empty])
    observed = problem.observe(following).reshape(400, 4, n + 1)[:, :, 1:]
    assert not observed.transpose(1, 2)[empty].any()
    assert observed[:, 0][~empty].all()
    assert th.equal(start(problem, 400, seed=3), states)


def test_randomized_without_spread_is_the_smaller_road() -> None:
    full = core(lanes=1, vehicles=4, randomize=True, spread=0.0)
    small = core(lanes=1, vehicles=2)
    states = start(full, 50)
    state = states[(states[:, 4:8] < full.free_gap).sum(1) == 2][:1]
    other = start(small)
    other[0, 0] = state[0, 0]
    for _ in range(80):
        action = action_of(0.0, 0.1)
        state, reward, ended = full.step(state, action)
        other, expected, expected_end = small.step(other, action)
        assert reward.item() == pytest.approx(expected.item(), abs=1e-12) and ended == expected_end
    th.testing.assert_close(state[0, [0, 1, 2, 3, 4, 5, 8, 9]], other[0])


def test_soft_lanes_average_the_discrete_ones_over_logistic_noise() -> None:
    softness, samples = 0.7, 200_000
    state = state_of((20.0, 1.3, 0.0, 6.0), [0.0, 10.0, 0.0, 12.0], [9.0, 9.0, 9.0, 9.0])
    soft = core("B", lane_softness=softness).step(state, action_of())[0][0]
    quantiles = (th.arange(samples, dtype=th.float64) + 0.5) / samples
    noisy = state.repeat(samples, 1)
    noisy[:, 1] += softness * th.logit(quantiles)
    average = core("B").step(noisy, action_of().expand(samples, -1))[0].mean(0)
    th.testing.assert_close(soft[8:], average[8:], rtol=0, atol=1e-4)
    hard = core("B").step(state, action_of())[0][0]
    assert (soft[[9, 11]] - hard[[9, 11]]).abs().min() > 0.1, "both lanes' leaders are affected"


def test_hardly_soft_lanes_are_discrete() -> None:
    state = state_of((20.0, 1.3, 0.0, 6.0), [0.0, 10.0, 0.0, 12.0], [9.0, 9.0, 9.0, 9.0])
    soft, hard = (core("B", lane_softness=softness).step(state, action_of())[0] for softness in (1e-2, 0.0))
    th.testing.assert_close(soft, hard)


def test_idm_on_known_answers() -> None:
    driver = IDM()
    ten = th.tensor(10.0, dtype=th.float64)
    steady = 5.5 / math.sqrt(1 - 0.5**4) * th.ones_like(ten)
    assert acceleration(driver, ten, steady, 0 * ten).item() == pytest.approx(0.0, abs=1e-12)
    assert acceleration(driver, 2 * ten, 1e9 * ten, 0 * ten).item() == pytest.approx(0.0, abs=1e-12)
    assert acceleration(driver, 0 * ten, 1e9 * ten, 0 * ten).item() == pytest.approx(35.0)
    assert next_speed(driver, 0.03, ten, 0.5 * ten, 0 * ten).item() > 0
    assert next_speed(driver, 0.03, ten, -ten, 0 * ten).item() == 0
    assert acceleration(driver, ten, 0 * ten, 0 * ten) == acceleration(driver, ten, 1e-3 + 0 * ten, 0 * ten)
    braking = acceleration(driver, ten, ten, ten).item()
    assert braking == pytest.approx(35 * (1 - 0.5**4 - ((1.5 + 4 + 100 / 59.160798) / 10) ** 2), rel=1e-7)


@pytest.mark.parametrize(
    "constants, message",
    [
        ({"lanes": 0}, "lanes and vehicles must be at least 1"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": 0.1}, "might jump over another"),
        ({"spread": 1.0}, "spread must lie in"),
        ({"lane_softness": -1.0}, "lane_softness must be 0"),
        ({"dtype": "float16"}, "dtype must be one of"),
    ],
)
def test_wrong_constants_are_refused(constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaceCar(**constants)


@pytest.mark.parametrize("env_id", ["PaceCarA-v0", "PaceCarE-v0", "PaceCar-v0"])
def test_picture(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0, options={"lane": 0})
    before = env.render()
    assert isinstance(before, np.ndarray) and before.dtype == np.uint8 and before.shape[1:] == (880, 3)
    # The pace car stands in lane 0, at the bottom, 80 m from the left edge: red; its neighbours are grey road.
    height = before.shape[0]
    red, green, _ = (int(value) for value in before[height - 32, 640])
    assert red > 200 and green < 60
    assert np.ptp(before[height - 32, 700].astype(int)) < 10
    for _ in range(20):
        env.step(np.array([0.0, 1.0], dtype=np.float32))
    after = env.render()
    assert isinstance(after, np.ndarray) and (after != before).any()
    assert len(gym.make_vec(env_id, num_envs=2, render_mode="rgb_array").spec.kwargs) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("env_id", ["PaceCarB-v0", "CartPoleSwingUp-v0"])
def test_window(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env = gym.make(env_id, render_mode="human")
    try:
        import pygame  # noqa: F401
    except ImportError:
        with pytest.raises(DependencyNotInstalled, match="pip install"):
            env.reset(seed=0)
        return
    env.reset(seed=0)
    env.step(env.action_space.sample())
    picture = env.env.render()  # type: ignore[attr-defined]
    assert env.window.get_size() == picture.shape[1::-1]  # type: ignore[attr-defined]
    env.close()


def test_no_window_for_a_batch() -> None:
    with pytest.raises(ValueError, match='render_mode="human"'):
        gym.make_vec("PaceCarB-v0", num_envs=2, render_mode="human")
    with pytest.warns(UserWarning, match="HumanRendering"):
        assert not isinstance(make_vec_env("PaceCarB-v0", env_kwargs={"render_mode": "human"}), TorchVecEnv)
