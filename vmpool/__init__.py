"""vmpool: virtual machines restored from snapshots in milliseconds, and code run in them."""
