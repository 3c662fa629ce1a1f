"""Training runs from the hyper-parameter files, for examples and benchmarks: the same code path for every algorithm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from gymnasium.envs.registration import load_env_creator
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_gippo.baselines import RP
from sb3_gippo.gippo import GIPPO
from sb3_gippo.vec_env import make_vec_env
from sb3_gippo.wrappers.corrupt import CorruptGradients

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"gippo": GIPPO, "ppo": PPO, "rp": RP}


def hyperparams_dir() -> Path:
    """:return: the folder of the hyper-parameter files: the repository's, or the one that was packaged"""
    package = Path(__file__).parent
    checkout = package.parent / "hyperparams"
    return checkout if (checkout / "gippo.yml").is_file() else package / "hyperparams"


def read_hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    An entry of ``hyperparams/<algo>.yml``.

    :param algo: one of :data:`ALGORITHMS`
    :param env_id: the environment; the file's ``default`` serves if it has no entry
    :return: see :func:`read_entry`
    :raises ValueError: for an unknown algorithm
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {algo!r}: there are {', '.join(ALGORITHMS)}.")
    return read_entry(hyperparams_dir() / f"{algo}.yml", env_id)


def read_entry(file: Path, env_id: str) -> dict[str, Any]:
    """
    An entry of a file in rl_zoo3's format.

    :param file: the yml file
    :param env_id: the environment; the file's ``default`` serves if it has no entry
    :return: the entry, with ``policy_kwargs`` and ``normalize`` evaluated, ``lin_...`` as schedules and a policy's full name
        as the class, as rl_zoo3 reads them
    """
    entries = yaml.safe_load(file.read_text())
    entry = dict(entries.get(env_id, entries["default"]))
    for key in ("policy_kwargs", "normalize"):
        if isinstance(entry.get(key), str):
            entry[key] = eval(entry[key], {"nn": nn, "dict": dict})
    for key in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(entry.get(key), str):
            entry[key] = LinearSchedule(float(entry[key].removeprefix("lin_")), 0.0, 1.0)
    if "." in entry.get("policy", ""):
        entry["policy"] = class_named(entry["policy"])
    return entry


def class_named(name: str) -> Any:
    """
    :param name: ``"package.module.Class"``
    :return: the class
    """
    return load_env_creator(":".join(name.rsplit(".", 1)))


def make_model(
    algo: str,
    env_id: str,
    seed: int,
    env_kwargs: dict[str, Any] | None = None,
    corruption: dict[str, Any] | None = None,
    **overrides: Any,
) -> tuple[BaseAlgorithm, int]:
    """
    A model with its environments, as the hyper-parameter file has it.

    :param algo: one of :data:`ALGORITHMS`
    :param env_id: a registered environment
    :param seed: of everything random
    :param env_kwargs: the environment's constants
    :param corruption: what :class:`~sb3_gippo.wrappers.corrupt.CorruptGradients` does to the gradients; nothing by default
    :param overrides: hyper-parameters that replace the file's
    :return: the model, and the number of steps the file has it trained for
    """
    entry = {**read_hyperparams(algo, env_id), **overrides}
    return build_model(ALGORITHMS[algo], env_id, entry, seed, env_kwargs, corruption)


def build_model(
    algorithm: type[BaseAlgorithm],
    env_id: str,
    entry: dict[str, Any],
    seed: int,
    env_kwargs: dict[str, Any] | None = None,
    corruption: dict[str, Any] | None = None,
) -> tuple[BaseAlgorithm, int]:
    """
    A model with its environments.

    :param algorithm: the class
    :param env_id: a registered environment
    :param entry: hyper-parameters, see :func:`read_entry`; of rl_zoo3's further keys it may have ``n_envs``, ``n_timesteps``,
        ``normalize`` and ``env_wrapper`` (one class, or its name)
    :param seed: of everything random
    :param env_kwargs: the environment's constants, beside the entry's ``env_kwargs``
    :param corruption: what :class:`~sb3_gippo.wrappers.corrupt.CorruptGradients` does to the gradients; nothing by default
    :return: the model, and the number of steps the entry has it trained for
    """
    entry = dict(entry)
    n_envs, n_timesteps = int(entry.pop("n_envs", 1)), int(entry.pop("n_timesteps"))
    normalize, wrapper = entry.pop("normalize", None), entry.pop("env_wrapper", None)
    wrapper_class: Any = class_named(wrapper) if isinstance(wrapper, str) else wrapper
    env_kwargs = {**entry.pop("env_kwargs", {}), **(env_kwargs or {})}
    env = make_vec_env(env_id, n_envs, seed=seed, env_kwargs=env_kwargs, wrapper_class=wrapper_class)
    if corruption:
        env = CorruptGradients(env, seed, **corruption)
    if normalize:
        kwargs = normalize if isinstance(normalize, dict) else {}
        env = VecNormalize(env, **{"gamma": entry.get("gamma", 0.99), **kwargs})
    return algorithm(env=env, seed=seed, device="cpu", **entry), n_timesteps


class CurveCallback(BaseCallback):
    """
    Records the learning curve: after each iteration the mean return of the last (at most 100) finished episodes.

    :ivar steps: environment steps
    :ivar returns: those means, of the stochastic policy; their largest is the paper's metric
    :ivar seconds: wall-clock since the start
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.returns: list[float] = []
        self.seconds: list[float] = []

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert self.model.ep_info_buffer is not None
        if self.model.ep_info_buffer:
            self.steps.append(self.model.num_timesteps)
            self.returns.append(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer])))
            self.seconds.append(time.perf_counter() - self._start)
