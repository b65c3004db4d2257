"""Network: what a sandbox may reach, and how it is kept to that."""
