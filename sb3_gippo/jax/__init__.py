"""Environments written in JAX: pure functions of one environment, batched and differentiated by JAX."""

try:
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError('Environments in JAX need jax: pip install "sb3-gippo[jax]".') from error

from sb3_gippo.jax.batched import JaxBatchedEnv
from sb3_gippo.jax.env import JaxEnv, from_brax, from_func_env

__all__ = ["JaxBatchedEnv", "JaxEnv", "from_brax", "from_func_env"]
