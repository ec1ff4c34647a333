"""Devices: ``adtn devices | calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .._files import check_writable, write_bytes, write_or_rescue
from ..errors import ADTNError

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Device to use, may be repeated; by default all usable ones.")
]


def devices(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List devices with their memory and dtypes, and why some are not usable."""
    from dataclasses import asdict

    from ..device import devices as list_devices

    listing = list_devices()
    print(json.dumps([asdict(d) for d in listing], indent=1) if as_json else listing)


def calibrate(
    device: Devices = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the arrays.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="File to which the profile is also written (for a single device).")
    ] = None,
) -> None:
    """Measure the cost of operations on devices, for later plans; takes under 20 seconds each on an idle machine."""
    from ..device import devices as list_devices
    from ..schedule import calibrate as measure

    names = device or [d.name for d in list_devices().usable]
    if out is not None and len(names) != 1:
        raise ADTNError(f"Got --out for {len(names)} devices; expected one. Select it with --device.")
    if out is not None:
        check_writable(out, "--out", "file")
    for name in names:
        profile = measure(name, dtype)
        print(profile)
        if out is not None:
            content = profile.to_json().encode()
            write_or_rescue(out, lambda place, content=content: write_bytes(place, content))
