"""Hyper-parameters that are refused in one sentence when they make no sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeVar

import numpy as np

Settings = TypeVar("Settings")


def check_integer(name: str, value: object, smallest: int) -> None:
    """
    :raises AssertionError: if a hyper-parameter is no integer, or too small
    """
    assert isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= smallest, (
        f"`{name}` must be an integer of at least {smallest}, not {value!r}"
    )


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, open_low: bool = False, otherwise: str = ""
) -> None:
    """
    :param low: smallest value
    :param high: largest value; a hyper-parameter is finite in any case
    :param open_low: whether ``low`` itself is excluded
    :param otherwise: what else the hyper-parameter may be, for the sentence
    :raises AssertionError: if a hyper-parameter is no finite number between ``low`` and ``high``
    """
    fits = isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high and not (open_low and value == low)
    bounds = f"finite and {'more than' if open_low else 'at least'} {low:g}"
    if high < math.inf:
        bounds = f"between {low:g}{' (excluded)' if open_low else ''} and {high:g}"
    assert fits, f"`{name}` must be a number {bounds}{otherwise}, not {value!r}"


def check_schedule(name: str, value: Any) -> None:
    """
    :raises AssertionError: if a hyper-parameter is neither a positive number nor a function of the remaining progress
    """
    if not callable(value):
        check_number(name, value, open_low=True, otherwise=", or a function of the remaining progress")


def schedule_of(name: str, value: Any) -> Callable[[float], float]:
    """
    :param name: of the hyper-parameter, for the sentence
    :param value: a number, or a function of the remaining progress
    :return: that function; what it gives below 0 counts as 0
    """

    def at(progress_remaining: float) -> float:
        found = value(progress_remaining) if callable(value) else value
        assert isinstance(found, Real) and math.isfinite(found), (
            f"`{name}` must give finite numbers, not {found!r} at the remaining progress {progress_remaining:g}"
        )
        return max(float(found), 0.0)

    return at


def settings_from(settings: type[Settings], name: str, kwargs: Mapping[str, Any] | None) -> Settings:
    """
    Settings from a dict of keyword arguments, in the manner of SB3's ``policy_kwargs``.

    :param settings: a dataclass
    :param name: of the argument, for the sentence
    :param kwargs: values that differ from the dataclass's defaults
    :return: the settings
    :raises AssertionError: for something else than a dict, or an unknown key
    """
    assert kwargs is None or isinstance(kwargs, Mapping), f"`{name}` must be a dict, not {kwargs!r}"
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    unknown = [key for key in kwargs or {} if key not in known]
    assert not unknown, f"`{name}` has no {unknown[0]!r} here: there are {', '.join(known)}"
    return settings(**(kwargs or {}))
