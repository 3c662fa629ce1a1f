"""A robot of your own: an MJCF file and a reward make a differentiable environment; checked, trained on, before and after."""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy

from gippo_envs import register_functional
from gippo_envs.physics.robot import Robot
from sb3_gippo import GIPPO, check_differentiable_env, make_vec_env

ENV_ID = "DoublePendulum-v0"
FOLDER = Path("runs") / ENV_ID


class DoublePendulum(Robot):
    """Balance two poles, one on the other, on a cart. State and observation: cart, pole, second pole, and their velocities."""

    def reward(self, state, action):
        lower, upper = state[:, 1], state[:, 1] + state[:, 2]
        upright = 0.5 * (th.cos(lower) + th.cos(upper))
        return upright - 0.1 * state[:, 0].square() - 0.001 * state[:, 4:].square().sum(1)

    def terminated(self, state):
        return state[:, 1].abs() > 1.0


# The file comes with Gymnasium; the path of one of your own does as well.
register_functional(ENV_ID, DoublePendulum, max_episode_steps=200, file="inverted_double_pendulum.xml", substeps=4)


def evaluate(model):
    mean, std = evaluate_policy(model, make_vec_env(ENV_ID, n_envs=16, seed=1000), n_eval_episodes=32)
    return f"return {mean:6.1f} ± {std:.1f} of at most 200"


def film(model):
    """Pictures of an episode, every other step."""
    env = gym.make(ENV_ID, render_mode="rgb_array")
    observation, _ = env.reset(seed=1)
    frames, done = [env.render()], False
    while not done:
        for _ in range(2):
            observation, _, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            done = done or terminated or truncated
        frames.append(env.render())
    return frames


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=140_000, help="half a minute")
    args = parser.parse_args()

    print(check_differentiable_env(gym.make(ENV_ID, dtype="float64")))
    env = make_vec_env(ENV_ID, n_envs=64, seed=0, env_kwargs={"stagger": True})
    policy = {"log_std_init": -1.0, "squash_actions": True}
    model = GIPPO("MlpPolicy", env, n_steps=32, batch_size=512, gamma=0.97, seed=0, device="cpu", policy_kwargs=policy)
    before, fall = evaluate(model), film(model)
    model.learn(args.steps, progress_bar=True)
    after, balance = evaluate(model), film(model)

    fall += fall[-1:] * (len(balance) - len(fall))  # it lies there
    both = [Image.fromarray(np.concatenate(pair, axis=1)) for pair in zip(fall, balance)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    model.save(FOLDER / "gippo")
    both[0].save(FOLDER / "before_after.gif", save_all=True, append_images=both[1:], duration=33, loop=0)
    print(f"before: {before}\nafter:  {after}\n{(FOLDER / 'before_after.gif').resolve()}")


if __name__ == "__main__":
    main()
