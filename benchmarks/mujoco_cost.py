"""What a gradient of MujocoGradient costs, in steps of the task: the same random episodes without and with gradients.

python benchmarks/mujoco_cost.py
python benchmarks/mujoco_cost.py --tasks Ant-v5 --central
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import gymnasium as gym
import mujoco

from sb3_gippo import MujocoGradient

TASKS = ("InvertedPendulum-v5", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5")


def seconds(env: MujocoGradient, differentiable: bool, steps: int, clock: Callable[[], float]) -> float:
    """:return: what ``steps`` steps with random actions took, resets not counted; the same steps in every call"""
    env.set_differentiable(differentiable)
    env.reset(seed=0)
    env.action_space.seed(0)
    total = 0.0
    for _ in range(steps):
        action = env.action_space.sample()
        start = clock()
        _, _, terminated, truncated, _ = env.step(action)
        total += clock() - start
        if terminated or truncated:
            env.reset()
    return total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="the fastest round counts")
    parser.add_argument("--central", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    # Processor seconds do not depend on what else the machine does; those of threads add up.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}, Python {platform.python_version()}", end="; ")
    print(f"{'central' if args.central else 'forward'} differences, {args.threads} thread(s); rates per second of ", end="")
    print("processor time" if args.threads == 1 else "wall-clock time")
    print(f"| {'task':20} | states + actions | plain steps/s | steps with gradient/s | cost of a gradient in plain steps |")
    print(f"|{'-' * 22}|-----------------:|--------------:|----------------------:|----------------------------------:|")
    for task in args.tasks:
        env = MujocoGradient(gym.make(task), central=args.central, threads=args.threads)
        rounds = [[seconds(env, on, args.steps, clock) for on in (False, True)] for _ in range(args.rounds)]
        plain, with_gradient = (args.steps / min(times) for times in zip(*rounds))
        size = f"{len(env.get_state())} + {env.action_space.shape[0]}"  # type: ignore[index]
        cost = plain / with_gradient - 1
        print(f"| {task:20} | {size:>16} | {plain:13,.0f} | {with_gradient:21,.0f} | {cost:33.1f} |", flush=True)


if __name__ == "__main__":
    main()
