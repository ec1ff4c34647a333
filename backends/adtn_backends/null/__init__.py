"""The null backend: counts the operations and bytes of a plan without computing values."""
