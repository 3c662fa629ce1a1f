"""The hyper-parameter files in rl_zoo3's format, and which algorithm each is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from gymnasium.envs.registration import load_env_creator
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_gippo.gippo import GIPPO
from sb3_gippo.rp import RP

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"gippo": GIPPO, "ppo": PPO, "rp": RP}


def hyperparams_dir() -> Path:
    """:return: the folder of the hyper-parameter files: the repository's, or the one that was packaged"""
    package = Path(__file__).parents[1]
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
