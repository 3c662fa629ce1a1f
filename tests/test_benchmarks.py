"""The benchmarks' results: nothing is lost, nothing is there twice, whatever fails, is killed or runs at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from sb3_gippo.cli import experiment
from sb3_gippo.cli.experiment import make_model
from sb3_gippo.cli.hyperparams import read_hyperparams

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
JOBS = """
import os, signal, sys, time
from pathlib import Path
from run import run_all

def train(env, algo, seed):
    if algo == "fails":
        raise RuntimeError(f"{env} went wrong")
    if algo == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if algo == "waits":
        Path(f"{os.getpid()}.started").touch()
        while not Path("go").exists():
            time.sleep(0.02)
    return {"env": env, "algo": algo, "seed": seed, "best": -1.5}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    jobs = [(f"env{number}", algo, 0) for number, algo in enumerate(sys.argv[1:])]
    print("failed", run_all(train, jobs, Path("out.csv"), 2))
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and locks of files")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks import one another as scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def start(folder: Path, *algos: str) -> subprocess.Popen[str]:
    """Start a process that runs a job for each of these in a folder."""
    (folder / "jobs.py").write_text(JOBS)
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "jobs.py", *algos], cwd=folder, env=environment, text=True, **pipes)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def started(folder: Path) -> list[int]:
    """:return: the processes whose training has begun"""
    return [int(file.stem) for file in folder.glob("*.started")]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@posix
def test_runs_that_fail_are_reported_and_the_others_are_kept(tmp_path: Path, benchmarks: None) -> None:
    import run

    output, errors = start(tmp_path, "fails", "dies", "works", "fails", "works").communicate()
    # Two workers: whichever ends first is written first.
    written = sorted((row["env"], row["best"]) for row in run.read(tmp_path / "out.csv"))
    assert written == [("env2", "-1.5"), ("env4", "-1.5")]
    lines = output.splitlines()
    assert {line.partition("] ")[2] for line in lines[:-1]} == {
        "env0 fails seed 0: failed, exit code 1",
        "env1 dies seed 0: failed, exit code -9",
        "env2 works seed 0: best -1.5",
        "env3 fails seed 0: failed, exit code 1",
        "env4 works seed 0: best -1.5",
    }
    assert [line[:5] for line in lines[:-1]] == [f"[{n}/5]" for n in range(1, 6)]
    assert sorted(eval(lines[-1].removeprefix("failed "))) == [("env0", "fails", 0), ("env1", "dies", 0), ("env3", "fails", 0)]
    assert "Traceback" in errors and "RuntimeError: env0 went wrong" in errors and "RuntimeError: env3 went wrong" in errors


