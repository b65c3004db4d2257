"""Store: what was promised, in SQLite."""

from vmpool.store.audit import AuditFilter, AuditRow
from vmpool.store.rows import ImageRow, SandboxRow, TemplateRow
from vmpool.store.store import Store
from vmpool.store.tokens import Role, TokenRow

__all__ = [
    "AuditFilter",
    "AuditRow",
    "ImageRow",
    "Role",
    "SandboxRow",
    "Store",
    "TemplateRow",
    "TokenRow",
]
