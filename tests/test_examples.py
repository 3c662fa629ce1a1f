"""The robots' examples as a user runs them, with few steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

for module in ("mujoco", "warp", "PIL", "matplotlib", "rich", "tqdm"):
    pytest.importorskip(module)

from PIL import Image  # noqa: E402

from sb3_gippo import GIPPO  # noqa: E402

ROOT = Path(__file__).parents[1]


def run(name: str, folder: Path) -> str:
    """:return: what the example prints"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "envs")))}
    command = [sys.executable, str(ROOT / "examples" / name), "--steps", "2048"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_robot(tmp_path: Path) -> None:
    printed = run("own_robot.py", tmp_path).splitlines()
    assert any("derivatives at 15 transitions agree with central differences" in line for line in printed)
    before, after = (next(line for line in printed if line.startswith(name)) for name in ("before:", "after:"))
    assert before.split("return")[1] != after.split("return")[1]
    folder = tmp_path / "runs" / "DoublePendulum-v0"
    assert GIPPO.load(folder / "gippo", device="cpu").num_timesteps == 2048
    with Image.open(folder / "before_after.gif") as gif:
        assert gif.size == (960, 360) and gif.n_frames > 5  # type: ignore[attr-defined]


def test_hopper(tmp_path: Path) -> None:
    printed = run("hopper.py", tmp_path)
    assert "GI-PPO best mean return" in printed and "PPO    best mean return" in printed
    assert "GI-PPO's hopper returned" in printed
    folder = tmp_path / "runs" / "DiffHopper-v0"
    with Image.open(folder / "learning_curve.png") as curves, Image.open(folder / "hopper.gif") as gif:
        assert curves.size == (900, 600) and gif.n_frames > 5  # type: ignore[attr-defined]
    assert {file.name for file in folder.glob("*.zip")} == {"GI-PPO.zip", "PPO.zip"}


def test_warp_simulator(tmp_path: Path) -> None:
    printed = run("warp_simulator.py", tmp_path)
    assert "derivatives at 15 transitions agree with central differences" in printed
    assert "action_grad_norm" in printed
