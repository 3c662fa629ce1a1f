"""Step gradients: the transposed Jacobian of one environment step, batched over environments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class GradientChannelError(ValueError):
    """The gradients an environment hands over do not fit the transition they came with."""


class StepGradient(Protocol):
    """
    The derivative of ``(x, a) -> (x', o', r)`` at one transition of every environment, with the values it was taken at.

    ``action`` (n_envs, m), ``observation`` (n_envs, k) and ``reward`` (n_envs,) are the integrity check: they must be what
    the algorithm sent and what came back. ``state`` and ``next_state`` (n_envs, n), before and after the step, may be left
    out; with them, steps that do not follow one another are noticed.
    """

    @property
    def state_size(self) -> int:
        """:return: n"""

    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray

    def vjp(
        self, next_state_bar: th.Tensor | None, next_obs_bar: th.Tensor, reward_bar: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Pull cotangents back through the step.

        :param next_state_bar: (n_envs, n), cotangent of the next state; ``None`` for zero
        :param next_obs_bar: (n_envs, k), of the observation of the next state
        :param reward_bar: (n_envs,), of the reward
        :return: cotangents of the state (n_envs, n) and of the action the environment received (n_envs, m), in the type
            and on the device of ``next_obs_bar``
        """


def offered_step_gradient(env: VecEnv) -> StepGradient | None:
    """
    :param env: a stack of VecEnvs
    :return: the ``step_gradient`` of its outermost layer that has one; ``None`` where gradients come in the infos, or not
    """
    layer = env
    while True:
        # Not by getattr alone: a wrapper hands on the attributes of what it wraps, as they are.
        own = inspect.getattr_static(layer, "step_gradient", None)
        found: StepGradient | None = None if own is None else getattr(layer, "step_gradient")  # noqa: B009
        if found is not None or not isinstance(layer, VecEnvWrapper):
            return found
        layer = layer.venv


def states_of(step_gradient: StepGradient) -> tuple[np.ndarray, np.ndarray] | None:
    """:return: the states before and after the step, (n_envs, n) each; ``None`` where they are not told"""
    before, after = (getattr(step_gradient, name, None) for name in STATES)
    return None if before is None or after is None else (before, after)


KEYS = ("state_state", "state_action", "obs_state", "obs_action", "reward_state", "reward_action")
TAKEN_AT = ("action", "obs", "reward")
STATES = ("state", "next_state")
"""the state before and after the step, (n,); optional: with them, steps that do not follow one another are noticed"""


