"""Checkpoints of the training of a PyTorch model, from which it continues after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from ..shared._training_file import Data
from ._overlap import load_state


class Training:
    """The state of a training of a model.

    Parameters
    ----------
    model : torch.nn.Module
        The trained model.
    optimizer : torch.optim.Optimizer
        Its optimizer.
    path : path, optional
        The path of the checkpoint.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.data = Data(path)
        self._random: dict[str, torch.Tensor] = {}

    def write(self, losses: list[float]) -> None:
        """Write a checkpoint: the model, the optimizer, the losses and the states of random numbers."""
        entries = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        for n, moments in self.optimizer.state_dict()["state"].items():
            entries |= {f"optimizer/{n}/{name}": torch.as_tensor(x) for name, x in moments.items() if x is not None}
        entries |= {"losses": torch.tensor(losses, dtype=torch.float64), "random/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            entries["random/cuda"] = torch.cuda.get_rng_state()
        # copies, as safetensors refuses tensors that share memory
        tensors = {name: x.detach().cpu().clone().contiguous() for name, x in entries.items()}
        self.data.write(save(tensors, self.data.metadata()))

    def read(self) -> list[float]:
        """Restore a checkpoint, and return its losses; none where there is no file.

        Raises
        ------
        ModelFileError
            If the file is damaged, or not a checkpoint of this training.
        """
        content = self.data.read()
        if content is None:
            return []
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        try:
            stored = load(content)
            losses = stored.pop("losses").tolist()
            for name, x in stored.items():
                kind, _, rest = name.partition("/")
                parts[kind][rest] = x
            load_state(self.model, parts["model"])
            state: dict[int, dict[str, Any]] = {}
            for name, x in parts["optimizer"].items():
                n, _, moment = name.partition("/")
                state.setdefault(int(n), {})[moment] = x
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except Exception as error:  # the file is of another model, or was edited
            raise self.data.unreadable(error) from error
        self._random = parts["random"]
        return losses

    def restore_random(self) -> None:
        """Continue the random numbers where they were at the checkpoint."""
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random["cuda"])
