"""Executes a plan: one process per run, no run twice, also from several processes or machines at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Interrupted
from ..files import locked
from ..progress import Board, RunState
from ..signals import caught_signals
from ..training.log import last_entry
from .plan import Plan, Run
from .results import read_results, score_of

_POLL_SECONDS = 0.2
_LOCKED_SECONDS = 2.0


@dataclass
class Outcome:
    """The outcome of a plan's runs.

    Attributes:
        done: Names of the runs that this process did.
        found: Names of the runs that were finished before, or by another process.
        reasons: Why a run failed, or was not started, by its name.
        blocked: Names of the runs that were not started because a run that they need failed.
        signal: The signal that ended the execution.
    """

    done: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    signal: int | None = None

    def note_signal(self, number: int) -> None:
        self.signal = number


@contextmanager
def _run_locked(path: Path) -> Iterator[int]:
    """Hold a run's lock, a file that names its holder; gives its descriptor.

    Raises:
        BlockingIOError: Another process, perhaps on another machine, holds it.
    """
    with locked(path, wait=False) as lock:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{_whoami()}\n".encode(), 0)
        yield lock


def _whoami() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


@dataclass
class _Job:
    """A run in progress.

    Attributes:
        lock: Holds the lock of its directory. The run's process holds it too, so that the directory stays
            locked if this process is killed.
    """

    run: Run
    process: subprocess.Popen[bytes]
    lock: ExitStack
    slot: int


@dataclass
class _Executor:
    """The state of one execution of a plan.

    Attributes:
        gpus: Names of GPUs, one per slot; empty to leave the choice to the runs.
        asked: When the lock of a run that another process does was last tried, by the run's name.
        elsewhere: Names of the runs that another process does.
        scores: The scores of finished runs, by name.
    """

    plan: Plan
    jobs: int
    gpus: Sequence[str]
    outcome: Outcome
    running: dict[str, _Job] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def open_runs(self) -> list[Run]:
        """Runs that are neither finished nor failed."""
        ended = {*self.outcome.done, *self.outcome.found, *self.outcome.reasons}
        return [run for run in self.plan.runs if run.name not in ended]

    def start_what_can(self) -> None:
        for run in self.open_runs():
            if run.name in self.running:
                continue
            if run.is_finished(self.plan.folder):
                self.outcome.found.append(run.name)
                self.elsewhere.discard(run.name)
                continue
            lacking = [one.name for one in run.inputs if one.name in self.outcome.reasons]
            if lacking:
                why = self.outcome.reasons[lacking[0]]
                blocked = lacking[0] in self.outcome.blocked
                self.outcome.reasons[run.name] = why if blocked else f"{lacking[0]} failed: {why}"
                self.outcome.blocked.add(run.name)
                continue
            ready = all(needed.is_finished(self.plan.folder) for needed in run.inputs)
            if ready and len(self.running) < self.jobs:
                self._try(run)

    def _try(self, run: Run) -> None:
        """Start a run, unless another process does it."""
        now = time.monotonic()
        if now - self.asked.get(run.name, -_LOCKED_SECONDS) < _LOCKED_SECONDS:
            return
        self.asked[run.name] = now
        with ExitStack() as stack:
            try:
                path = self.plan.folder / f"{run.name}.lock"
                lock = stack.enter_context(_run_locked(path))
            except BlockingIOError:
                self.elsewhere.add(run.name)
                return
            self.elsewhere.discard(run.name)
            if run.is_finished(self.plan.folder):
                self.outcome.found.append(run.name)
                return
            slot = min({*range(self.jobs)} - {job.slot for job in self.running.values()})
            process = self._spawn(run, lock, slot)
            self.running[run.name] = _Job(run, process, stack.pop_all(), slot)

    def _spawn(self, run: Run, lock: int, slot: int) -> subprocess.Popen[bytes]:
        folder = self.plan.folder
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        elif self.jobs > 1:
            share = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        words = run.words(folder, self.plan.extra)
        with (folder / f"{run.name}.log").open("ab") as log:
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            log.write(f"--- {began}, {_whoami()}: kdshrink {' '.join(words)}\n".encode())
            log.flush()
            # In its own session: only this process gets Ctrl-C, and passes it on.
            return subprocess.Popen(
                [sys.executable, "-m", "kdshrink", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(lock,),
                start_new_session=True,
            )

    def collect(self) -> None:
        """Record the runs that have ended."""
        for name, job in list(self.running.items()):
            code = job.process.poll()
            if code is None:
                continue
            del self.running[name]
            job.lock.close()
            if job.run.is_finished(self.plan.folder):
                self.outcome.done.append(name)
            elif self.outcome.signal is not None:
                self.outcome.reasons[name] = "interrupted"
            else:
                self.outcome.reasons[name] = _reason(self.plan.folder / f"{name}.log", code)

    def stop(self) -> None:
        """End the runs in progress, which save a checkpoint first."""
        for job in self.running.values():
            job.process.send_signal(signal.SIGTERM)
        while self.running:
            self.collect()
            time.sleep(_POLL_SECONDS)
        for run in self.open_runs():
            self.outcome.reasons[run.name] = "not started"

    def states(self) -> list[RunState]:
        return [self._state(run) for run in self.plan.runs]

    def _state(self, run: Run) -> RunState:
        name, folder = run.name, self.plan.folder
        if name in self.running or name in self.elsewhere:
            entry = last_entry(folder / name) if run.trains else {}
            figures = {str(key): entry[key] for key in ("loss", "score") if key in entry}
            return RunState(
                name,
                "running" if name in self.running else "elsewhere",
                step=entry.get("step"),
                steps=_steps(run),
                figures=figures,
            )
        if reason := self.outcome.reasons.get(name):
            return RunState(
                name, "blocked" if name in self.outcome.blocked else "failed", note=reason
            )
        if name in self.outcome.done or name in self.outcome.found:
            if name not in self.scores:
                self.scores[name] = _score(folder / name)
            return RunState(name, "done", figures=self.scores[name])
        return RunState(name, "waiting")


def _steps(run: Run) -> int | None:
    """The number of steps in a run's options; None if it is not there."""
    words = run.arguments
    if "--max-steps" in words:
        return int(str(words[words.index("--max-steps") + 1]))
    return None


