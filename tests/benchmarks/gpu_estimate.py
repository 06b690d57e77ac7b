"""What a step of distillation would take on a GPU, estimated by a roofline over its kernels, as a Markdown table.

    python tests/benchmarks/gpu_estimate.py [--attention-target scores] [--batch 256] [--tokens 32]

The path of an accelerator is run on a CPU, for two small batches, with every operation noted: the bytes that it
reads and writes, and its floating-point operations. Both grow linearly with the batch, and are extrapolated. A kernel
takes what is longest: its launch, its bytes at the memory's bandwidth, its operations at 60 % of the bf16 peak;
by default those of an H100. What the host needs for asking is not in it: see host_overhead.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from kdshrink.distillation.model import DistillationModel
from kdshrink.distillation.objective import Objective
from kdshrink.distillation.teacher import Teacher
from kdshrink.models.activations import Recorder
from kdshrink.models.devices import ON_GPU
from kdshrink.training.trial import mixed
from tests.helpers.models import make_model

WIDTH, HEADS, TEACHER_LAYERS = 768, 12, 12
MAPPED = (2, 4, 6, 8, 10, 12)
SMALL = (2, 4)
LAUNCH, REACHED = 2.2e-6, 0.6
"""Seconds of the shortest kernel, and the share of the peak that products of matrices reach."""
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Kernel:
    """One operation: the part of the step it is in, its name, and what it moves and computes."""

    part: str
    name: str
    bytes: float
    flops: float


@dataclass
class Kernels(TorchDispatchMode):
    """Notes every operation that would be a kernel on a GPU."""

    part: str = ""
    found: list[Kernel] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            read = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
            written = [one for one in tree_iter(result) if isinstance(one, Tensor)]
            moved = {one.data_ptr(): one.numel() * one.element_size() for one in read + written}
            self.found.append(
                Kernel(self.part, name, sum(moved.values()), _flops(func, args, kwargs, result))
            )
        return result


def _flops(func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> float:
    name = func.overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(*(one.shape for one in args[:3]))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return sdpa_backward_flop_count(*(one.shape for one in args[:4]))
    count = flop_registry.get(func.overloadpacket)
    return count(*args, **(kwargs or {}), out_val=result) if count else 0


def step(batch: int, tokens: int, attention_target: Any) -> list[Kernel]:
    """The kernels of a step on texts of that many tokens, one of them padded."""
    sizes = {
        "num_attention_heads": HEADS,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": tokens + 2,
    }
    objective = Objective(
        dict.fromkeys(("embedding", "hidden", "attention", "prediction", "task"), 1.0),
        attention_target=attention_target,
    )

    def recorder(model: Any, layers: Any) -> Recorder:
        options: dict[str, Any] = {"hidden": True, "embedding": True, "execution": ON_GPU}
        return Recorder(model, layers, attention=attention_target, **options)

    teacher_model = make_model("xlm-roberta", "sequence", num_hidden_layers=TEACHER_LAYERS, **sizes)
    model = make_model("xlm-roberta", "sequence", num_hidden_layers=len(MAPPED), **sizes)
    learner = DistillationModel(
        model, recorder(model, range(1, len(MAPPED) + 1)), objective, WIDTH, "sequence"
    ).train()
    teacher = Teacher(recorder(teacher_model.bfloat16().eval(), MAPPED), torch.arange(3))
    optimizer = torch.optim.AdamW(learner.parameters(), fused=True)
    ids = torch.randint(5, 500, (batch, tokens))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    labels = torch.zeros(batch, dtype=torch.int64)
    with Kernels() as kernels:
        for _ in range(2):  # the first step makes the optimizer's state
            kernels.found.clear()
            kernels.part = "teacher"
            targets = teacher.targets(ids, mask)
            kernels.part = "student and losses"
            with mixed(ids.device, True):
                terms = learner(ids, mask, targets=targets, labels=labels)
                loss = torch.stack([*terms.values()]).sum()
            kernels.part = "backward"
            loss.backward()
            kernels.part = "clipping and optimizer"
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return kernels.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attention-target", default="probabilities")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--peak", type=float, default=989e12, help="bf16 operations a second")
    parser.add_argument("--bandwidth", type=float, default=2.9e12, help="bytes a second")
    options = parser.parse_args()
    less, more = (step(size, options.tokens, options.attention_target) for size in SMALL)
    assert [(k.part, k.name) for k in less] == [(k.part, k.name) for k in more]
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    for a, b in zip(less, more, strict=True):
        growth = (options.batch - SMALL[0]) / (SMALL[1] - SMALL[0])
        moved = a.bytes + growth * (b.bytes - a.bytes)
        flops = a.flops + growth * (b.flops - a.flops)
        seconds = max(LAUNCH, moved / options.bandwidth, flops / (options.peak * REACHED))
        figures = (1, moved / 1e9, flops / 1e12, 1000 * seconds, 1000 * flops / options.peak)
        for name in (a.part, "all"):
            parts[name] = [x + y for x, y in zip(parts[name], figures, strict=True)]
    print(
        "| | kernels | GB moved | TFLOP | ms by the roofline | ms at the peak |\n|---|---|---|---|---|---|"
    )
    for name in (*(one for one in parts if one != "all"), "all"):
        count, *others = parts[name]
        print(f"| {name} | {count:.0f} | " + " | ".join(f"{one:.2f}" for one in others) + " |")
    print(f"\nShare of the peak if the host keeps up: {parts['all'][4] / parts['all'][3]:.0%}")


if __name__ == "__main__":
    main()
