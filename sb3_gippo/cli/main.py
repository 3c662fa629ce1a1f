"""``sb3-gippo``: the commands of rl_zoo3, which know this project's algorithms and environments."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
import traceback
from contextlib import nullcontext
from typing import NamedTuple

from gymnasium.error import DependencyNotInstalled


class Command(NamedTuple):
    """A command of rl_zoo3's: a function of one of its modules, or (without function) the module run as a script."""

    module: str
    function: str | None
    help: str


COMMANDS = {
    "train": Command("rl_zoo3.train", "train", "train an agent, resume (-i), or tune hyper-parameters (-optimize)"),
    "enjoy": Command("rl_zoo3.enjoy", "enjoy", "let a trained agent act"),
    "benchmark": Command("rl_zoo3.benchmark", None, "evaluate a folder of trained agents, write the table"),
    "plot-train": Command("rl_zoo3.plots", "plot_train", "plot the returns of training"),
    "plot-from-file": Command("rl_zoo3.plots", "plot_from_file", "plot what all-plots has collected"),
    "all-plots": Command("rl_zoo3.plots", "all_plots", "collect and plot the evaluations of many runs, print their table"),
    "record-video": Command("rl_zoo3.record_video", None, "record a trained agent"),
}


def main(argv: list[str] | None = None) -> None:
    """
    Run one of :data:`COMMANDS`. Alone, without arguments, it prints its help.

    :param argv: the command and its arguments; those of the program by default
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="sb3-gippo",
        description="rl_zoo3's commands with GI-PPO and its environments. `sb3-gippo train` lists the options of train.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    name = parser.parse_args(argv[:1]).command
    sys.argv = [f"sb3-gippo {name}", *(argv[1:] or ["--help"])]
    try:
        run(COMMANDS[name])
    except Exception as error:
        if not is_about_input(error):
            raise
        parser.exit(2, f"sb3-gippo {name}: error: {error}\n")


def run(command: Command) -> None:
    """
    Hand over to rl_zoo3.

    :param command: one of :data:`COMMANDS`
    :raises ImportError: without rl_zoo3 and what it needs
    """
    try:
        from sb3_gippo.cli import zoo

        zoo.register()
        module = importlib.import_module(command.module) if command.function else None
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        raise ImportError(f'it needs the package {package}: pip install "sb3-gippo[zoo]"') from error
    if command.function:
        getattr(module, command.function)()
        return
    with zoo.benchmark() if command is COMMANDS["benchmark"] else nullcontext():
        runpy.run_module(command.module, run_name="__main__")


def is_about_input(error: Exception) -> bool:
    """
    :param error: what a command ended in
    :return: whether its message alone tells the user what to do: a missing package, or an objection that rl_zoo3, Gymnasium or
        this project raise themselves; anything else may be a defect, and keeps its traceback
    """
    if isinstance(error, ImportError | DependencyNotInstalled):
        return True
    objections = (AssertionError, NotImplementedError, OSError, ValueError)
    if not isinstance(error, objections) and "unexpected keyword argument" not in str(error):
        return False
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    origin = frame.f_globals.get("__name__", "").split(".")[0]
    return bool(str(error)) and origin in {"__main__", "gippo_envs", "gymnasium", "rl_zoo3", "sb3_gippo"}


if __name__ == "__main__":
    main()
