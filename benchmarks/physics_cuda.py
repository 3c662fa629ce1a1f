"""
Speed of the robots on a GPU, in wall-clock: steps forward, and transitions with their gradient, window of 16. Before it, CPU
and GPU are compared in float64.

python benchmarks/physics_cuda.py --out benchmarks/results/physics_cuda.csv
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th

import gippo_envs

WINDOW = 16
ROBOTS = ("Hopper", "HalfCheetah", "Ant", "Humanoid")


def make(robot: str, n_envs: int, device: str, dtype: str = "float32") -> gippo_envs.FunctionalEnv:
    env: Any = gym.make_vec(f"Diff{robot}-v0", num_envs=n_envs, device=device, dtype=dtype)
    return env.core


def derivative(robot: str, device: str, n_envs: int = 64, steps: int = 8) -> list[th.Tensor]:
    """:return: the last state, and the derivatives of the sum of rewards by the actions, in float64"""
    generator = th.Generator().manual_seed(0)
    state = make(robot, n_envs, "cpu", "float64").initial_state(n_envs, generator).to(device)
    core = make(robot, n_envs, device, "float64")
    shape = n_envs, core.action_dim
    actions = [2 * th.rand(shape, generator=generator, dtype=th.float64) - 1 for _ in range(steps)]
    actions = [action.to(device).requires_grad_() for action in actions]
    earned = th.zeros(n_envs, dtype=th.float64, device=device)
    for action in actions:
        state, reward, _ = core.step(state, action)
        earned = earned + reward
    return [state.detach().cpu(), *(x.cpu() for x in th.autograd.grad(earned.sum(), actions))]


def deviation(robot: str) -> float:
    """:return: the largest difference between CPU and GPU, relative to the largest number"""
    pairs = zip(derivative(robot, "cpu"), derivative(robot, "cuda"))
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)


def per_second(core: gippo_envs.FunctionalEnv, state: th.Tensor, differentiable: bool) -> float:
    """:return: transitions per second of a window"""
    n_envs = len(state)
    actions = [2 * th.rand(n_envs, core.action_dim, device=state.device) - 1 for _ in range(WINDOW)]
    th.cuda.synchronize()
    start = time.perf_counter()
    with th.set_grad_enabled(differentiable):
        earned = state.new_zeros(n_envs)
        for action in actions:
            state, reward, _ = core.step(state, action.requires_grad_(differentiable))
            earned = earned + reward + core.observe(state).sum(1)
    if differentiable:
        th.autograd.grad(earned.sum(), actions)
    th.cuda.synchronize()
    return WINDOW * n_envs / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-envs", nargs="+", type=int, default=[1024, 8192, 65536])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for robot in ROBOTS:
        found = f"{deviation(robot):.1e}"
        for n_envs in args.n_envs:
            core = make(robot, n_envs, "cuda")
            state = core.initial_state(n_envs, th.Generator(device="cuda").manual_seed(0))
            for what, differentiable in (("forward", False), ("gradient", True)):
                per_second(core, state, differentiable)
                best = max(per_second(core, state, differentiable) for _ in range(3))
                device = th.cuda.get_device_name()
                rows.append({"robot": robot, "n_envs": n_envs, "what": what, "best": f"{best:.3g}"})
                rows[-1].update({"deviation": found, "device": device})
                print(rows[-1], flush=True)
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
