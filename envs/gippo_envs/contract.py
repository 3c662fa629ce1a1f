"""
Whether a functional core keeps its contract.

It is looked at once per environment, at the first reset and the first step: what a core returns in a wrong shape or type often
broadcasts or converts, and then surfaces far away, as a wrong gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch as th
from gymnasium import spaces

if TYPE_CHECKING:
    from gippo_envs.core import FunctionalEnv


def check_core(core: FunctionalEnv) -> None:
    """
    :raises ValueError: if what the core says of itself is missing or does not fit together
    """
    kinds: dict[str, tuple[type, str]] = {
        "dtype": (str, '"float32" or "float64"'),
        "state_size": (int, "the length of the state, an int"),
        "observation_space": (spaces.Box, "a Box"),
        "action_space": (spaces.Box, "a Box"),
    }
    for name, (kind, words) in kinds.items():
        if not isinstance(getattr(core, name, None), kind):
            given = f"is {getattr(core, name)!r}" if hasattr(core, name) else "is missing"
            raise ValueError(f"{type(core).__name__}.{name} {given}; expected was {words}.")
    space, dtype = core.observation_space, np.dtype(core.dtype)
    core.torch_dtype, core.torch_device  # noqa: B018 (they raise)
    if len(space.shape) != 1 or space.dtype != dtype:
        raise ValueError(
            f"{type(core).__name__}.observation_space has shape {space.shape} and type {space.dtype}; expected were one axis "
            f"and {dtype}, as {type(core).__name__}.box makes it."
        )


def check_initial_state(core: FunctionalEnv, n: int, state: Any) -> None:
    """
    :param n: how many were asked for
    :param state: what ``initial_state`` returned
    :raises ValueError: if the state or its observation is not what the core promises
    """
    _expect(core, "initial_state", "", state, (n, core.state_size))
    given = state.clone()
    _check_observation(core, n, core.observe(given))
    _check_unwritten(core, "observe", "state", given, state)


def check_step(core: FunctionalEnv, state: th.Tensor, action: th.Tensor) -> None:
    """
    :param state: (n, state_size), from which to try a step
    :param action: (n, action_dim)
    :raises ValueError: if the step does not return what the core promises, or writes into what it was given
    """
    n = len(state)
    with th.no_grad():
        given = state.clone(), action.clone()
        found: Any = core.step(*given)
        _check_unwritten(core, "step", "state", given[0], state)
        _check_unwritten(core, "step", "action", given[1], action)
        if not isinstance(found, tuple) or len(found) != 3:
            _refuse(core, "step", "", found, "(next state, reward, terminated)")
        next_state, reward, terminated = found
        _expect(core, "step", " as next state", next_state, (n, core.state_size))
        _expect(core, "step", " as reward", reward, (n,))
        _expect(core, "step", " as terminated", terminated, (n,), th.bool)
        _check_observation(core, n, core.observe(next_state))


def _check_observation(core: FunctionalEnv, n: int, observation: Any) -> None:
    _expect(core, "observe", "", observation, (n, *core.observation_space.shape))


def _check_unwritten(core: FunctionalEnv, function: str, name: str, found: th.Tensor, before: th.Tensor) -> None:
    if not th.allclose(found, before, rtol=0.0, atol=0.0, equal_nan=True):
        raise ValueError(f"{type(core).__name__}.{function} has written into the {name} it was given; expected was a copy.")


def _expect(
    core: FunctionalEnv, function: str, role: str, found: Any, shape: tuple[int, ...], dtype: th.dtype | None = None
) -> None:
    dtype = dtype or core.torch_dtype
    if not isinstance(found, th.Tensor) or found.shape != shape or found.dtype != dtype or found.device != core.torch_device:
        _refuse(core, function, role, found, _tensor(shape, dtype, core.torch_device))


def _refuse(core: FunctionalEnv, function: str, role: str, found: Any, expected: str) -> NoReturn:
    if isinstance(found, th.Tensor):
        given = _tensor(tuple(found.shape), found.dtype, found.device)
    else:
        given = f"an object of type {type(found).__name__}"
    raise ValueError(f"{type(core).__name__}.{function} has returned {given}{role}; expected was {expected}.")


def _tensor(shape: tuple[int, ...], dtype: th.dtype, device: th.device) -> str:
    return f"a tensor {shape} of {str(dtype).removeprefix('torch.')} on {device}"
