"""Bond spaces: what is on the bonds of a generator."""

from ._probe import probe as probe
