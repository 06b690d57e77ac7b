"""Running a plan: each run a process of its own, none twice, several processes or machines at once."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Interrupted
from ..progress import Board, RunState
from ..signals import caught_signals
from ..training.log import last_entry
from .plan import Plan, Run
from .results import read_results, score_of

_POLL_SECONDS = 0.2
_LOCKED_SECONDS = 2.0


@dataclass
class Outcome:
    """What became of a plan's runs.

    Attributes:
        done: Names of the runs that this process did.
        found: Names of those that were finished before, or by another process.
        reasons: Why a run did not end well, or was not begun, by its name.
        blocked: Those of them whose input failed.
        signal: The signal that ended it all.
    """

    done: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    signal: int | None = None

    def note_signal(self, number: int) -> None:
        self.signal = number


class _Lock:
    """A lock on a run's directory: an flock on a file beside it.

    The kernel frees it when its last holder is gone, however that went. The run's own process holds it
    too, so that it stays locked while an orphan goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self) -> bool:
        """Take it if nobody has it."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, f"{_whoami()}\n".encode(), 0)
        return True

    def close(self) -> None:
        os.close(self.file)


def _whoami() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


@dataclass
class _Job:
    """A run under way."""

    run: Run
    process: subprocess.Popen[bytes]
    lock: _Lock
    slot: int


@dataclass
class _Executor:
    """The state of one execution of a plan.

    Attributes:
        gpus: Names of GPUs, one a slot; empty for none to be chosen.
        asked: When another process's lock was last tried, by the run's name.
        elsewhere: Runs that another process does.
        scores: Of finished runs, read once.
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
        """Runs of which it is not settled yet what becomes of them."""
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
        lock = _Lock(self.plan.folder / f"{run.name}.lock")
        if not lock.take():
            lock.close()
            self.elsewhere.add(run.name)
            return
        self.elsewhere.discard(run.name)
        if run.is_finished(self.plan.folder):
            lock.close()
            self.outcome.found.append(run.name)
            return
        slot = min({*range(self.jobs)} - {job.slot for job in self.running.values()})
        self.running[run.name] = _Job(run, self._spawn(run, lock, slot), lock, slot)

    def _spawn(self, run: Run, lock: _Lock, slot: int) -> subprocess.Popen[bytes]:
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
            # A session of its own: Ctrl-C comes to this process alone, which passes it on.
            return subprocess.Popen(
                [sys.executable, "-m", "kdshrink", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(lock.file,),
                start_new_session=True,
            )

    def collect(self) -> None:
        """See which runs have ended."""
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
        """End the runs under way; they save a checkpoint first."""
        for job in self.running.values():
            job.process.send_signal(signal.SIGTERM)
        while self.running:
            self.collect()
            time.sleep(_POLL_SECONDS)
        for run in self.open_runs():
            self.outcome.reasons[run.name] = "not begun"

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
    """How many steps a run was told to make."""
    words = run.arguments
    if "--max-steps" in words:
        return int(str(words[words.index("--max-steps") + 1]))
    return None


def _score(directory: Path) -> dict[str, float]:
    score = score_of(read_results(directory))
    return {} if score is None else {"score": score}


def _reason(log: Path, code: int) -> str:
    """Why a run failed, from the end of its log: what it said last, or its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n--- ")[-1].splitlines()
    said = [line for line in lines if line.strip()]
    begin = next((i for i, line in reversed([*enumerate(said)]) if line.startswith("error:")), -1)
    told = " ".join(said[begin:]).removeprefix("error: ") if said else "it said nothing"
    return f"{told} (exit code {code})"


def visible_gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that `--device` leaves open, where there are several."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(count)]


def execute(plan: Plan, jobs: int | None, gpus: Sequence[str], board: Board) -> Outcome:
    """Do the runs of a plan that are not finished, in an order that works.

    A run that fails stops those that need it, and no others. A run that another process does is waited
    for; if that process is killed, it goes on here.

    Args:
        jobs: How many runs at a time; None for one a GPU, or one.
        gpus: Names of the GPUs to share out; empty for none to be chosen.
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
    """The error that ends an execution that a signal ended."""
    assert outcome.signal is not None
    name = {signal.SIGINT: "Ctrl-C"}.get(signal.Signals(outcome.signal), "SIGTERM")
    done = len(outcome.done) + len(outcome.found)
    return Interrupted(
        f"Stopped by {name}: {done} of {done + len(outcome.reasons)} runs are finished, and those under "
        f"way saved a checkpoint.\nGo on with the same command: {command}",
        128 + outcome.signal,
    )
