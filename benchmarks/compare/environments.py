"""The peers' virtual environments, a few peers each: build/peers/SET, made on first use from pinned versions.

The variable MACHXC_PEERS names another folder of environments with the same names, which are taken as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "main": (
        "omikuji==0.5.2",
        "napkinxc==0.7.2",
        "vowpalwabbit==9.11.9",
        "bm25s==0.3.16",
        "numpy==2.4.6",
        "scipy==1.17.1",
    ),
    "ft": ("fasttext-wheel==0.9.2", "numpy==1.26.4", "scipy==1.17.1"),
    "pecos": ("torch==2.13.0", "libpecos==1.2.8", "numpy==1.26.4", "scipy==1.13.1"),
}


class NotInstalledError(Exception):
    """An environment that cannot be made here, and why."""


def interpreter(name: str, build: Path) -> Path:
    """The Python of an environment, which is made if need be; NotInstalledError when it cannot be."""
    given = os.environ.get("MACHXC_PEERS")
    folder = Path(given or build) / name
    python, stamp = folder / "bin" / "python", folder / "packages.txt"
    packages = "\n".join(PACKAGES[name])
    if given and python.exists():
        return python
    if not (stamp.exists() and stamp.read_text() == packages):
        print(f"installing {', '.join(PACKAGES[name])} into {folder} (once)", flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[name]])
        stamp.write_text(packages)
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["it said nothing"]
        raise NotInstalledError(f"{' '.join(command[1:5])} failed: {lines[-1][:300]}")
