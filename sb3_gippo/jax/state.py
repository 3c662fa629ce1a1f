"""A pytree as the differentiable vector and what is carried beside it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

FLOATS = ("float32", "float64")


def _named_leaves(state: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path) or "the state", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def as_arrays(state: Any) -> Any:
    """
    :param state: a pytree
    :return: the same of JAX arrays
    :raises ValueError: for a leaf that is no array of numbers, bools or random keys, or of other floats than float32 and
        float64
    """
    for name, leaf in _named_leaves(state):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, (bool, int, float)):
            continue
        if dtype is not None and (str(dtype) in FLOATS or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
            continue
        if dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
            continue
        raise ValueError(
            f"The leaf {name} of the state is {'of type ' + type(leaf).__name__ if dtype is None else dtype}: a state is made "
            "of arrays of float32 or float64, which are differentiated, and of integers, bools and random keys, which are "
            "carried. Keep everything else in the functions themselves."
        )
    return jax.tree.map(jnp.asarray, state)


class Layout:
    """
    How a state's pytree is taken apart and put together.

    :param state: of one environment, of arrays or of their shapes (``jax.eval_shape``)
    :ivar size: n
    :ivar dtype: of the vector
    """

    def __init__(self, state: Any):
        leaves, treedef = jax.tree.flatten(state)
        self.treedef: Any = treedef
        self.names = [name for name, _ in _named_leaves(state)]
        self.shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self.floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        zeros = [jnp.zeros(*shape) for shape, floating in zip(self.shapes, self.floating) if floating]
        vector, self._unravel = ravel_pytree(zeros or [jnp.zeros(0)])
        self.size, self.dtype = int(vector.size), vector.dtype

    def split(self, state: Any) -> tuple[jax.Array, list[jax.Array]]:
        """
        :param state: a pytree of the same structure
        :return: vector (n,), the other leaves
        :raises ValueError: for another structure, shape or kind of a leaf
        """
        leaves, treedef = jax.tree.flatten(as_arrays(state))
        if treedef != self.treedef:
            raise ValueError(f"step() returns a state {treedef}, reset() one {self.treedef}: they must be built alike.")
        for name, leaf, (shape, dtype), floating in zip(self.names, leaves, self.shapes, self.floating):
            if leaf.shape != shape or jnp.issubdtype(leaf.dtype, jnp.floating) != floating:
                raise ValueError(
                    f"The leaf {name} of the state is {leaf.shape} of {leaf.dtype} after step(), and {shape} of {dtype} after "
                    "reset(): it must stay as it is."
                )
        vector, _ = ravel_pytree([leaf for leaf, floating in zip(leaves, self.floating) if floating] or [jnp.zeros(0)])
        rest = [
            leaf if leaf.dtype == dtype else leaf.astype(dtype)
            for leaf, floating, (_, dtype) in zip(leaves, self.floating, self.shapes)
            if not floating
        ]
        return vector.astype(self.dtype), rest

    def join(self, vector: jax.Array, rest: list[jax.Array]) -> Any:
        """:return: the pytree of (n,) and the other leaves"""
        numbers, others = iter(self._unravel(vector)), iter(rest)
        leaves = [next(numbers) if floating else next(others) for floating in self.floating]
        return jax.tree.unflatten(self.treedef, leaves)
