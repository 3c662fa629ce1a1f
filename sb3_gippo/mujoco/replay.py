"""A MuJoCo task's own step, from other states than the task's, without a trace."""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

from sb3_gippo.mujoco.coordinates import PARTS, Coordinates

IMMUTABLE = (bool, int, float, str, type(None), np.generic, spaces.Space)
ENGINE = ("model", "data", "mujoco_renderer", "_np_random")
CONSTANT = ("init_qpos", "init_qvel", "metadata", "observation_structure", "spec")
"""attributes of a ``MujocoEnv``: those that are taken care of by themselves, and those that a step does not change"""


class Replay:
    """
    Runs the task's step from given states. It does so on the task itself, so that what a task keeps (named access to bodies,
    views of MuJoCo's arrays) goes on pointing to the right data; for use in threads, on a twin with data of its own.

    What the task keeps in Python attributes is put back before each of these steps and after the last one; the steps get
    copies of all they might change.

    :param task: the task
    :param coordinates: of its model
    :param twin: whether a twin of the task is stepped
    """

    def __init__(self, task: MujocoEnv, coordinates: Coordinates, twin: bool):
        self.task = task
        self.coordinates = coordinates
        self.stepped = object.__new__(type(task)) if twin else task
        self.own_data = mujoco.MjData(task.model) if twin else None
        self.before = mujoco.MjData(task.model)
        self.generator: np.random.Generator | None = None

    def remember(self) -> None:
        """Take note of the task as it is."""
        task = self.task
        generator = task.np_random  # it may come into being here
        mujoco.mj_copyData(self.before, task.model, task.data)
        self.attributes = dict(vars(task))
        self.data = task.data if self.own_data is None else self.own_data
        if self.generator is None or type(generator.bit_generator) is not type(self.generator.bit_generator):
            self.generator = copy.deepcopy(generator)
        self.random_state = generator.bit_generator.state
        self.changes = {"data": self.data, "render_mode": None, "_np_random": self.generator}
        self.mutable = {name: value for name, value in self.attributes.items() if _may_change(name, value)}
        self.memo = {id(task): self.stepped, id(task.data): self.data, id(generator): self.generator}
        for shared in (task.model, task.mujoco_renderer):
            self.memo[id(shared)] = shared
        mujoco.mj_copyData(self.data, task.model, self.before)
        self.lag = self.coordinates.lag(self.before, self.data)

    def step(self, action: np.ndarray, raw: np.ndarray | None = None) -> np.ndarray:
        """
        :param action: as the task takes it
        :param raw: state (nq + nv + na,); ``None`` for the task's own, to the last bit
        :return: next state, observation and reward (nq + nv + na + k + 1,)
        """
        assert self.generator is not None, "remember() comes first"
        memo = dict(self.memo)
        self._set_attributes({**self.changes, **{name: _copy(value, memo) for name, value in self.mutable.items()}})
        self.generator.bit_generator.state = self.random_state
        mujoco.mj_copyData(self.data, self.task.model, self.before)
        if raw is not None:
            self.coordinates.place(self.data, raw, self.lag)
        observation, reward = self.stepped.step(action)[:2]
        observation, size = np.ravel(observation), self.coordinates.raw_size
        outcome = np.empty(size + observation.size + 1)
        mujoco.mj_getState(self.task.model, self.data, outcome[:size], PARTS)
        outcome[size:-1] = observation
        outcome[-1] = reward
        return outcome

    def restore(self) -> None:
        """Leave the task as it was remembered."""
        self._set_attributes({})
        mujoco.mj_copyData(self.task.data, self.task.model, self.before)

    def _set_attributes(self, changes: dict[str, Any]) -> None:
        attributes = vars(self.stepped)
        attributes.update(self.attributes)
        if len(attributes) > len(self.attributes):
            for name in attributes.keys() - self.attributes.keys():
                del attributes[name]
        attributes.update(changes)


def _may_change(name: str, value: Any) -> bool:
    """Whether an attribute may be changed in place by a step."""
    if isinstance(value, IMMUTABLE) or name in ENGINE + CONSTANT or name.startswith("_ezpickle"):
        return False
    if isinstance(value, tuple):
        return any(_may_change("", item) for item in value)
    root = value
    while isinstance(root, np.ndarray) and root.base is not None:
        root = root.base
    # An array whose memory is not numpy's is a view of MuJoCo's, which is put back with the data.
    return not isinstance(value, np.ndarray) or isinstance(root, np.ndarray)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever the objects of a task raise; what cannot be copied is shared
        return value
