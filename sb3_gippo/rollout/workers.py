"""What to do when the processes of environments die, or are left with answers that nobody took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv


@contextmanager
def dead_workers_named(env: VecEnv | None) -> Iterator[None]:
    """
    Within this context a pipe that breaks because the process of an environment is gone ends in a sentence.

    :param env: whose processes may die
    :raises RuntimeError: naming the environment
    """
    try:
        yield
    except (EOFError, OSError) as error:
        death = None if env is None else close_if_worker_died(env)
        if death is None:
            raise
        raise RuntimeError(death) from error


def close_if_worker_died(env: VecEnv) -> str | None:
    """
    See after a broken pipe whether an environment's process is gone. If so, stop the others: SB3 would wait for the answers
    of the dead, and ``close`` for ever.

    :param env: whose pipe broke
    :return: what happened, in a sentence; ``None`` if all processes live, or there are none
    """
    base: Any = env.unwrapped
    processes = getattr(base, "processes", [])
    if processes and base.closed:
        return getattr(base, "death", "These environments were closed: give the model new ones by `set_env`.")
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
    base.death = (
        f"The process of environment {index} has ended (exit code {code}; its own error, if it had one, stands above; Ctrl-C "
        "ends all of them). The others were closed; the policy is as its last update left it: save it, or go on with new "
        "environments by `set_env`."
    )
    return str(base.death)


def settle(env: VecEnv) -> None:
    """
    Take the answers that are still in the pipes of a ``SubprocVecEnv`` after an interrupt: the next command would take them
    for its own. Waits for the environments that are still at work; processes that are gone are left alone.

    :param env: a stack of VecEnvs
    """
    base = env.unwrapped
    if not isinstance(base, SubprocVecEnv) or base.closed:
        return
    for remote in base.remotes:
        try:
            # Commands are answered in turn: what comes before the answer to this one is old.
            remote.send(("get_spaces", None))
            while not _are_spaces(remote.recv()):
                pass
        except (EOFError, ConnectionError):
            continue
    base.waiting = False


def _are_spaces(answer: Any) -> bool:
    return isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, spaces.Space) for part in answer)
