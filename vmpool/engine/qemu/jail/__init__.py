"""What a QEMU process is held by, each wall in a module of its own; `isolation` joins them."""
