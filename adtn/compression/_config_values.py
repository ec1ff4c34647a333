"""Plain values of a config, as a TOML or YAML file has them, as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._checks import PathArgument
from ..errors import CompressError, missing
from ..precision import Precision
from ..topology import IdentityBase, SeededBase, get_topology, topology_from_json
from ._budget import Budget
from ._stage import Stage


def read_yaml(text: str, path: PathArgument) -> Mapping[str, Any]:
    """Read a YAML file, where PyYAML is installed."""
    try:
        import yaml
    except ImportError as error:
        raise missing("pyyaml", "hf", f"The config {path}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CompressError(f"Cannot read the config {path}: {error}.") from error
    if not isinstance(content, Mapping):
        raise CompressError(
            f"Got the config {path}, which contains a {type(content).__name__}; expected keys and values."
        )
    return content


def config_value(key: str, value: Any) -> Any:
    """Convert a plain value; values of another kind are returned unchanged, and the config refuses them."""
    if key == "layers" and isinstance(value, Mapping):
        by_pattern = {p: options for p, options in value.items() if isinstance(options, Mapping)}
        return {
            **value,
            **{p: {k: config_value(k, v) for k, v in options.items()} for p, options in by_pattern.items()},
        }
    if key == "recipe" and isinstance(value, Mapping):
        return Stage.from_dict(value)
    if key == "recipe" and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(config_value("recipe", one) if isinstance(one, Mapping) else one for one in value)
    if key == "candidates" and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(config_value("topology", candidate) for candidate in value)
    if key == "precisions" and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(Precision.named(one) if isinstance(one, str) else one for one in value)
    if key == "budget" and isinstance(value, Mapping):
        return Budget.from_dict(value)
    if key == "topology" and isinstance(value, str | Mapping):
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = str(options.pop("name", "ttn"))
        cls = get_topology(name)
        unknown = set(options) - set(cls.__dataclass_fields__)
        if unknown:
            raise CompressError(
                f"Got {sorted(unknown)} for {cls.__name__}; expected options among {list(cls.__dataclass_fields__)}."
            )
        return topology_from_json({"name": name, **options})
    if key == "base" and isinstance(value, int) and not isinstance(value, bool):
        return SeededBase(value)
    if key == "base" and isinstance(value, str):
        if value != "identity":
            raise CompressError(f"Got base={value!r}; expected a seed, or 'identity'.")
        return IdentityBase()
    return value
