"""Make docs/results.md and its figures, and the tables in README.md and in other pages, from the committed results.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from rliable import library as rly
from rliable import metrics
from run import RESULTS, SUITES, VARIANTS, read

FILES = ("training.csv", "published.csv")
DOCS = Path(__file__).parents[1] / "docs"
# Table values of the paper (mean over 5 seeds of the best mean return of the last 100 episodes): GI-PPO, PPO, RP.
PAPER = {
    "DeJong-v0": (-3.8e-10, -5.2e-5, -1.4e-8),
    "DeJong64-v0": (-1.0e-6, -1.1e-3, -9.3e-7),
    "Ackley-v0": (-5.2e-4, -0.249, -0.482),
    "Ackley64-v0": (-3.6e-3, -0.138, -8.9e-3),
    "CartPoleSwingUp-v0": (-509.0, -1094.0, -496.0),
    "PaceCarA-v0": (943.5, 946.3, 947.4),
    "PaceCarB-v0": (873.7, 489.5, 545.2),
    "PaceCarC-v0": (157.5, 181.3, 103.0),
    "PaceCarD-v0": (137.1, 131.8, 131.2),
    "PaceCarE-v0": (44.4, 32.5, 22.8),
}
ALGORITHMS = ("gippo", "gippo-tuned", "ppo", "rp")
"""of the figures and the README's table"""
COMPARED = {"three": ("gippo", "ppo", "rp"), "all": ("gippo", "ppo", "rp", "rpo", "lr", "lrrp", "lrrp-per-step", "pe")}
"""of the summary figures"""
SEEDS = 3
"""of a problem in them"""
BEFORE = "training_before.csv"
"""runs of GI-PPO as it was when its settings were tuned for each problem"""
ROWS = ("gippo", "gippo-tuned", "gippo-published", "ppo", "rp", "rpo", "lr", "lrrp", "lrrp-per-step", "pe")
"""of every problem's table"""
NAMES = {
    "gippo": "GI-PPO",
    "gippo-tuned": "GI-PPO before, tuned per problem",
    "ppo": "PPO (SB3)",
    "rp": "RP, decaying rate",
    "rpo": "RPO",
    "lr": "LR",
    "lrrp": "LR+RP",
    "lrrp-per-step": "LR+RP, weighed step by step (IVW-H)",
    "pe": "PE",
    "ppo-kl": "GI-PPO's trust regions, α off",
    "gippo-published": "GI-PPO (published)",
    "gippo-wide": "GI-PPO, trust regions 10 times as wide or more",
    "gippo-no-control": "GI-PPO, α held at 1",
    "gippo-no-virtual": "GI-PPO, ratios to the sampling policy (no π_h)",
    "gippo-in-phase": "GI-PPO, environments in phase",
    "ppo-in-phase": "PPO, environments in phase",
    "rp-in-phase": "RP, environments in phase",
    "gippo-no-ppo": "GI-PPO without its PPO step",
    "gippo-gae-lambda": "GI-PPO, λ of the gradient as GAE's",
    "gippo-one-window": "GI-PPO, critic without memory",
    "gippo-noise": "GI-PPO, gradients replaced by noise",
    "gippo-bias": "GI-PPO, gradients biased by 3 rms",
    "gippo-flip": "GI-PPO, gradients of the wrong sign",
    "gippo-zero": "GI-PPO, gradients zero",
    "gippo-delay": "GI-PPO, gradients of the step before",
    "gippo-half": "GI-PPO, wrong sign in half the dimensions",
}
INTRODUCTION = """# Results

Made by `benchmarks/report.py` from `training.csv` and `published.csv` in `benchmarks/results/`, which `benchmarks/run.py`
writes, with the settings in `hyperparams/`. *GI-PPO (published)* is the paper's algorithm with the paper's values
([what differs](algorithm.md#gi-ppo-as-published)). *Best* is the paper's metric: per seed, the best mean return of the last
100 finished episodes of the stochastic policy during training; σ is the sample standard deviation over seeds. *Deterministic*
is the mean return of 256 episodes (MuJoCo: at least 32) of the final policy's means.
Tables of what is *changed* compare with GI-PPO as it is on the same seeds (in-phase PPO and RP with themselves).
Seconds are wall-clock on two shared CPU cores, one torch thread a run. {versions}.

*GI-PPO* has the same settings on every problem, its defaults; where its row is missing it has not been run yet. *GI-PPO
before, tuned per problem* is an older version of it, with α-settings found for each problem (`training_before.csv`, where its
ablations and its runs with corrupted gradients stand as well; `training_recheck.csv` has some of its runs once more). RP and
GI-PPO (published) on cart-pole were run with the critic's fit of that time, squared errors in the returns' own unit; GI-PPO on
cart-pole and robots with 64 random minibatches of the critic's memory in the place of `critic_epochs=4`, which are as many, of
the same size, once the memory is full.
"""
Runs = dict[tuple[str, str], list[dict[str, str]]]


