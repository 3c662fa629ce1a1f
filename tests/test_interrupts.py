"""Interrupts and dying processes: nothing stays switched on, and what to do is said in one sentence."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_gippo import GIPPO
from sb3_gippo.rollout.workers import settle
from tests.helpers import SETTINGS, Strike, cartpole, interrupt, is_finite, small
from tests.reference import linear_quadratic

ENDED = r"^The process of environment \d has ended \(exit code .*go on with new environments by `set_env`\.$"


def interruptible() -> Any:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the suite runs in the background it may be ignored
    return linear_quadratic()


@pytest.fixture
def env() -> Iterator[SubprocVecEnv]:
    env = SubprocVecEnv([interruptible, interruptible])
    try:
        yield env
    finally:
        for process in env.processes:
            process.kill()


def kill(env: SubprocVecEnv, number: int) -> None:
    os.kill(env.processes[1].pid, number)  # type: ignore[arg-type]
    env.processes[1].join(10)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in a rollout", "in the update"])
def test_whatever_is_raised_gradients_are_switched_off_and_no_hook_stays(
    where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small().learn(32)
    hooks = len(model.policy.action_net._forward_pre_hooks)

    def strike(*args: Any, **kwargs: Any) -> None:
        raise error

    if where == "in a rollout":
        callback: Any = Strike(strike, step=3)  # type: ignore[arg-type]
    else:
        callback = None
        monkeypatch.setattr(model.policy.action_net, "forward", strike)
        monkeypatch.setattr(model, "collect_rollouts", lambda *args, **kwargs: True)
        model.rollout_buffer.generator_ready = False
        monkeypatch.setattr(model.rollout_buffer, "gradient_batch", lambda: strike())
    with pytest.raises(error):
        model.learn(64, callback, reset_num_timesteps=False)
    monkeypatch.undo()
    assert model.env.get_attr("differentiable") == [False] * 4  # type: ignore[union-attr]
    assert len(model.policy.action_net._forward_pre_hooks) == hooks
    assert not model.policy.optimizer._optimizer_step_pre_hooks and "evaluate_actions" not in vars(model.policy)
    model.learn(64, reset_num_timesteps=False)
    assert model._has_gradients and is_finite(model)


def test_a_hook_is_removed_if_the_forward_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().learn(32)
    assert model.actor is not None
    monkeypatch.setattr(model.policy, "get_distribution", lambda observations: interrupt())
    with pytest.raises(KeyboardInterrupt):
        model.actor.gaussian_and_features(model.policy.log_std.new_zeros(2, 5))
    assert not model.policy.action_net._forward_pre_hooks


def test_an_interrupt_of_the_main_process_alone_leaves_answers_that_are_taken(env: SubprocVecEnv) -> None:
    """As in a notebook: the workers go on, and their answers to the last step are in the pipes."""
    model = GIPPO("MlpPolicy", env, **SETTINGS)
    recv, calls = env.remotes[1].recv, iter(range(10**6))

    def interrupted() -> Any:
        if next(calls) == 12:
            interrupt()
        return recv()

    env.remotes = (env.remotes[0], _Remote(env.remotes[1], interrupted))
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000)
    env.remotes = (env.remotes[0], env.remotes[1].remote)
    assert env.get_attr("differentiable") == [False, False], "the answer to this question, not to the one before"
    model.learn(64, reset_num_timesteps=False)
    assert model._has_gradients and is_finite(model)


class _Remote:
    """A pipe whose ``recv`` is another."""

    def __init__(self, remote: Any, recv: Callable[[], Any]):
        self.remote, self.recv, self.send = remote, recv, remote.send


def test_settling_takes_every_answer_that_is_left_and_harms_nobody(env: SubprocVecEnv) -> None:
    env.reset()
    env.step_async(np.zeros((2, 2)))
    settle(env)
    env.remotes[0].send(("get_attr", "differentiable"))
    settle(env)
    observations = env.reset()
    assert observations.shape == (2, 3) and not env.waiting
    settle(DummyVecEnv([linear_quadratic]))
    settle(cartpole())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("when", ["before learn", "in a rollout", "in the last update"])
def test_a_process_that_ends_is_named_whenever_it_does(env: SubprocVecEnv, when: str, number: int) -> None:
    """Ctrl-C in a terminal reaches the workers too, which end; a later ``learn`` finds them gone."""
    model = GIPPO("MlpPolicy", env, **SETTINGS)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    ended = ENDED.replace(r"environment \d", "environment 1")
    callback = None
    if when == "before learn":
        kill(env, number)
    else:
        callback = Strike(lambda: kill(env, number), 5 if when == "in a rollout" else None)
    with pytest.raises(RuntimeError, match=ended.replace("code ", "code -9") if number == signal.SIGKILL else ended):
        model.learn(8 * 2, callback)
    if when != "in the last update":
        assert all(th.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    with pytest.raises(RuntimeError, match=ended):
        model.learn(8 * 2)
    env.close()
    assert not any(process.is_alive() for process in env.processes)
    model.set_env(DummyVecEnv([linear_quadratic, linear_quadratic]))  # type: ignore[list-item]
    model.learn(64, reset_num_timesteps=False)
    assert model._has_gradients and is_finite(model)


def test_ctrl_c_in_a_terminal_ends_learn_and_the_next_one_says_what_to_do(env: SubprocVecEnv) -> None:
    model = GIPPO("MlpPolicy", env, **SETTINGS)

    def everybody() -> None:
        for process in env.processes:
            os.kill(process.pid, signal.SIGINT)  # type: ignore[arg-type]
            process.join(10)
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, Strike(everybody, 5))
    with pytest.raises(RuntimeError, match=ENDED):
        model.learn(1000, reset_num_timesteps=False)


def test_environments_that_were_closed_are_named(env: SubprocVecEnv) -> None:
    model = GIPPO("MlpPolicy", env, **SETTINGS)
    env.close()
    with pytest.raises(RuntimeError, match=r"^These environments were closed: give the model new ones by `set_env`\.$"):
        model.learn(16)
