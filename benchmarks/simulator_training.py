"""
GI-PPO and PPO, untuned, on other people's simulators, and on one cart-pole in torch, JAX and Warp. Runs that are there are
skipped.

python benchmarks/simulator_training.py --simulators torch jax warp brax-reacher --algos gippo ppo
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from run import RESULTS, rows_by_job, run_all
from simulators import ENGINES, jax_cart_pole

STEPS = {**dict.fromkeys(ENGINES, 256_000), "brax-reacher": 256_000, "brax-hopper": 512_000}
"""environment steps of a training"""
SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 512, "n_epochs": 5, "max_grad_norm": 1.0}
"""of both algorithms on everything, with the network below: the default entry of hyperparams/gippo.yml"""


def make(simulator: str, n_envs: int, seed: int) -> Any:
    """:return: the environments, seeded"""
    from simulators import WarpCartPole

    from gippo_envs import BatchedEnv
    from gippo_envs.physics.cartpole import CartPoleSwingUp
    from sb3_gippo import DifferentiableVecEnv, JaxVecEnv, from_brax

    if simulator.startswith("brax-"):
        from brax import envs

        limit = {"brax-reacher": 50, "brax-hopper": 1000}[simulator]
        env: Any = JaxVecEnv(from_brax(envs.get_environment(simulator[5:], backend="spring")), n_envs, limit, stagger=True)
    elif simulator == "jax":
        env = JaxVecEnv(jax_cart_pole("float32"), n_envs, 240, stagger=True)
    else:
        core = {"torch": CartPoleSwingUp, "warp": WarpCartPole}[simulator]
        env = DifferentiableVecEnv(BatchedEnv(core, n_envs, max_episode_steps=240, stagger=True))
    env.seed(seed)
    return env


def train(simulator: str, algo: str, seed: int) -> dict[str, Any]:
    """:return: a row as ``run.py``'s"""
    import numpy as np
    import torch as th
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize
    from torch import nn

    import sb3_gippo
    from sb3_gippo.cli.experiment import CurveCallback
    from sb3_gippo.cli.hyperparams import schedule
    from sb3_gippo.gippo import MlpPolicy

    th.set_num_threads(1)
    env = VecNormalize(make(simulator, 64, seed), norm_reward=algo == "ppo")
    network = dict(net_arch=[64, 64], activation_fn=nn.ELU, log_std_init=-1.0, squash_actions=True)
    algorithm: Any = {"gippo": sb3_gippo.GIPPO, "ppo": PPO}[algo]
    rate = schedule("learning_rate", "lin_3e-4")
    model = algorithm(MlpPolicy, env, seed=seed, device="cpu", learning_rate=rate, policy_kwargs=network, **SETTINGS)
    curve = CurveCallback()
    model.learn(STEPS[simulator], callback=curve)
    chosen = np.unique(np.linspace(0, len(curve.steps) - 1, 100).astype(int))
    return {
        "env": simulator,
        "algo": algo,
        "seed": seed,
        "steps": model.num_timesteps,
        "best": max(curve.returns),
        "last": curve.returns[-1],
        "seconds": round(curve.seconds[-1], 1),
        "curve": json.dumps([[curve.steps[i], float(f"{curve.returns[i]:.4g}")] for i in chosen]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulators", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--algos", nargs="+", default=["gippo", "ppo"], choices=["gippo", "ppo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[2000, 2100, 2200])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "simulator_training.csv")
    args = parser.parse_args()
    there = rows_by_job(args.out)
    todo = [(one, algo, seed) for seed in args.seeds for one in args.simulators for algo in args.algos]
    if run_all(train, [job for job in todo if job not in there], args.out, args.jobs):
        sys.exit("Not all have ended well.")


if __name__ == "__main__":
    main()
