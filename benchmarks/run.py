"""Train variants of algorithms on environments over seeds and append one row a run to a csv; runs that are there are skipped.

python benchmarks/run.py --suite functions --algos gippo ppo --seeds 1000 1100 --jobs 2

A run that fails is reported, the others go on. The same command may run several times at once, or again after a crash: what
another one is at or has written is left to it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

try:
    import fcntl
except ImportError:  # Windows: no locks, so one command at a time
    fcntl = None  # type: ignore[assignment]

RESULTS = Path(__file__).parent / "results"
CURVE_POINTS = 200
APPENDING = 0
"""the byte of the lock file that stands for adding rows; the others stand for runs"""

Job = tuple[str, str, int]
"""environment, variant, seed"""

SUITES: dict[str, list[str]] = {
    "functions": ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0"],
    "context": ["DeJongContext-v0", "AckleyContext-v0"],
    "cartpole": ["CartPoleSwingUp-v0"],
    "traffic": ["PaceCarA-v0", "PaceCarB-v0", "PaceCarC-v0", "PaceCarD-v0", "PaceCarE-v0"],
    "robots": ["DiffHopper-v0", "DiffHalfCheetah-v0", "DiffWalker2d-v0", "DiffAnt-v0", "DiffHumanoid-v0"],
    "simulators": ["phys2d/Pendulum-v0"],
    "mujoco": ["InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5"],
}


@dataclass(frozen=True)
class Variant:
    """An algorithm with a hyper-parameter file, and what it does differently from its entry there."""

    algo: str
    conf: str | None = None
    """the hyper-parameter file, if it is not that of the algorithm's name"""
    overrides: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    corruption: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    """what names of the library are replaced by, for parts that no hyper-parameter switches off"""


def sampling_log_prob(old: Any, alpha: Any) -> Any:
    """In the place of the virtual policy's: that of the policy that sampled."""
    return old


# α is held at a value that moves nothing: PPO within the same trust regions.
NO_ALPHA = {"alpha": 1e-6, "alpha_kwargs": {"max_alpha": 1e-6}}
VARIANTS: dict[str, Variant] = {
    "gippo": Variant("gippo"),
    "ppo": Variant("ppo"),
    "rp": Variant("rp"),
    "lr": Variant("lr"),
    "lrrp": Variant("lrrp"),
    "lrrp-per-step": Variant("lrrp", overrides={"per_step": True}),
    "pe": Variant("pe"),
    "rpo": Variant("rpo"),
    "ppo-kl": Variant("gippo", overrides=NO_ALPHA),
    "gippo-published": Variant("gippo", "gippo_published.yml"),
    "gippo-wide": Variant("gippo", overrides={"alpha_kwargs": {"kl": "lin_10.0", "std_kl": "lin_1.0"}}),
    "gippo-no-control": Variant("gippo", overrides={"alpha": 1.0, "alpha_kwargs": {"factor": 1 + 1e-9}}),
    "gippo-no-virtual": Variant("gippo", patches={"sb3_gippo.gippo.alpha_step.virtual_log_prob": sampling_log_prob}),
    "gippo-in-phase": Variant("gippo", env_kwargs={"stagger": False}),
    "ppo-in-phase": Variant("ppo", env_kwargs={"stagger": False}),
    "rp-in-phase": Variant("rp", env_kwargs={"stagger": False}),
    "gippo-no-ppo": Variant("gippo", overrides={"learning_rate": 1e-12, "critic_kwargs": {"learning_rate": 1e-3}}),
    "gippo-gae-lambda": Variant("gippo", overrides={"action_gradient_lambda": None}),
    "gippo-one-window": Variant("gippo", overrides={"critic_kwargs": {"n_windows": 1}}),
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
    model, steps = make_model(variant.algo, env_id, seed, variant.env_kwargs, wrap, variant.conf, **variant.overrides)
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
    """:return: the rows of a result file, none if there is no file; a last line without its end does not count"""
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(whole_lines(path.read_bytes()).decode(), newline="")))


def whole_lines(content: bytes) -> bytes:
    """:return: the content up to the end of its last complete line"""
    return content[: content.rfind(b"\n") + 1]


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """
    Add rows to a result file, which begins with their keys. What a killed process has left of a last line is removed first.

    :raises ValueError: if the file begins with other keys
    """
    with lock_file(path) as locks:
        lock(locks, APPENDING)
        path.touch()
        with path.open("r+b") as file:
            there = whole_lines(file.read())
            header = next(csv.reader(io.StringIO(there.decode(), newline="")), None)
            if header not in (None, list(rows[0])):
                raise ValueError(f"{path} has the columns {header}, not {list(rows[0])}.")
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]))
            if header is None:
                writer.writeheader()
            writer.writerows(rows)
            file.truncate(len(there))
            file.seek(len(there))
            file.write(text.getvalue().encode())


def lock_file(path: Path) -> io.BufferedRandom:
    """:return: the file beside a result file on whose bytes the locks are; closing it, or the process's end, drops them"""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.lock").open("a+b")


def lock(locks: io.BufferedRandom, byte: int, wait: bool = True) -> bool:
    """
    :param locks: see :func:`lock_file`
    :param byte: what is locked
    :param wait: for another process that holds it
    :return: whether it is ours now
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def byte_of(job: Job) -> int:
    """:return: the byte of the lock file that stands for a run"""
    return APPENDING + 1 + int.from_bytes(hashlib.sha256(repr(job).encode()).digest()[:7], "big")


def rows_by_job(path: Path) -> dict[Job, dict[str, str]]:
    """:return: the rows of a result file by what they are of"""
    return {(row["env"], row["algo"], int(row["seed"])): row for row in read(path)}


def work(train: Callable[..., dict[str, Any]], job: Job, path: Path) -> None:
    """
    Do a run and add its row, unless another process is at it or has done it. To be called in a process of its own, which ends
    with the one that started it.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    with lock_file(path) as locks:
        if lock(locks, byte_of(job), wait=False) and job not in rows_by_job(path):
            append(path, [train(*job)])


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, however it ended; then end."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_all(train: Callable[..., dict[str, Any]], jobs: list[Job], path: Path, at_once: int) -> list[Job]:
    """
    Do runs, each in a process of its own, and print how each ended.

    :param train: what returns a job's row; a function that a fresh process can import
    :param jobs: what to run
    :param path: the result file
    :param at_once: how many at a time
    :return: the jobs that failed
    """
    waiting, failed = list(reversed(jobs)), []
    running: dict[Any, tuple[SpawnProcess, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop()
                process = get_context("spawn").Process(target=work, args=(train, job, path))
                process.start()
                running[process.sentinel] = process, job
            for sentinel in connection.wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    failed.append(job)
                    end = f"failed, exit code {process.exitcode}"
                else:
                    row = rows_by_job(path).get(job)
                    end = f"best {float(row['best']):.4g}" if row else "left to the process that is at it"
                done = len(jobs) - len(waiting) - len(running)
                print("[{}/{}] {} {} seed {}: {}".format(done, len(jobs), *job, end), flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
    return failed


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
    if args.jobs < 1:
        parser.error("--jobs must be 1 or more")
    envs = args.envs or SUITES[args.suite]
    there = rows_by_job(args.out)
    todo = dict.fromkeys((env, algo, seed) for seed in args.seeds for env in envs for algo in args.algos)
    failed = run_all(run, [job for job in todo if job not in there], args.out, args.jobs)
    if failed:
        sys.exit(f"{len(failed)} failed: " + ", ".join("{} {} seed {}".format(*job) for job in failed))


if __name__ == "__main__":
    main()
