"""Templates as E2B's clients name, list and build them."""
