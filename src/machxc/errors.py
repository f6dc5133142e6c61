"""What can go wrong, as one tree: catch MachxcError for all of it.

::

    MachxcError
     ├── DataError            a sample, a label or a file of them is not what was expected   (also a ValueError)
     ├── SettingError         a setting is out of its bounds or contradicts another          (also a ValueError)
     │    └── MemoryBudgetError   what was asked does not fit the memory budget
     ├── ModelError           a model folder is missing, damaged, or of another kind
     ├── ClusterError         a cluster is not there, or cannot do what was asked of it
     ├── OutputError          an output exists already, or cannot be written                 (also an OSError)
     └── MissingExtraError    an optional dependency is not installed                        (also an ImportError)

Every message names the setting, or the file and line; says what was expected, what was given, and what to do.
"""

from __future__ import annotations


class MachxcError(Exception):
    """Base of every error that machxc raises on purpose."""


class DataError(MachxcError, ValueError):
    """A sample, a label or a file of them is not what was expected.

    ``path`` and ``line`` (1-based) say where, when the data came from a file; the message begins with them.
    """

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)


class SettingError(MachxcError, ValueError):
    """A setting is out of its bounds or contradicts another."""


class MemoryBudgetError(SettingError):
    """What was asked does not fit the memory budget; the message names the nearest that does."""


class ModelError(MachxcError):
    """A model folder is missing, damaged, or of another kind or version."""


class ClusterError(MachxcError):
    """A cluster is not there, or cannot do what was asked of it."""


class OutputError(MachxcError, OSError):
    """An output exists already, or cannot be written (no permission, full disk)."""


class MissingExtraError(MachxcError, ImportError):
    """An optional dependency is not installed; the message is the pip command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'machxc[{extra}]'")
