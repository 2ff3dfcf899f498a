"""The six tables, and the database functions that accept a batch and settle pending events.

A function is a contract with pods that still run: its name carries a number, and a change adds the next one beside it.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE schema_floor (
    revision text PRIMARY KEY
);

CREATE TABLE deliveries (
    account_id text NOT NULL,
    id uuid NOT NULL,
    source text NOT NULL,
    key_kind text NOT NULL CONSTRAINT deliveries_key_kind CHECK (key_kind IN ('client_secret', 'url_key', 'token')),
    key_fingerprint text NOT NULL,
    received_at timestamptz NOT NULL,
    content_type text,
    user_agent text,
    request_id text,
    traceparent text,
    body bytea NOT NULL,
    body_bytes integer NOT NULL,
    body_sha256 bytea,
    events integer NOT NULL,
    unparsed boolean DEFAULT false NOT NULL,
    duplicates integer DEFAULT 0 NOT NULL,
    last_received_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, id),
    CONSTRAINT deliveries_body_cut CHECK ((body_sha256 IS NULL) = (octet_length(body) = body_bytes))
);

CREATE TABLE events (
    account_id text NOT NULL,
    id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    entity text NOT NULL,
    action text NOT NULL,
    entity_id text NOT NULL,
    path text NOT NULL,
    payload jsonb NOT NULL,
    occurred_at timestamptz,
    received_at timestamptz NOT NULL,
    dedup bytea,
    state text NOT NULL CONSTRAINT events_state CHECK (state IN ('pending', 'processed', 'dead')),
    effect text CONSTRAINT events_effect CHECK (effect IN ('applied', 'recorded')),
    attempts smallint DEFAULT 0 NOT NULL,
    deferrals smallint DEFAULT 0 NOT NULL,
    replays smallint DEFAULT 0 NOT NULL,
    available_at timestamptz,
    processed_at timestamptz,
    last_error text,
    traceparent text,
    PRIMARY KEY (account_id, id),
    CONSTRAINT events_due_when_pending CHECK ((state = 'pending') = (available_at IS NOT NULL)),
    CONSTRAINT events_effect_when_processed CHECK ((state = 'processed') = (processed_at IS NOT NULL AND effect IS NOT NULL)),
    CONSTRAINT events_error_when_dead CHECK (state <> 'dead' OR last_error IS NOT NULL)
);

CREATE TABLE attempts (
    account_id text NOT NULL,
    event_id uuid NOT NULL,
    id uuid NOT NULL,
    number smallint NOT NULL,
    kind text NOT NULL CONSTRAINT attempts_kind CHECK (kind IN ('accept', 'retry', 'replay')),
    outcome text NOT NULL CONSTRAINT attempts_outcome CHECK (outcome IN ('applied', 'failed', 'deferred')),
    started_at timestamptz NOT NULL,
    error text,
    traceparent text,
    PRIMARY KEY (account_id, event_id, id)
);

CREATE TABLE leads (
    account_id text NOT NULL,
    id bigint NOT NULL,
    name text,
    status_id bigint,
    status text,
    pipeline_id bigint,
    price numeric,
    responsible_user_id bigint,
    utm_source text,
    utm_medium text,
    utm_campaign text,
    utm_content text,
    utm_term text,
    property_cost numeric,
    commission numeric,
    custom_fields jsonb NOT NULL,
    deleted_at timestamptz,
    crm_updated_at timestamptz,
    updated_at timestamptz DEFAULT now() NOT NULL,
    snapshot_at timestamptz NOT NULL,
    version_at timestamptz NOT NULL,
    version_event uuid NOT NULL,
    versions jsonb,
    PRIMARY KEY (account_id, id)
) WITH (fillfactor = 85);

CREATE TABLE contacts (
    account_id text NOT NULL,
    id bigint NOT NULL,
    type text NOT NULL CONSTRAINT contacts_type CHECK (type IN ('contact', 'company')),
    name text,
    phone text,
    email text,
    responsible_user_id bigint,
    custom_fields jsonb NOT NULL,
    deleted_at timestamptz,
    crm_updated_at timestamptz,
    updated_at timestamptz DEFAULT now() NOT NULL,
    snapshot_at timestamptz NOT NULL,
    version_at timestamptz NOT NULL,
    version_event uuid NOT NULL,
    versions jsonb,
    PRIMARY KEY (account_id, id)
) WITH (fillfactor = 85);

CREATE TABLE tokens (
    account_id text NOT NULL,
    client_id text NOT NULL,
    api_domain text NOT NULL,
    access_token text NOT NULL,
    refresh_token text NOT NULL,
    expires_at timestamptz NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (account_id, client_id)
);

CREATE UNIQUE INDEX events_dedup ON events (account_id, occurred_at, dedup) NULLS NOT DISTINCT WHERE dedup IS NOT NULL;
CREATE INDEX events_due ON events (available_at) WHERE state = 'pending';
CREATE INDEX events_dead ON events (account_id, id) WHERE state = 'dead';
CREATE INDEX events_of_delivery ON events (account_id, delivery_id);
CREATE INDEX events_received ON events USING brin (received_at);
CREATE INDEX deliveries_received ON deliveries USING brin (received_at);
CREATE INDEX deliveries_unparsed ON deliveries (source) WHERE unparsed;
"""

