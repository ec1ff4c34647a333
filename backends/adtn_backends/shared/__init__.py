"""Code that backends have in common and that does not depend on the arrays of a framework."""
