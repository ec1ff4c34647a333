"""The backends of adtn, one package each, found through the entry-point group ``adtn.backends``."""
