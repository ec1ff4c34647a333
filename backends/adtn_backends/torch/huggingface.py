"""Loading of models from Hugging Face folders, of which only ``config.json`` and safetensors files are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from adtn.compression import STRUCTURES, structure_from_json
from adtn.errors import CompressError, missing
from torch import nn

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
RESULT = ("state.safetensors", "generators")
"""Names in a folder that ``adtn compress`` wrote, in the present and the older format: the weights are there."""
_NAMED = 5  # the most names in a list of a message


def pretrained(folder: Path, *, weights: bool = True) -> nn.Module:
    """Load the model in a folder, in evaluation mode.

    The model class is one of transformers itself, and weights are read from safetensors files in the folder: no code
    in the folder is run, and nothing is downloaded.

    Parameters
    ----------
    folder : path
        A folder with ``config.json``, which names the class under ``architectures``, and safetensors files.
    weights : bool
        Whether to read the weights as well; otherwise, only the structure is made.

    Raises
    ------
    CompressError
        If the folder holds no such model, or weights are missing or have another shape.
    MissingDependencyError
        If transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing("transformers", "hf", "A Hugging Face folder") from error
    plain = _config(folder)
    cls = _class(plain, folder)
    if weights and STRUCTURES in plain:
        return _compressed(folder, cls, plain)
    if weights:
        _check_files(folder, plain.get("transformers_weights"))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not isinstance(config, cls.config_class):
            raise CompressError(
                f"Got model_type={plain['model_type']!r} and architectures={plain['architectures']} in "
                f"{folder / 'config.json'}; expected a configuration of {cls.__name__}."
            )
        if not weights:
            return _blank(cls, config)
        model, loaded = cls.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except CompressError:
        raise
    except Exception as error:  # transformers raises many kinds of errors for a broken folder
        raise CompressError(
            f"Cannot load the model in {folder} ({type(error).__name__}: {error}); expected a complete Hugging Face "
            "folder of this model. Download it again."
        ) from error
    _refuse_holes(loaded, folder, cls.__name__)
    return model.eval()


def _compressed(folder: Path, cls: Any, plain: Mapping[str, Any]) -> nn.Module:
    """Load a compressed model that was saved by ``save_pretrained``."""
    import transformers
    from safetensors.torch import load_file

    from ._model import TorchModel

    _check_files(folder, plain.get("transformers_weights"))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = _blank(cls, config)
        generators = {name: structure_from_json(text) for name, text in plain[STRUCTURES].items()}
        TorchModel(model, None).install(generators)
        first = folder / (_ONE if (folder / _ONE).exists() else _INDEX)
        shards = _shards(first) if first.name == _INDEX else [_ONE]
        state = {name: x for shard in shards for name, x in load_file(folder / shard).items()}
        dtypes = {x.dtype for x in state.values() if x.is_floating_point()}
        if len(dtypes) == 1 and model.dtype not in dtypes:
            model.to(dtypes.pop())
        loaded = model.load_state_dict(state, strict=False)
        if (folder / "generation_config.json").exists() and hasattr(model, "generation_config"):
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except CompressError:
        raise
    except Exception as error:  # transformers raises many kinds of errors for a broken folder
        raise CompressError(
            f"Cannot load the compressed model in {folder} ({type(error).__name__}: {error}); expected a folder that "
            "save_pretrained of a compressed model wrote. Save the model again."
        ) from error
    tensors = model.state_dict()
    loaded_memory = {tensors[name].data_ptr() for name in state if name in tensors}
    missing_names = [name for name in loaded.missing_keys if tensors[name].data_ptr() not in loaded_memory]  # not tied
    if missing_names or loaded.unexpected_keys:
        raise CompressError(
            f"Got weights in {folder} that do not match a compressed {cls.__name__} (missing: "
            f"{missing_names[:_NAMED]}, not used: {loaded.unexpected_keys[:_NAMED]}). Save the model again."
        )
    return model.eval()


def _blank(cls: Any, config: Any) -> Any:
    """Make a model without weights, in the dtype of the configuration, as ``from_pretrained`` does."""
    with torch.random.fork_rng([]):  # initial values are drawn, and replaced
        return cls._from_config(config).eval()


