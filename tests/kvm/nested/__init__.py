"""Nested: the kvm ring on any machine, in a host that is a machine itself if need be.

`python -m tests.kvm.nested [pytest's arguments]` is `make test-kvm`. Where the machine runs guests
on KVM and has vhost-vsock the ring runs on it. Elsewhere QEMU's software emulation has what the
machine lacks: a Debian host is booted under it, with the checkout and all that the ring imports.

    place ─► wheels ─► image ─┐
                  cargo ──────┼─► machine ─► report
                 inside ······┘
"""