# The join of inbox/merge.py in SQL, for rows of which one side has exceptions.
JOIN = """
CREATE FUNCTION join_v1(one jsonb, other jsonb) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    newer jsonb := one;
    older jsonb := other;
    unwritten constant jsonb := '["-infinity", "00000000-0000-0000-0000-000000000000"]';
    held jsonb;
    fields jsonb;
    taken jsonb;
    written jsonb;
    emptied text[];
    filled jsonb;
BEGIN
    IF ((other->>'version_at')::timestamptz, (other->>'version_event')::uuid)
       > ((one->>'version_at')::timestamptz, (one->>'version_event')::uuid) THEN
        newer := other;
        older := one;
    END IF;
    held := coalesce(nullif(newer->'versions', 'null'), '{}');
    fields := older->'custom_fields';
    SELECT jsonb_object_agg(register, version),
           jsonb_object_agg(register, older->register) FILTER (WHERE NOT is_field AND register <> 'deleted_at'),
           array_agg(field) FILTER (WHERE is_field AND NOT fields ? field),
           jsonb_object_agg(field, fields->field) FILTER (WHERE is_field AND fields ? field)
    INTO taken, written, emptied, filled
    FROM (
        SELECT key AS register, value AS version, starts_with(key, 'cf:') AS is_field, substr(key, 4) AS field,
               coalesce(held->key, CASE WHEN key = 'deleted_at' THEN unwritten
                   ELSE jsonb_build_array(newer->'version_at', newer->'version_event') END) AS mine
        FROM jsonb_each(coalesce(nullif(older->'versions', 'null'), '{}'))
    ) registers
    WHERE ((version->>0)::timestamptz, (version->>1)::uuid) > ((mine->>0)::timestamptz, (mine->>1)::uuid);
    held := held || coalesce(taken, '{}');
    newer := newer || coalesce(written, '{}') || jsonb_build_object(
        'custom_fields', (newer->'custom_fields') - coalesce(emptied, '{}') || coalesce(filled, '{}'),
        'versions', nullif(held, '{}'),
        'snapshot_at', greatest((one->>'snapshot_at')::timestamptz, (other->>'snapshot_at')::timestamptz),
        'crm_updated_at', greatest((one->>'crm_updated_at')::timestamptz, (other->>'crm_updated_at')::timestamptz));
    taken := held->'deleted_at';
    RETURN newer || jsonb_build_object('deleted_at', CASE
        WHEN taken->>2 = 'restore' THEN NULL
        WHEN taken->>2 = 'undated' AND (newer->>'snapshot_at')::timestamptz > (taken->>0)::timestamptz THEN NULL
        ELSE taken->>0 END);
END $$;
"""

JOIN_CARDS = """
CREATE FUNCTION {table}_join_v1(one {table}, other {table}) RETURNS {table} LANGUAGE plpgsql STABLE AS $$
DECLARE
    joined {table};
BEGIN
    IF one.versions IS NOT NULL OR other.versions IS NOT NULL THEN
        RETURN jsonb_populate_record(one, join_v1(to_jsonb(one), to_jsonb(other)));
    END IF;
    IF (other.version_at, other.version_event) > (one.version_at, one.version_event) THEN
        joined := other;
    ELSE
        joined := one;
    END IF;
    joined.snapshot_at := greatest(one.snapshot_at, other.snapshot_at);
    joined.crm_updated_at := greatest(one.crm_updated_at, other.crm_updated_at);
    RETURN joined;
END $$;
"""

