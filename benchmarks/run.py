"""Train algorithms on environments over seeds and append one row a run to a csv; runs that are there already are skipped.

python benchmarks/run.py --envs DeJong-v0 --algos gippo ppo --seeds 1001 1101 --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIELDS = ("env", "algo", "seed", "steps", "best", "last", "evaluation", "seconds", "versions", "curve")
# Options of the hyper-parameter file that a variant replaces, and the algorithm it belongs to.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gippo": ("gippo", {}),
    "ppo": ("ppo", {}),
    "gippo-published": ("gippo", {"alpha_solver": "adam", "alpha": 1e-5, "alpha_iterations": 16, "alpha_learning_rate": 1e-3}),
}
CURVE_POINTS = 200


def run(env_id: str, algo: str, seed: int) -> dict[str, Any]:
    """
    :return: a row: the best and last mean return of the last (at most 100) stochastic episodes, the deterministic evaluation
        over 256 episodes, wall-clock seconds, versions and the learning curve
    """
    import numpy as np
    import stable_baselines3 as sb3
    import torch as th
    from stable_baselines3.common.evaluation import evaluate_policy

    import sb3_gippo
    from sb3_gippo.experiment import CurveCallback, make_model

    th.set_num_threads(1)
    name, overrides = VARIANTS[algo]
    model, steps = make_model(name, env_id, seed, **overrides)
    curve = CurveCallback()
    model.learn(steps, callback=curve)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.training, normalize.norm_reward = False, False
    evaluation, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=256, warn=False)
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


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", required=True)
    parser.add_argument("--algos", nargs="+", required=True, choices=list(VARIANTS))
    # SB3 seeds environment i with seed + i: seeds lie further apart than there are environments.
    parser.add_argument("--seeds", nargs="+", type=int, default=[1000, 1100, 1200, 1300, 1400])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "training.csv")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    there = {(row["env"], row["algo"], int(row["seed"])) for row in read(args.out)}
    todo = [(env, algo, seed) for seed in args.seeds for env in args.envs for algo in args.algos]
    todo = [job for job in todo if job not in there]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *job): job for job in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            fresh = not args.out.exists()
            with args.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
            print(f"[{done}/{len(todo)}] {row['env']} {row['algo']} seed {row['seed']}: best {row['best']:.4g}", flush=True)


if __name__ == "__main__":
    main()
