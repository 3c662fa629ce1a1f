"""Speed of the robots in processor time on one core: steps forward, and transitions with their gradient, window of 32.

python benchmarks/physics_speed.py --out benchmarks/results/physics_speed.csv
python benchmarks/physics_speed.py --soak 10000    # random actions in 64 environments: are all numbers finite?
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

import gippo_envs

WINDOW = 32
ROBOTS = ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid")


def seconds(core: gippo_envs.FunctionalEnv, n_envs: int, differentiable: bool, seed: int) -> float:
    """:return: processor time of one window of steps with rewards and observations, and of the backward pass through it"""
    generator = th.Generator().manual_seed(seed)
    state = core.initial_state(n_envs, generator)
    actions = [2 * th.rand(n_envs, core.action_dim, generator=generator) - 1 for _ in range(WINDOW)]
    start = time.process_time()
    with th.set_grad_enabled(differentiable):
        earned = th.zeros(n_envs)
        for action in actions:
            state, reward, _ = core.step(state, action.requires_grad_(differentiable))
            earned = earned + reward + core.observe(state).sum(1)
    if differentiable:
        th.autograd.grad(earned.sum(), actions)
    return time.process_time() - start


def measure(robot: str, windows: int) -> list[dict[str, Any]]:
    """:return: rows of the table"""
    rows = []
    for n_envs in (64, 256):
        env: Any = gym.make_vec(f"Diff{robot}-v0", num_envs=n_envs)
        for name, differentiable in (("forward", False), ("gradient", True)):
            seconds(env.core, n_envs, differentiable, 0)
            spent = [seconds(env.core, n_envs, differentiable, seed) for seed in range(windows)]
            median, best = (round(WINDOW * n_envs / value) for value in (np.median(spent), min(spent)))
            rows.append({"robot": robot, "n_envs": n_envs, "what": name, "median": median, "best": best})
            print(f"Diff{robot}-v0, {n_envs} environments: {median:,} {name} steps/s (best window {best:,})", flush=True)
    return rows


def soak(robot: str, steps: int, n_envs: int = 64) -> None:
    """Say how many numbers were not finite."""
    env = gym.make_vec(f"Diff{robot}-v0", num_envs=n_envs)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    bad, ended, largest = 0, 0, 0.0
    for _ in range(steps):
        observation, reward, terminated, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        bad += int((~np.isfinite(observation)).sum() + (~np.isfinite(reward)).sum())
        ended += int(terminated.sum())
        largest = max(largest, float(np.abs(observation).max()))
    print(f"Diff{robot}-v0: {steps} x {n_envs} steps, {ended} ends, {bad} not finite, largest {largest:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", default=ROBOTS)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--soak", type=int, default=0, metavar="STEPS")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.soak:
        for robot in args.robots:
            soak(robot, args.soak)
        return
    rows = [row for robot in args.robots for row in measure(robot, args.windows)]
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