UPSERT = """
    INSERT INTO {table} AS held (account_id, id, {columns})
    SELECT account_id, id, {columns} FROM json_populate_recordset(NULL::{table}, p_{table}) ORDER BY account_id COLLATE "C", id
    ON CONFLICT (account_id, id) DO UPDATE SET ({columns}, updated_at) = (
        SELECT {columns}, now() FROM {table}_join_v1(held, excluded))
    WHERE (excluded.version_at, excluded.version_event) > (held.version_at, held.version_event)
       OR excluded.versions IS NOT NULL
       OR excluded.snapshot_at > held.snapshot_at
       OR excluded.crm_updated_at > coalesce(held.crm_updated_at, '-infinity');
"""

VERSIONED = "custom_fields, deleted_at, crm_updated_at, snapshot_at, version_at, version_event, versions"
COLUMNS = {
    "leads": "name, status_id, status, pipeline_id, price, responsible_user_id, utm_source, utm_medium, utm_campaign, utm_content, "
    "utm_term, property_cost, commission, " + VERSIONED,
    "contacts": "type, name, phone, email, responsible_user_id, " + VERSIONED,
}

UPSERT_CARDS = (
    "CREATE FUNCTION upsert_cards_v1(p_leads json, p_contacts json) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
    + "".join(UPSERT.format(table=table, columns=columns) for table, columns in COLUMNS.items())
    + "END $$;"
)

# One call is one transaction: everything in it is committed when the answer to the call arrives.
# Locks are taken in the order events, deliveries, leads, contacts, each by its key.
ACCEPT = """
CREATE FUNCTION accept_v1(
    p_deliveries json, p_bodies bytea[], p_events json, p_leads json, p_contacts json, p_apply boolean, p_lock_timeout_ms integer
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    stored uuid[];
    whole boolean;
    known jsonb;
    failed_state text;
    failed_constraint text;
BEGIN
    PERFORM set_config('lock_timeout', p_lock_timeout_ms::text, true);
    WITH inserted AS (
        INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, received_at, dedup,
                            state, effect, attempts, processed_at, last_error, traceparent)
        SELECT account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, received_at, dedup,
               state, effect, 1, CASE WHEN state = 'processed' THEN now() END, last_error, traceparent
        FROM json_populate_recordset(NULL::events, p_events)
        ORDER BY account_id COLLATE "C", occurred_at, dedup, id
        ON CONFLICT DO NOTHING RETURNING id)
    SELECT coalesce(array_agg(id), '{}') INTO stored FROM inserted;
    whole := cardinality(stored) = json_array_length(p_events);

    INSERT INTO deliveries (account_id, id, source, key_kind, key_fingerprint, received_at, content_type, user_agent, request_id,
                            traceparent, body, body_bytes, body_sha256, events, unparsed, last_received_at)
    SELECT account_id, id, source, key_kind, key_fingerprint, received_at, content_type, user_agent, request_id,
           traceparent, p_bodies[ordinality::integer], body_bytes, body_sha256, events, unparsed, received_at
    FROM json_populate_recordset(NULL::deliveries, p_deliveries) WITH ORDINALITY
    WHERE whole OR events = 0 OR id IN (
        SELECT delivery_id FROM json_populate_recordset(NULL::events, p_events) WHERE id = ANY (stored))
    ON CONFLICT DO NOTHING;

    IF NOT whole THEN
        WITH sent AS MATERIALIZED (
            SELECT account_id, id, delivery_id, occurred_at, dedup, received_at
            FROM json_populate_recordset(NULL::events, p_events) WHERE id <> ALL (stored)
        ), original AS MATERIALIZED (
            SELECT s.id, s.delivery_id, s.received_at, o.account_id, o.id AS of, o.delivery_id AS of_delivery
            FROM sent s JOIN events o ON o.account_id = s.account_id AND o.id = s.id
            UNION
            SELECT s.id, s.delivery_id, s.received_at, o.account_id, o.id, o.delivery_id
            FROM sent s JOIN events o ON o.account_id = s.account_id AND o.occurred_at = s.occurred_at AND o.dedup = s.dedup
            UNION
            SELECT s.id, s.delivery_id, s.received_at, o.account_id, o.id, o.delivery_id
            FROM sent s JOIN events o ON o.account_id = s.account_id AND o.occurred_at IS NULL AND o.dedup = s.dedup
            WHERE s.occurred_at IS NULL
        ), held AS MATERIALIZED (
            SELECT account_id, id, entity, CASE WHEN id = ANY (stored) AND effect = 'applied' THEN 'pending' ELSE state END AS state
            FROM events WHERE (account_id, id) IN (SELECT account_id, of FROM original)
            ORDER BY account_id COLLATE "C", id FOR UPDATE
        ), armed AS (
            UPDATE events e SET state = 'pending', attempts = 0, deferrals = 0, available_at = now()
            FROM held h WHERE e.account_id = h.account_id AND e.id = h.id
                AND h.state = 'dead' AND h.entity <> 'unparsed' AND e.id <> ALL (stored)
        ), repeated AS (
            SELECT account_id, of_delivery, count(DISTINCT delivery_id) AS times, max(received_at) AS last_received_at FROM original
            WHERE id <> of AND delivery_id NOT IN (
                SELECT d.id FROM json_populate_recordset(NULL::deliveries, p_deliveries) s
                JOIN deliveries d ON d.account_id = s.account_id AND d.id = s.id)
            GROUP BY 1, 2
        ), first AS MATERIALIZED (
            SELECT d.account_id, d.id, r.times, r.last_received_at FROM deliveries d
            JOIN repeated r ON d.account_id = r.account_id AND d.id = r.of_delivery
            ORDER BY d.account_id COLLATE "C", d.id FOR UPDATE OF d
        ), counted AS (
            UPDATE deliveries d SET duplicates = duplicates + f.times, last_received_at = greatest(d.last_received_at, f.last_received_at)
            FROM first f WHERE d.account_id = f.account_id AND d.id = f.id
        )
        SELECT jsonb_agg(jsonb_build_object('id', o.id, 'of', o.of, 'state', CASE
            WHEN h.state = 'dead' AND h.entity <> 'unparsed' AND h.id <> ALL (stored) THEN 'pending' ELSE h.state END)) INTO known
        FROM original o JOIN held h ON h.account_id = o.account_id AND h.id = o.of;
    END IF;

    IF whole AND p_apply THEN
        BEGIN
            PERFORM upsert_cards_v1(p_leads, p_contacts);
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            GET STACKED DIAGNOSTICS failed_state = RETURNED_SQLSTATE, failed_constraint = CONSTRAINT_NAME;
        END;
    END IF;
    IF NOT (whole AND p_apply) OR failed_state IS NOT NULL THEN
        UPDATE events e SET state = 'pending', effect = NULL, processed_at = NULL, available_at = now() + interval '5 seconds'
        FROM json_populate_recordset(NULL::events, p_events) s
        WHERE e.account_id = s.account_id AND e.id = s.id AND e.id = ANY (stored) AND e.effect = 'applied';
    END IF;
    RETURN jsonb_build_object('applied', whole AND p_apply AND failed_state IS NULL, 'known', known,
                              'sqlstate', failed_state, 'constraint', failed_constraint);
END $$;
"""

