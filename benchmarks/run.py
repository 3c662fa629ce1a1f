"""Train variants of algorithms on environments over seeds and append one row a run to a csv; runs that are there are skipped.

python benchmarks/run.py --suite functions --algos gippo ppo --seeds 1000 1100 --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

RESULTS = Path(__file__).parent / "results"
CURVE_POINTS = 200

SUITES: dict[str, list[str]] = {
    "functions": ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0"],
    "context": ["DeJongContext-v0", "AckleyContext-v0"],
    "cartpole": ["CartPoleSwingUp-v0"],
    "traffic": ["PaceCarA-v0", "PaceCarB-v0", "PaceCarC-v0", "PaceCarD-v0", "PaceCarE-v0"],
    "mujoco": ["InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5"],
}


@dataclass(frozen=True)
class Variant:
    """An algorithm, and what it does differently from its entry in the hyper-parameter file."""

    algo: str
    overrides: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    corruption: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    """what names of the library are replaced by, for parts that no hyper-parameter switches off"""


def sampling_log_prob(old: Any, alpha: Any) -> Any:
    """In the place of the virtual policy's: that of the policy that sampled."""
    return old


# α is held at a value that moves nothing: PPO within the same trust regions.
NO_ALPHA = {"alpha": 1e-6, "max_alpha": 1e-6}
VARIANTS: dict[str, Variant] = {
    "gippo": Variant("gippo"),
    "ppo": Variant("ppo"),
    "rp": Variant("rp"),
    "ppo-kl": Variant("gippo", NO_ALPHA),
    "gippo-published": Variant(
        "gippo", {"alpha_solver": "adam", "alpha": 1e-5, "alpha_iterations": 16, "alpha_learning_rate": 1e-3}
    ),
    "gippo-wide": Variant("gippo", {"alpha_kl": 10.0, "std_kl": 1.0}),
    "gippo-no-control": Variant("gippo", {"alpha": 1.0, "alpha_factor": 1 + 1e-9}),
    "gippo-no-virtual": Variant("gippo", patches={"sb3_gippo.gippo.gippo.virtual_log_prob": sampling_log_prob}),
    "gippo-in-phase": Variant("gippo", env_kwargs={"stagger": False}),
    "ppo-in-phase": Variant("ppo", env_kwargs={"stagger": False}),
    "rp-in-phase": Variant("rp", env_kwargs={"stagger": False}),
    "gippo-no-ppo": Variant("gippo", {"learning_rate": 1e-12}),
    "gippo-gae-lambda": Variant("gippo", {"action_gradient_lambda": None}),
    "gippo-one-window": Variant("gippo", {"critic_windows": 1}),
    "gippo-noise": Variant("gippo", corruption={"scale": 0.0, "noise": 1.0}),
    "gippo-bias": Variant("gippo", corruption={"bias": 3.0}),
    "gippo-flip": Variant("gippo", corruption={"scale": -1.0}),
    "gippo-zero": Variant("gippo", corruption={"scale": 0.0}),
    "gippo-delay": Variant("gippo", corruption={"delay": 1}),
    "gippo-half": Variant("gippo", corruption={"scale": -1.0, "dimensions": (0, 1)}),
}


def run(env_id: str, algo: str, seed: int) -> dict[str, Any]:
    """
    :return: a row: the best and last mean return of the last (at most 100) stochastic episodes, the deterministic evaluation
        over 4 episodes an environment, wall-clock seconds, versions and the learning curve
    """
    import numpy as np
    import stable_baselines3 as sb3
    import torch as th
    from corrupt import CorruptGradients
    from stable_baselines3.common.evaluation import evaluate_policy

    import sb3_gippo
    from sb3_gippo.cli.experiment import CurveCallback, make_model

    th.set_num_threads(1)
    variant = VARIANTS[algo]
    wrap = (lambda env: CorruptGradients(env, seed, **variant.corruption)) if variant.corruption else None
    model, steps = make_model(variant.algo, env_id, seed, env_kwargs=variant.env_kwargs, wrap=wrap, **variant.overrides)
    curve = CurveCallback()
    with ExitStack() as stack:
        for name, replacement in variant.patches.items():
            stack.enter_context(patch(name, replacement))
        model.learn(steps, callback=curve)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.training, normalize.norm_reward = False, False
    evaluation, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=4 * model.n_envs, warn=False)
    chosen = np.unique(np.linspace(0, len(curve.steps) - 1, CURVE_POINTS).astype(int))
    return {
        "env": env_id,
        "algo": algo,
        "seed": seed,
        "steps": model.num_timesteps,
        "best": max(curve.returns),
        "last": curve.returns[-1],
        "evaluation": evaluation,
        "seconds": round(curve.seconds[-1], 1),
        "versions": f"sb3_gippo {sb3_gippo.__version__}, sb3 {sb3.__version__}, torch {th.__version__}",
        "curve": json.dumps([[curve.steps[i], float(f"{curve.returns[i]:.4g}")] for i in chosen]),
    }


def read(path: Path) -> list[dict[str, str]]:
    """:return: the rows of a result file, none if there is no file"""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a result file, which begins with their keys."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--suite", choices=list(SUITES))
    chosen.add_argument("--envs", nargs="+")
    parser.add_argument("--algos", nargs="+", required=True, choices=list(VARIANTS), metavar="ALGO", help=", ".join(VARIANTS))
    # SB3 seeds environment i with seed + i: seeds lie further apart than there are environments.
    parser.add_argument("--seeds", nargs="+", type=int, default=[2000, 2100, 2200, 2300, 2400])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "training.csv")
    args = parser.parse_args()
    envs = args.envs or SUITES[args.suite]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    there = {(row["env"], row["algo"], int(row["seed"])) for row in read(args.out)}
    todo = [(env, algo, seed) for seed in args.seeds for env in envs for algo in args.algos]
    todo = [job for job in todo if job not in there]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *job): job for job in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            append(args.out, [row])
            print(f"[{done}/{len(todo)}] {row['env']} {row['algo']} seed {row['seed']}: best {row['best']:.4g}", flush=True)


if __name__ == "__main__":
    main()
