"""The libraries that export stands on, kept from printing and warning of their own doings."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

from ..errors import ModelError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `onnx` installs."""


def require_onnx() -> None:
    """Raise ModelError where a package of the extra `onnx` is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ModelError(
            f"This needs packages that are not installed here: {', '.join(missing)}.\n"
            "Install them with: pip install 'kdshrink[onnx]'."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch.onnx from printing its steps, and all from warning, in this process.

    onnxruntime's quantiser warns through the root logger, which would be set up by that.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    disabled = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)
