"""What backends have in common and what touches no array of a framework."""
