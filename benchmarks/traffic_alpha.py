"""How α, agreement and gradients go along with a pace car's learning: train one seed a scenario, and draw what was logged.

python benchmarks/traffic_alpha.py --envs PaceCarC-v0 --seed 2000

Appends to benchmarks/results/traffic_alpha.csv (runs that are there are skipped) and draws docs/images/traffic_alpha.png.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch as th
from matplotlib import pyplot as plt
from run import RESULTS, append, read
from stable_baselines3.common.logger import configure

from sb3_gippo.cli.experiment import make_model

FILE = RESULTS / "traffic_alpha.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "traffic_alpha.png"
KEYS = {
    "rollout/ep_rew_mean": "mean return",
    "train/alpha": "α",
    "train/gradient_agreement": "agreement (slope)",
    "train/action_grad_norm": "|dÂ/da|, mean",
    "train/action_grad_norm_max": "|dÂ/da|, largest",
}
"""what is kept of SB3's log, and how the picture calls it"""
ITERATIONS = 5
"""a row is the mean over as many"""


def record(env_id: str, seed: int) -> list[dict[str, object]]:
    """:return: the rows of a training run"""
    model, steps = make_model("gippo", env_id, seed)
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["csv"]))
        model.learn(steps)
        logged = read(Path(folder) / "progress.csv")
    rows: list[dict[str, object]] = []
    for start in range(0, len(logged) - ITERATIONS + 1, ITERATIONS):
        part = logged[start : start + ITERATIONS]
        row: dict[str, object] = {"env": env_id, "seed": seed, "steps": part[-1]["time/total_timesteps"]}
        for key in KEYS:
            values = [float(line[key]) for line in part if line[key]]
            row[key] = float(f"{np.mean(values):.5g}") if values else ""
        rows.append(row)
    return rows


def draw() -> None:
    """Draw the file: a column a scenario, a row a quantity."""
    rows = read(FILE)
    runs = sorted({(row["env"], row["seed"]) for row in rows})
    figure, axes = plt.subplots(len(KEYS), len(runs), figsize=(4 * len(runs), 9), sharex=True, squeeze=False)
    for column, (env_id, seed) in zip(axes.T, runs):
        mine = [row for row in rows if (row["env"], row["seed"]) == (env_id, seed)]
        column[0].set_title(f"{env_id}, seed {seed}", fontsize=9)
        for axis, (key, name) in zip(column, KEYS.items()):
            points = [(int(row["steps"]), float(row[key])) for row in mine if row[key]]
            axis.plot(*zip(*points), linewidth=0.8)
            axis.set_ylabel(name, fontsize=7)
            axis.tick_params(labelsize=7)
            if "norm" in key:
                axis.set_yscale("log")
            elif "agreement" in key:
                axis.set_yscale("symlog", linthresh=1)
                axis.axhline(0, color="grey", linewidth=0.5)
        column[-1].set_xlabel("steps", fontsize=7)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Train what is not there yet, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["PaceCarC-v0"])
    parser.add_argument("--seed", type=int, default=2000)
    args = parser.parse_args()
    th.set_num_threads(1)
    there = {(row["env"], row["seed"]) for row in read(FILE)}
    for env_id in args.envs:
        if (env_id, str(args.seed)) not in there:
            append(FILE, record(env_id, args.seed))
    draw()


if __name__ == "__main__":
    main()
