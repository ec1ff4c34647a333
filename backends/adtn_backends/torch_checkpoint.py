"""A training of a PyTorch model that can be cut off and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from adtn._atomic import write_atomic
from adtn._errors import CompressError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn


class Training:
    """What changes while a model is trained.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self._random: dict[str, torch.Tensor] = {}

    def write(self, path: Path, losses: list[float]) -> None:
        """Whole or not at all."""
        found = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        for n, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{n}/{name}": torch.as_tensor(x) for name, x in moments.items() if x is not None}
        found |= {"losses": torch.tensor(losses, dtype=torch.float64), "random/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            found["random/cuda"] = torch.cuda.get_rng_state()
        # copies, because what is shared may not be stored twice
        write_atomic(path, save({name: x.detach().cpu().clone().contiguous() for name, x in found.items()}))

    def read(self, path: Path | None) -> list[float]:
        """The losses until then; none where there is no file.

        Raises
        ------
        CompressError
            If the file is no checkpoint of this training.
        """
        if path is None or not path.exists():
            return []
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        try:
            found = load(path.read_bytes())
            losses = found.pop("losses").tolist()
            for name, x in found.items():
                kind, _, rest = name.partition("/")
                parts[kind][rest] = x
            self.model.load_state_dict(parts["model"])
            state: dict[int, dict[str, Any]] = {}
            for name, x in parts["optimizer"].items():
                n, _, moment = name.partition("/")
                state.setdefault(int(n), {})[moment] = x
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
            raise CompressError(f"Cannot go on from {path} ({error}); delete it to begin anew.") from error
        self._random = parts["random"]
        return losses

    def restore_random(self) -> None:
        """Random numbers go on where they were."""
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random["cuda"])
