"""Environment: what programs find in theirs when E2B's clients run them, beside what was asked for.

Programs look there to learn that they run in a sandbox, and in which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmpool.sandbox import Sandbox


def told_by(sandbox: Sandbox) -> dict[str, str]:
    """Return what a sandbox's programs are told of it, but for what its maker says otherwise."""
    told = {
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": sandbox.id,
        "E2B_TEMPLATE_ID": sandbox.template,
    }
    return {name: value for name, value in told.items() if name not in sandbox.environment}
