"""Training runs from the hyper-parameter files, for examples and benchmarks: the same code path for every algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_gippo.cli.hyperparams import ALGORITHMS, class_named, merge, read_hyperparams, with_schedules
from sb3_gippo.vec_env import make_vec_env


def make_model(
    algo: str,
    env_id: str,
    seed: int,
    env_kwargs: dict[str, Any] | None = None,
    wrap: Callable[[VecEnv], VecEnv] | None = None,
    conf: str | None = None,
    **overrides: Any,
) -> tuple[BaseAlgorithm, int]:
    """
    A model with its environments, as the hyper-parameter file has it.

    :param algo: one of :data:`ALGORITHMS`
    :param env_id: a registered environment
    :param seed: of everything random
    :param env_kwargs: the environment's constants
    :param wrap: what is put around the environments, inside of VecNormalize; nothing by default
    :param conf: the hyper-parameter file, if it is not that of the algorithm's name, see
        :func:`~sb3_gippo.cli.hyperparams.conf_file`
    :param overrides: hyper-parameters that replace the file's, see :func:`merge`; ``lin_...`` are schedules as there
    :return: the model, and the number of steps the file has it trained for
    """
    entry = with_schedules(merge(read_hyperparams(algo, env_id, conf), overrides))
    return build_model(ALGORITHMS[algo], env_id, entry, seed, env_kwargs, wrap)


def build_model(
    algorithm: type[BaseAlgorithm],
    env_id: str,
    entry: dict[str, Any],
    seed: int,
    env_kwargs: dict[str, Any] | None = None,
    wrap: Callable[[VecEnv], VecEnv] | None = None,
) -> tuple[BaseAlgorithm, int]:
    """
    A model with its environments.

    :param algorithm: the class
    :param env_id: a registered environment
    :param entry: hyper-parameters, see :func:`read_entry`; of rl_zoo3's further keys it may have ``n_envs``, ``n_timesteps``,
        ``normalize`` and ``env_wrapper`` (one class, or its name)
    :param seed: of everything random
    :param env_kwargs: the environment's constants, beside the entry's ``env_kwargs``
    :param wrap: what is put around the environments, inside of VecNormalize; nothing by default
    :return: the model, and the number of steps the entry has it trained for
    """
    entry = dict(entry)
    n_envs, n_timesteps = int(entry.pop("n_envs", 1)), int(entry.pop("n_timesteps"))
    normalize, wrapper = entry.pop("normalize", None), entry.pop("env_wrapper", None)
    wrapper_class: Any = class_named(wrapper) if isinstance(wrapper, str) else wrapper
    env_kwargs = {**entry.pop("env_kwargs", {}), **(env_kwargs or {})}
    env = make_vec_env(env_id, n_envs, seed=seed, env_kwargs=env_kwargs, wrapper_class=wrapper_class)
    if wrap is not None:
        env = wrap(env)
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