SETTLE = """
CREATE FUNCTION settle_v1(
    p_events json, p_leads json, p_contacts json, p_attempts json, p_lock_timeout_ms integer
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('lock_timeout', p_lock_timeout_ms::text, true);
    PERFORM 1 FROM events WHERE (account_id, id) IN (SELECT account_id, id FROM json_populate_recordset(NULL::events, p_events))
    ORDER BY account_id COLLATE "C", id FOR UPDATE;
    PERFORM upsert_cards_v1(p_leads, p_contacts);
    UPDATE events e
    SET state = 'processed', effect = s.effect, processed_at = now(), available_at = NULL, last_error = NULL
    FROM json_populate_recordset(NULL::events, p_events) s
    WHERE e.account_id = s.account_id AND e.id = s.id AND e.state <> 'processed';
    INSERT INTO attempts (account_id, event_id, id, number, kind, outcome, started_at, error, traceparent)
    SELECT account_id, event_id, id, number, kind, outcome, started_at, error, traceparent
    FROM json_populate_recordset(NULL::attempts, p_attempts);
END $$;
"""


def upgrade() -> None:
    """Create everything."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    op.execute(JOIN)
    for table in COLUMNS:
        op.execute(JOIN_CARDS.format(table=table))
    op.execute(UPSERT_CARDS)
    op.execute(ACCEPT)
    op.execute(SETTLE)


def downgrade() -> None:
    """Refuse: a schema goes forward only; an older release keeps working on a newer schema."""
    msg = "the schema is never taken back; restore a backup instead"
    raise NotImplementedError(msg)
