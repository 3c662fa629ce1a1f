"""What a driver without learning reaches in the pace-car scenarios: weave about the middle of the road, at a constant speed.

python benchmarks/traffic_scripted.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch as th

from sb3_gippo import make_vec_env

AMPLITUDES = (0.0, 0.3, 2.0, 2.5, 4.0)
PERIODS = (20, 66, 100)
SPEEDS = (10.0, 16.0)
N_ENVS = 8
MAX_HEADING = 0.6
STEERING_GAIN = 50.0
"""steering, as a share of its largest, per rad that the heading is off: a gain at which the car dithers"""
CLOSE = 8.0
"""metres to the foremost follower, below which the driver hurries"""


def mean_return(scenario: str, amplitude: float, period: int, speed: float) -> float:
    """
    :param scenario: ``"A"`` to ``"E"``
    :param amplitude: of the weaving, m
    :param period: of the weaving, steps
    :param speed: that is held, m/s
    :return: mean return of an episode, over all lanes to start in
    """
    env = make_vec_env(f"PaceCar{scenario}-v0", N_ENVS, seed=0)
    core = env.get_attr("core")[0]
    middle = core.lane_width * (core.lanes - 1) / 2
    obs, total, running = env.reset(), np.zeros(N_ENVS), np.ones(N_ENVS, dtype=bool)
    for step in itertools.count():
        assert isinstance(obs, np.ndarray)
        away, aside, forward, sideways = np.split(obs, 4, axis=1)
        y, v = -aside[:, 1], np.hypot(forward[:, 0], sideways[:, 0])  # vehicle 1 is in lane 0, on y = 0
        phase = 2 * math.pi * step / period
        course = middle + amplitude * math.sin(phase) - y
        drift = amplitude * 2 * math.pi / (period * core.dt) * math.cos(phase)
        heading = np.clip(course + drift / np.maximum(v, 5.0), -MAX_HEADING, MAX_HEADING)
        steering = STEERING_GAIN * (heading - np.arctan2(sideways[:, 0], np.maximum(forward[:, 0], 0.1)))
        hurry = 2.0 * (-away[:, 1:].max(1) < CLOSE)
        actions = np.stack([steering, speed + hurry - v], axis=1).clip(-1, 1).astype(np.float32)
        obs, rewards, dones, _ = env.step(actions)
        total += rewards * running
        running &= ~dones
        if not running.any():
            return float(total.mean())
    raise AssertionError


def main() -> None:
    """Print the best of a small grid for every scenario."""
    th.set_num_threads(1)
    for scenario in "ABCDE":
        tried = itertools.product(AMPLITUDES, PERIODS, SPEEDS)
        grid = [(mean_return(scenario, *choice), *choice) for choice in tried if choice[0] > 0 or choice[1] == PERIODS[0]]
        print("{}: {:.0f} (weaving by {} m in {} steps, {} m/s)".format(scenario, *max(grid)), flush=True)


if __name__ == "__main__":
    main()
