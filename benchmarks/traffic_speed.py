"""Speed of the traffic environments in processor time on one core: steps forward, and transitions with their gradient.

python benchmarks/traffic_speed.py --env PaceCarC-v0
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch as th

from sb3_gippo import TorchVecEnv, make_vec_env

WINDOW = 32


def forward(env: TorchVecEnv, actions: np.ndarray) -> None:
    """One window of steps."""
    for action in actions:
        env.step(action)


def sweep(env: TorchVecEnv, actions: np.ndarray) -> None:
    """One window of steps and the backward sweep through it, one vector-Jacobian product a step."""
    gradients = []
    for action in actions:
        env.step(action)
        assert env.step_gradient is not None
        gradients.append(env.step_gradient)
    obs_bar = th.ones(env.num_envs, gradients[0].observation.shape[1])
    reward_bar = th.ones(env.num_envs)
    state_bar = None
    for gradient in reversed(gradients):
        state_bar, _ = gradient.vjp(state_bar, obs_bar, reward_bar)


def main() -> None:
    """Print the median over windows, and the fastest one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="PaceCarC-v0")
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--windows", type=int, default=100)
    args = parser.parse_args()
    th.set_num_threads(1)
    env = make_vec_env(args.env, args.n_envs, seed=0)
    assert isinstance(env, TorchVecEnv)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (WINDOW, args.n_envs, 2)).astype(np.float32)
    for name, differentiable, run in (("env-steps/s forward", False, forward), ("gradient transitions/s", True, sweep)):
        env.env_method("set_differentiable", differentiable)
        env.reset()
        seconds = []
        for _ in range(args.windows):
            start = time.process_time()
            run(env, actions)
            seconds.append(time.process_time() - start)
        median, best = (WINDOW * args.n_envs / value for value in (np.median(seconds), min(seconds)))
        print(f"{args.env}, {args.n_envs} environments, one thread: {median:,.0f} {name} (best window {best:,.0f})")


if __name__ == "__main__":
    main()