def load() -> Runs:
    """:return: the rows by environment and variant"""
    runs: Runs = defaultdict(list)
    for row in (row for name in FILES for row in read(RESULTS / name)):
        runs[row["env"], row["algo"]].append(row)
    for row in (row for row in read(RESULTS / BEFORE) if row["algo"] == "gippo"):
        runs[row["env"], "gippo-tuned"].append(row)
    return runs


def interquartile_mean(values: np.ndarray) -> tuple[float, float, float]:
    """:return: the interquartile mean over runs (n,) and its 95 % bootstrap interval"""
    aggregate = lambda scores: np.array([metrics.aggregate_iqm(scores)])  # noqa: E731
    np.random.seed(0)
    point, interval = rly.get_interval_estimates({"": values[:, None]}, aggregate, reps=2000)
    return float(point[""][0]), float(interval[""][0, 0]), float(interval[""][1, 0])


def short(value: float, digits: int = 3) -> str:
    """:return: the number with so many digits that count, thousands written out"""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


def spread(values: np.ndarray) -> str:
    """:return: the sample standard deviation over runs (n,); a dash for a single run, which has none"""
    return short(values.std(ddof=1), 2) if len(values) > 1 else "–"


def column(members: list[dict[str, str]], key: str) -> np.ndarray:
    """:return: (n,)"""
    return np.array([float(row[key]) for row in members])


def is_logarithmic(env_id: str) -> bool:
    """:return: whether returns are minus an error, whose size is what counts"""
    return env_id in (*SUITES["functions"], *SUITES["context"])


def passes(row: dict[str, str], value: float) -> float:
    """:return: steps (of the curve's points) at which a run first reached ``value``; infinite if it never did"""
    return next((steps for steps, reward in json.loads(row["curve"]) if reward >= value), np.inf)