def test_a_failing_run_of_the_command_ends_in_exit_code_1(
    tmp_path: Path, benchmarks: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import run

    out = tmp_path / "folder" / "out.csv"
    monkeypatch.setattr(sys, "argv", f"run.py --envs Nowhere-v0 --algos ppo --seeds 1 1 --jobs 1 --out {out}".split())
    with pytest.raises(SystemExit, match=r"^1 failed: Nowhere-v0 ppo seed 1$"):
        run.main()
    assert run.read(out) == [] and "Environment `Nowhere` doesn't exist" in capfd.readouterr().err


def test_every_variant_makes_a_model_and_finds_what_it_replaces(benchmarks: None) -> None:
    import run

    for variant in run.VARIANTS.values():
        make_model(variant.algo, "CartPoleSwingUp-v0", 0, variant.env_kwargs, conf=variant.conf, **variant.overrides)
        with ExitStack() as stack:
            for name, replacement in variant.patches.items():
                stack.enter_context(patch(name, replacement))


def test_a_run_is_a_row(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    short = {**read_hyperparams("gippo", "DeJong64-v0"), "n_timesteps": 640}
    monkeypatch.setattr(experiment, "read_hyperparams", lambda algo, env_id, conf: short)
    row = run.run("DeJong64-v0", "gippo-flip", 7)
    assert (row["env"], row["algo"], row["seed"], row["steps"]) == ("DeJong64-v0", "gippo-flip", 7, 640)
    curve = json.loads(row["curve"])
    assert [steps for steps, _ in curve] == list(range(64, 641, 64))
    assert row["best"] >= row["last"] == pytest.approx(curve[-1][1], rel=1e-3) and row["evaluation"] < 0


@posix
def test_two_that_run_at_once_share_the_work(tmp_path: Path, benchmarks: None) -> None:
    first = start(tmp_path, "waits", "works")
    until(lambda: len(started(tmp_path)) == 1 and "env1" in run_envs(tmp_path))
    output, _ = start(tmp_path, "waits", "works", "works").communicate()
    assert "env0 waits seed 0: left to the process that is at it" in output
    (tmp_path / "go").touch()
    first.communicate()
    assert sorted(run_envs(tmp_path)) == ["env0", "env1", "env2"]


def run_envs(folder: Path) -> list[str]:
    import run

    return [row["env"] for row in run.read(folder / "out.csv")]


@posix
def test_a_killed_run_leaves_no_process_and_no_claim(tmp_path: Path, benchmarks: None) -> None:
    master = start(tmp_path, "waits", "waits")
    until(lambda: len(started(tmp_path)) == 2)
    workers = started(tmp_path)
    master.kill()
    master.communicate()
    until(lambda: not any(alive(worker) for worker in workers))
    (tmp_path / "go").touch()
    start(tmp_path, "waits", "waits").communicate()
    assert sorted(run_envs(tmp_path)) == ["env0", "env1"]


@posix
def test_an_interrupted_run_ends_its_processes(tmp_path: Path) -> None:
    master = start(tmp_path, "waits", "waits", "waits")
    until(lambda: len(started(tmp_path)) == 2)
    master.send_signal(signal.SIGINT)
    master.communicate()
    until(lambda: not any(alive(worker) for worker in started(tmp_path)))
    assert len(started(tmp_path)) == 2


ROW = {"env": "A-v0", "algo": "gippo", "seed": 1, "curve": "[[1, 2.0], [3, 4.0]]"}


def test_a_torn_line_is_removed_before_the_next_row(tmp_path: Path, benchmarks: None) -> None:
    import run

    path = tmp_path / "out.csv"
    run.append(path, [ROW, {**ROW, "seed": 2}])
    whole = path.read_bytes()
    first = whole.index(b"\r\n", whole.index(b"\r\n") + 1) + 2
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert [row["seed"] for row in run.read(path)] == ["1"]
        run.append(path, [{**ROW, "seed": 3}])
        assert path.read_bytes() == whole.replace(b"gippo,2", b"gippo,3")
    assert run.rows_by_job(path) == {("A-v0", "gippo", seed): {**ROW, "seed": str(seed)} for seed in (1, 3)}


@pytest.mark.parametrize("content", [None, b"", b"env,al"])
def test_a_file_without_a_header_gets_one(tmp_path: Path, benchmarks: None, content: bytes | None) -> None:
    import run

    path = tmp_path / "new" / "out.csv"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    assert run.read(path) == []
    run.append(path, [ROW])
    assert run.read(path) == [{**ROW, "seed": "1"}]


def test_rows_of_other_columns_are_refused(tmp_path: Path, benchmarks: None) -> None:
    import run

    path = tmp_path / "out.csv"
    run.append(path, [ROW])
    with pytest.raises(ValueError, match=r"out\.csv has the columns \['env', 'algo', 'seed', 'curve'\], not \['env'\]"):
        run.append(path, [{"env": "B-v0"}])
    assert run.read(path) == [{**ROW, "seed": "1"}]


def test_the_committed_results_are_whole(benchmarks: None) -> None:
    import run

    for file in run.RESULTS.glob("*.csv"):
        content = file.read_bytes()
        assert run.whole_lines(content) == content, file
    rows = run.read(run.RESULTS / "training.csv")
    assert len(rows) == len(run.rows_by_job(run.RESULTS / "training.csv")) > 50


def test_the_spread_is_the_samples_and_a_single_run_has_none(benchmarks: None) -> None:
    import report

    assert report.spread(np.array([1.0, 3.0])) == "1.4"
    assert report.spread(np.array([5.0])) == "–"
    row = {"seed": "1", "steps": "128000", "best": "-5", "evaluation": "-6", "seconds": "7", "curve": "[]"}
    runs = {("DeJong-v0", algo): [row] for algo in ("gippo", "gippo-flip")}
    lines = report.table("DeJong-v0", runs)
    assert "| GI-PPO | 1 | -5 | – | – | -6 | not by all | 7 |" in lines
    assert "| GI-PPO, gradients of the wrong sign | 1 | -5 | – | -6 | 1 |" in lines
    assert "| `DeJong-v0` | -5 ± – (1) | – | – | – | -3.8e-10 | 128 k |" in report.summary(runs)


def test_scores_are_between_the_worst_and_the_best_run_of_a_problem(benchmarks: None) -> None:
    import report

    def rows(*best: float) -> list[dict[str, str]]:
        return [{"seed": str(seed), "best": str(value)} for seed, value in enumerate(best)][::-1]

    runs = {("CartPoleSwingUp-v0", "gippo"): rows(-4, -3, -2, 99), ("CartPoleSwingUp-v0", "ppo"): rows(-6, -6, -5)}
    runs |= {("DeJong-v0", "gippo"): rows(-1e-6, -1e-5, -1e-4), ("DeJong-v0", "ppo"): rows(-1e-4, -1e-3, -1e-2)}
    runs |= {("DiffAnt-v0", "gippo"): rows(1, 2), ("DiffAnt-v0", "ppo"): rows(1, 2, 3)}
    found, env_ids = report.scores(runs, ("gippo", "ppo"))
    assert env_ids == ["DeJong-v0", "CartPoleSwingUp-v0"]
    np.testing.assert_allclose(found["gippo"], [[1, 0.5], [0.75, 0.75], [0.5, 1]])
    np.testing.assert_allclose(found["ppo"], [[0.5, 0], [0.25, 0], [0, 0.25]])


def test_the_readmes_table_is_that_of_the_committed_results(benchmarks: None) -> None:
    import report

    table = "\n".join(report.summary(report.load()))
    assert f"<!-- results -->\n{table}\n<!-- end of results -->" in (BENCHMARKS.parent / "README.md").read_text()
