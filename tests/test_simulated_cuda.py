"""The main jobs on a simulated GPU: what mixes devices raises, what waits for the device is counted.

The simulated device is there for the rest of a process, so that these run in one without other tests:
`pytest -m simcuda`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from kdshrink import (
    DistillConfig,
    EvalConfig,
    FinetuneConfig,
    ShrinkConfig,
    distill,
    evaluate,
    finetune,
    shrink,
)
from kdshrink.commands.training import TrainingCommand
from kdshrink.distillation.model import LossTerms
from kdshrink.distillation.trainer import DistillationTrainer
from kdshrink.errors import ModelError, UsageError
from kdshrink.evaluation.evaluator import Evaluator
from kdshrink.evaluation.results import EvalResult
from kdshrink.models.devices import pick_device
from kdshrink.progress import silent
from kdshrink.training import memory
from kdshrink.training.memory import kept_bytes

from .helpers.logs import logged_losses
from .helpers.models import make_model, make_tokenizer
from .helpers.simcuda import LOG, DeviceMismatch, simulated_cuda

pytestmark = pytest.mark.simcuda

NEVER = 10**6
QUIET: dict[str, Any] = {"logging_steps": NEVER, "eval_steps": NEVER, "save_steps": NEVER}


@pytest.fixture
def cuda() -> Iterator[None]:
    with simulated_cuda():
        LOG.clear()
        yield


def saved(folder: Path, family: str, task: str | None, **changes: Any) -> str:
    make_model(family, task, **changes).save_pretrained(folder)
    make_tokenizer({"deberta-conv": "deberta-v2"}.get(family, family)).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("cuda")
def test_the_simulation_sees_what_it_should() -> None:
    x = torch.ones(3, 4).to("cuda")
    assert (x.device.type, x.is_cuda) == ("cuda", True)
    with pytest.raises(DeviceMismatch):
        x + torch.ones(4)
    with pytest.raises(DeviceMismatch):
        torch.zeros(3)[torch.tensor([0]).to("cuda")]
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    for waits in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: x.cpu(),
        lambda: x[torch.tensor([1])],
        lambda: torch.ones(3).to("cuda", non_blocking=True),
        lambda: x.to("cpu", non_blocking=True),
    ):
        LOG.clear()
        waits()
        assert len(LOG.syncs) == 1
    LOG.clear()
    pinned = torch.empty(3, 4, pin_memory=True)
    pinned[:2].to("cuda", non_blocking=True)
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    pinned.copy_(x, non_blocking=True)
    assert not LOG.syncs


@pytest.mark.usefixtures("cuda")
def test_the_simulation_trains_in_sixteen_bits() -> None:
    layer = torch.nn.Linear(4, 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(torch.ones(3, 4, device="cuda"))
    assert (output.dtype, output.softmax(-1).dtype) == (torch.bfloat16, torch.bfloat16)
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 12, "init": "from-teacher", "attention_target": "scores"},
        {"hidden_size": 12, "init": "calibrated"},
        {
            "attention_target": "probabilities",
            "prediction_loss": "mse",
            "cache_teacher": "all",
            "gradient_accumulation_steps": 2,
        },
    ],
    ids=["narrow", "calibrated", "cached"],
)
def test_distilling_mixes_no_devices(
    tmp_path: Path,
    text_data: Path,
    word_data: Path,
    family: str,
    task: str,
    options: dict[str, Any],
) -> None:
    data = str(text_data if task == "sequence" else word_data)
    distill(
        DistillConfig(
            teacher=saved(tmp_path / "t", family, task),
            data=data,
            layers=2,
            batch_size=4,
            num_train_epochs=1,
            output_dir=tmp_path / "s",
            **options,
        )
    )
    evaluate(EvalConfig(model=str(tmp_path / "s"), data=data))


@pytest.mark.usefixtures("cuda")
def test_calibrating_mixes_no_devices(tmp_path: Path, text_data: Path) -> None:
    shrink(
        ShrinkConfig(
            model=saved(tmp_path / "t", "xlm-roberta", "sequence"),
            data=str(text_data),
            init="calibrated",
            layers=2,
            hidden_size=12,
            output_dir=tmp_path / "c",
        )
    )


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged_losses(folder)]


def test_losses_are_those_of_the_cpu(tmp_path: Path, text_data: Path) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shared: dict[str, Any] = {
        "teacher": saved(tmp_path / "t", "xlm-roberta", "sequence", **off),
        "data": str(text_data),
        "init": "from-teacher",  # a calibration's last digits depend on the order of its sums
        "layers": 2,
        "hidden_size": 12,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "bf16": False,
    }
    with simulated_cuda():  # first, since autograd counts the devices at its first use
        distill(DistillConfig(output_dir=tmp_path / "cuda", **shared))
    distill(DistillConfig(output_dir=tmp_path / "cpu", device="cpu", **shared))
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)


def syncs_a_step(tmp_path: Path, **options: Any) -> dict[str, float]:
    """How often the host waits for the device in a step, by kind and place, once a run is under way."""
    found = []
    for steps in (8, 16):  # what is done once in a run is the same in both
        with simulated_cuda():
            LOG.clear()
            shared: dict[str, Any] = {"max_steps": steps, "batch_size": 4}
            shared["output_dir"] = tmp_path / str(steps)
            if "teacher" in options:
                distill(DistillConfig(layers=2, init="from-teacher", **shared, **QUIET, **options))
            else:
                finetune(FinetuneConfig(**shared, **QUIET, **options))
        found.append(Counter(f"{sync.kind}, {sync.place}" for sync in LOG.syncs))
    more = {place: (found[1][place] - found[0][place]) / 8 for place in found[1]}
    return {place: number for place, number in more.items() if number}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("attention", ["scores", "probabilities"])
@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "deberta-v2"])
def test_a_step_of_distillation_waits_for_nothing(
    tmp_path: Path, text_data: Path, family: str, attention: str, accumulated: int
) -> None:
    """Accumulated batches share what they agree on, as several processes do."""
    teacher = saved(tmp_path / "t", family, "sequence")
    waits = syncs_a_step(
        tmp_path,
        teacher=teacher,
        data=str(text_data),
        attention_target=attention,
        gradient_accumulation_steps=accumulated,
    )
    # DeBERTa's own code makes its scale anew in each forward pass, on the host.
    own = {place for place in waits if "modeling_deberta_v2.py" in place}
    assert not {*waits} - own
    assert bool(own) == (family == "deberta-v2")


@pytest.mark.parametrize("weights", [{}, {"embedding": 0.0, "hidden": 0.0, "attention": 0.0}])
def test_keeping_targets_waits_for_nothing(
    tmp_path: Path, text_data: Path, weights: dict[str, float]
) -> None:
    assert not syncs_a_step(
        tmp_path,
        teacher=saved(tmp_path / "t", "xlm-roberta", "sequence"),
        data=str(text_data),
        cache_teacher="all",
        weights=weights,
    )


def kernels_of_the_losses(
    folder: Path, data: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> int:
    """What the forward pass of the loss terms launches, with a narrower student's projections."""
    forward = LossTerms.forward

    def forward_in_phase(self: LossTerms, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(LOG, "phase", "losses")
            return forward(self, *args, **options)

    with simulated_cuda(), monkeypatch.context() as patch:
        patch.setattr(LossTerms, "forward", forward_in_phase)
        LOG.clear()
        distill(
            DistillConfig(
                teacher=saved(folder / "t", "xlm-roberta", "sequence"),
                data=str(data),
                layers=layers,
                hidden_size=12,
                init="from-teacher",
                max_steps=4,
                batch_size=4,
                output_dir=folder / "s",
                **QUIET,
            )
        )
    counts = Counter(phase for phase, _, _ in LOG.kernels.elements())
    trials = 2 + 6  # of the time and the memory that a step takes
    return counts["losses"] // (4 + trials)


def test_the_losses_of_more_layers_launch_no_more_kernels(
    tmp_path: Path, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, four = (
        kernels_of_the_losses(tmp_path / str(layers), text_data, layers, monkeypatch)
        for layers in (2, 4)
    )
    assert two == four < 70


def kept_in_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each forward pass of training keeps, as it trains."""
    kept = []
    compute_loss = DistillationTrainer.compute_loss

    def counted(self: DistillationTrainer, *args: Any, **options: Any) -> Any:
        losses = []

        def run() -> list[torch.Tensor]:
            losses.append(compute_loss(self, *args, **options))
            return losses

        kept.append(kept_bytes(run))
        return losses[0]

    monkeypatch.setattr(DistillationTrainer, "compute_loss", counted)
    return kept


@pytest.mark.parametrize("task", ["sequence", "token"])
@pytest.mark.parametrize("options", [{}, {"cache_teacher": "all", "num_train_epochs": 2}])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_batch_that_does_not_fit_is_computed_in_parts(
    tmp_path: Path,
    text_data: Path,
    word_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    options: dict[str, Any],
    accumulated: int,
) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shared: dict[str, Any] = {
        "teacher": saved(tmp_path / "t", "xlm-roberta", task, **off),
        "data": str(text_data if task == "sequence" else word_data),
        "init": "from-teacher",
        "layers": 2,
        "hidden_size": 12,
        "multilingual": 0,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "batch_size": 8,
        "gradient_accumulation_steps": accumulated,
        "bf16": False,
        **options,
    }
    kept = kept_in_steps(monkeypatch)
    with simulated_cuda():
        distill(DistillConfig(output_dir=tmp_path / "whole", **shared))
        wholes, kept[:] = kept.copy(), []
        room = max(wholes) // 3
        monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
        monkeypatch.setattr(memory, "_STATE_BYTES", 0)
        monkeypatch.setattr(memory, "_SHARE", room / 10**9)
        distill(DistillConfig(output_dir=tmp_path / "parts", **shared))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert len(kept) >= 2 * len(wholes)
    weights = sum(
        one.numel() * one.element_size()
        for one in load_file(tmp_path / "parts" / "model.safetensors").values()
    )
    assert max(kept) < room + weights < max(wholes)


def test_a_step_of_fine_tuning_waits_for_nothing(
    tmp_path: Path, encoder_dir: Path, text_data: Path
) -> None:
    assert not syncs_a_step(tmp_path, model=str(encoder_dir), data=str(text_data))


@pytest.mark.usefixtures("cuda")
def test_a_run_scores_as_evaluate_does(
    tmp_path: Path, text_data: Path, encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Evaluator.score
    precisions: set[tuple[str, str]] = set()

    def note_precision(*_: Any) -> None:
        precisions.add((LOG.phase, torch.get_float32_matmul_precision()))

    def score_in_phase(self: Evaluator, *args: Any, **options: Any) -> EvalResult:
        monkeypatch.setattr(LOG, "phase", "evaluate")
        try:
            return score(self, *args, **options)
        finally:
            monkeypatch.setattr(LOG, "phase", "")

    monkeypatch.setattr(Evaluator, "score", score_in_phase)
    config = FinetuneConfig(
        model=str(encoder_dir),
        data=str(text_data),
        max_steps=2,
        output_dir=tmp_path / "f",
        batch_size=8,
    )
    with register_module_forward_hook(note_precision):
        trained = finetune(config)
    assert precisions == {("", "highest"), ("evaluate", "high")}
    types = {
        phase: {kind for at, name, kind in LOG.kernels if name == "addmm" and at == phase}
        for phase in ("", "evaluate")
    }
    assert types == {"": {"torch.bfloat16"}, "evaluate": {"torch.float32"}}
    precisions.clear()
    with register_module_forward_hook(note_precision):
        scored = evaluate(
            EvalConfig(model=str(tmp_path / "f"), data=str(text_data), split="validation")
        )
    assert precisions == {("", "high")}
    assert scored.score == trained.development.score


def command_on(device: str, folder: Path) -> TrainingCommand[DistillConfig]:
    config = DistillConfig(teacher="t", data="d")
    return TrainingCommand("distill", config, folder, pick_device(device), None, silent)


def test_another_gpu_than_the_first(tmp_path: Path) -> None:
    with simulated_cuda(devices=2):
        arguments = command_on("cuda:1", tmp_path).arguments()
        assert arguments.device == torch.device("cuda", 1)
        assert (arguments.n_gpu, torch.cuda.current_device()) == (1, 1)


def test_processes_take_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with simulated_cuda(devices=2):
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
        with pytest.raises(UsageError, match="2 processes of this machine would share one GPU"):
            pick_device("cuda:0")
    with simulated_cuda(), pytest.raises(ModelError, match="process 1 of its machine"):
        pick_device("auto")


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_is_the_default_where_it_is_not_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulated: bool
) -> None:
    with simulated_cuda():
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: including_emulation or not emulated,
        )
        assert command_on("cuda", tmp_path).arguments().bf16 is not emulated
