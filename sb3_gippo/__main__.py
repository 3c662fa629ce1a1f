"""``sb3-gippo``: the commands of rl_zoo3, which know this project's algorithms and environments."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from types import TracebackType
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
    Run one of :data:`COMMANDS`.

    :param argv: the command and its arguments; those of the program by default
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="sb3-gippo",
        description="The commands of rl_zoo3 with GI-PPO and its environments; `sb3-gippo train --help` lists train's options.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    name = parser.parse_args(argv[:1]).command
    sys.argv = [f"sb3-gippo {name}", *argv[1:]]
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
        from sb3_gippo import zoo

        zoo.register()
        module = importlib.import_module(command.module) if command.function else None
    except ModuleNotFoundError as error:
        raise ImportError(f'it needs the package {error.name}: pip install "sb3-gippo[zoo]"') from error
    if command.function:
        getattr(module, command.function)()
    else:
        runpy.run_module(command.module, run_name="__main__")


def is_about_input(error: Exception) -> bool:
    """
    :param error: what a command ended in
    :return: whether its message alone tells the user what to do: a missing package, or an objection that rl_zoo3 or this
        project raises themselves; anything else may be a defect, and keeps its traceback
    """
    if isinstance(error, ImportError | DependencyNotInstalled):
        return True
    if not isinstance(error, AssertionError | OSError | ValueError) or not str(error):
        return False
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    origin = "" if last is None else last.tb_frame.f_globals.get("__name__", "")
    return origin.split(".")[0] in {"rl_zoo3", "sb3_gippo", "gippo_envs", "__main__"}


if __name__ == "__main__":
    main()
