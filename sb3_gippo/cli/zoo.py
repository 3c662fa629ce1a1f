"""
rl_zoo3 with this project's algorithms, hyper-parameter files, Optuna sampler and batched environments. rl_zoo3 itself stays
as it is: what it looks up in tables of its modules is added there, before its commands run.
"""

from __future__ import annotations

import argparse
import inspect
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import rl_zoo3.exp_manager
import rl_zoo3.load_from_hub
import rl_zoo3.utils
import yaml
from rl_zoo3.exp_manager import EnvironmentName, ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_gippo.cli.hyperparams import ALGORITHMS, class_named, conf_file, hyperparams_dir, merge, with_schedules
from sb3_gippo.vec_env.make import from_env_fns

ZOO_ALGORITHMS: dict[str, type[BaseAlgorithm]] = dict(ALGOS)
"""the algorithms of rl_zoo3 itself"""

LOG_STEPS = 2048
"""a training prints its table every so many steps, those of PPO's default rollout; ten times at least"""

SEARCH: dict[str, Callable[[optuna.Trial], Any]] = {
    "alpha": lambda trial: trial.suggest_float("alpha", 0.05, 1.0, log=True),
    "alpha_iterations": lambda trial: trial.suggest_int("alpha_iterations", 1, 16, log=True),
    "alpha_learning_rate": lambda trial: trial.suggest_float("alpha_learning_rate", 1e-3, 1e-1, log=True),
    "alpha_kl": lambda trial: trial.suggest_float("alpha_kl", 1e-2, 3.0, log=True),
    "std_kl": lambda trial: trial.suggest_float("std_kl", 1e-4, 1.0, log=True),
    "max_action_grad_norm": lambda trial: trial.suggest_categorical("max_action_grad_norm", [None, 0.2, 1.0]),
    "action_gradient_lambda": lambda trial: trial.suggest_float("action_gradient_lambda", 0.3, 1.0),
    "critic_epochs": lambda trial: trial.suggest_categorical("critic_epochs", [0, 1, 4]),
    "critic_windows": lambda trial: trial.suggest_int("critic_windows", 1, 8),
    "radius": lambda trial: trial.suggest_float("radius", 0.05, 1.0, log=True),
    "n_neighbours": lambda trial: trial.suggest_int("n_neighbours", 1, 4),
    "clip_low": lambda trial: trial.suggest_float("clip_low", 0.2, 0.9),
    "clip_high": lambda trial: trial.suggest_float("clip_high", 0.2, 2.0, log=True),
    "kl_coef": lambda trial: trial.suggest_float("kl_coef", 1e-3, 1.0, log=True),
}
"""the space of the hyper-parameters that PPO does not have; an algorithm is tuned over those its constructor takes"""
INSIDE: dict[str, tuple[str, str]] = {
    "alpha_iterations": ("alpha_kwargs", "n_iterations"),
    "alpha_learning_rate": ("alpha_kwargs", "learning_rate"),
    "alpha_kl": ("alpha_kwargs", "kl"),
    "std_kl": ("alpha_kwargs", "std_kl"),
    "critic_windows": ("critic_kwargs", "n_windows"),
}
"""the argument, and the key in it, of those among them that are no arguments themselves"""
DECAYING = ("alpha_learning_rate", "alpha_kl", "std_kl")
"""what is drawn of these is where they begin to fall to 0, as in our files"""

Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]


