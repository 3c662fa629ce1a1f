"""The critic's own fit, on a memory of its last windows, and its slow copy."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_gippo.common.hyperparameters import check_integer, check_schedule, schedule_of
from sb3_gippo.common.optimizers import adam, load_state, trainable


@dataclass(frozen=True)
class CriticSettings:
    """
    What ``critic_kwargs`` may hold.

    :param n_windows: from how many of the last windows the fit's minibatches are drawn
    :param batch_size: rows of a minibatch at most; no more than one window has
    :param learning_rate: of the fit, it can be a function of the current progress remaining
    :raises AssertionError: for a value that makes no sense
    """

    n_windows: int = 4
    batch_size: int = 512
    learning_rate: float | Schedule = 1e-3

    def __post_init__(self) -> None:
        check_integer("critic_kwargs: n_windows", self.n_windows, 1)
        check_integer("critic_kwargs: batch_size", self.batch_size, 1)
        check_schedule("critic_kwargs: learning_rate", self.learning_rate)


class CriticMemory:
    """
    Observations and returns of the last windows, to fit the critic on more than the present one: environments that start in
    phase show one part of the episode at a time, and a critic fitted to that alone forgets the others.

    :param n_windows: how many windows are kept
    """

    def __init__(self, n_windows: int):
        self.windows: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=n_windows)

    def add(self, observations: np.ndarray, returns: np.ndarray) -> None:
        """
        :param observations: (n, ...), as the policy saw them
        :param returns: (n,)
        """
        self.windows.append((observations.copy(), returns.copy()))

    def tensors(self, device: th.device) -> tuple[th.Tensor, th.Tensor]:
        """:return: all observations (N, ...) and returns (N,) that are kept"""
        observations, returns = (np.concatenate(arrays) for arrays in zip(*self.windows))
        return th.as_tensor(observations, device=device), th.as_tensor(returns, device=device)


class CriticFit:
    """
    Minibatch steps on the squared error of the values after each update, in the place of PPO's value loss (beside it where
    actor and critic share features).

    Returns come in any unit, and the unit grows while the policy learns. The error is taken in units of the returns' standard
    deviation, the last layer's rate is multiplied by that, and what a last layer can do at once is done at once, before and
    after the steps: its values are shrunk where they vary more than the returns, and their mean is made the returns'.

    :param policy: whose values are fitted
    :param parameters: what only the value depends on
    :param settings: hyper-parameters
    """

    def __init__(self, policy: ActorCriticPolicy, parameters: list[nn.Parameter], settings: CriticSettings):
        self.policy = policy
        self.parameters = parameters
        self.batch_size = settings.batch_size
        self.rate = schedule_of("critic_kwargs: learning_rate", settings.learning_rate)
        self.memory = CriticMemory(settings.n_windows)
        self.optimizer = adam(parameters, eps=1e-5)
        self.head = last_layer(policy.value_net, trainable(parameters))
        if self.optimizer is not None and self.head is not None:
            head = {id(parameter) for parameter in self.head.parameters()}
            groups = [[p for p in parameters if (id(p) in head) == is_head] for is_head in (False, True)]
            self.optimizer.param_groups[0]["params"] = groups[0]
            self.optimizer.add_param_group({"params": groups[1]})

    def fit(
        self, observations: th.Tensor, returns: th.Tensor, n_epochs: int, progress_remaining: float
    ) -> tuple[float, float] | None:
        """
        Add a window to the memory and go through it in minibatches. A step whose gradient is not finite is left out.

        :param observations: (n, ...)
        :param returns: (n,)
        :param n_epochs: passes over the memory, one or more
        :param progress_remaining: from 1 to 0
        :return: the loss of the last minibatch, the share of the returns' variance that is not explained, and the learning
            rate; ``None`` if there is nothing to train
        """
        self.memory.add(observations.cpu().numpy(), returns.cpu().numpy())
        if self.optimizer is None or not trainable(self.parameters):
            return None
        learning_rate = self.rate(progress_remaining)
        all_observations, all_returns = self.memory.tensors(self.policy.device)
        spread = all_returns.std(unbiased=False).item()
        for group, unit in zip(self.optimizer.param_groups, (1.0, spread)):
            group["lr"] = learning_rate * unit
        own = {id(parameter) for parameter in self.parameters}
        frozen = [p for p in trainable(list(self.policy.parameters())) if id(p) not in own]
        loss = all_returns.new_zeros(())
        self._match(all_observations, all_returns, spread)
        try:
            for parameter in frozen:  # shared features are PPO's
                parameter.requires_grad_(False)
            for rows in self._minibatches(len(all_returns), len(returns), n_epochs) if spread > 0 else []:
                values = self.policy.predict_values(all_observations[rows]).flatten()
                loss = ((values - all_returns[rows]) / spread).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                gradients = [p.grad for p in self.parameters if p.grad is not None]
                if nn.utils.get_total_norm(gradients).isfinite():
                    self.optimizer.step()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        self.optimizer.zero_grad()
        self._match(all_observations, all_returns, spread)
        return loss.item(), learning_rate

    def _minibatches(self, n: int, window: int, n_epochs: int) -> Iterator[th.Tensor]:
        """
        The rows of each step, all of them once in every epoch. A minibatch is no larger than a window: a small problem, whose
        memory is one minibatch else, gets as many steps as its windows.
        """
        n_batches = math.ceil(n / min(self.batch_size, window))
        for _ in range(n_epochs):
            yield from th.randperm(n, device=self.policy.device).tensor_split(n_batches)

    @th.no_grad()
    def _match(self, observations: th.Tensor, returns: th.Tensor, spread: float) -> None:
        """Let the values vary no more than the returns, and have their mean."""
        if self.head is None:
            return
        training = self.policy.training
        self.policy.set_training_mode(False)  # what counts in training mode counts the steps only
        values = self.policy.predict_values(observations).flatten()
        excess = values.std(unbiased=False).item() / spread if spread > 0 else 1.0
        if math.isfinite(excess) and excess > 1:
            self.head.weight.div_(excess)
            values = self.policy.predict_values(observations).flatten()
        error = (returns - values).mean()
        if error.isfinite():
            self.head.bias.add_(error)
        self.policy.set_training_mode(training)

    def state_dict(self) -> dict[str, Any]:
        """:return: what :meth:`load_state_dict` takes, as tensors and numbers"""
        return {
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "memory": [tuple(th.from_numpy(array) for array in window) for window in self.memory.windows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: of :meth:`state_dict`"""
        load_state(self.optimizer, state["optimizer"])
        for observations, returns in state["memory"]:
            self.memory.add(observations.cpu().numpy(), returns.cpu().numpy())


