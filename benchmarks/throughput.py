"""
Environment steps per second of training, and memory: SB3's PPO, GIPPO on dense and on graph gradients.

All do the same number of optimizer updates. The algorithms take turns, so that each repeat gives ratios of neighbours in time;
CPU time is reported beside wall-clock, for machines that are not quiet.

python benchmarks/throughput.py --repeats 5
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from gippo_envs import BatchedEnv, FunctionalEnv, SingleEnv
from sb3_gippo import GIPPO, TorchVecEnv, make_vec_env

OUT = Path(__file__).parent / "results" / "throughput.csv"
FIELDS = ("env", "n_envs", "algo", "repeat", "steps", "wall", "cpu", "peak_mb", "window_mb")
# Windows of one step for functions, of 32 for physics.
ENVS = {"DeJong-v0": 1, "DeJong64-v0": 1, "CartPoleSwingUp-v0": 32}
MINIBATCHES, EPOCHS, ALPHA_ITERATIONS = 4, 5, 4
PATIENCE = 20
"""what takes more than so many times the seconds of a repeat is measured once, by its first iteration"""
PPO_EPOCHS, remainder = divmod(MINIBATCHES * EPOCHS + ALPHA_ITERATIONS, MINIBATCHES)
assert remainder == 0, "the updates must be equal in number"


@dataclass
class AntSized(FunctionalEnv):
    """A linear system with the sizes of an ant: 29 numbers of state, 37 of observation, 8 of action."""

    dtype: str = "float32"

    def __post_init__(self) -> None:
        self.state_size = 29
        self.observation_space, self.action_space = self.box(-np.inf, np.inf, 37), self.box(-1.0, 1.0, 8)
        generator = th.Generator().manual_seed(0)
        self.a, self.b, self.c = (0.1 * th.randn(*shape, generator=generator) for shape in ((29, 29), (8, 29), (29, 37)))

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        return th.randn(n, 29, generator=generator)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        following = th.tanh(state @ self.a + action @ self.b)
        return following, -following.square().sum(1), th.zeros(len(state), dtype=th.bool)

    def observe(self, state: th.Tensor) -> th.Tensor:
        return state @ self.c


def algorithms(
    dense: Callable[[], VecEnv], graph: Callable[[], VecEnv], n_steps: int
) -> dict[str, Callable[[], BaseAlgorithm]]:
    """:return: constructors by name"""

    def make(algorithm: type[PPO], env: Callable[[], VecEnv], **kwargs: Any) -> Callable[[], BaseAlgorithm]:
        def model() -> BaseAlgorithm:
            venv = env()
            batch = n_steps * venv.num_envs // MINIBATCHES
            return algorithm("MlpPolicy", venv, n_steps=n_steps, batch_size=batch, seed=0, device="cpu", **kwargs)

        return model

    gippo = {"n_epochs": EPOCHS, "alpha_kwargs": {"n_iterations": ALPHA_ITERATIONS}}
    return {
        "PPO": make(PPO, graph, n_epochs=PPO_EPOCHS),
        "GIPPO graph": make(GIPPO, graph, **gippo),
        "PPO, separate envs": make(PPO, dense, n_epochs=PPO_EPOCHS),
        "GIPPO dense": make(GIPPO, dense, **gippo),
    }


def learn(model: BaseAlgorithm, iterations: int) -> tuple[int, float, float]:
    """:return: environment steps, wall-clock and CPU seconds"""
    assert model.env is not None
    steps = iterations * model.n_steps * model.env.num_envs  # type: ignore[attr-defined]
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(steps, reset_num_timesteps=False)
    return steps, time.perf_counter() - wall, time.process_time() - cpu


def time_env(env_id: str, n_envs: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """One row per algorithm and repeat, each of about so many seconds."""
    th.set_num_threads(1)
    makers = algorithms(
        lambda: make_vec_env(env_id, n_envs, seed=0, vec_env_cls=DummyVecEnv),
        lambda: make_vec_env(env_id, n_envs, seed=0),
        ENVS[env_id],
    )
    models = {name: make() for name, make in makers.items()}
    rows, iterations = [], {}

    def keep(name: str, repeat: int, steps: int, wall: float, cpu: float) -> None:
        rows.append(
            {"env": env_id, "n_envs": n_envs, "algo": name, "repeat": repeat, "steps": steps, "wall": wall, "cpu": cpu}
        )

    for name, model in models.items():
        first = learn(model, 1)
        if first[1] > PATIENCE * seconds:
            keep(name, 0, *first)
        else:
            iterations[name] = max(1, round(seconds / learn(model, 1)[1]))
    for repeat in range(repeats):
        for name, n in iterations.items():
            keep(name, repeat, *learn(models[name], n))
    return rows


def peak_memory(name: str) -> dict[str, Any]:
    """Of a process that trains on 64 ant-sized environments with windows of 32 steps; and of the window of gradients alone."""
    th.set_num_threads(1)
    n_envs, n_steps = 64, 32
    makers = algorithms(
        lambda: DummyVecEnv([lambda: SingleEnv(AntSized) for _ in range(n_envs)]),  # type: ignore[list-item]
        lambda: TorchVecEnv(BatchedEnv(AntSized, n_envs)),
        n_steps,
    )
    model = makers[name]()
    steps, wall, cpu = learn(model, 3)
    row = {"env": "ant-sized", "n_envs": n_envs, "algo": name, "repeat": 0, "steps": steps, "wall": wall, "cpu": cpu}
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if name == "GIPPO dense":
        window = model.rollout_buffer.step_gradients  # type: ignore[attr-defined]
        row["window_mb"] = sum(block.nbytes for gradient in window for block in gradient.blocks.values()) / 2**20
    return row


def alone(job: Callable[..., Any], *args: Any) -> Any:
    """:return: what the job returns, from a process of its own: its peak memory is no other's"""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *args).result()


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table: medians over the repeats, and their range."""
    titles = ("algorithm", "steps/s", "range", "× PPO", "range", "× by CPU")
    yield "{:20} {:>4} {:20} {:>8} {:>15} {:>6} {:>11} {:>8}".format("environment", "envs", *titles)
    for env, n_envs in dict.fromkeys((row["env"], row["n_envs"]) for row in rows if "peak_mb" not in row):
        group = [row for row in rows if (row["env"], row["n_envs"]) == (env, n_envs)]
        base = [row for row in group if row["algo"] == "PPO"]
        for name in dict.fromkeys(row["algo"] for row in group):
            mine = [row for row in group if row["algo"] == name]
            speed = [row["steps"] / row["wall"] for row in mine]
            price, by_cpu = (
                [row[key] / row["steps"] * ppo["steps"] / ppo[key] for row, ppo in zip(mine, base)] for key in ("wall", "cpu")
            )
            yield (
                f"{env:20} {n_envs:4} {name:20} {np.median(speed):8.0f} {min(speed):7.0f}-{max(speed):<7.0f} "
                f"{np.median(price):6.2f} {min(price):5.2f}-{max(price):<5.2f} {np.median(by_cpu):8.2f}"
            )
    for row in rows:
        if "peak_mb" in row:
            window = f", window of gradients {row['window_mb']:.1f} MB" if "window_mb" in row else ""
            yield f"{row['env']}, {row['n_envs']} envs x 32 steps, {row['algo']}: peak memory {row['peak_mb']:.0f} MB{window}"


def main() -> None:
    """Measure, one process at a time, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--n-envs", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every repeat")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for env in args.envs:
        for n_envs in args.n_envs:
            rows.extend(alone(time_env, env, n_envs, args.repeats, args.seconds))
            print(f"{env} with {n_envs} envs is timed", flush=True)
    rows.extend(alone(peak_memory, name) for name in ("PPO", "GIPPO graph", "PPO, separate envs", "GIPPO dense"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    print(*report(rows), sep="\n")


if __name__ == "__main__":
    main()
