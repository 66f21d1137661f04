"""What the tests of the backends send to workers: it has to have a name there."""

import time


def times(factor: int, tasks: list[int]) -> list[int]:
    """Return the tasks, each multiplied by what is shared."""
    return [factor * task for task in tasks]


def fails(factor: int, tasks: list[int]) -> list[int]:
    """Raise in the share that holds task 5."""
    if 5 in tasks:
        raise OSError("the wire is cut")
    return times(factor, tasks)


def slowly(seconds: float, tasks: list[int]) -> list[int]:
    """Take some time a task."""
    time.sleep(seconds * len(tasks))
    return tasks
