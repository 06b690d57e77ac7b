"""Experiment trackers that a training run reports to, by their names in transformers."""

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
"""The modules that a tracker needs, and their packages, where they are not named like the tracker."""


def tracker_names(report_to: str) -> str | list[str]:
    """--report-to in the form of transformers: none, all, or a list of names."""
    names = [name.strip() for name in report_to.split(",")]
    return names[0] if names in (["none"], ["all"]) else names


def require_trackers(report_to: str) -> None:
    """Check, before any work, that the trackers are installed.

    Raises:
        UsageError: transformers has no tracker of this name, or a package is not installed.
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
            raise UsageError(f"--report-to {name}: this process is not a Kubeflow training job.")
