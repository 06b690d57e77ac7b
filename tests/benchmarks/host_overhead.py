"""What a step of distillation on an accelerator asks of the host, before and after a change.

    git worktree add BEFORE COMMIT
    python tests/benchmarks/host_overhead.py --before BEFORE [--rounds 5] [--torch-compile]

A GPU takes a few milliseconds for a step that the host asks for in more: then it waits. Measured is the
path of an accelerator, run on one core of a CPU with models that cost little: one layer of width 12, batches
of 256 texts of up to 32 tokens, all terms. Figures are milliseconds of CPU time of a step, the mean over 32
steps behind the first epoch of 16, which has each shape. The whole step's are no host's: a CPU must compute
the operations that it would only ask a GPU for. So a step is taken apart: what is outside of the teacher's forward, the student's forward with the
losses, backward, clipping and the optimizer is measured in these batches; and what is inside in batches of 4 texts,
where nearly all of it is asking. Both together are the host's time. Sides take turns, each in processes of its own.
With --torch-compile there is one more side, with what that compiles: teacher, student and losses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FIRST, STEPS, TOKENS = 16, 32, 32
BATCH, SMALL_BATCH = 256, 4


class Side(NamedTuple):
    """A version of kdshrink, and whether it compiles."""

    code: Path
    compiled: bool


class Figures(NamedTuple):
    """CPU milliseconds of a step, and of the first epoch, compiling included."""

    whole: float
    outside: float
    host: float
    first_epoch: float


def take_the_accelerators_path() -> None:
    """Let the CPU be treated as a GPU, in this version of kdshrink and in those before `Execution`."""
    from kdshrink.distillation import targets
    from kdshrink.models import devices

    if hasattr(devices, "ON_GPU"):
        # A GPU's memory alone bounds batches.
        known = {field.name for field in fields(devices.ON_GPU)}
        whole: dict[str, Any] = {"splits_batches": False} if "splits_batches" in known else {}
        devices.ON_CPU = replace(devices.ON_GPU, **whole)
    else:
        vars(targets).update(
            forward_positions=lambda _: 32768, packed_linears=lambda _: nullcontext()
        )


def write_inputs(folder: Path, batch: int) -> None:
    """A teacher of one layer, and texts that fill batches of `batch` × 32."""
    from tests.helpers.models import make_model, make_tokenizer, sample_texts

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 12}
    make_model("xlm-roberta", "sequence", **sizes, intermediate_size=24).save_pretrained(
        folder / "teacher"
    )
    make_tokenizer("xlm-roberta").save_pretrained(folder / "teacher")
    words = " ".join(sample_texts()).split()
    random.seed(0)
    for split, count in (("train", FIRST * batch), ("validation", 8)):
        rows = [
            {"text": " ".join(random.choices(words, k=random.randint(8, 20))), "label": label}
            for label in random.choices(["cold", "mild", "warm"], k=count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)


class Stopwatch:
    """CPU seconds spent in functions that it was put around; calls within each other count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            self._depth += 1
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - began

        setattr(owner, name, timed)


def measure(folder: Path, batch: int, *, compiled: bool) -> tuple[float, float, float]:
    """CPU milliseconds of a step's operations of the models, of what is outside of them, of the first epoch."""
    import torch

    from kdshrink import DistillConfig, distill
    from kdshrink.distillation.model import DistillationModel
    from kdshrink.distillation.teacher import Teacher

    torch.set_num_threads(1)
    take_the_accelerators_path()
    models = Stopwatch()
    for owner, name in (
        (Teacher, "targets"),
        (DistillationModel, "forward"),
        (torch.Tensor, "backward"),
        (torch.nn.utils, "clip_grad_norm_"),
        (torch.optim.AdamW, "step"),
    ):
        models.around(owner, name)
    ends: list[tuple[float, float]] = []

    def progress(what: str, done: int, total: int | None, figures: Any) -> None:
        if what == "distill" and done == len(ends) + 1 and not figures:
            ends.append((time.process_time(), models.seconds))

    began = time.process_time()
    never = 10**6
    recipe: dict[str, Any] = {"init": "from-teacher", "attention_target": "scores"}
    if "recipe" in DistillConfig.__dataclass_fields__:
        recipe["recipe"] = "paper"
    with tempfile.TemporaryDirectory() as out:
        distill(
            DistillConfig(
                teacher=str(folder / "teacher"),
                data=str(folder),
                layers=1,
                batch_size=batch,
                max_length=TOKENS,
                max_steps=FIRST + STEPS,
                cache_teacher="none",
                torch_compile=compiled,
                device="cpu",
                logging_steps=never,
                eval_steps=never,
                save_steps=never,
                output_dir=Path(out) / "out",
                **recipe,
            ),
            progress,
        )
    first, last = ends[FIRST - 1], ends[FIRST + STEPS - 1]
    whole, within = (1000 * (end - begin) / STEPS for begin, end in zip(first, last, strict=True))
    return within, whole - within, 1000 * (first[0] - began)


def run_side(side: Side, folder: Path) -> Figures:
    within, outside, first = run_process(side, folder, BATCH)
    asked, _, _ = run_process(side, folder, SMALL_BATCH)
    return Figures(within + outside, outside, outside + asked, first)


def run_process(side: Side, folder: Path, batch: int) -> tuple[float, float, float]:
    """`measure` in a process that imports that version of kdshrink."""
    options = ["--inputs", str(folder / str(batch)), "--batch", str(batch)]
    done = subprocess.run(
        [sys.executable, __file__, *options, *(["--torch-compile"] if side.compiled else [])],
        env={**os.environ, "PYTHONPATH": f"{side.code}:{ROOT}", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    within, outside, first = json.loads(done.stdout.splitlines()[-1])
    return within, outside, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="checkout of the version to compare with")
    parser.add_argument("--torch-compile", action="store_true", help="measure that too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inputs is not None:
        print(json.dumps(measure(options.inputs, options.batch, compiled=options.torch_compile)))
        return
    sides = {} if options.before is None else {"before": Side(options.before, False)}
    sides["now"] = Side(ROOT, False)
    if options.torch_compile:
        sides["compiled"] = Side(ROOT, True)
    rounds: dict[str, list[Figures]] = {name: [] for name in sides}
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        for batch in (BATCH, SMALL_BATCH):
            (Path(folder) / str(batch)).mkdir()
            write_inputs(Path(folder) / str(batch), batch)
        for _ in range(options.rounds):
            for name, side in sides.items():
                rounds[name].append(run_side(side, Path(folder)))
            print({name: figures[-1] for name, figures in rounds.items()}, flush=True)
    report(rounds)


def report(rounds: Mapping[str, Sequence[Figures]]) -> None:
    """Print medians, and those of the ratios to the first side."""
    base = next(iter(rounds.values()))
    for part in Figures._fields:
        print(part.replace("_", " "), end=":")
        for name, figures in rounds.items():
            values = [getattr(one, part) for one in figures]
            pairs = zip(values, (getattr(one, part) for one in base), strict=True)
            ratio = statistics.median(value / first for value, first in pairs)
            print(f" {name} {statistics.median(values):.1f} ms (× {ratio:.2f})", end="")
        print()


if __name__ == "__main__":
    main()
