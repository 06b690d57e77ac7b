"""The memory that a model takes, measured in a process that does nothing else.

`python -m kdshrink.comparing.memory` reads a pickled `Probe` from stdin and prints its `Memory` as JSON.
"""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..data.registry import Task
from ..exporting.runtime import load_runnable
from ..models.devices import peak_memory, peak_resident
from ..models.source import Source
from ..models.whole import first_line
from .latency import Classify, Text, cpu_threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        peak: The process's peak resident memory, or on CUDA the peak of what its allocator gave out.
        libraries: What of it the libraries take that are loaded before the model.
    """

    peak: int
    libraries: int

    def to_dict(self) -> dict[str, int]:
        return {"peak_memory_bytes": self.peak, "model_memory_bytes": self.peak - self.libraries}


@dataclass(frozen=True)
class Probe:
    """What a process does whose memory is measured: load a model, and classify some texts in one batch.

    Attributes:
        graph, longest: As of `Candidate` and `Classify`.
    """

    source: Source
    task: Task
    graph: Path | None
    longest: int
    device: str
    threads: int
    texts: Sequence[Text]

    def measure(self) -> Memory | None:
        """Run it in a process of its own; None, with a warning, where that process fails."""
        command = [sys.executable, "-m", __name__]
        done = subprocess.run(command, input=pickle.dumps(self), capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            logger.warning(
                "%s: its memory was not measured: a process that loads it ended with %s (%s)",
                self.source.name,
                done.returncode,
                said[-1] if said else "no message",
            )
            return None
        return Memory(**json.loads(done.stdout))

    def run(self) -> Memory:
        """Do it in this process."""
        device = torch.device(self.device)
        before = peak_resident()
        with cpu_threads(self.threads):
            loaded = load_runnable(self.source, self.task, self.graph, device)
            Classify(loaded, self.task, self.longest, device).seconds(self.texts)
        return Memory(peak_memory(device), 0 if device.type == "cuda" else before)


def main() -> None:
    probe: Probe = pickle.load(sys.stdin.buffer)
    try:
        found = probe.run()
    except Exception as error:
        sys.exit(first_line(error))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