def table(env_id: str, runs: Runs) -> list[str]:
    """:return: the lines of the algorithms' table, then those of GI-PPO changed, each beside GI-PPO as it is"""
    there = [algo for algo in dict.fromkeys((*ROWS, *VARIANTS)) if (env_id, algo) in runs]
    steps = int(runs[env_id, there[0]][0]["steps"])
    lines = [f"### {env_id}, {steps // 1000} k steps", ""]
    reference = PAPER.get(env_id)
    if reference is not None:
        lines += ["The paper: GI-PPO {:g}, PPO {:g}, RP {:g}.".format(*reference), ""]
    lines += [
        "| | seeds | best | σ of best | interquartile mean [95 %] | deterministic | passes the paper's GI-PPO at | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for algo in (algo for algo in ROWS if algo in there):
        members = runs[env_id, algo]
        best, evaluation, seconds = (column(members, key) for key in ("best", "evaluation", "seconds"))
        iqm = "{} [{}, {}]".format(*map(short, interquartile_mean(best))) if len(best) > 2 else "–"
        passed = "–"
        if reference is not None:
            at = max(passes(row, reference[0]) for row in members)
            passed = f"{at / 1000:.0f} k (slowest)" if np.isfinite(at) else "not by all"
        lines.append(
            f"| {NAMES[algo]} | {len(best)} | {short(best.mean())} | {spread(best)} | {iqm} "
            f"| {short(evaluation.mean())} | {passed} | {seconds.mean():.0f} |"
        )
    changed = [algo for algo in there if algo not in ROWS]
    if changed:
        logarithmic = is_logarithmic(env_id)
        worth = "GI-PPO's error is smaller by the factor" if logarithmic else "GI-PPO's is higher by"
        lines += ["", f"| changed | seeds | best | σ of best | deterministic | {worth} |", "|---|---|---|---|---|---|"]
    for algo in changed:
        members = runs[env_id, algo]
        best, evaluation = column(members, "best"), column(members, "evaluation")
        base = {"ppo-in-phase": "ppo", "rp-in-phase": "rp"}.get(algo, "gippo")
        same = column([row for row in runs[env_id, base] if row["seed"] in {member["seed"] for member in members}], "best")
        gap = short(best.mean() / same.mean() if logarithmic else same.mean() - best.mean())
        lines.append(
            f"| {NAMES[algo]} | {len(best)} | {short(best.mean())} | {spread(best)} | {short(evaluation.mean())} "
            f"| {gap if len(same) else '–'} |"
        )
    return [*lines, ""]


def draw(panel: Any, env_id: str, runs: Runs, wall_clock: bool) -> None:
    """Learning curves of an environment, mean and range over seeds, over steps or over minutes (proportional to them)."""
    logarithmic = is_logarithmic(env_id)
    for number, algo in enumerate(ALGORITHMS):
        members = runs.get((env_id, algo), [])
        if not members:
            continue
        curves = [np.array(json.loads(row["curve"])) for row in members]
        length = min(len(curve) for curve in curves)
        x, values = curves[0][:length, 0] / 1000, np.stack([curve[:length, 1] for curve in curves])
        if wall_clock:
            x = x / x[-1] * column(members, "seconds").mean() / 60
        values = -values if logarithmic else values
        centre = np.exp(np.log(np.maximum(values, 1e-16)).mean(0)) if logarithmic else values.mean(0)
        color = f"C{number}"
        panel.plot(x, centre, label=f"{NAMES[algo]} ({len(members)})", color=color)
        panel.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    if env_id in PAPER:
        panel.axhline(abs(PAPER[env_id][0]) if logarithmic else PAPER[env_id][0], color="grey", linestyle=":")
    xlabel = "minutes" if wall_clock else "thousand environment steps"
    panel.set(title=env_id, xlabel=xlabel, yscale="log" if logarithmic else "linear")
    panel.legend(fontsize=7)


def figure(env_ids: list[str], runs: Runs, path: Path, wall_clock: bool) -> None:
    """One panel an environment; with ``wall_clock`` a second row over minutes."""
    env_ids = [env_id for env_id in env_ids if any((env_id, algo) in runs for algo in ALGORITHMS)]
    rows = 2 if wall_clock else 1
    size = 4 * len(env_ids), 3.2 * rows
    figure, panels = plt.subplots(rows, len(env_ids), figsize=size, layout="constrained", squeeze=False)
    for row, line in enumerate(panels):
        for panel, env_id in zip(line, env_ids):
            draw(panel, env_id, runs, wall_clock=row == 1)
        line[0].set_ylabel("minus the mean return" if is_logarithmic(env_ids[0]) else "mean return of the last 100 episodes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def scores(runs: Runs, algos: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """
    :return: of every algorithm the scores (seeds, problems), 0 for the worst of all runs on a problem and 1 for the best,
        errors by their logarithm; and the problems: all have run on them with :data:`SEEDS` seeds, the first count
    """
    env_ids = [env_id for suite in SUITES.values() for env_id in suite]
    env_ids = [env_id for env_id in env_ids if all(len(runs.get((env_id, algo), [])) >= SEEDS for algo in algos)]
    found: dict[str, list[np.ndarray]] = {algo: [] for algo in algos}
    for env_id in env_ids:
        members = {algo: sorted(runs[env_id, algo], key=lambda row: int(row["seed"]))[:SEEDS] for algo in algos}
        best = {algo: column(rows, "best") for algo, rows in members.items()}
        if is_logarithmic(env_id):
            best = {algo: -np.log(np.maximum(-values, 1e-16)) for algo, values in best.items()}
        every = np.concatenate(list(best.values()))
        for algo, values in best.items():
            found[algo].append((values - every.min()) / (every.max() - every.min()))
    return {algo: np.stack(columns, axis=1) for algo, columns in found.items() if columns}, env_ids


def summary_figure(runs: Runs, algos: Sequence[str], path: Path) -> list[str]:
    """
    Interquartile means over all problems, and how probable it is that a run of GI-PPO beats one of another algorithm.

    :return: the lines that stand above it, none (and no figure) if there are fewer than two problems
    """
    found, env_ids = scores(runs, algos)
    if len(env_ids) < 2:
        return []
    np.random.seed(0)
    aggregate = lambda x: np.array([metrics.aggregate_iqm(x)])  # noqa: E731
    means, of_means = rly.get_interval_estimates(found, aggregate, reps=2000)
    improvement = lambda x, y: np.array([metrics.probability_of_improvement(x, y)])  # noqa: E731
    pairs = {algo: (found["gippo"], found[algo]) for algo in algos if algo != "gippo"}
    chances, of_chances = rly.get_interval_estimates(pairs, improvement, reps=2000)
    drawing, panels = plt.subplots(1, 2, figsize=(10, 0.4 * len(algos) + 1.2), layout="constrained")
    for panel, points, intervals in ((panels[0], means, of_means), (panels[1], chances, of_chances)):
        names = list(points)[::-1]
        centre = np.array([points[name][0] for name in names])
        around = np.array([intervals[name][:, 0] for name in names]).T
        panel.barh(range(len(names)), around[1] - around[0], left=around[0], color="C0", alpha=0.4, height=0.6)
        panel.plot(centre, range(len(names)), "|", color="black", markersize=14)
        panel.set_yticks(range(len(names)), [NAMES[name] for name in names])
    panels[0].set(title="interquartile mean of scores (0: worst run of a problem, 1: best)", xlim=(0, 1))
    panels[1].set(title="probability that GI-PPO's run is the better one", xlim=(0, 1))
    panels[1].axvline(0.5, color="grey", linestyle=":")
    for panel in panels:
        panel.title.set_fontsize(9)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)
    return [
        f"{SEEDS} seeds, 95 % intervals (stratified bootstrap), over {', '.join(f'`{env_id}`' for env_id in env_ids)}:",
        "",
    ]


def summary(runs: Runs) -> list[str]:
    """:return: the lines of the README's table, best of GI-PPO, PPO and RP"""
    names = " | ".join(NAMES[algo] for algo in ALGORITHMS)
    lines = [f"| | {names} | the paper's GI-PPO | steps |", "|---" * (len(ALGORITHMS) + 3) + "|"]
    for env_id in (env_id for suite in SUITES.values() for env_id in suite):
        there = [algo for algo in ALGORITHMS if (env_id, algo) in runs]
        if not there:
            continue
        cells = []
        for algo in ALGORITHMS:
            best = column(runs.get((env_id, algo), []), "best")
            cells.append(f"{short(best.mean())} ± {spread(best)} ({len(best)})" if len(best) else "–")
        reference = f"{PAPER[env_id][0]:g}" if env_id in PAPER else "–"
        steps = int(runs[env_id, there[0]][0]["steps"]) / 1000
        lines.append(f"| `{env_id}` | {' | '.join(cells)} | {reference} | {steps:.0f} k |")
    return lines


def speeds() -> list[str]:
    """:return: the lines of the table of the robots' speed, thousands a second, median and best"""
    lines = ["| | environments | steps | transitions with their gradient |", "|---|---|---|---|"]
    found = {(row["robot"], row["n_envs"], row["what"]): row for row in read(RESULTS / "physics_speed.csv")}
    for robot, n_envs in dict.fromkeys((robot, n_envs) for robot, n_envs, _ in found):
        cells = []
        for what in ("forward", "gradient"):
            cells.append("{} k ({} k)".format(*(thousands(found[robot, n_envs, what][key]) for key in ("median", "best"))))
        lines.append(f"| `Diff{robot}-v0` | {n_envs} | {' | '.join(cells)} |")
    return lines


def engines() -> list[str]:
    """:return: the lines of the table of other engines, this one on top"""
    lines = ["| | hopper | with gradient | ant | with gradient | compiling | |", "|---|---|---|---|---|---|---|"]
    found = {(row["robot"], row["what"]): row for row in read(RESULTS / "physics_speed.csv") if row["n_envs"] == "64"}
    pairs = ((robot, what) for robot in ("Hopper", "Ant") for what in ("forward", "gradient"))
    own = " | ".join(f"{thousands(found[pair]['median'])} k" for pair in pairs)
    compiling = next(row["compile_adjoint"] for row in read(RESULTS / "physics_kernels.csv"))
    lines.append(f"| **this engine** | {own} | {compiling} s (ant), kept | exact |")
    return lines + [f"| {' | '.join(row.values())} |" for row in read(RESULTS / "physics_engines.csv")]


def kernels() -> list[str]:
    """:return: the lines of the table of the kernels that were compared on the ant"""
    lines = [
        "| kernel | compiling | with adjoint | steps, 64 | steps, 256 | with adjoint, 64 | with adjoint, 256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in read(RESULTS / "physics_kernels.csv"):
        cells = [f"{row[key]} s" if row[key] else "–" for key in ("compile", "compile_adjoint")]
        for what in (f"{what}_{n}" for what in ("forward", "adjoint") for n in (64, 256)):
            cells.append(f"{thousands(row[f'{what}_median'])} k ({thousands(row[f'{what}_best'])} k)")
        lines.append(f"| {row['kernel']} | {' | '.join(cells)} |")
    return lines


def trainings() -> list[str]:
    """:return: the lines of the table of others' simulators, and of one problem in three engines"""
    found: Runs = defaultdict(list)
    for row in read(RESULTS / "simulator_training.csv"):
        found[row["env"], row["algo"]].append(row)
    lines = ["| | GI-PPO | PPO | steps | seconds, GI-PPO |", "|---|---|---|---|---|"]
    for env in dict.fromkeys(env for env, _ in found):
        cells = []
        for algo in ("gippo", "ppo"):
            best = column(found.get((env, algo), []), "best")
            cells.append(f"{short(best.mean(), 4)} ± {spread(best)} ({len(best)})" if len(best) else "–")
        ours = found[env, "gippo"]
        name = env if "-" in env else f"cart-pole in {env}"
        steps = int(ours[0]["steps"]) / 1000
        lines.append(f"| {name} | {' | '.join(cells)} | {steps:.0f} k | {short(column(ours, 'seconds').mean())} |")
    return lines


def thousands(value: str) -> str:
    """:return: the number in thousands, with two digits that count or more"""
    return short(float(value) / 1000, 2 if float(value) < 1e5 else 3)


def fill(page: Path, name: str, lines: list[str]) -> None:
    """Put lines between the page's comments ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text("\n".join([before + begin, *lines, end + rest.partition(end)[2]]))


def robots() -> None:
    """Write the tables of the robots' page."""
    fill(DOCS / "robots.md", "speed", speeds())
    fill(DOCS / "robots.md", "engines", engines())
    fill(DOCS / "robots.md", "kernels", kernels())


def main() -> None:
    """Write the page, and the tables in others."""
    runs = load()
    versions = sorted({row["versions"] for members in runs.values() for row in members})
    lines = [INTRODUCTION.format(versions="; ".join(versions))]
    titles = {
        "functions": "Function optimisation",
        "context": "Functions of a context",
        "cartpole": "Cart-pole swing-up",
        "traffic": "Pace car",
        "robots": "Robots",
        "simulators": "Gymnasium's functional environments",
        "mujoco": "Gymnasium's MuJoCo tasks, with gradients by finite differences",
    }
    remarks = {
        "traffic": "PPO is SB3's, with GI-PPO's policy network. More on both: [traffic.md](traffic.md).",
        "simulators": "PPO has a discount and a rate of its own: with GI-PPO's it does not learn this in the time.",
        "mujoco": "Below, the same over wall-clock: most of GI-PPO's is the differences.",
    }
    for name, algos in COMPARED.items():
        above = summary_figure(runs, algos, DOCS / "images" / f"summary_{name}.png")
        if above:
            lines += [f"## Over all problems: {len(algos)} algorithms", "", *above]
            lines += [f"![Interquartile means and probabilities of improvement](images/summary_{name}.png)", ""]
    for suite, title in titles.items():
        env_ids = [env_id for env_id in SUITES[suite] if any(key[0] == env_id for key in runs)]
        if not env_ids:
            continue
        figure(env_ids, runs, DOCS / "images" / f"{suite}.png", wall_clock=suite == "mujoco")
        lines += [f"## {title}", "", f"![Learning curves: {title}](images/{suite}.png)", ""]
        lines += ["Lines are means over seeds (their number in brackets), bands the range, dotted the paper's GI-PPO.", ""]
        if suite in remarks:
            lines += [remarks[suite], ""]
        for env_id in env_ids:
            lines += table(env_id, runs)
    (DOCS / "results.md").write_text("\n".join(lines))
    fill(DOCS.parent / "README.md", "results", summary(runs))
    robots()
    fill(DOCS / "simulators.md", "training", trainings())


if __name__ == "__main__":
    main()
