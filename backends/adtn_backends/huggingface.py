"""Models in Hugging Face folders: ``config.json`` and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adtn._errors import CompressError, missing
from torch import nn


def pretrained(folder: Path, *, weights: bool = True) -> nn.Module:
    """The dense model of a folder, in evaluation mode.

    Parameters
    ----------
    folder : path
        With ``config.json``, which names the class under ``architectures``, and safetensors.
    weights : bool
        Whether the numbers are read, too; otherwise only the structure is made.

    Raises
    ------
    CompressError
        If the folder holds no such model.
    MissingDependencyError
        Without transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing("transformers", "hf", "A Hugging Face folder") from error
    try:
        names = json.loads((folder / "config.json").read_text()).get("architectures") or []
    except (OSError, ValueError) as error:
        raise CompressError(
            f"Cannot read {folder / 'config.json'}: {error}; expected a Hugging Face folder."
        ) from error
    cls: Any = getattr(transformers, names[0], None) if names else None
    if cls is None:
        raise CompressError(f"Got architectures={names} in {folder / 'config.json'}; transformers knows no such model.")
    config = transformers.AutoConfig.from_pretrained(folder)
    try:
        made = cls.from_pretrained(folder, use_safetensors=True) if weights else cls(config)
    except (OSError, ValueError, RuntimeError) as error:
        raise CompressError(f"Cannot load the model in {folder}: {error}") from error
    return made.eval()
