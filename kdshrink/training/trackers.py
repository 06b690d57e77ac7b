"""Trackers that a training run reports to: transformers' integrations, by their names."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ..config.fields import shown
from ..errors import UsageError

_PACKAGES = {
    "azure_ml": {"azureml": "azureml-sdk"},
    "comet_ml": {"comet_ml": "comet-ml"},
    "dagshub": {"dagshub": "dagshub", "mlflow": "mlflow"},
    "flyte": {"flytekit": "flytekit"},
    "kubeflow": {},
}
"""The modules a tracker needs, with the packages they come in, where its name does not say so."""


def tracker_names(report_to: str) -> str | list[str]:
    """--report-to as transformers takes it: none, all, or a list of names."""
    names = [name.strip() for name in report_to.split(",")]
    return names[0] if names in (["none"], ["all"]) else names


def require_trackers(report_to: str) -> None:
    """Look whether this machine has the trackers that are asked for, before any work.

    Raises:
        UsageError: transformers knows none of this name, or a package is not installed.
    """
    names = tracker_names(report_to)
    if isinstance(names, str):
        return
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"--report-to {shown(report_to)}: transformers has no tracker {shown(name)!r}.\n"
                "Give none, all, or names of trackers such as tensorboard, wandb or mlflow."
            )
        modules = _PACKAGES.get(name, {name: name})
        missing = [package for module, package in modules.items() if find_spec(module) is None]
        if name == "tensorboard" and find_spec("tensorboardX") is not None:
            missing = []
        if missing:
            raise UsageError(
                f"--report-to {name}: {' and '.join(missing)} is not installed.\n"
                f"Install it with pip install {' '.join(missing)}."
            )
        if name == "kubeflow" and "KUBEFLOW_TRAINER_SERVER_URL" not in os.environ:
            raise UsageError(f"--report-to {name}: this is no training job of Kubeflow.")
