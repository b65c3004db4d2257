"""Charts: what a run looks like. One module for each, drawn from a record alone."""