@dataclass
class DenseStepGradient:
    """
    A step gradient as stacked Jacobians; a block that is missing is zero.

    :param blocks: the arrays of ``info["grad"]`` by name, each with a leading axis of environments
    :param state_size: n
    :param action: (n_envs, m)
    :param observation: (n_envs, k)
    :param reward: (n_envs,)
    :param state: (n_envs, n), or ``None`` where it was not told
    :param next_state: the same
    """

    blocks: dict[str, th.Tensor]
    state_size: int
    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray
    state: np.ndarray | None = None
    next_state: np.ndarray | None = None

    @classmethod
    def from_infos(cls, infos: Sequence[dict[str, Any]], action_dim: int, observation_dim: int) -> DenseStepGradient:
        """
        Stack ``info["grad"]`` of every environment.

        :param infos: one dict per environment
        :param action_dim: m
        :param observation_dim: k
        :raises GradientChannelError: if a gradient is missing or has a wrong shape, or the states differ in size
        """
        grads = []
        for index, info in enumerate(infos):
            if "grad" not in info:
                raise GradientChannelError(
                    f'Environment {index} returned no info["grad"] while another one did: every environment must offer '
                    "the gradient channel in every step, or none (then GIPPO is PPO)."
                )
            grads.append(_arrays(index, info["grad"]))
        size = _state_size(grads)
        shapes = {
            "state_state": (size, size),
            "state_action": (size, action_dim),
            "obs_state": (observation_dim, size),
            "obs_action": (observation_dim, action_dim),
            "reward_state": (size,),
            "reward_action": (action_dim,),
        }
        blocks = {
            key: th.from_numpy(_stack(grads, key, shape))
            for key, shape in shapes.items()
            if any(key in grad for grad in grads)
        }
        told = all(key in grad for grad in grads for key in STATES)
        return cls(
            blocks,
            size,
            _stack(grads, "action", (action_dim,), required=True),
            _stack(grads, "obs", (observation_dim,), required=True),
            _stack(grads, "reward", (), required=True),
            *(_stack(grads, key, (size,)) if told else None for key in STATES),
        )

    def vjp(
        self, next_state_bar: th.Tensor | None, next_obs_bar: th.Tensor, reward_bar: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        bars = {"state": next_state_bar, "obs": next_obs_bar, "reward": reward_bar[:, None]}
        sizes = {"state": self.state_size, "action": self.action.shape[1]}
        pulled = {}
        for wrt, size in sizes.items():
            total = next_obs_bar.new_zeros(len(next_obs_bar), size)
            for of, bar in bars.items():
                block = self.blocks.get(f"{of}_{wrt}")
                if block is not None and bar is not None:
                    block = block.to(bar)
                    # A reward's derivative is a vector; the others are matrices.
                    total = total + (bar * block if of == "reward" else th.einsum("eij,ei->ej", block, bar))
            pulled[wrt] = total
        return pulled["state"], pulled["action"]


def _arrays(index: int, grad: Any) -> dict[str, np.ndarray]:
    """What the channel knows of the ``info["grad"]`` of environment ``index``, as arrays of numbers."""
    if not isinstance(grad, Mapping):
        raise GradientChannelError(f'info["grad"] of environment {index} is a {type(grad).__name__}, not a dict of arrays.')
    known = (*KEYS, *TAKEN_AT, *STATES)
    arrays = {}
    for key in grad:
        if key not in known:
            raise GradientChannelError(
                f'info["grad"] of environment {index} has an unknown key {key!r}: known are {", ".join(known)}.'
            )
        try:
            array = as_array(grad[key])
        except (ValueError, TypeError, RuntimeError, NotImplementedError):  # rows of different lengths, a tensor without data
            array = np.array(None)
        if array.dtype.kind not in "fiub":
            raise GradientChannelError(f'info["grad"][{key!r}] of environment {index} is not an array of numbers.')
        arrays[key] = array
    return arrays


def as_array(value: Any) -> np.ndarray:
    """A value of the channel as numpy has it: a tensor may have a graph, live on a device, be sparse, or of type bfloat16."""
    if isinstance(value, th.Tensor):
        value = value.detach().to_dense().cpu()
        value = value.float() if value.dtype == th.bfloat16 else value
    array = np.asarray(value)
    # Torch has no wider floats, and no arithmetic of bools.
    return array.astype(np.float64) if array.dtype.kind == "b" or array.dtype == np.longdouble else array


STATE_AXES = {"state_state": 0, "state_action": 0, "obs_state": 1, "reward_state": 0, "state": 0, "next_state": 0}
"""which axis of an array of the channel has the state's length"""


def state_size(grad: Mapping[str, Any]) -> int:
    """:return: n, as the first of its arrays that has such an axis says; 0 if none has"""
    sizes = (np.shape(grad[key])[axis] for key, axis in STATE_AXES.items() if key in grad and np.ndim(grad[key]) > axis)
    return next(sizes, 0)


def _state_size(grads: Sequence[dict[str, np.ndarray]]) -> int:
    found: dict[int, str] = {}
    for index, grad in enumerate(grads):
        for key, axis in STATE_AXES.items():
            if key in grad and grad[key].ndim > axis:
                found.setdefault(grad[key].shape[axis], f"{key!r} of environment {index}")
    if len(found) > 1:
        (size, where), (other, elsewhere) = list(found.items())[:2]
        raise GradientChannelError(
            f'info["grad"] speaks of a state of size {size} in {where} but of size {other} in {elsewhere}: '
            "the state behind the gradients must keep its size, over environments and over steps."
        )
    return next(iter(found), 0)


def _stack(grads: Sequence[dict[str, np.ndarray]], key: str, shape: tuple[int, ...], required: bool = False) -> np.ndarray:
    rows = []
    for index, grad in enumerate(grads):
        if key not in grad:
            if required:
                raise GradientChannelError(
                    f'info["grad"] of environment {index} lacks {key!r}, the value the gradient was taken at, '
                    "without which it cannot be checked."
                )
            rows.append(np.zeros(shape, dtype=np.float32))
            continue
        # Actions and observations may have any shape in their Box; the channel is about the flattened ones.
        row = grad[key].reshape(-1) if required and shape else grad[key]
        if row.shape != shape:
            raise GradientChannelError(
                f'info["grad"][{key!r}] of environment {index} has shape {row.shape} where {shape} is needed.'
                + (
                    " A wrapper in between may have changed the observation (VecFrameStack, FlattenObservation, ...):"
                    " such wrappers cannot be followed by gradients."
                    if "obs" in key
                    else ""
                )
            )
        rows.append(row)
    return np.stack(rows)
