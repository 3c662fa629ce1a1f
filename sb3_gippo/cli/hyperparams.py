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
from sb3_gippo.lr import LR
from sb3_gippo.lrrp import LRRP
from sb3_gippo.pe import PE
from sb3_gippo.rp import RP
from sb3_gippo.rpo import RPO

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "gippo": GIPPO,
    "ppo": PPO,
    "lr": LR,
    "rp": RP,
    "lrrp": LRRP,
    "pe": PE,
    "rpo": RPO,
}
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
"""the hyper-parameters of SB3 that may be schedules"""
NESTED = ("alpha_kwargs", "critic_kwargs")
"""the hyper-parameters that are mappings of others; what is text in them is a schedule"""


def hyperparams_dir() -> Path:
    """:return: the folder of the hyper-parameter files: the repository's, or the one that was packaged"""
    package = Path(__file__).parents[1]
    checkout = package.parent / "hyperparams"
    return checkout if (checkout / "gippo.yml").is_file() else package / "hyperparams"


def conf_file(name: str) -> Path:
    """
    :param name: of a hyper-parameter file
    :return: the file of that name, or if there is none, that in :func:`hyperparams_dir`, if it is there
    """
    packaged = hyperparams_dir() / name
    return packaged if packaged.is_file() and not Path(name).is_file() else Path(name)


def read_hyperparams(algo: str, env_id: str, conf: str | None = None) -> dict[str, Any]:
    """
    An entry of ``hyperparams/<algo>.yml``, or of another file.

    :param algo: one of :data:`ALGORITHMS`
    :param env_id: the environment; the file's ``default`` serves if it has no entry
    :param conf: the other file, see :func:`conf_file`
    :return: see :func:`read_entry`
    :raises ValueError: for an unknown algorithm
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {algo!r}: there are {', '.join(ALGORITHMS)}.")
    return read_entry(hyperparams_dir() / f"{algo}.yml" if conf is None else conf_file(conf), env_id)


def read_entry(file: Path, env_id: str) -> dict[str, Any]:
    """
    An entry of a file in rl_zoo3's format.

    :param file: the yml file
    :param env_id: the environment; the file's ``default`` serves if it has no entry
    :return: the entry, with ``policy_kwargs`` and ``normalize`` evaluated, ``lin_...`` as schedules and a policy's full name
        as the class, as rl_zoo3 reads them
    :raises ValueError: for text that is no schedule, and for a name of no class
    """
    entries = yaml.safe_load(file.read_text())
    entry = dict(entries.get(env_id, entries["default"]))
    for key in ("policy_kwargs", "normalize"):
        if isinstance(entry.get(key), str):
            entry[key] = eval(entry[key], {"nn": nn, "dict": dict})
    if "." in entry.get("policy", ""):
        entry["policy"] = class_named(entry["policy"])
    return with_schedules(entry)


def merge(entry: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """
    Hyper-parameters in the place of an entry's. Of :data:`NESTED` ones they replace single keys, unless they name another
    ``alpha_solver``, whose ``alpha_kwargs`` are others; ``None`` in their place stands for the defaults.

    :param entry: hyper-parameters
    :param overrides: hyper-parameters
    :return: both; neither is changed
    """
    merged = {**entry, **overrides}
    for name in NESTED:
        if isinstance(overrides.get(name), dict) and isinstance(entry.get(name), dict):
            merged[name] = {**entry[name], **overrides[name]}
    if "alpha_solver" in overrides and overrides["alpha_solver"] != entry.get("alpha_solver", "trust_region"):
        merged["alpha_kwargs"] = overrides.get("alpha_kwargs")
    return merged


def with_schedules(entry: dict[str, Any]) -> dict[str, Any]:
    """
    :param entry: hyper-parameters
    :return: the same with schedules in the place of ``lin_...``, also within :data:`NESTED` ones
    :raises ValueError: for text that is no schedule, and for a nested one that is no mapping
    """
    result = dict(entry)
    for name in SCHEDULED:
        if name in entry:
            result[name] = schedule(name, entry[name])
    for name in NESTED:
        nested = entry.get(name)
        if isinstance(nested, dict):
            result[name] = {key: schedule(f"{name}: {key}", value) for key, value in nested.items()}
        elif nested is not None:
            raise ValueError(f"`{name}` must be a mapping, for instance dict(learning_rate=0.01), not {nested!r}.")
    return result


def schedule(name: str, value: Any) -> Any:
    """
    :param name: of a hyper-parameter
    :param value: its value
    :return: a schedule that falls from x to 0 for ``"lin_x"``; what is no text as it is
    :raises ValueError: for other text
    """
    if not isinstance(value, str):
        return value
    kind, _, start = value.partition("_")
    try:
        if kind == "lin":
            return LinearSchedule(float(start), 0.0, 1.0)
    except ValueError:
        pass
    # YAML reads 1e-3 as text, and 1.0e-3 as a number.
    raise ValueError(f"`{name}` must be a number (with a point: 1.0e-3) or, to fall from it to 0, `lin_0.001`, not {value!r}.")


def class_named(name: str) -> Any:
    """
    :param name: ``"package.module.Class"``
    :return: the class
    :raises ValueError: if there is none
    """
    try:
        return load_env_creator(":".join(name.rsplit(".", 1)))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}.") from error
