"""Files of models: whole at any time, no larger than need be, and PPO's can be read as well as written."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_gippo import GIPPO, RP
from sb3_gippo.common.saving import LEARNER, replacing
from tests.helpers import SETTINGS, SOLVERS, assert_same_learner, cartpole, small

MEMORY: dict[str, Any] = {"critic_epochs": 2, "critic_kwargs": {"n_windows": 8, "batch_size": 16}}


@pytest.mark.parametrize("kwargs", [{}, MEMORY, {"policy_kwargs": {"net_arch": [256, 256]}}])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_file_is_at_most_a_fifth_larger_than_ppos(solver: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    ours = small(n_steps=32, alpha_solver=solver, **kwargs).learn(2 * 128)
    theirs = PPO("MlpPolicy", cartpole(), **{**SETTINGS, "n_steps": 32}, policy_kwargs=kwargs.get("policy_kwargs")).learn(128)
    ours.save(tmp_path / "ours")
    theirs.save(tmp_path / "theirs")
    sizes = [(tmp_path / f"{name}.zip").stat().st_size for name in ("ours", "theirs")]
    assert sizes[0] < 1.2 * sizes[1], f"{sizes[0]} and {sizes[1]} bytes"


def test_the_critics_memory_is_saved_if_it_is_asked_for_and_as_bytes(tmp_path: Path) -> None:
    model = small(n_steps=128, **MEMORY).learn(3 * 512)
    model.save(tmp_path / "without")
    model.save(tmp_path / "with", include=["critic_fit"])
    without, whole = (GIPPO.load(tmp_path / name, env=cartpole(), device="cpu") for name in ("without", "with"))
    assert without.critic_fit is not None and not without.critic_fit.memory.windows
    assert_same_learner(whole, model)
    sizes = [(tmp_path / f"{name}.zip").stat().st_size for name in ("without", "with")]
    moments = 2 * sum(parameter.numel() for parameter in model.critic_fit.parameters)  # type: ignore[union-attr]
    assert sizes[1] - sizes[0] < 1.1 * 4 * (3 * 512 * 6 + moments), "numbers of four bytes each, not text"


@pytest.mark.parametrize(
    "saved, loaded", [({}, {"target_critic_tau": 0.1}), ({"target_critic_tau": 0.1}, {"target_critic_tau": None})]
)
@pytest.mark.parametrize("algorithm", [GIPPO, RP])
def test_a_target_critic_can_be_switched_on_and_off_at_loading(
    algorithm: Any, saved: dict[str, Any], loaded: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"n_steps": 8, "seed": 0, "device": "cpu"} if algorithm is RP else SETTINGS
    model = algorithm("MlpPolicy", cartpole(), **settings, **saved).learn(2 * 32)
    model.save(tmp_path / "model")
    other = algorithm.load(tmp_path / "model", env=cartpole(), device="cpu", **loaded)
    assert (other.target_critic is None) == (loaded["target_critic_tau"] is None)
    if other.target_critic is not None:
        for mine, theirs in zip(other.target_critic.copy.parameters(), model.policy.parameters()):
            assert th.equal(mine, theirs)
    other.learn(2 * 32, reset_num_timesteps=False)
    assert other._has_gradients


def test_ppos_file_is_loaded_and_goes_on_with_gradients(tmp_path: Path) -> None:
    theirs = PPO("MlpPolicy", cartpole(), **SETTINGS).learn(2 * 32)
    theirs.save(tmp_path / "ppo")
    ours = GIPPO.load(tmp_path / "ppo", env=cartpole(), device="cpu")
    for name, value in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], value), name
    ours.learn(2 * 32, reset_num_timesteps=False)
    assert ours._has_gradients and ours.rollout_buffer.action_gradients.any()


@pytest.mark.parametrize("kwargs", [{"alpha": 0}, {}, {"alpha_solver": "published"}, {"policy_kwargs": {"layer_norm": True}}])
def test_ppo_loads_our_file_and_goes_on(kwargs: dict[str, Any], tmp_path: Path) -> None:
    ours = small(critic_epochs=1, **kwargs).learn(2 * 32)
    ours.save(tmp_path / "gippo")
    theirs = PPO.load(tmp_path / "gippo", env=cartpole(), device="cpu")
    observations = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(*(model.predict(observations, deterministic=True)[0] for model in (theirs, ours)))
    before = [p.detach().clone() for p in theirs.policy.parameters()]
    theirs.learn(2 * 32, reset_num_timesteps=False)
    assert any(not th.equal(a, b) for a, b in zip(before, theirs.policy.parameters()))


def test_open_files_serve_as_well() -> None:
    model = small(critic_epochs=0).learn(2 * 32)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert_same_learner(GIPPO.load(file, env=cartpole(), device="cpu"), model)


WRITER = """
import sys
from pathlib import Path
from sb3_gippo.common.saving import replacing
for n in range(60):
    with replacing(Path(sys.argv[1])) as file:
        for _ in range(20):
            file.write(sys.argv[2].encode() * 5000)