def _score(directory: Path) -> dict[str, float]:
    score = score_of(read_results(directory))
    return {} if score is None else {"score": score}


def _reason(log: Path, code: int) -> str:
    """Why a run failed: the error message, or the last line, of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n--- ")[-1].splitlines()
    said = [line for line in lines if line.strip()]
    begin = next((i for i, line in reversed([*enumerate(said)]) if line.startswith("error:")), -1)
    message = " ".join(said[begin:]).removeprefix("error: ") if said else "its log is empty"
    return f"{message} (exit code {code})"


def visible_gpus(device: str) -> list[str]:
    """The names, for CUDA_VISIBLE_DEVICES, of the GPUs that `--device` leaves open; empty if fewer than two."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(count)]


def execute(plan: Plan, jobs: int | None, gpus: Sequence[str], board: Board) -> Outcome:
    """Do the runs of a plan that are not finished, each after those that it needs.

    A run that fails blocks only the runs that need it. A run that another process does is waited for; if
    that process is killed, the run is resumed here.

    Args:
        jobs: The number of runs at a time; None for one per GPU, or one without GPUs.
        gpus: Names of the GPUs to distribute; empty to leave the choice to the runs.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    executor = _Executor(plan, jobs or max(1, len(gpus)), gpus, Outcome())
    with caught_signals(executor.outcome.note_signal):
        try:
            while executor.open_runs() and executor.outcome.signal is None:
                executor.collect()
                executor.start_what_can()
                board(executor.states())
                if executor.open_runs():
                    time.sleep(_POLL_SECONDS)
        finally:
            executor.stop()
            board(executor.states())
    return executor.outcome


def interrupted(outcome: Outcome, command: str) -> Interrupted:
    """The error to raise after a signal ended the execution."""
    assert outcome.signal is not None
    name = {signal.SIGINT: "Ctrl-C"}.get(signal.Signals(outcome.signal), "SIGTERM")
    done = len(outcome.done) + len(outcome.found)
    return Interrupted(
        f"Stopped by {name}: {done} of {done + len(outcome.reasons)} runs are finished, and those in "
        f"progress saved a checkpoint.\nContinue with the same command: {command}",
        128 + outcome.signal,
    )
