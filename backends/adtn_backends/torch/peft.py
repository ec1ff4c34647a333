"""Generated weights in peft: adapters that peft trains, saves and switches, and LoRA on compressed layers.

peft does not accept new methods that are missing from its enumeration, so this uses custom modules of LoRA; the keys of
the state begin with ``lora_generated``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adtn import Config
from adtn.compression import ADAPTER_TOPOLOGY, starting_at_zero
from adtn.errors import ADTNError, CompressError
from adtn.topology import topology_to_json
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from .layers import ADTNLinear, GeneratedWeight
from .layers._kinds import KINDS, kind_of, layer_like, weight_shape
from .layers._merged import Mergeable

_TARGETS = tuple(dense for kind in KINDS if kind.adaptable for dense in (*kind.dense, *kind.imported()))


@dataclass
class GeneratedLoraConfig(LoraConfig):
    """A ``peft.LoraConfig`` whose adapters are generated weights; rank and alpha are ignored.

    Parameters
    ----------
    generated : mapping
        The options ``topology``, ``leg`` and ``order`` of :class:`adtn.Config`, in plain values.
    **options
        Options of ``peft.LoraConfig``: ``target_modules``, ``modules_to_save``, ``task_type``, ...

    Examples
    --------
    >>> config = GeneratedLoraConfig(target_modules=["q_proj"], generated={"topology": {"name": "ttn", "bond": 2}})
    >>> config.generated["topology"]["bond"]
    2
    """

    generated: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = Config.from_dict({"mode": "adapter", **self.generated})  # refuses invalid options
        self.generated = {k: v for k, v in self.generated.items() if k != "topology"}
        self.generated["topology"] = topology_to_json(settings.topology or ADAPTER_TOPOLOGY)
        self._register_custom_module(dict.fromkeys(_TARGETS, GeneratedLora))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return super().to_dict() | {"_custom_modules": None}

    @classmethod
    def from_folder(cls, folder: str | Path) -> GeneratedLoraConfig:
        """Read the configuration of an adapter that peft saved, for ``PeftModel.from_pretrained(..., config=...)``.

        Raises
        ------
        CompressError
            If the folder holds another kind of adapter.
        """
        try:
            plain = json.loads((Path(folder) / "adapter_config.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CompressError(f"Cannot read the adapter in {folder}: {error}.") from error
        if not isinstance(plain, dict) or "generated" not in plain:
            kind = plain.get("peft_type") if isinstance(plain, dict) else f"a {type(plain).__name__}"
            raise CompressError(f"Got {folder}, an adapter of type {kind}; expected a generated one.")
        fields = ("target_modules", "exclude_modules", "modules_to_save", "task_type", "generated", "bias")
        try:
            return cls(**{k: plain[k] for k in fields if plain.get(k) is not None}, inference_mode=True)
        except ADTNError:
            raise
        except Exception as error:  # the file may contain anything
            raise CompressError(
                f"Cannot use the configuration of the adapter in {folder} ({error}); save the adapter again."
            ) from error


class GeneratedLora(Mergeable, LoraLayer):
    """A dense layer with generated weights as adapters, in the form that peft requires."""

    adapter_layer_names = ("lora_generated",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GeneratedLoraConfig, **options: Any) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self.lora_generated = nn.ModuleDict()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def update_layer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, adapter_name: str, *rank_and_alpha: Any, config: GeneratedLoraConfig, **options: Any
    ) -> None:
        """Add an adapter that starts at zero."""
        base: Any = self.get_base_layer()
        settings = Config.from_dict(config.generated)
        assert settings.topology is not None, "the configuration has one"
        shape = weight_shape(base)
        if shape is None:
            raise CompressError(f"Got a {type(base).__name__}, which has no generated form.")
        dense = base.weight.detach()
        scale = float(dense.float().std())
        generator = starting_at_zero(
            shape, settings.topology, layout=settings.layout(shape), scale=scale, seed=settings.seed
        )
        weight = GeneratedWeight(generator)
        self.lora_generated[adapter_name] = layer_like(base, weight.to(dense.device, dense.dtype), bias=False)
        self.scaling[adapter_name] = 1.0
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Use the sum of the dense weight and adapters for inference, see :class:`Mergeable`."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_generated]
        for name in names:
            if safe_merge and not bool(torch.isfinite(self.get_delta_weight(name)).all()):
                # the message of peft
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Apply the dense weight and the adapters separately again."""
        self.merged_adapters.clear()
        self._sum = None

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the dense layer alone, as peft requires; merged adapters are written to its weight."""
        if merge:
            self.merge(safe_merge, adapter_names)
        if self.merged_adapters:
            self.merge_for_good()
        return self.get_base_layer()

    def dense_layer(self) -> Any:
        """Return the dense layer."""
        return self.get_base_layer()

    def inside(self) -> list[GeneratedWeight]:
        """Return the weights of the merged adapters."""
        layers: list[Any] = [self.lora_generated[name] for name in self.merged_adapters]
        return [layer.generated for layer in layers]

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the weight of an adapter in the orientation of the dense weight."""
        layer: Any = self.lora_generated[adapter]
        return kind_of(self.get_base_layer()).oriented(layer.weight.detach())

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """Apply the dense layer and the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        layer = self.merged_layer() if self.merged else None
        if layer is not None:
            return layer(x, *args, **options)
        y = self.base_layer(x, *args, **options)
        if not self.disable_adapters:
            for name in self.merged_adapters or self.active_adapters:
                if name in self.lora_generated:
                    y = y + self.lora_generated[name](x)
        return y


class CompressedLora(LoraLinear):
    """A LoRA on a compressed linear layer, whose generated weight is not changed."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse, as a low-rank weight cannot be merged into a generated one."""
        raise CompressError(
            "A LoRA cannot be merged into a generated weight; keep it separate, or make the layers dense first "
            "(adtn_backends.torch.to_dense)."
        )


def on_compressed(config: LoraConfig) -> LoraConfig:
    """Allow compressed linear layers as targets of a LoRA, and return the config.

    Examples
    --------
    >>> from peft import LoraConfig
    >>> config = on_compressed(LoraConfig(target_modules=["0"], r=2))
    """
    config._register_custom_module({ADTNLinear: CompressedLora})  # pyright: ignore[reportPrivateUsage]
    return config
