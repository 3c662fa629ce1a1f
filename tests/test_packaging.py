"""What an installation brings: every package there is, and nothing of the extras."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("jax", "flax", "brax", "warp", "mujoco", "rl_zoo3", "optuna", "matplotlib", "PIL")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_installed() -> None:
    folders = {"sb3_gippo": ROOT / "sb3_gippo", "gippo_envs": ROOT / "envs" / "gippo_envs"}
    there = {"sb3_gippo.hyperparams"}
    for name, folder in folders.items():
        modules = [path.parent.relative_to(folder) for path in folder.rglob("*.py")]
        there |= {".".join((name, *module.parts)) for module in modules}
    assert set(setup()["options"]["packages"].split()) == there


def test_the_tests_have_every_extra() -> None:
    extras = setup()["options.extras_require"]
    assert f"sb3-gippo[{','.join(sorted(set(extras) - {'dev'}))}]" in extras["dev"].split()


def test_without_the_extras_it_is_imported_and_trains() -> None:
    """As after a plain ``pip install``; matplotlib and Pillow may come with others, but nothing asks for them."""
    program = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
import sb3_gippo
env = sb3_gippo.make_vec_env("DeJong-v0", 4)
sb3_gippo.GIPPO("MlpPolicy", env, n_steps=8, batch_size=32, device="cpu").learn(32)
for name in ("JaxEnv", "JaxVecEnv", "from_func_env", "from_brax"):
    try:
        getattr(sb3_gippo, name)
    except ImportError as error:
        print(error)
try:
    sb3_gippo.make_vec_env("phys2d/Pendulum-v0", 2)
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('Environments in JAX need jax: pip install "sb3-gippo[jax]".') == 4
    assert done.stdout.endswith('need jax and flax: pip install "sb3-gippo[jax]".\n')
