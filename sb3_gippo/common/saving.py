"""Files of models: replaced only by whole ones, small, and with what SB3's format has no place for."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch as th
from stable_baselines3.common.save_util import open_path

LEARNER = "learner.bin"
"""the file in the zip that holds what these algorithms keep beside PPO's; SB3 reads the files that end in .pth only"""


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """
    Write a file of which others see either the old or the new one, whole, however many write it. A symbolic link stays one:
    the file it points to is replaced. Permissions stay as they are. What processes that were killed left behind is removed.

    :param target: the file, in a folder that is made if need be
    """
    target = target.resolve() if target.is_symlink() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():  # a pipe or a device is written to
        with target.open("wb") as file:
            yield file
        return
    # A name may be as long as names can be: its parts are known by a hash of it.
    stem = "." + hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    for left in target.parent.glob(f"{stem}.*.part"):
        if not _is_alive(left.name.split(".")[-3]):
            left.unlink(missing_ok=True)
    part = target.with_name(f"{stem}.{os.getpid()}.{uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            yield file
        with suppress(FileNotFoundError):
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    if os.name != "posix":  # elsewhere a signal 0 is not a question
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):  # somebody else's process, or no process's file
        return True
    return True


def add_learner(zipped: bytes, learner: dict[str, Any]) -> bytes:
    """
    :param zipped: a zip of SB3's
    :param learner: what is added as :data:`LEARNER`
    :return: the zip with it, compressed
    """
    result, added = io.BytesIO(), io.BytesIO()
    th.save(learner, added)
    content = _grouped(added.getvalue())
    with zipfile.ZipFile(io.BytesIO(zipped)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(LEARNER, content)
    return result.getvalue()


def _grouped(content: bytes) -> bytes:
    """
    :return: the content with its length before it and its bytes sorted by their place in float32 numbers: exponents, which are
        alike, stand together, and compress
    """
    whole = len(content).to_bytes(8, "little") + content
    return np.frombuffer(whole + bytes(-len(whole) % 4), np.uint8).reshape(-1, 4).T.tobytes()


def _ungrouped(grouped: bytes) -> bytes:
    whole = np.frombuffer(grouped, np.uint8).reshape(4, -1).T.tobytes()
    return whole[8 : 8 + int.from_bytes(whole[:8], "little")]


def read_learner(path: Any, device: th.device) -> dict[str, Any] | None:
    """
    :param path: what SB3's ``load`` takes: a path, with or without .zip, or an open file
    :param device: of the tensors
    :return: what :func:`add_learner` added; ``None`` in a zip without it
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if LEARNER not in archive.namelist():
                return None
            content = io.BytesIO(_ungrouped(archive.read(LEARNER)))
            learner: dict[str, Any] = th.load(content, map_location=device, weights_only=True)
            return learner
    finally:
        if isinstance(path, (str, Path)):
            file.close()
