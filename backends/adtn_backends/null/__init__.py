"""Shapes, operations and bytes without values: what a plan would have to do."""
