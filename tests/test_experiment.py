"""The hyper-parameter files make models, and runs from them record their learning curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from sb3_gippo import GIPPO
from sb3_gippo.cli.experiment import CurveCallback, make_model
from sb3_gippo.cli.hyperparams import ALGORITHMS, hyperparams_dir, merge, read_entry, read_hyperparams
from sb3_gippo.common.policies import MlpPolicy

ENTRIES = [
    (conf, env_id)
    for conf in ("gippo.yml", "gippo_published.yml", "ppo.yml", "pe.yml")
    for env_id in yaml.safe_load((hyperparams_dir() / conf).read_text())
    if env_id != "default"
]


@pytest.mark.parametrize("conf, env_id", ENTRIES)
def test_every_entry_makes_a_model_whose_minibatches_fit(conf: str, env_id: str) -> None:
    algo = conf.removesuffix(".yml").partition("_")[0]
    model, steps = make_model(algo, env_id, seed=0, conf=conf)
    assert isinstance(model, PPO) and type(model) is ALGORITHMS[algo]
    assert model.seed == 0 and model.n_envs == read_hyperparams(algo, env_id, conf)["n_envs"] and steps >= 128_000
    assert model.n_steps * model.n_envs % model.batch_size == 0


def test_a_file_is_found_by_its_name_unless_there_is_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "gippo_published.yml"
    assert read_hyperparams("gippo", "DeJong-v0", name)["alpha_solver"] == "published"
    assert "alpha_solver" not in read_hyperparams("gippo", "DeJong-v0")
    (tmp_path / name).write_text("default: {n_steps: 7}")
    assert read_hyperparams("gippo", "DeJong-v0", name) == {"n_steps": 7}
    with pytest.raises(FileNotFoundError, match=r"missing\.yml"):
        read_hyperparams("gippo", "DeJong-v0", "missing.yml")


FUNCTIONS = ["DeJong-v0", "DeJong64-v0", "Ackley-v0", "Ackley64-v0", "Rosenbrock-v0", "Rastrigin-v0"]


@pytest.mark.parametrize("env_id", [*FUNCTIONS, *(f"PaceCar{scenario}-v0" for scenario in "ABCDE")])
def test_both_algorithms_have_the_same_budget_and_network(env_id: str) -> None:
    ours, theirs = (read_hyperparams(algo, env_id) for algo in ("gippo", "ppo"))
    for key in ("n_envs", "n_timesteps", "n_steps", "normalize", "env_kwargs", "policy_kwargs"):
        assert ours.get(key) == theirs.get(key), key


@pytest.mark.parametrize("algo", ["lr", "rp", "lrrp", "pe", "rpo"])
def test_the_alternatives_have_an_entry_of_the_same_size_for_every_environment(algo: str) -> None:
    entries = yaml.safe_load((hyperparams_dir() / f"{algo}.yml").read_text())
    assert entries.keys() == yaml.safe_load((hyperparams_dir() / "gippo.yml").read_text()).keys()
    for env_id in entries:
        theirs, ours = read_hyperparams(algo, env_id), read_hyperparams("gippo", env_id)
        for entry in (theirs, ours):
            if algo == "lr":
                entry.pop("env_wrapper", None)  # gradients
            if (algo, "Ackley" in env_id) == ("rp", True):
                entry["policy_kwargs"].pop("log_std_init", None)  # tuned
        for key in ("n_envs", "n_timesteps", "n_steps", "normalize", "env_kwargs", "env_wrapper", "policy_kwargs"):
            assert theirs.get(key) == ours.get(key), (env_id, key)


def test_a_policy_may_be_named_in_full() -> None:
    assert read_hyperparams("ppo", "PaceCarB-v0")["policy"] is MlpPolicy
    model, _ = make_model("ppo", "PaceCarB-v0", seed=0)
    assert type(model.policy) is MlpPolicy and model.policy.layer_norm


def written(folder: Path, entry: dict[str, object]) -> Path:
    """:return: a hyper-parameter file whose default is the entry"""
    file = folder / "mine.yml"
    file.write_text(yaml.dump({"default": entry}))
    return file


@pytest.mark.parametrize("name, missing", [("sb3_gippo.gippo.MlpPolcy", "MlpPolcy"), ("sb3_gipo.MlpPolicy", "sb3_gipo")])
def test_a_policys_wrong_name_ends_in_one_sentence(tmp_path: Path, name: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' cannot be imported: .*'{missing}'.$"):
        read_entry(written(tmp_path, {"policy": name}), "DeJong-v0")


def test_lin_is_a_schedule_wherever_it_stands(tmp_path: Path) -> None:
    nested = {"alpha_kwargs": {"kl": "lin_1e-3", "factor": 2}, "critic_kwargs": {"learning_rate": 3.0}}
    entry = read_entry(written(tmp_path, {"learning_rate": "lin_0.1", **nested}), "DeJong-v0")
    assert [schedule(0.5) for schedule in (entry["learning_rate"], entry["alpha_kwargs"]["kl"])] == [0.05, 0.0005]
    assert (entry["alpha_kwargs"]["factor"], entry["critic_kwargs"]) == (2, {"learning_rate": 3.0})


@pytest.mark.parametrize("text", ["1e-3", "lin_", "lin0.1", "cos_0.1", ""])
def test_text_that_is_no_schedule_is_refused(tmp_path: Path, text: str) -> None:
    for name, entry in {"learning_rate": {"learning_rate": text}, "alpha_kwargs: kl": {"alpha_kwargs": {"kl": text}}}.items():
        with pytest.raises(ValueError, match=f"^`{name}` must be a number .* or, to fall from it to 0, .* not '{text}'.$"):
            read_entry(written(tmp_path, entry), "DeJong-v0")


def test_nested_overrides_replace_single_keys() -> None:
    entry = {"n_steps": 1, "alpha_kwargs": {"kl": 1.0, "factor": 2.0}}
    assert merge(entry, {"alpha_kwargs": {"kl": 3.0}, "critic_kwargs": {"n_windows": 2}}) == {
        "n_steps": 1,
        "alpha_kwargs": {"kl": 3.0, "factor": 2.0},
        "critic_kwargs": {"n_windows": 2},
    }
    assert merge(entry, {"alpha_kwargs": None})["alpha_kwargs"] is None
    assert entry["alpha_kwargs"] == {"kl": 1.0, "factor": 2.0}


def test_another_solver_takes_nothing_of_the_entrys_alpha_kwargs() -> None:
    entry = {"alpha_kwargs": {"kl": 1.0}}
    assert merge(entry, {"alpha_solver": "published"})["alpha_kwargs"] is None
    assert merge(entry, {"alpha_solver": "published", "alpha_kwargs": {"interval": 0.1}})["alpha_kwargs"] == {"interval": 0.1}
    assert merge(entry, {"alpha_solver": "trust_region"})["alpha_kwargs"] == {"kl": 1.0}


def test_overrides_of_a_model_may_be_schedules() -> None:
    model, _ = make_model("gippo", "DeJong-v0", seed=0, learning_rate="lin_0.1", alpha_kwargs={"kl": "lin_2.0"})
    assert isinstance(model, GIPPO) and model.learning_rate(0.5) == 0.05  # type: ignore[operator]
    assert model.alpha_kwargs["kl"](0.25) == 0.5


def test_overrides_and_constants_replace_the_files() -> None:
    model, _ = make_model("gippo", "DeJong-v0", seed=3, env_kwargs={"dim": 5}, n_envs=8, batch_size=8, alpha=0.0)
    assert isinstance(model, GIPPO)
    assert (model.alpha, model.n_envs, model.action_space.shape) == (0.0, 8, (5,))


def test_an_environment_without_an_entry_gets_the_default() -> None:
    model, steps = make_model("ppo", "Pendulum-v1", seed=0, n_envs=2)
    assert isinstance(model, PPO) and steps == 1_000_000


def test_an_unknown_algorithm_ends_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^Unknown algorithm 'sac': there are gippo, ppo, lr, rp, lrrp, pe, rpo\.$"):
        read_hyperparams("sac", "DeJong-v0")


def test_the_curve_is_the_mean_of_the_last_finished_episodes() -> None:
    model, _ = make_model("ppo", "DeJong-v0", seed=0)
    curve = CurveCallback()
    model.learn(3 * 64, callback=curve)
    assert curve.steps == [64, 128, 192]
    assert curve.seconds == sorted(curve.seconds)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 100
    assert curve.returns[-1] == pytest.approx(np.mean([episode["r"] for episode in model.ep_info_buffer]))
