"""`python -m train <command>`: data, the two stages, speech parts, evaluation. Knows most_core, never app."""
