"""rl_zoo3's commands by ``sb3-gippo``, each as a user would run it, from a folder of its own."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv

import gippo_envs
import sb3_gippo
from sb3_gippo import GIPPO, TorchVecEnv
from sb3_gippo.cli.hyperparams import ALGORITHMS, hyperparams_dir
from sb3_gippo.cli.main import COMMANDS, main
from sb3_gippo.vec_env.make import from_env_fns

TRAIN = "train --algo gippo --env DeJong-v0"


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder; return what it printed."""
    here = os.pathsep.join(str(Path(package.__file__).parents[1]) for package in (sb3_gippo, gippo_envs))
    environment = {**os.environ, "PYTHONPATH": here, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def zoo(folder: Path, command: str) -> str:
    """Run a command of sb3-gippo in a folder; return what it printed."""
    return python(folder, "-m", "sb3_gippo", *shlex.split(command))


def zoo_many(folder: Path, *commands: str, then: str = "") -> str:
    """The same for several commands in one process, which saves the time of starting; each ends with its status."""
    script = f"""
from sb3_gippo.cli.main import main
for command in {[shlex.split(command) for command in commands]}:
    try:
        main(command)
        print("status 0")
    except SystemExit as end:
        print("status", end.code)
{then}
"""
    return python(folder, "-c", script)


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an agent was trained on De Jong's function, and a second one went on from it without learning."""
    folder = tmp_path_factory.mktemp("agents")
    output = zoo(folder, f"{TRAIN} -n 640 --eval-freq 128 --seed 1 -P -tb tensorboard")
    assert "alpha_decision" in output  # gradients were used
    alpha = "alpha_kwargs:dict(kl=1e-12,std_kl=1e-12,learning_rate=\\'lin_1e-12\\')"
    nothing = f"-params learning_rate:1e-12 critic_epochs:0 {alpha}"
    output = zoo(folder, f"{TRAIN} -n 640 --eval-freq 128 --seed 2 -i logs/gippo/DeJong-v0_1/DeJong-v0.zip {nothing}")
    assert "Loading pretrained agent" in output
    return folder


def run_folder(agents: Path, number: int) -> Path:
    return agents / "logs" / "gippo" / f"DeJong-v0_{number}"


def load(agents: Path, number: int) -> GIPPO:
    return GIPPO.load(run_folder(agents, number) / "DeJong-v0.zip", device="cpu")


def test_train_reads_our_hyperparameters_and_logs_every_episode(agents: Path) -> None:
    folder = run_folder(agents, 1)
    config = yaml.load((folder / "DeJong-v0" / "config.yml").read_text(), yaml.UnsafeLoader)
    assert dict(config) == yaml.safe_load((hyperparams_dir() / "gippo.yml").read_text())["DeJong-v0"]
    # One file: the 64 environments were one batched environment. One row for every one-step episode.
    assert [file.name for file in folder.glob("*monitor.csv")] == ["0.monitor.csv"]
    episodes = load_results(str(folder))
    assert len(episodes) == 640 and (episodes["l"] == 1).all() and (episodes["r"] < 0).all()
    assert list(np.load(folder / "evaluations.npz")["timesteps"]) == [128, 256, 384, 512, 640]
    assert list((agents / "tensorboard" / "DeJong-v0" / "GIPPO_1").glob("events*"))


def test_training_resumes_from_a_trained_agent(agents: Path) -> None:
    first, second = load(agents, 1), load(agents, 2)
    for (name, a), (_, b) in zip(first.policy.named_parameters(), second.policy.named_parameters(), strict=True):
        assert th.allclose(a, b, atol=1e-4), name
    assert second.num_timesteps > 0 and any(
        not th.equal(a, b) for a, b in zip(first.policy.parameters(), second.policy.parameters())
    )


def test_nested_hyperparameters_can_be_given(agents: Path) -> None:
    config = yaml.load((run_folder(agents, 2) / "DeJong-v0" / "config.yml").read_text(), yaml.UnsafeLoader)
    assert config["alpha_kwargs"] == {"kl": 1e-12, "std_kl": 1e-12, "learning_rate": "lin_1e-12"}


def test_enjoy_shows_the_trained_agents_return(agents: Path) -> None:
    output = zoo(agents, "enjoy --algo gippo --env DeJong-v0 -f logs --exp-id 1 --no-render -n 20")
    action, _ = load(agents, 1).predict(np.zeros((1, 1), np.float32), deterministic=True)
    expected = -((5.12 * action.item()) ** 2)
    assert "20 Episodes" in output
    assert f"Mean reward: {expected:.2f} +/- 0.00" in output


def test_benchmark_writes_its_table_from_any_directory(agents: Path, tmp_path: Path) -> None:
    output = zoo(tmp_path, f"benchmark --log-dir {agents / 'logs'} --no-hub -n 300 --benchmark-dir evaluations")
    assert "300 Episodes" in output
    table = (tmp_path / "benchmark.md").read_text()
    assert re.search(r"\|gippo *\|DeJong-v0\| *-\d\S* *\| *\d\S* *\|128k *\| *300\| *300\|", table), table


def test_benchmark_skips_what_has_no_agent(agents: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "gippo"
    shutil.copytree(run_folder(agents, 1), logs / "DeJong-v0_1")
    (logs / "DeJong-v0_2" / "DeJong-v0").mkdir(parents=True)  # as tuning leaves it
    for folder in (logs, tmp_path / "interrupted" / "gippo"):
        (folder / "Ackley-v0_1" / "Ackley-v0").mkdir(parents=True)
        (folder / "Ackley-v0_1" / "Ackley-v0" / "args.yml").write_text("env: Ackley-v0")
    output = zoo_many(
        tmp_path,
        "benchmark --log-dir logs --no-hub -n 30 --benchmark-dir new/evaluations",
        "benchmark --log-dir interrupted --no-hub",
        then="import subprocess; print(subprocess.call.__module__)",
    )
    assert output.count("status 0") == 2, output
    assert "Loading latest experiment, id=1" in output and "30 Episodes" in output
    for folder in ("logs", "interrupted"):
        assert f"Skipping gippo on Ackley-v0: no run of it in {folder} has left an agent." in output
    assert re.search(r"\|gippo *\|DeJong-v0\|", (tmp_path / "new" / "evaluations" / "benchmark.md").read_text())
    assert output.splitlines()[-1] == "subprocess"


def test_training_prints_its_table_now_and_then(tmp_path: Path) -> None:
    small = "-n 100 --eval-freq -1 -params n_envs:2 batch_size:2"
    output = zoo_many(tmp_path, f"{TRAIN} {small}", f"{TRAIN} {small} --log-interval 10")
    first, second, _ = output.split("status 0")
    assert [text.count("total_timesteps") for text in (first, second)] == [10, 5]


def test_plots_find_the_runs(agents: Path, tmp_path: Path) -> None:
    output = zoo_many(
        tmp_path,
        f"all-plots -a gippo -e DeJong-v0 -f {agents / 'logs'} -l ours -o results --no-million --print-n-trials",
        "plot-from-file -i results -o figure.svg",
        f"plot-train -a gippo -e DeJong-v0 -f {agents / 'logs'}",
        then="from matplotlib import pyplot as plt; print([line.get_label() for line in plt.gca().lines])",
    )
    assert output.count("status 0") == 3, output
    assert "DeJong-v0-GIPPO-ours: 2" in output
    assert (tmp_path / "figure.svg").stat().st_size > 0
    assert output.splitlines()[-1] == "['DeJong-v0_1', 'DeJong-v0_2']"


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="videos need moviepy")
def test_record_video_films_an_agent(tmp_path: Path) -> None:
    name = "--algo gippo --env CartPoleSwingUp-v0"
    output = zoo_many(tmp_path, f"train {name} -n 2048 --eval-freq -1", f"record-video {name} -f logs -n 20 -o videos")
    assert output.count("status 0") == 2, output
    (video,) = (tmp_path / "videos").glob("final-model-gippo-CartPoleSwingUp-v0*.mp4")
    assert video.stat().st_size > 1000


def test_studies_tune_our_hyperparameters_in_a_shared_database(tmp_path: Path) -> None:
    study = f"{TRAIN} -n 64 --seed 3 -params n_envs:2 --storage sqlite:///study.db --study-name dejong"
    search = f"{study} -optimize --n-evaluations 1 --n-startup-trials 1 --pruner none --no-optim-plots"
    # Two workers, one after the other, and a training with what the first one's trial has drawn.
    output = zoo_many(
        tmp_path,
        f"{search} --n-trials 1",
        f"{search} --max-total-trials 2",
        f"{study} --trial-id 0 --eval-freq -1",
    )
    assert output.count("status 0") == 3, output
    assert "Inconsistent parameter values" not in output
    database = sqlite3.connect(tmp_path / "study.db")
    assert database.execute("SELECT state FROM trials").fetchall() == [("COMPLETE",)] * 2
    drawn = dict(database.execute("SELECT param_name, param_value FROM trial_params WHERE trial_id = 1"))
    database.close()
    ours = {"alpha", "alpha_iterations", "alpha_learning_rate", "alpha_kl", "std_kl"}
    assert {*ours, "squash_actions", "layer_norm"} <= drawn.keys()
    (config,) = tmp_path.glob("logs/gippo/*/DeJong-v0/config.yml")
    trained = yaml.load(config.read_text(), yaml.UnsafeLoader)
    assert trained["alpha"] == drawn["alpha"] and trained["n_steps"] == 2 ** drawn["n_steps_pow"] <= 128
    decaying = {key: f"lin_{drawn[name]}" for key, name in {"kl": "alpha_kl", "std_kl": "std_kl"}.items()}
    assert decaying.items() <= trained["alpha_kwargs"].items() and not {"alpha_kl", "std_kl"} & trained.keys()
    assert trained["alpha_kwargs"]["n_iterations"] == drawn["alpha_iterations"]
    assert trained["policy_kwargs"]["log_std_init"] == drawn["log_std_init"]


def test_an_algorithm_is_tuned_over_what_its_constructor_takes(tmp_path: Path) -> None:
    script = """
import optuna
from sb3_gippo import GIPPO
from sb3_gippo.cli import hyperparams

class Fewer(GIPPO):
    def __init__(self, policy, env, learning_rate=1e-3, n_steps=8, policy_kwargs=None, critic_kwargs=None):
        super().__init__(policy, env, learning_rate, n_steps, policy_kwargs=policy_kwargs, critic_kwargs=critic_kwargs)

hyperparams.ALGORITHMS["fewer"] = Fewer
from sb3_gippo.cli import zoo
zoo.register()
trial = optuna.create_study().ask()
drawn = zoo.HYPERPARAMS_SAMPLER["fewer"](trial, 1, 2, {})
assert zoo.HYPERPARAMS_CONVERTER["fewer"](trial.params) == drawn
assert not {"alpha", "std_kl"} & trial.params.keys()
assert drawn["critic_kwargs"] == {"n_windows": trial.params["critic_windows"]}
print(*sorted(drawn))
"""
    assert python(tmp_path, "-c", script).splitlines()[-1] == "critic_kwargs learning_rate n_steps policy_kwargs"


def test_every_algorithm_of_ours_learns_with_what_its_space_draws(tmp_path: Path) -> None:
    script = """
import optuna
from sb3_gippo import make_vec_env
from sb3_gippo.cli import zoo
from sb3_gippo.cli.hyperparams import ALGORITHMS, with_schedules

zoo.register()
for algo in ("lr", "rp", "lrrp", "pe", "rpo"):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    drawn = zoo.HYPERPARAMS_SAMPLER[algo](trial, 1, 4, {})
    assert zoo.HYPERPARAMS_CONVERTER[algo](trial.params) == drawn
    env = make_vec_env("CartPoleSwingUp-v0", 4, seed=0)
    ALGORITHMS[algo]("MlpPolicy", env, device="cpu", **with_schedules(drawn)).learn(4)
    names = {"n_epochs", "radius", "n_neighbours", "clip_low", "clip_high", "kl_coef", "ent_coef"}
    print("drawn:", algo, *sorted(names & drawn.keys()))
"""
    assert re.findall("^drawn: (.*)$", python(tmp_path, "-W", "ignore", "-c", script), re.MULTILINE) == [
        "lr",
        "rp",
        "lrrp",
        "pe ent_coef n_epochs n_neighbours radius",
        "rpo clip_high clip_low ent_coef kl_coef n_epochs",
    ]


def test_a_trial_keeps_what_is_not_drawn_and_the_space_is_without_gsde(tmp_path: Path) -> None:
    entry = {"policy": "MlpPolicy", "n_timesteps": 64, "use_sde": True, "sde_sample_freq": 4}
    nested = {"alpha_solver": "trust_region", "alpha_kwargs": {"factor": 1.2, "kl": 5.0}}
    (tmp_path / "mine.yml").write_text(yaml.dump({"Pendulum-v1": {**entry, **nested}}))
    script = """
import inspect
from sb3_gippo import GIPPO
from sb3_gippo.cli import hyperparams
from sb3_gippo.cli.main import main

class Spy(GIPPO):
    def __init__(self, *args, **kwargs):
        print("made:", kwargs["use_sde"], kwargs["alpha_kwargs"]["factor"], kwargs["alpha_kwargs"]["kl"])
        super().__init__(*args, **kwargs)
    __init__.__signature__ = inspect.signature(GIPPO.__init__)

hyperparams.ALGORITHMS["spy"] = Spy
main("train --algo spy --env Pendulum-v1 --conf-file mine.yml -n 64 -optimize --n-trials 1 --seed 4 --no-optim-plots".split())
"""
    output = python(tmp_path, "-c", script)
    made = re.search(r"^made: False 1\.2 LinearSchedule\(start=(\S+), end=0\.0, end_fraction=1\.0\)$", output, re.MULTILINE)
    assert made and float(made[1]) != 5.0, output


def test_every_entry_of_our_files_trains(tmp_path: Path) -> None:
    commands = []
    for file in hyperparams_dir().glob("*.yml"):
        algo, _, other = file.stem.partition("_")
        shorter = {"batch_size": 4, "n_epochs": 1, "critic_epochs": 1}.items()
        taken = inspect.signature(ALGORITHMS[algo]).parameters
        small = " ".join(["n_envs:2 n_steps:2", *(f"{key}:{value}" for key, value in shorter if key in taken)])
        entries = yaml.safe_load(file.read_text())
        # Every environment once, and every entry: what stands for several of them is made for one.
        different = {str(entry): env_id for env_id, entry in entries.items()}.values()
        for env_id in {*(entries if algo == "gippo" else different)} - {"default"}:
            conf = f"--conf-file {file.name}" if other else ""
            commands.append(f"train --algo {algo} --env {env_id} {conf} -n 1 --eval-freq -1 -params {small}")
    output = zoo_many(tmp_path, *commands)
    assert output.count("status 0") == len(commands) > 0, output
    assert output.count(f"Loading hyperparameters from: {hyperparams_dir()}") == len(commands)


def test_rl_zoo3s_own_entries_serve_where_we_have_none(tmp_path: Path) -> None:
    conf = tmp_path / "mine.yml"
    conf.write_text("DeJong-v0: {policy: MlpPolicy, n_envs: 2, n_steps: 2, batch_size: 4, n_timesteps: 4}")
    end = "--eval-freq -1 -n 4 --verbose 0"
    output = zoo_many(
        tmp_path,
        f"train --algo gippo --env Pendulum-v1 {end} -params n_steps:4 use_sde:False",
        f"train --algo sac --env DeJong-v0 {end}",
        f"{TRAIN} {end} --conf-file mine.yml",
        f"{TRAIN} {end} --conf-file mine.yml --vec-env subproc",
    )
    assert output.count("status 0") == 4, output
    files = [Path(file) for file in re.findall(r"Loading hyperparameters from: (\S+)", output)]
    assert [file.name for file in files] == ["ppo.yml", "sac.yml", "mine.yml", "mine.yml"]
    assert hyperparams_dir() not in [file.parent for file in files]
    assert "GIPPO trains without gradients" in output
    runs = [sorted(file.name for file in tmp_path.glob(f"logs/gippo/DeJong-v0_{n}/*monitor.csv")) for n in (1, 2)]
    assert runs == [["0.monitor.csv"], ["0.monitor.csv", "1.monitor.csv"]]


def test_wrong_input_ends_in_a_sentence(tmp_path: Path) -> None:
    entry = {"policy": "MlpPolicy", "n_timesteps": 4, "n_steps": 4, "batch_size": 4}
    for name, change in {
        "full": {"policy": "sb3_gippo.gippo.MlpPolcy"},
        "short": {"policy": "MlpPolcy"},
        "wrapper": {"env_wrapper": [{"sb3_gippo.MujocoGradent": {"central": True}}]},
    }.items():
        (tmp_path / f"{name}.yml").write_text(yaml.dump({"DeJong-v0": {**entry, **change}}))
    wrong = {
        f"{TRAIN} --conf-file full.yml": "train: error: 'sb3_gippo.gippo.MlpPolcy' cannot be imported: module",
        f"{TRAIN} --conf-file short.yml": "train: error: There is no policy 'MlpPolcy': name one of MlpPolicy, ",
        f"{TRAIN} --conf-file wrapper.yml": "train: error: 'sb3_gippo.MujocoGradent' cannot be imported: module",
        f"{TRAIN} -params alpha_kwargs:0.1": "train: error: `alpha_kwargs` must be a mapping, for instance",
        f"{TRAIN} -params alpha_kwargs:dict(kl=str(1))": "train: error: `alpha_kwargs: kl` must be a number (with a point",
        "train --algo gipo": "invalid choice: 'gipo' (choose from",
        "train --algo gippo --env DeJon-v0": "train: error: DeJon-v0 not found in gym registry, you maybe meant DeJong-v0?",
        f"{TRAIN} -params alhpa:1": "train: error: GIPPO.__init__() got an unexpected keyword argument 'alhpa'",
        f"{TRAIN} -params alpha:-1": "train: error: `alpha` must be a number finite and at least 0, not -1",
        f"{TRAIN} --conf-file missing.yml": "train: error: [Errno 2] No such file or directory: 'missing.yml'",
        "enjoy --algo gippo --env DeJong-v0": "name the folder it was trained into, for instance -f logs.",
        "enjoy --algo gippo --env DeJong-v0 -f nowhere": "enjoy: error: The nowhere/gippo folder was not found",
        "plot-train -a gippo -e DeJong-v0 -f nowhere": "error: [Errno 2] No such file or directory: 'nowhere/gippo'",
    }
    output = zoo_many(tmp_path, *wrong)
    assert output.count("status 2") == len(wrong), output
    for sentence in wrong.values():
        assert sentence in output
    assert "Traceback" not in output


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(f"\n    {command}" in output for command in COMMANDS)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    error = capsys.readouterr().err
    assert "invalid choice: 'trian'" in error and all(command in error for command in COMMANDS)


def test_without_rl_zoo3_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    error = capsys.readouterr().err
    assert error == 'sb3-gippo train: error: it needs the package rl_zoo3: pip install "sb3-gippo[zoo]"\n'


def test_environments_are_batched_where_nothing_is_lost(tmp_path: Path) -> None:
    def make(env_id: str = "DeJong-v0", **kwargs: object) -> object:
        spec = gym.spec(env_id)
        return sb3_make_vec_env(lambda **constants: spec.make(**constants), 3, seed=5, vec_env_cls=from_env_fns, **kwargs)

    batched = make(env_kwargs={"dim": 4}, monitor_dir=str(tmp_path))
    assert isinstance(batched, TorchVecEnv) and batched.num_envs == 3
    assert batched.action_space.shape == (4,)
    batched.reset()
    batched.step(np.ones((3, 4), np.float32))
    batched.close()
    assert load_results(str(tmp_path))["r"].to_numpy() == pytest.approx([-4 * 5.12**2] * 3)
    for separate in (
        make("Pendulum-v1"),
        make(wrapper_class=gym.wrappers.FlattenObservation),
        make(monitor_kwargs={"info_keywords": ("grad",)}),
    ):
        assert isinstance(separate, DummyVecEnv) and separate.num_envs == 3


def test_a_batched_environment_keeps_the_time_limit_and_the_seed() -> None:
    spec = gym.spec("CartPoleSwingUp-v0")
    envs = [sb3_make_vec_env(spec.make, 2, seed=5, vec_env_cls=from_env_fns) for _ in range(2)]
    assert isinstance(envs[0], TorchVecEnv)
    assert np.array_equal(envs[0].reset(), envs[1].reset())
    ends = [bool(envs[0].step(np.zeros((2, 1)))[2].all()) for _ in range(240)]
    assert ends == [False] * 239 + [True]
    assert np.array_equal(envs[0].action_space.sample(), envs[1].action_space.sample())


def test_every_registered_environment_has_an_entry_in_our_files() -> None:
    registered = [env_id for env_id, spec in gym.registry.items() if "gippo_envs" in str(spec.entry_point)]
    assert "DeJong-v0" in registered
    for algo in ALGORITHMS:
        entries = yaml.safe_load((hyperparams_dir() / f"{algo}.yml").read_text())
        assert set(registered) | {"default"} <= entries.keys(), algo
