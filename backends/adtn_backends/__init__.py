"""Backends of adtn, one module each, found through the entry-point group ``adtn.backends``."""