"""


def test_processes_and_threads_that_write_one_file_leave_a_whole_one_at_any_time(tmp_path: Path) -> None:
    target = tmp_path / "model.zip"
    with replacing(target) as file:
        file.write(b"a" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(target), letter]) for letter in "ab"]
    found: list[bytes] = []
    while any(writer.poll() is None for writer in writers):
        found.append(target.read_bytes())
    assert all(writer.returncode == 0 for writer in writers)
    assert len(found) > 5 and all(len(content) == 100_000 and len(set(content)) == 1 for content in found)

    def write(letter: bytes) -> None:
        for _ in range(50):
            with replacing(target) as file:
                file.write(letter * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(target.read_bytes())) == 1 and [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, real = tmp_path / "latest.zip", tmp_path / "store" / "model_7.zip"
    link.symlink_to(real)  # to a file that does not exist yet
    model = small()
    for _ in range(2):
        model.save(link)
        assert link.is_symlink() and zipfile.is_zipfile(real)
    GIPPO.load(link, device="cpu")


def test_what_killed_processes_left_behind_is_cleaned_up(tmp_path: Path) -> None:
    script = "import sys, os, signal\nfrom pathlib import Path\nfrom sb3_gippo.common.saving import replacing\n"
    script += "with replacing(Path(sys.argv[1])) as file:\n    file.write(b'x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    target = tmp_path / "model.zip"
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    parts = left.name.split(".")
    parts[-3:-1] = [str(os.getppid()), "0123abcd"]
    alive = tmp_path / ".".join(parts)
    alive.touch()
    small().save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.zip", alive.name])


def test_a_saved_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    small().save(tmp_path / "model.zip")
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.zip").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "model.zip").chmod(0o600)
    small().save(tmp_path / "model.zip")
    assert stat.S_IMODE((tmp_path / "model.zip").stat().st_mode) == 0o600


def test_names_may_be_long_and_pipes_are_written_to(tmp_path: Path) -> None:
    small().save(tmp_path / ("m" * 240 + ".zip"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as file:
        file.write(b"whole")
    reader.join(10)
    assert found == [b"whole"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_hyperparameters_may_be_numpys(solver: str, tmp_path: Path) -> None:
    settings = {"factor": np.float64(1.2), "max_alpha": np.float64(0.31), "learning_rate": np.float32(0.01)}
    critic: dict[str, Any] = {"critic_epochs": np.int64(1), "critic_kwargs": {"learning_rate": np.float32(1e-3)}}
    model = small(alpha=np.float64(0.3), alpha_solver=solver, alpha_kwargs=settings, **critic).learn(3 * 32)
    model.save(tmp_path / "model", include=["critic_fit"])
    assert_same_learner(GIPPO.load(tmp_path / "model", env=cartpole(), device="cpu"), model)


def test_sb3_finds_what_it_expects_in_the_file(tmp_path: Path) -> None:
    small().learn(32).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.testzip() is None
        assert {"data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", LEARNER} <= set(archive.namelist())
        assert b"critic_fit" not in archive.read("data")