class Manager(ExperimentManager):
    """
    rl_zoo3's manager, with our hyper-parameter files and batched environments (also in the place of ``--vec-env dummy``).

    :param config: the user's ``--conf-file``, which wins; the name of one of our files is enough
    """

    default_vec_env_cls = staticmethod(from_env_fns)  # type: ignore[assignment]

    def __init__(self, args: Any, algo: str, env_id: str, *rest: Any, config: str | None = None, **kwargs: Any):
        given = None if config is None else str(conf_file(config))
        super().__init__(args, algo, env_id, *rest, config=given, **kwargs)  # type: ignore[misc]
        if config is None:
            self.config = str(hyperparams_file(algo, env_id, Path(self.config).parent))
        if kwargs.get("vec_env_type") == "subproc":
            self.vec_env_class = SubprocVecEnv

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As rl_zoo3's, but what a trial and the user give is merged into the file's entry, see :func:`merge`."""
        custom, trial_id = self.custom_hyperparams, self.trial_id
        self.custom_hyperparams = self.trial_id = None
        with redirect_stdout(io.StringIO()):
            entry, _ = super().read_hyperparameters()
        if self.storage and self.study_name and trial_id is not None:
            print(f"Loading trial {trial_id} of the study {self.study_name}")
            entry = merge(entry, self.load_trial(self.storage, self.study_name, trial_id))
        self.custom_hyperparams = merge(entry, custom or {})
        return super().read_hyperparameters()

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        return with_schedules(ExperimentManager._preprocess_schedules(hyperparams))

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """
        As rl_zoo3's.

        :raises ValueError: for a name of no class or policy
        """
        policies = ALGOS[self.algo].policy_aliases
        for key in ("policy", "env_wrapper", "vec_env_wrapper", "callback"):
            given = hyperparams.get(key) or []
            for item in given if isinstance(given, list) else [given]:
                name = next(iter(item)) if isinstance(item, dict) else item
                if isinstance(name, str) and "." in name:
                    class_named(name)
                elif key == "policy" and isinstance(name, str) and name not in policies:
                    raise ValueError(f"There is no policy {name!r}: name one of {', '.join(policies)}, or a class in full.")
        return super()._preprocess_hyperparams(hyperparams)

    def hyperparameters_optimization(self) -> None:
        """As rl_zoo3's, but what is drawn is merged into the file's entry."""
        sample = HYPERPARAMS_SAMPLER[self.algo]

        def merged(*args: Any) -> dict[str, Any]:
            return with_schedules(merge(self._hyperparams, sample(*args)))

        HYPERPARAMS_SAMPLER[self.algo] = merged  # type: ignore[assignment]
        try:
            super().hyperparameters_optimization()
        finally:
            HYPERPARAMS_SAMPLER[self.algo] = sample

    def learn(self, model: BaseAlgorithm) -> None:
        """As rl_zoo3's. SB3 prints its table after every rollout; those of a few steps would fill the screen with it."""
        if self.log_interval == -1 and isinstance(model, PPO):
            steps = min(LOG_STEPS, self.n_timesteps // 10)
            self.log_interval = max(1, steps // (model.n_steps * model.n_envs))
        super().learn(model)


def base_of(algo: str) -> str:
    """:return: the algorithm of rl_zoo3 that ``algo`` is or derives from; PPO, if there is none"""
    return next((name for name, cls in ZOO_ALGORITHMS.items() if issubclass(ALGOS[algo], cls)), "ppo")


def hyperparams_file(algo: str, env_id: str, zoo_dir: Path) -> Path:
    """
    The file rl_zoo3 shall read: the first that has an entry for the environment, among ours, rl_zoo3's, and rl_zoo3's for the
    algorithm that ours derives from; if there is none, the first whose ``default`` will serve.

    :param algo: a key of ``rl_zoo3.ALGOS``
    :param env_id: the environment
    :param zoo_dir: the folder of rl_zoo3's files
    :return: the file
    """
    files = [hyperparams_dir() / f"{algo}.yml", zoo_dir / f"{algo}.yml", zoo_dir / f"{base_of(algo)}.yml"]
    there = [file for file in files if file.is_file()]
    key = "atari" if ExperimentManager.is_atari(env_id) else env_id
    return next((file for file in there if key in yaml.safe_load(file.read_text())), [*there, files[0]][0])


def convert(algo: str, params: dict[str, Any]) -> dict[str, Any]:
    """
    Hyper-parameters from the parameters of an Optuna trial.

    :param algo: an algorithm of ours
    :param params: of the trial
    :return: those of the algorithm's arguments that the trial has drawn; and those the space takes for granted: the trust
        region, and no gSDE, which excludes gradients and squashed actions
    """
    policy = {key: params[key] for key in ("squash_actions", "layer_norm", "log_std_init") if key in params}
    others = {key: value for key, value in params.items() if key not in policy}
    hyperparams = HYPERPARAMS_CONVERTER[base_of(algo)](others)
    hyperparams["policy_kwargs"].update(policy)
    for name, (argument, key) in INSIDE.items():
        if name in hyperparams:
            value = hyperparams.pop(name)
            hyperparams.setdefault(argument, {})[key] = f"lin_{value}" if name in DECAYING else value
    hyperparams.update(use_sde=False, alpha_solver="trust_region")
    arguments = inspect.signature(ALGOS[algo]).parameters
    return {key: value for key, value in hyperparams.items() if key in arguments}


def make_sampler(algo: str) -> Sampler:
    """:return: what rl_zoo3 samples an algorithm of ours with: the space of the one it derives from, and :data:`SEARCH`"""
    sample_base, arguments = HYPERPARAMS_SAMPLER[base_of(algo)], inspect.signature(ALGOS[algo]).parameters

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        # Gradients flow through the window: it is shorter than PPO's. Optuna keeps the first space of a name, and warns.
        trial.suggest_int("n_steps_pow", 0 if n_envs > 1 else 1, 7)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Inconsistent parameter values", RuntimeWarning)
            sample_base(trial, n_actions, n_envs, additional_args)
        for name, suggest in SEARCH.items():
            if INSIDE.get(name, (name,))[0] in arguments:
                suggest(trial)
        # The sampled policy replaces the file's: without these the file's own solution would not be in the space.
        trial.suggest_float("log_std_init", -2.0, 0.5)
        if n_actions > 0:
            trial.suggest_categorical("layer_norm", [False, True])
            trial.suggest_categorical("squash_actions", [False, True])
        return convert(algo, trial.params)

    return sample


@cache
def register() -> None:
    """Make rl_zoo3's commands know what this project adds to them; to be called before they are imported."""
    for algo, algorithm in ALGORITHMS.items():
        if algo not in ZOO_ALGORITHMS:
            ALGOS[algo] = algorithm
            HYPERPARAMS_SAMPLER[algo] = make_sampler(algo)  # type: ignore[assignment]
            HYPERPARAMS_CONVERTER[algo] = partial(convert, algo)
    rl_zoo3.exp_manager.ExperimentManager = Manager  # type: ignore[misc]
    rl_zoo3.load_from_hub.download_from_hub = download_from_hub  # type: ignore[assignment]
    rl_zoo3.utils.get_latest_run_id = latest_agent


_call, _download = subprocess.call, rl_zoo3.load_from_hub.download_from_hub
_latest_run, _trained_models = rl_zoo3.utils.get_latest_run_id, rl_zoo3.utils.get_trained_models


def latest_agent(log_path: str, env_name: EnvironmentName) -> int:
    """:return: the number of the latest run whose folder has an agent, which tuning and interrupted runs do not leave; or 0"""
    runs = range(_latest_run(log_path, env_name), 0, -1)
    return next((run for run in runs if any(Path(log_path, f"{env_name}_{run}").glob("*.zip"))), 0)


@contextmanager
def benchmark() -> Iterator[None]:
    """For as long as rl_zoo3's benchmark runs: it evaluates by our ``enjoy``, and what has an agent only."""
    subprocess.call, rl_zoo3.utils.get_trained_models = call, trained_models  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call, rl_zoo3.utils.get_trained_models = _call, _trained_models


def call(command: Any, *args: Any, **kwargs: Any) -> int:
    """``subprocess.call``; what rl_zoo3's benchmark calls, ``python enjoy.py`` in the current directory, is our command."""
    if command[:2] == ["python", "enjoy.py"]:
        command = [sys.executable, "-m", "sb3_gippo", "enjoy", *command[2:]]
    return _call(command, *args, **kwargs)


def trained_models(log_folder: str) -> dict[str, tuple[str, str]]:
    """
    What rl_zoo3's benchmark evaluates, and a folder for its table, which it takes for granted.

    :param log_folder: of trained agents
    :return: algorithm and environment by name; what has no agent is left out, and named in a sentence
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--benchmark-dir", default="logs/benchmark/")
    os.makedirs(parser.parse_known_args()[0].benchmark_dir, exist_ok=True)
    found = {}
    for name, (algo, env_id) in _trained_models(log_folder).items():
        if latest_agent(os.path.join(log_folder, algo), EnvironmentName(env_id)):
            found[name] = algo, env_id
        else:
            print(f"Skipping {algo} on {env_id}: no run of it in {log_folder} has left an agent.")
    return found


def download_from_hub(algo: str, **kwargs: Any) -> None:
    """
    Where rl_zoo3's ``enjoy`` turns if its default folder has no such agent.

    :raises ValueError: for an algorithm of ours, whose agents are not on the hub
    """
    if algo not in ZOO_ALGORITHMS:
        agent = f"{algo} agent for {kwargs['env_name']} in {kwargs['folder']!r}"
        raise ValueError(f"There is no {agent}: name the folder it was trained into, for instance -f logs.")
    _download(algo=algo, **kwargs)
