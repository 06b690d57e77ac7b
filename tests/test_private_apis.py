"""What kdshrink uses of its libraries that they do not document, so that a version may move it.

Each stands in one module of kdshrink, behind a name of ours, and is listed here with what to do when it is
gone. The upper bounds in pyproject.toml follow from this list.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from kdshrink.models.onednn import PackedLinears

from .helpers.models import make_model

PACKAGE = Path(__file__).parent.parent / "kdshrink"


@dataclass(frozen=True)
class Private:
    """An API that is private or undocumented.

    Attributes:
        api: Its full name, package first.
        works: Whether the installed version has it, and it does what we use it for.
        instead: What to do when it is gone.
    """

    api: str
    works: Callable[[], bool]
    instead: str

    @property
    def package(self) -> str:
        return self.api.split(".")[0]

    @property
    def name(self) -> str:
        return self.api.split(".")[-1]


def _has(api: str) -> Callable[[], bool]:
    """Whether a module has a name."""
    module, _, name = api.rpartition(".")
    return lambda: hasattr(import_module(module), name)


def _takes(method: Callable[..., Any], *parameters: str) -> bool:
    return list(inspect.signature(method).parameters)[1:] == list(parameters)


def _one_gpu() -> bool:
    arguments = TrainingArguments(use_cpu=True)
    arguments._n_gpu = 3
    return arguments.n_gpu == 3


def _chosen_device() -> bool:
    arguments = TrainingArguments(use_cpu=True)
    arguments._setup_devices = torch.device("meta")
    return arguments.device == torch.device("meta")


def _recorded_attention() -> bool:
    model = make_model("bert", "sequence")
    model.set_attn_implementation("eager")
    return model.config._attn_implementation == "eager"


def _rows_of_dataset() -> bool:
    table = datasets.Dataset.from_dict({"a": [[1], [2, 3], []]})
    return table.__getitems__([2, 1]) == [{"a": []}, {"a": [2, 3]}]


def _fingerprint() -> bool:
    table = datasets.Dataset.from_dict({"a": [1]})
    return isinstance(table._fingerprint, str) and table._fingerprint != ""


def _entities() -> bool:
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(["B-A", "I-A", "I-B"]) == [("A", 0, 1), ("B", 2, 2)]


def _client_with_hooks() -> bool:
    from huggingface_hub.utils._http import default_client_factory

    with default_client_factory() as client:
        return {"request", "response"} <= client.event_hooks.keys()


def _packed() -> bool:
    if not torch.backends.mkldnn.is_available():
        return True
    weight, bias, inputs = torch.nn.Parameter(torch.randn(3, 5)), torch.randn(3), torch.randn(2, 5)
    with torch.inference_mode(), PackedLinears():
        found = torch.nn.functional.linear(inputs, weight, bias)
    torch.testing.assert_close(found, inputs @ weight.T + bias)
    return True


def _encoder_of_deberta() -> bool:
    encoder: Any = make_model("deberta-v2", "sequence").base_model.encoder  # type: ignore[union-attr]
    names = ("get_attention_mask", "get_rel_pos", "get_rel_embedding")
    return all(callable(getattr(encoder, name, None)) for name in names)


def _exports() -> bool:
    from transformers.exporters import OnnxConfig

    settings = OnnxConfig(dynamic=True, dynamic_shapes={}, ort_fusions="cpu")
    return settings.ort_fusions == "cpu"


APIS = (
    Private(
        "torch.ops.mkldnn._reorder_linear_weight",
        _packed,
        "Let packed_linears give nullcontext(): the same results, at half the speed on a CPU.",
    ),
    Private(
        "torch.ops.mkldnn._linear_pointwise",
        _packed,
        "Let packed_linears give nullcontext(): the same results, at half the speed on a CPU.",
    ),
    Private(
        "torch._dynamo.config.recompile_limit",
        lambda: isinstance(torch._dynamo.config.recompile_limit, int),
        "Set torch.compiler.config.recompile_limit, its public name in later versions.",
    ),
    Private(
        "transformers.TrainingArguments._n_gpu",
        _one_gpu,
        "Find what keeps Trainer from nn.DataParallel where there are several GPUs.",
    ),
    Private(
        "transformers.TrainingArguments._setup_devices",
        _chosen_device,
        "Find what makes Trainer use another GPU than the first in a single process.",
    ),
    Private(
        "transformers.Trainer._save_checkpoint",
        lambda: _takes(Trainer._save_checkpoint, "model", "trial"),
        "Override what saves a checkpoint now: no model that is not finite may be saved.",
    ),
    Private(
        "transformers.Trainer.get_batch_samples",
        lambda: _takes(Trainer.get_batch_samples, "epoch_iterator", "num_batches", "device"),
        "Override what draws a step's batches now: each must get its share of the step's loss.",
    ),
    Private(
        "transformers.Trainer._clip_grad_norm",
        lambda: _takes(Trainer._clip_grad_norm, "model"),
        "Leave it to Trainer: the same norm, from a list of the weights that is made anew at each step.",
    ),
    Private(
        "transformers.PreTrainedConfig._attn_implementation",
        _recorded_attention,
        "Use model.set_attn_implementation(), which is public and slower, around each forward.",
    ),
    Private(
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        _has("transformers.integrations.sdpa_attention.sdpa_attention_forward"),
        "Take the function that AttentionInterface has for sdpa.",
    ),
    Private(
        "transformers.masking_utils.sdpa_mask",
        _has("transformers.masking_utils.sdpa_mask"),
        "Take the function that AttentionMaskInterface has for sdpa.",
    ),
    Private(
        "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK",
        _has("transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK"),
        "Find where transformers keeps the names of its trackers.",
    ),
    Private(
        "transformers.activations.ACT2FN",
        _has("transformers.activations.ACT2FN"),
        "Take the activation from the model's own module.",
    ),
    Private(
        "transformers.models.deberta_v2.DebertaV2Encoder.get_rel_pos",
        _encoder_of_deberta,
        "Call DeBERTa's attention as its encoder calls it now; get_attention_mask and "
        "get_rel_embedding stand beside it.",
    ),
    Private(
        "transformers.exporters.OnnxExporter",
        _exports,
        "It is marked experimental: write the graph by torch.onnx.export(dynamo=True) itself, without fusions.",
    ),
    Private(
        "datasets.Dataset._fingerprint",
        _fingerprint,
        "Hash the commit, configuration and split instead; targets and tables are made anew then.",
    ),
    Private(
        "datasets.Dataset.__getitems__",
        _rows_of_dataset,
        "Index the table with a list of rows, and put the examples together from its columns.",
    ),
    Private(
        "seqeval.metrics.sequence_labeling.get_entities",
        _entities,
        "Count a sentence's entities as seqeval's scores do: tests/comparing has plain code for IOB2.",
    ),
    Private(
        "huggingface_hub.utils._http.default_client_factory",
        _client_with_hooks,
        "Make the client as huggingface_hub's own default does, with time-outs.",
    ),
)


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "making" not in path.parts:
            module = path.relative_to(PACKAGE).as_posix()
            yield module, ast.parse(path.read_text(encoding="utf-8"))


def _names(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports from others, reads of objects, or overrides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            yield from (inner.name for inner in node.body if isinstance(inner, ast.FunctionDef))


def _users(name: str) -> list[str]:
    return [module for module, tree in _trees() if name in _names(tree)]


@pytest.mark.parametrize("private", APIS, ids=lambda private: private.api)
def test_the_installed_version_has_it(private: Private) -> None:
    try:
        works = private.works()
    except (AttributeError, ImportError, RuntimeError, TypeError) as error:
        works, found = False, f"{type(error).__name__}: {error}"
    else:
        found = "it is another"
    assert works, (
        f"{private.package} {version(private.package)} has moved {private.api} ({found}).\n"
        f"It is used in kdshrink/{', '.join(_users(private.name))}.\n{private.instead}\n"
        f"Until then bound {private.package} below this version in pyproject.toml."
    )


@pytest.mark.parametrize("private", APIS, ids=lambda private: private.api)
def test_it_stands_in_one_place(private: Private) -> None:
    users = _users(private.name)
    if private.api.startswith("transformers.Trainer."):
        # A method of Trainer is overridden where ours is made, and extended below that.
        users = [user for user in users if user != "distillation/trainer.py"]
    assert len(users) == 1, f"{private.api} is used in {users or 'no module: take it off the list'}"


def _of_others(node: ast.AST) -> list[str]:
    """Names that a node takes from an object, a call or a module of somebody else."""
    if isinstance(node, ast.Attribute):
        ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return [] if ours else [node.attr]
    if isinstance(node, ast.keyword):
        return [node.arg or ""]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    return []


def test_there_is_no_other() -> None:
    listed = {part for private in APIS for part in private.api.split(".")}
    found = [
        f"kdshrink/{module}, line {node.lineno}: {name}"  # type: ignore[attr-defined]
        for module, tree in _trees()
        for node in ast.walk(tree)
        for name in _of_others(node)
        if name.startswith("_") and not name.endswith("__") and name not in listed
    ]
    assert not found, f"private names of libraries that are not listed here: {found}"


def test_packages_are_bounded() -> None:
    """Whose private names are used is bounded below the next major version."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {dependency.replace("-", "_") for dependency in project["project"]["dependencies"]}
    for package in sorted({private.package for private in APIS}):
        bound = f",<{int(version(package).split('.')[0]) + 1}"
        assert any(one.startswith(f"{package}>=") and one.endswith(bound) for one in wanted), (
            f"pyproject.toml: {package} needs an upper bound, {bound[1:]}"
        )
