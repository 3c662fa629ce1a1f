"""What to do when the process of an environment dies."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv


def close_if_worker_died(env: VecEnv) -> str | None:
    """
    See after a broken pipe whether an environment's process is gone. If so, stop the others: SB3 would wait for the answers
    of the dead, and ``close`` for ever.

    :param env: whose pipe broke
    :return: what happened, in a sentence; ``None`` if all processes live, or there are none
    """
    base: Any = env.unwrapped
    processes = getattr(base, "processes", [])
    for process in processes:
        # The pipe breaks a moment before the process has ended.
        process.join(0.1)
    dead = {index: process.exitcode for index, process in enumerate(processes) if not process.is_alive()}
    if not dead:
        return None
    for process in processes:
        process.terminate()
        process.join()
    base.closed = True
    index, code = next(iter(dead.items()))
    return (
        f"The process of environment {index} died with exit code {code} (its own error, if it had one, stands above). The "
        "others were closed; the policy is as its last update left it: save it, or go on with new environments by `set_env`."
    )
