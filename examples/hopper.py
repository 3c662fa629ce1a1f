"""GI-PPO learns to hop, beside PPO with the same steps: learning curves of both, and a gif of GI-PPO's hopper."""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_gippo import GIPPO, make_vec_env
from sb3_gippo.cli.experiment import CurveCallback

ENV_ID = "DiffHopper-v0"
FOLDER = Path("runs") / ENV_ID
FRAME = 2  # steps per picture of the gif


def train(algorithm, name, steps, seed):
    print(f"Training {name} on {ENV_ID}")
    env = make_vec_env(ENV_ID, n_envs=64, seed=seed, env_kwargs={"stagger": True})
    model = algorithm("MlpPolicy", env, n_steps=32, batch_size=512, seed=seed, device="cpu")
    curve = CurveCallback()
    model.learn(steps, callback=[curve, ProgressBarCallback()])
    model.save(FOLDER / name)
    return model, curve


def film(model, seed):
    """:return: what an episode of the policy's means returned, and pictures of it"""
    env = gym.make(ENV_ID, render_mode="rgb_array")
    observation, _ = env.reset(seed=seed)
    frames, total, step, done = [Image.fromarray(env.render())], 0.0, 0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
        total, step, done = total + float(reward), step + 1, terminated or truncated
        if step % FRAME == 0 or done:
            frames.append(Image.fromarray(env.render()))
    return total, step, frames


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each algorithm, about five minutes for both")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    FOLDER.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    models = []
    for algorithm, name in ((GIPPO, "GI-PPO"), (PPO, "PPO")):
        model, curve = train(algorithm, name, args.steps, args.seed)
        axes.plot(curve.steps, curve.returns, label=name)
        best = f"{max(curve.returns):.1f}" if curve.returns else "of no finished episode"
        models.append((model, f"{name:6} best mean return {best} after {model.num_timesteps} steps"))
    axes.set(xlabel="environment steps", ylabel="mean return of the last 100 episodes", title=ENV_ID)
    axes.legend()
    figure.savefig(FOLDER / "learning_curve.png", dpi=150)

    total, step, frames = film(models[0][0], args.seed)
    frames[0].save(FOLDER / "hopper.gif", save_all=True, append_images=frames[1:], duration=1000 * FRAME // 60, loop=0)
    print(*(line for _, line in models), sep="\n")
    print(f"GI-PPO's hopper returned {total:.1f} in {step} steps")
    print(f"Learning curves, models and the gif: {FOLDER.resolve()}")


if __name__ == "__main__":
    main()
