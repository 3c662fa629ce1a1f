"""GI-PPO learns to hold the traffic of two lanes at 10 m/s with one pace car: two lines of result and a gif of a drive."""

import argparse
from pathlib import Path

import gymnasium as gym
from PIL import Image
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_gippo.cli.experiment import CurveCallback, make_model

ENV_ID = "PaceCarB-v0"
FOLDER = Path("runs") / ENV_ID
FRAME = 3  # steps of 0.03 s per picture of the gif

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--algo", default="gippo", choices=["gippo", "ppo"])
parser.add_argument("--steps", type=int, default=1_024_000, help="as many as in the paper, about six minutes")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

model, _ = make_model(args.algo, ENV_ID, args.seed)
curve = CurveCallback()
model.learn(args.steps, callback=[curve, ProgressBarCallback()])
FOLDER.mkdir(parents=True, exist_ok=True)
model.save(FOLDER / args.algo)

normalize = model.get_vec_normalize_env()
assert normalize is not None
env = gym.make(ENV_ID, render_mode="rgb_array")
observation, _ = env.reset(seed=args.seed)
frames, total, step, done = [Image.fromarray(env.render())], 0.0, 0, False
while not done:
    action, _ = model.predict(normalize.normalize_obs(observation), deterministic=True)
    observation, reward, terminated, truncated, _ = env.step(action)
    total, step, done = total + float(reward), step + 1, terminated or truncated
    if step % FRAME == 0 or done:
        frames.append(Image.fromarray(env.render()))
duration = round(1000 * FRAME * env.unwrapped.core.dt)
frames[0].save(FOLDER / f"{args.algo}.gif", save_all=True, append_images=frames[1:], duration=duration, loop=0)

print(f"best mean return {max(curve.returns):.1f} after {model.num_timesteps} steps, {curve.seconds[-1]:.0f} s")
print(f"the drive returned {total:.1f} in {step} steps: {(FOLDER / f'{args.algo}.gif').resolve()}")
