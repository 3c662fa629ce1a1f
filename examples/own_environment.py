"""An environment of your own: some forty lines of Gymnasium and torch with derivatives, checked, then trained on."""

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_gippo import GIPPO, GradientChannelError, check_differentiable_env, make_vec_env


class Parking(gym.Env):
    """Drive a car to the origin and stop there. State and observation: x, y, heading, speed. Action: pedal, steering wheel."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    differentiable = False

    @staticmethod
    def transition(state, action):
        x, y, heading, speed = state.unbind(1)
        speed = 0.95 * speed + 0.3 * action[:, 0]
        heading = heading + 0.5 * action[:, 1] * th.tanh(speed)
        state = th.stack([x + 0.2 * speed * th.cos(heading), y + 0.2 * speed * th.sin(heading), heading, speed], 1)
        return state, -state[:, :2].square().sum(1) - 0.1 * speed.square() - 0.01 * action.square().sum(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-2, -2, -3, 0], [2, 2, 3, 0])
        return self.state.copy(), {}

    def step(self, action):
        # For gradients as many copies as there are outputs: copy i answers for output i, all in one backward pass.
        copies = 5 if self.differentiable else 1
        inputs = [th.tensor(x, dtype=th.float64).repeat(copies, 1) for x in (self.state, action)]
        inputs = [x.requires_grad_(self.differentiable) for x in inputs]
        after, rewards = self.transition(*inputs)
        self.state, reward, info = after[0].detach().numpy().copy(), rewards[0].item(), {}
        if self.differentiable:
            outputs = th.cat([after, rewards[:, None]], 1).diagonal().sum()
            by_state, by_action = (gradient.numpy() for gradient in th.autograd.grad(outputs, inputs))
            info["grad"] = {
                **{"state_state": by_state[:4], "obs_state": by_state[:4], "reward_state": by_state[4]},
                **{"state_action": by_action[:4], "obs_action": by_action[:4], "reward_action": by_action[4]},
                **{"action": action.copy(), "obs": self.state.copy(), "reward": reward},
            }
        return self.state.copy(), reward, False, False, info

    def set_differentiable(self, differentiable):
        self.differentiable = differentiable

    def get_state(self):
        return self.state.copy()

    def set_state(self, state):
        self.state = state.copy()


class WrongParking(Parking):
    """Forgets that the wheel turns the car."""

    def step(self, action):
        result = super().step(action)
        if self.differentiable:
            result[-1]["grad"]["state_action"][2, 1] = 0.0
        return result


print("Parking:     ", check_differentiable_env(Parking()))
try:
    check_differentiable_env(WrongParking())
except GradientChannelError as error:
    print("WrongParking:", error)


def make_env():
    return gym.wrappers.TimeLimit(Parking(), 40)


for algorithm in (GIPPO, PPO):
    env = make_vec_env(make_env, n_envs=16, seed=0)
    model = algorithm("MlpPolicy", env, n_steps=20, batch_size=160, n_epochs=5, gamma=0.97, seed=0, device="cpu")
    model.learn(12_800)
    mean, std = evaluate_policy(model, make_vec_env(make_env, n_envs=16, seed=1000), n_eval_episodes=64)
    print(f"{algorithm.__name__:5} after {model.num_timesteps} steps: return {mean:.1f} ± {std:.1f}")
