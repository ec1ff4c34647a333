"""A training of a PyTorch model that can be cut off and goes on."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from adtn._atomic import write_atomic
from adtn._errors import CompressError
from torch import nn


class Training:
    """What changes while a model is trained.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer, schedule
        With a ``state_dict``.
    """

    def __init__(self, model: nn.Module, optimizer: Any, schedule: Any) -> None:
        self.parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        self._random: dict[str, torch.Tensor] = {}

    def write(self, path: Path, losses: list[float]) -> None:
        """Whole or not at all."""
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        content = io.BytesIO()
        torch.save({**state, "losses": losses, "random": random}, content)
        write_atomic(path, content.getvalue())

    def read(self, path: Path | None) -> list[float]:
        """The losses until then; none where there is no file.

        Raises
        ------
        CompressError
            If the file is no checkpoint of this training.
        """
        if path is None or not path.exists():
            return []
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise CompressError(f"Cannot go on from {path} ({error}); delete it to begin anew.") from error
        self._random = state["random"]
        return list(state["losses"])

    def restore_random(self) -> None:
        """Random numbers go on where they were."""
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random["cuda"])
