"""GI-PPO against PPO on De Jong's function, the same steps for both: a learning curve, the model, two lines of result."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_gippo.cli.experiment import CurveCallback, make_model

ENV_ID = "DeJong-v0"
STEPS = 50_000
FOLDER = Path("runs") / ENV_ID

FOLDER.mkdir(parents=True, exist_ok=True)
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
lines = []
for algo, name in (("gippo", "GI-PPO"), ("ppo", "PPO")):
    print(f"Training {name} on {ENV_ID}")
    model, _ = make_model(algo, ENV_ID, seed=1)
    curve = CurveCallback()
    model.learn(STEPS, callback=[curve, ProgressBarCallback()])
    model.save(FOLDER / algo)
    axes.plot(curve.steps, [-value for value in curve.returns], label=name)
    lines.append(f"{name:6} best mean return {max(curve.returns):.2e} after {STEPS} steps, {curve.seconds[-1]:.0f} s")

axes.set(yscale="log", xlabel="environment steps", ylabel="minus mean return of the last 100 episodes", title=ENV_ID)
axes.legend()
figure.savefig(FOLDER / "learning_curve.png", dpi=150)
print(*lines, sep="\n")
print(f"Learning curve and models: {FOLDER.resolve()}")
