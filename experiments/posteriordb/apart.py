"""Work in a process of its own, within a limit of CPU time: its figures can't be mixed up with another's."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import resource
import signal
import warnings
from collections.abc import Callable
from typing import Any

from experiments.posteriordb.collection import PROGRAMS, load
from experiments.posteriordb.methods import Row, Settings, run
from vi_flows.records import provenance


def _work(answers: Any, function: Callable[..., Row], args: tuple[Any, ...], limit: int) -> None:
    """In the process of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    logging.getLogger("pyro").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        answers.put(function(*args))
    except Exception as error:  # whatever a method raises is its result
        answers.put({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]})


def apart(function: Callable[..., Row], *args: Any, limit: int) -> Row:
    """What a function returns, or how it failed (``failed``).

    Args:
        function: of a module, called in a new process.
        args: its arguments; they are pickled.
        limit: CPU seconds.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_work, args=(answers, function, args, limit))
    process.start()
    answer: Row | None = None
    while answer is None and process.is_alive():
        try:
            answer = answers.get(timeout=1)
        except queue.Empty:
            continue
    process.join()
    if answer is None and not answers.empty():
        answer = answers.get()
    if answer is None:
        over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        why = f"over {limit} s of CPU time" if over else f"its process ended with code {process.exitcode}"
        answer = {"failed": why}
    return answer


def one(name: str, method: str, settings: Settings) -> Row:
    """A row of posteriordb's table, of figures or of a failure."""
    answer = apart(_run, name, method, settings, limit=settings.limit)
    return {"method": method, **answer, **provenance()}


def _run(name: str, method: str, settings: Settings) -> Row:
    return run(method, PROGRAMS[name], *load(name), settings)