def _config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``, and check the entries that decide which code is run."""
    path = folder / "config.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"Cannot read {path}: {error}; expected a Hugging Face folder.") from error
    if not isinstance(entries, dict):
        raise CompressError(f"Got a {type(entries).__name__} in {path}; expected a JSON object.")
    names, kind = entries.get("architectures"), entries.get("model_type")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CompressError(f"Got architectures={names!r} in {path}; expected a list with the name of a model.")
    if not isinstance(kind, str):
        raise CompressError(f"Got model_type={kind!r} in {path}; expected a name.")
    for key, value in _entries(entries):
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise CompressError(f"Got {key}={value!r} in {path}, which refers to code outside the folder; remove it.")
    if (folder / "adapter_config.json").exists():
        raise CompressError(f"Got {folder}, which holds an adapter of peft; merge it into its model first.")
    return entries


def _entries(entries: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(entries, dict):
        for key, value in entries.items():
            yield key, value
            yield from _entries(value)


def _class(plain: Mapping[str, Any], folder: Path) -> Any:
    """Find the model class: one that transformers lists for automatic loading, not just any attribute of that name."""
    import transformers
    from transformers.models.auto import modeling_auto

    name = plain["architectures"][0]
    tables = [table for key, table in vars(modeling_auto).items() if key.endswith("_NAMES") and isinstance(table, dict)]
    listed = {
        cls for table in tables for value in table.values() for cls in ((value,) if isinstance(value, str) else value)
    }
    cls = getattr(transformers, name, None) if name in listed else None
    if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
        return cls
    why = " It needs code that comes with the folder (auto_map), which is never run." if "auto_map" in plain else ""
    raise CompressError(
        f"Got architectures={plain['architectures']} in {folder / 'config.json'}; expected a model class of "
        f"transformers.{why}"
    )


def _check_files(folder: Path, named: Any) -> None:
    """Refuse weights that are not in safetensors files of this folder, or cannot be opened.

    Parameters
    ----------
    folder : path
        The folder of the model.
    named : str or None
        The file or index that the configuration names, if any.
    """
    from safetensors import safe_open

    if any(folder.glob("shard-*-model-*.safetensors")):
        raise CompressError(f"Got {folder}, a distributed checkpoint; expected {_ONE}. Save the whole model first.")
    first = named if named is not None else _ONE if (folder / _ONE).exists() else _INDEX
    if not isinstance(first, str) or Path(first).name != first:
        raise CompressError(
            f"Got transformers_weights={first!r} in {folder / 'config.json'}; expected a file name in that folder."
        )
    for name in _shards(folder / first) if first.endswith(".index.json") else [first]:
        path = folder / name
        if not _is_inside(path, folder):
            raise CompressError(f"Got the weights {path}, a link to {path.resolve()}; expected a file in that folder.")
        try:
            with safe_open(path, framework="pt") as file:  # pyright: ignore[reportGeneralTypeIssues]
                file.keys()
        except Exception as error:
            raise CompressError(
                f"Cannot read {path} ({error}); expected a safetensors file. Download it again."
            ) from error


def _shards(path: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    folder = path.parent
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
    except FileNotFoundError:
        others = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" Convert {others[:_NAMED]} to safetensors, as they are not read." if others else ""
        raise CompressError(f"Got {folder}, which contains neither {_ONE} nor {path.name}.{hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompressError(f"Cannot read {path} ({error}); expected the index of a Hugging Face folder.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CompressError(f"Got the weights {name!r} in {path}; expected names of safetensors files in {folder}.")
    return names


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a file is in the folder, or in the cache of Hugging Face to which the folder links."""
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    return real.parent in (home, blobs)


def _refuse_holes(loaded: Mapping[str, Any], folder: Path, name: str) -> None:
    """Refuse a model some of whose weights were not loaded, as these have random values."""
    missing_names = sorted(str(key) for key in loaded.get("missing_keys") or ())
    mismatched = [str(key[0] if isinstance(key, tuple) else key) for key in loaded.get("mismatched_keys") or ()]
    errors = [str(error) for error in loaded.get("error_msgs") or ()]
    if not (missing_names or mismatched or errors):
        return
    unused = sorted(str(key) for key in loaded.get("unexpected_keys") or ())
    parts = [
        ("missing", missing_names),
        ("of another shape", sorted(mismatched)),
        ("errors", errors),
        ("not used", unused),
    ]
    details = "; ".join(
        f"{what}: {', '.join(names[:_NAMED]) + ' ...' * (len(names) > _NAMED)}" for what, names in parts if names
    )
    raise CompressError(
        f"Got weights in {folder} that do not match a {name} ({details}). Download the folder again, or name the class "
        "that was saved under architectures."
    )