def last_layer(value_net: nn.Module, parameters: list[nn.Parameter]) -> nn.Linear | None:
    """
    :param value_net: the policy's
    :param parameters: those that may be moved
    :return: the linear layer with a bias that ends it, if that may be moved
    """
    own = {id(parameter) for parameter in parameters}
    *_, last = value_net.modules()
    if isinstance(last, nn.Linear) and last.bias is not None and {id(p) for p in last.parameters()} <= own:
        return last
    return None


class TargetCritic:
    """
    A slow copy of the policy's critic, whose values take the critic's place in the advantages and in their gradients.

    :param policy: what it follows
    :param others: parameters that its values do not depend on; they are kept the same
    :param tau: share by which it follows after every update
    """

    def __init__(self, policy: ActorCriticPolicy, others: list[nn.Parameter], tau: float):
        self.policy = policy
        self.tau = tau
        self.copy = copy.deepcopy(policy)
        self.copy.set_training_mode(False)
        self._others = {id(parameter) for parameter in others}

    def values(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: (n, ...)
        :return: (n, 1)
        """
        return self.copy.predict_values(observations)

    def critic_state(self) -> dict[str, Any]:
        """:return: what :meth:`load_critic_state` takes: of parameters and buffers those that are not the policy's"""
        theirs = self.policy.state_dict()
        return {name: value for name, value in self.copy.state_dict().items() if not th.equal(value, theirs[name])}

    def load_critic_state(self, state: dict[str, Any]) -> None:
        """:param state: of :meth:`critic_state`; the policy is as it was then"""
        self.copy.load_state_dict({**self.policy.state_dict(), **state})

    def follow(self) -> None:
        """Move by ``tau`` towards the policy; what is counted or averaged (BatchNorm's buffers) is taken over as it is."""
        with th.no_grad():
            for slow, parameter in zip(self.copy.parameters(), self.policy.parameters()):
                slow.lerp_(parameter, 1.0 if id(parameter) in self._others else self.tau)
        for own, theirs in zip(self.copy.buffers(), self.policy.buffers()):
            own.copy_(theirs)
