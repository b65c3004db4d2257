"""Schema: the journal's tables, version by version; a version that was released never changes."""

from __future__ import annotations

SCHEMA = (
    (
        """CREATE TABLE images (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, size_bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL) STRICT""",
        """CREATE TABLE templates (
            name TEXT PRIMARY KEY, image_digest TEXT NOT NULL REFERENCES images (digest),
            snapshot_id TEXT NOT NULL, limits TEXT NOT NULL, memory_bytes INTEGER NOT NULL,
            vcpus INTEGER NOT NULL, disk_bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL) STRICT""",
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
            created_ns INTEGER NOT NULL, last_used_ns INTEGER, revoked_ns INTEGER) STRICT""",
        """CREATE TABLE sandboxes (
            id TEXT PRIMARY KEY, template TEXT NOT NULL, clone_id TEXT NOT NULL,
            token_id TEXT REFERENCES tokens (id), state TEXT NOT NULL, created_ns INTEGER NOT NULL,
            deadline_ns INTEGER, metadata TEXT NOT NULL, ended_ns INTEGER, end_reason TEXT,
            CHECK ((state = 'ended') = (ended_ns IS NOT NULL AND end_reason IS NOT NULL))
            ) STRICT""",
        "CREATE INDEX sandboxes_by_end ON sandboxes (ended_ns)",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, token_id TEXT, action TEXT NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL, outcome TEXT NOT NULL) STRICT""",
    ),
    (
        # Who had a token before there were roles could do everything, and goes on to.
        """ALTER TABLE tokens ADD COLUMN role TEXT NOT NULL DEFAULT 'admin'
            CHECK (role IN ('use', 'admin'))""",
        "CREATE INDEX audit_by_token ON audit (token_id)",
        "CREATE INDEX audit_by_action ON audit (action)",
        "CREATE INDEX audit_by_subject ON audit (subject)",
    ),
    (
        # What a sandbox is when there is no process that could say so. All of it is the holder's:
        # the file is readable for the server's account alone.
        """CREATE TABLE checkpoints (
            id TEXT PRIMARY KEY, purpose TEXT NOT NULL CHECK (purpose IN ('kept', 'pause')),
            name TEXT, token_id TEXT REFERENCES tokens (id), sandbox_id TEXT NOT NULL,
            template TEXT NOT NULL, base_id TEXT NOT NULL, agent_key BLOB NOT NULL,
            created_ns INTEGER NOT NULL, saved_ns INTEGER NOT NULL, dirty_bytes INTEGER NOT NULL,
            size_bytes INTEGER NOT NULL, env TEXT NOT NULL) STRICT""",
        """CREATE UNIQUE INDEX checkpoints_by_name
            ON checkpoints (coalesce(token_id, ''), name)""",
        "ALTER TABLE sandboxes ADD COLUMN base_id TEXT NOT NULL DEFAULT ''",
        """ALTER TABLE sandboxes ADD COLUMN checkpoint_id TEXT REFERENCES checkpoints (id)
            CHECK ((state = 'paused') = (checkpoint_id IS NOT NULL))""",
        "ALTER TABLE sandboxes ADD COLUMN paused_ns INTEGER",
        "ALTER TABLE sandboxes ADD COLUMN timeout REAL NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN idle_timeout REAL",
        "ALTER TABLE sandboxes ADD COLUMN on_expiry TEXT NOT NULL DEFAULT 'kill'",
        "ALTER TABLE sandboxes ADD COLUMN auto_resume TEXT NOT NULL DEFAULT 'never'",
        "ALTER TABLE sandboxes ADD COLUMN rng TEXT NOT NULL DEFAULT 'unique'",
        "ALTER TABLE sandboxes ADD COLUMN clock TEXT NOT NULL DEFAULT 'now'",
        "ALTER TABLE sandboxes ADD COLUMN clock_offset_ns INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE sandboxes ADD COLUMN env TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE sandboxes ADD COLUMN access_hash BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE sandboxes ADD COLUMN receipt TEXT",
        "ALTER TABLE sandboxes ADD COLUMN parent_id TEXT",
        "ALTER TABLE sandboxes ADD COLUMN parent_checkpoint_id TEXT",
    ),
    (
        """CREATE TABLE answers (
            ticket BLOB PRIMARY KEY, owner TEXT NOT NULL, key TEXT NOT NULL, asked BLOB NOT NULL,
            status INTEGER NOT NULL, body BLOB, made_ns INTEGER NOT NULL) STRICT""",
        "CREATE INDEX answers_by_time ON answers (made_ns)",
        "CREATE INDEX answers_by_owner ON answers (owner, made_ns)",
        "ALTER TABLE sandboxes ADD COLUMN ticket BLOB NOT NULL DEFAULT x''",
        "CREATE INDEX sandboxes_by_ticket ON sandboxes (ticket) WHERE ticket != x''",
    ),
    (
        # What belonged to a token belongs to a tenant; each token that there was gets one, of its
        # own id, and goes on to see what it saw.
        """CREATE TABLE tenants (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, quota TEXT NOT NULL,
            created_ns INTEGER NOT NULL) STRICT""",
        """INSERT INTO tenants (id, name, quota, created_ns)
            SELECT 'local', 'local', '{}', 0 UNION ALL SELECT id, id, '{}', created_ns
            FROM tokens""",
        "ALTER TABLE tokens ADD COLUMN tenant_id TEXT NOT NULL DEFAULT 'local'",
        "ALTER TABLE tokens ADD COLUMN scopes TEXT NOT NULL DEFAULT ''",
        """UPDATE tokens SET tenant_id = id, scopes = CASE role
            WHEN 'admin' THEN 'audit metrics operator sandboxes templates'
            ELSE 'metrics sandboxes' END""",
        "ALTER TABLE tokens DROP COLUMN role",
        "ALTER TABLE audit ADD COLUMN tenant_id TEXT",
        "UPDATE audit SET tenant_id = coalesce(token_id, 'local')",
        "CREATE INDEX audit_by_tenant ON audit (tenant_id)",
        "ALTER TABLE sandboxes ADD COLUMN owner TEXT NOT NULL DEFAULT 'local'",
        "UPDATE sandboxes SET owner = coalesce(token_id, 'local')",
        "ALTER TABLE sandboxes DROP COLUMN token_id",
        "ALTER TABLE sandboxes ADD COLUMN network TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sandboxes ADD COLUMN secrets BLOB NOT NULL DEFAULT x''",
        "DROP INDEX checkpoints_by_name",
        "ALTER TABLE checkpoints ADD COLUMN owner TEXT NOT NULL DEFAULT 'local'",
        "UPDATE checkpoints SET owner = coalesce(token_id, 'local')",
        "ALTER TABLE checkpoints DROP COLUMN token_id",
        "CREATE UNIQUE INDEX checkpoints_by_name ON checkpoints (owner, name)",
        "ALTER TABLE checkpoints ADD COLUMN network TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE checkpoints ADD COLUMN secrets BLOB NOT NULL DEFAULT x''",
    ),
    (
        """CREATE TABLE exposures (
            sandbox_id TEXT PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
            value TEXT NOT NULL) STRICT""",
    ),
    ("ALTER TABLE templates ADD COLUMN env TEXT NOT NULL DEFAULT '{}'",),
    (
        "ALTER TABLE sandboxes ADD COLUMN confided INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE checkpoints ADD COLUMN confided INTEGER NOT NULL DEFAULT 0",
    ),
    (
        """CREATE TABLE builds (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, tags TEXT NOT NULL,
            vcpus INTEGER, memory_bytes INTEGER, state TEXT NOT NULL, step TEXT NOT NULL,
            reason TEXT NOT NULL, made_ns INTEGER NOT NULL) STRICT""",
        "CREATE INDEX builds_by_owner ON builds (owner, made_ns)",
        "CREATE INDEX builds_by_time ON builds (made_ns)",
    ),
    ("ALTER TABLE checkpoints ADD COLUMN keep TEXT NOT NULL DEFAULT 'memory'",),
    (
        """CREATE TABLE build_lines (
            build_id TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
            number INTEGER NOT NULL, at_ns INTEGER NOT NULL, level TEXT NOT NULL,
            message TEXT NOT NULL, step TEXT NOT NULL,
            PRIMARY KEY (build_id, number)) STRICT, WITHOUT ROWID""",
    ),
)
