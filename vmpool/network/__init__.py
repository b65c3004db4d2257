"""Network: what a sandbox may reach, and the links over which it does.

Policy in, packets out: what each mode allows is planned by pure functions and enforced by the
kernel, in a network namespace of each sandbox's own that its hypervisor is not in.
"""
