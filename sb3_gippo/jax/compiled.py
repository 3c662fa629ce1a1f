"""The functions of a JaxEnv as JAX compiles them: reset, step, and the step's transposed derivative, batched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sb3_gippo.jax.env import JaxEnv
from sb3_gippo.jax.state import Layout, as_arrays
from sb3_gippo.rollout.step_gradient import GradientChannelError

X64 = 'jax.config.update("jax_enable_x64", True) before anything is computed'


class Compiled(NamedTuple):
    """Functions of N environments; the vector is the differentiable state (N, n), the rest the other leaves of the states."""

    layout: Layout
    start: Callable[..., Any]
    """keys (N,) -> vector, rest, observation, next keys"""
    step: Callable[..., Any]
    """vector, rest, action, keys -> (next vector, observation, reward), (rest, terminated, next keys)"""
    pull: Callable[..., Any]
    """(vector, rest, action, keys), cotangents of (next vector, observation, reward) -> those of vector and action"""


def compiled(env: JaxEnv) -> Compiled:
    """
    :param env: the functions
    :return: the same whenever these functions come again: another batch of them, or a copy, compiles nothing anew
    :raises ValueError: if ``reset`` returns no state
    """
    shape, dtype = env.observation_space.shape, str(env.observation_space.dtype)
    arguments = env.reset, env.step, env.observe, shape, dtype, bool(jax.config.read("jax_enable_x64"))
    try:
        return _compiled(*arguments)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _compiled.__wrapped__(*arguments)


@lru_cache(maxsize=64)
def _compiled(reset: Any, one_step: Any, one_observe: Any, shape: tuple[int, ...], dtype: str, x64: bool) -> Compiled:
    with in_sentences():
        layout = Layout(jax.eval_shape(lambda key: as_arrays(reset(key)), jax.random.key(0)))

    def observe(state: Any) -> jax.Array:
        observation = jnp.asarray(one_observe(state))
        if observation.shape != shape:
            raise ValueError(
                f"observe() has returned an array {observation.shape}; expected was {shape}, as the observation space has it."
            )
        return observation.astype(dtype)

    def start(key: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array, jax.Array]:
        key, own = jax.random.split(key)
        state = as_arrays(reset(own))
        return *layout.split(state), observe(state), key

    def step(vector: jax.Array, rest: list[jax.Array], action: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        key, own = jax.random.split(key)
        outcome = one_step(layout.join(vector, rest), action, own)
        if not isinstance(outcome, tuple) or len(outcome) != 3:
            given = type(outcome).__name__ + (f" of {len(outcome)}" if isinstance(outcome, tuple) else "")
            raise ValueError(f"step() has returned a {given}; expected was (state, reward, terminated).")
        state, reward, terminated = outcome
        reward, terminated = jnp.asarray(reward), jnp.asarray(terminated)
        if reward.shape != () or not jnp.issubdtype(reward.dtype, jnp.floating):
            raise ValueError(f"step() has returned a reward {reward.shape} of {reward.dtype}; expected was a float ().")
        if terminated.shape != () or terminated.dtype != bool:
            raise ValueError(
                f"step() has returned terminated {terminated.shape} of {terminated.dtype}; expected was a bool ()."
            )
        following, others = layout.split(state)
        return (following, observe(layout.join(following, others)), reward), (others, terminated, key)

    batched = jax.vmap(step)

    def pull(inputs: Any, vector_bar: jax.Array, observation_bar: jax.Array, reward_bar: jax.Array) -> Any:
        vector, rest, action, keys = inputs
        outputs, back, _ = jax.vjp(lambda x, a: batched(x, rest, a, keys), vector, action, has_aux=True)
        return back((vector_bar, observation_bar.reshape(outputs[1].shape), reward_bar))

    return Compiled(layout, jax.jit(jax.vmap(start)), jax.jit(batched), jax.jit(pull))


@jax.jit
def pick(where: jax.Array, fresh: Any, kept: Any) -> Any:
    """
    :param where: (N,) bools
    :param fresh: arrays (N, ...)
    :param kept: as many
    :return: ``fresh``, where so, and ``kept`` elsewhere
    """

    def picked(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(-1, *[1] * (other.ndim - 1)), one, other)

    return jax.tree.map(picked, fresh, kept)


@contextmanager
def in_sentences() -> Iterator[None]:
    """
    What JAX raises while it traces, in a sentence that names the cure.

    :raises ValueError: for float64 where JAX has none
    :raises GradientChannelError: where the step cannot be differentiated backwards
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*requested dtype float64.*")
        try:
            yield
        except UserWarning as error:
            raise ValueError(f"The environment asks for float64, while JAX computes in float32: {X64}, or float32.") from error
        except ValueError as error:
            if "Reverse-mode differentiation" not in str(error):
                raise
            raise GradientChannelError(
                "JAX cannot differentiate the step backwards, through a lax.while_loop or a fori_loop of unknown length: "
                "write the loop as lax.scan (or as a fori_loop with fixed bounds)."
            ) from error
