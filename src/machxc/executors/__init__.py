"""How repetitions are run: a contract of one call, and the executors that fulfil it.

A repetition is a task (its number) that needs nothing of its siblings and gives no result but what it stores; an
executor runs the tasks in any order, as many at a time as it likes. serial.py and local.py run them in this process,
ray.py on a cluster; a shard of a job array runs its own few by one of the former.
"""

from machxc.executors.contract import Executor
from machxc.executors.local import LocalExecutor
from machxc.executors.serial import SerialExecutor

__all__ = ["Executor", "LocalExecutor", "SerialExecutor", "executor_for"]


def executor_for(jobs: int) -> Executor:
    """The executor for so many repetitions at a time on this machine."""
    return SerialExecutor() if jobs <= 1 else LocalExecutor(jobs)
