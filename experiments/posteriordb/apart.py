"""One method on one posterior in a process of its own, within a limit of CPU time."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import resource
import signal
import warnings
from typing import Any

from experiments.posteriordb.collection import PROGRAMS, load
from experiments.posteriordb.methods import Row, Settings, run
from vi_flows.records import provenance


def _work(answers: Any, name: str, method: str, settings: Settings) -> None:
    """In the process of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (settings.limit, settings.limit + 5))
    logging.getLogger("pyro").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        answers.put(run(method, PROGRAMS[name], *load(name), settings))
    except Exception as error:  # whatever a method raises is its result
        answers.put({"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]})


def one(name: str, method: str, settings: Settings) -> Row:
    """A row, of figures or of a failure."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_work, args=(answers, name, method, settings))
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
        why = f"over {settings.limit} s of CPU time" if over else f"its process ended with code {process.exitcode}"
        answer = {"failed": why}
    return {"method": method, **answer, **provenance()}
