"""`events`, `replay` and `fields`: what a person sees of the stored events, and what they can have done again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from amo_receiver.commands import app
from amo_receiver.errors import CommandError, ConfigurationError
from factories import ACCOUNT, custom_field, custom_field_v4, digital_pipeline_lead, form_body, json_body, lead, lead_v4
from integration.acceptance import accept_at, attempt, delivered, make_due, opened, unparsed
from servers import connect, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from amo_receiver.inbox.delivery import Delivery
    from conftest import StartWorker

    Run = Callable[..., str]

NAME = "Иванов Иван"
POISON = 13
NOWHERE = "01999999-aaaa-7bbb-8ccc-ddddeeeeffff"


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command in this process and returns its standard output; its own errors are raised."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, **env: str | None) -> str:
        done = CliRunner().invoke(app, [str(each) for each in arguments], env={"DB_URL": database_url, **env})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke


def stored(url: str, *deliveries: Delivery) -> list[str]:
    """Accept deliveries and return the ids of their events, in order."""
    asyncio.run(accept_at(url, *deliveries))
    return [event.id for delivery in deliveries for event in delivery.events]


def leads(*items: dict[str, Any], action: str = "update", account: str = ACCOUNT) -> Delivery:
    """Return a delivery about leads."""
    return delivered(form_body("leads", action, *items, account=account), account)


def ids_in(output: str) -> list[str]:
    """Return the ids in a JSON list of events."""
    return [event["id"] for event in json.loads(output)]


def rows_of(url: str, query: str) -> list[tuple[Any, ...]]:
    """Ask the database."""

    async def ask() -> list[tuple[Any, ...]]:
        async with connect(url) as connection:
            return [tuple(row) for row in await connection.fetch(query)]

    return asyncio.run(ask())


def worked(url: str) -> int:
    """Let a worker make the next attempt of every pending event."""

    async def work() -> int:
        async with opened(url) as repository, connect(url) as connection:
            return await attempt(repository, connection)

    return asyncio.run(work())


def poison(url: str) -> None:
    """Let one lead be unwritable."""
    run_sql(url, f"ALTER TABLE leads ADD CONSTRAINT no_thirteen CHECK (id <> {POISON})")


def antidote(url: str) -> None:
    """Let it be writable again."""
    run_sql(url, "ALTER TABLE leads DROP CONSTRAINT no_thirteen")


def test_events_are_listed_newest_first_and_without_personal_data(run: Run, database_url: str) -> None:
    """A line says what it is about, what became of it and why; what was sent is not in it."""
    ids = stored(
        database_url, leads(lead(id=1, name=NAME)), leads(lead(id="x"), lead(id=2)), delivered(form_body("task", "add", {"id": "7"}))
    )
    lines = [line.split() for line in run("events", "list").splitlines() if "-" in line and ACCOUNT in line]
    assert [line[0] for line in lines] == ids[::-1]
    assert [line[2:5] for line in lines] == [
        ["task.add", "7", "processed"],
        ["leads.update", "2", "processed"],
        ["leads.update", "x", "dead"],
        ["leads.update", "1", "processed"],
    ]
    assert lines[0][5] == "(recorded)"
    assert lines[1][5] == "(applied)"
    assert "leads.update[0].id: is not a positive 64-bit integer" in " ".join(lines[2])
    assert NAME not in run("events", "list") + run("events", "list", "--json")


def test_each_filter_finds_what_it_names(run: Run, database_url: str) -> None:
    """Alone and together; with several accounts the newest of all come first."""
    delivery = leads(lead(id=1), lead(id="x"))
    first, dead = stored(database_url, delivery)
    (elsewhere,) = stored(database_url, leads(lead(id=1), account="32000002"))
    (contact,) = stored(database_url, delivered(form_body("contacts", "update", {"id": "1", "name": "a"})))
    run_sql(
        database_url,
        f"UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, available_at = now() WHERE id = '{contact}'",
    )
    expected = {
        (): [contact, elsewhere, dead, first],
        ("--limit", 2): [contact, elsewhere],
        ("--state", "dead"): [dead],
        ("--state", "pending"): [contact],
        ("--state", "processed"): [elsewhere, first],
        ("--account", "32000002"): [elsewhere],
        ("--account", ACCOUNT, "--limit", 1): [contact],
        ("--entity", "leads"): [elsewhere, dead, first],
        ("--entity", "leads", "--id", 1): [elsewhere, first],
        ("--entity", "leads", "--id", 1, "--account", ACCOUNT): [first],
        ("--id", 1): [contact, elsewhere, first],
        ("--delivery", delivery.id): [dead, first],
        ("--delivery", delivery.id, "--state", "processed"): [first],
        ("--account", "nobody"): [],
    }
    assert {options: ids_in(run("events", "list", "--json", *options)) for options in expected} == expected
    assert run("events", "list", "--account", "nobody") == "No such events.\n"
    assert "newest 2; more with --limit" in run("events", "list", "--limit", 2)


def test_what_senders_chose_cannot_steer_the_terminal(run: Run, database_url: str) -> None:
    """Control characters are shown as escapes, and brackets are no markup."""
    stored(database_url, delivered(json_body("[red]talk[/nothing]", "add", {"id": "\x1b[2J\u202e7"})))
    output = run("events", "list")
    assert "[red]talk[/nothing].add" in output
    assert "\\x1b[2J\\u202e7" in output
    assert "\x1b" not in output


def test_an_event_is_shown_with_its_key_its_delivery_and_its_attempts(run: Run, database_url: str) -> None:
    """Found by its id alone, and without a word of what was sent."""
    poison(database_url)
    stored(database_url, leads(lead(id=POISON), account="a"))
    delivery = leads(lead(id=POISON, name=NAME))
    (event,) = stored(database_url, delivery)
    worked(database_url)
    output = run("events", "show", event)
    for words in (
        ["event", "leads.update"], ["state", "pending"], ["attempts", "2"], ["last_error", "CheckViolationError 23514 no_thirteen"],
        ["key_fingerprint", "abcdef012345"], ["key_kind", "token"], ["source", "default"], ["user_agent", "amoCRM-Webhooks/3.0"],
        ["duplicates", "0"], ["id", delivery.id], ["columns it set", "none: it is pending"],
        ["1", "accept", "failed"], ["2", "retry", "failed"],
    ):  # fmt: skip
        assert any(" ".join(line.split()).startswith(" ".join(words)) for line in output.splitlines()), (words, output)
    assert NAME not in output
    assert run("events", "show", event, "--account", ACCOUNT) == output
    assert "body" not in json.loads(run("events", "show", event, "--json"))["delivery"]


def test_payload_and_body_are_shown_when_asked_for(run: Run, database_url: str) -> None:
    """Each on its own; the raw body exactly as it came where a script asks."""
    delivery = leads(lead(id=1, name=NAME))
    (event,) = stored(database_url, delivery)
    assert f'"name": "{NAME}"' in run("events", "show", event, "--payload")
    assert delivery.body.decode() in run("events", "show", event, "--body")
    document = json.loads(run("events", "show", event, "--json", "--payload", "--body"))
    assert document["event"]["payload"]["name"] == NAME
    assert b64decode(document["delivery"]["body_base64"]) == delivery.body


def test_an_event_shows_the_columns_that_are_still_as_it_set_them(run: Run, database_url: str) -> None:
    """A full snapshot sets all of them, later events take single ones over, until nothing is left of it."""
    first, partial, deleted = stored(
        database_url,
        leads(lead(id=1, at=1_795_000_000)),
        delivered(json_body("leads", "update", lead_v4(id=1, name=None, updated_at=1_795_000_100, created_at=None))),
        leads({"id": "1", "updated_at": "1795000200"}, action="delete"),
    )

    def columns(event: str) -> list[str]:
        found: list[str] = json.loads(run("events", "show", event, "--json"))["columns_set"]
        return found

    assert columns(partial) == ["custom field 123458", "status", "status_id", "utm_source"]
    assert columns(deleted) == ["deleted_at"]
    assert set(columns(first)) == {
        *("name", "pipeline_id", "price", "responsible_user_id", "custom_fields"),
        *("utm_medium", "utm_campaign", "utm_content", "utm_term", "property_cost", "commission"),
    }
    (newer,) = stored(database_url, leads(lead(id=1, at=1_795_000_300)))
    assert columns(first) == columns(partial) == []
    assert "status" in columns(newer)
    assert "none: superseded by newer events" in run("events", "show", first)
    (task,) = stored(database_url, delivered(form_body("task", "add", {"id": "7"})))
    assert "none: events of this kind are only recorded" in run("events", "show", task)


def test_an_event_outlives_its_delivery_in_what_is_shown(run: Run, database_url: str) -> None:
    """A delivery that is gone is said to be pruned."""
    (event,) = stored(database_url, leads(lead(id=1)))
    run_sql(database_url, "DELETE FROM deliveries")
    assert "Its delivery is pruned." in run("events", "show", event, "--body")
    assert json.loads(run("events", "show", event, "--json"))["delivery"] is None


def test_the_delivery_of_events_of_several_accounts_is_shown_for_each(run: Run, database_url: str) -> None:
    """It is kept with the account of its first event, and found from the others too."""
    items = [lead(id=number, account_id=account) for number, account in enumerate(("32000001", "32000002"), 1)]
    delivery = delivered(form_body("leads", "update", *items, account=None), account="")
    events = stored(database_url, delivery)
    shown = [json.loads(run("events", "show", event, "--json")) for event in events]
    assert [(each["event"]["account_id"], each["delivery"]["id"]) for each in shown] == [
        ("32000001", delivery.id),
        ("32000002", delivery.id),
    ]


def test_dead_events_are_pending_again_after_a_replay(run: Run, database_url: str) -> None:
    """All of them, of every account, in batches; what is not dead is not touched."""
    poison(database_url)
    stored(database_url, *(leads(lead(id=POISON, name=str(number)), account=account) for number in range(3) for account in ("a", "b")))
    stored(database_url, leads(lead(id=1)), unparsed(b"{"))
    for _ in range(2):
        worked(database_url)
    assert rows_of(database_url, "SELECT state, count(*) FROM events GROUP BY 1 ORDER BY 1") == [("dead", 7), ("processed", 1)]
    run_sql(database_url, "UPDATE events SET deferrals = 3")
    assert run("replay", "--dead", "--entity", "leads", "--account", "a") == "3 events are pending again.\n"
    assert run("replay", "--dead", "--entity", "unparsed") == "1 event is pending again.\n"
    assert run("replay", "--dead") == "3 events are pending again.\n"
    assert run("replay", "--dead") == "0 events are pending again.\n"
    assert rows_of(
        database_url,
        "SELECT state, attempts, deferrals, replays, available_at <= now(), last_error IS NULL, count(*) FROM events"
        " GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1",
    ) == [("pending", 0, 0, 1, True, False, 7), ("processed", 1, 3, 0, None, True, 1)]


def test_named_events_are_replayed_together_or_not_at_all(run: Run, database_url: str) -> None:
    """One that does not exist, or is processed, stops the others too: the person meant something else."""
    poison(database_url)
    (dead,) = stored(database_url, leads(lead(id=POISON)))
    for _ in range(2):
        worked(database_url)
    (done,) = stored(database_url, leads(lead(id=1), account="a"))
    with pytest.raises(CommandError, match=f"^Nothing is replayed: there is no event {NOWHERE}.$"):
        run("replay", dead, NOWHERE)
    with pytest.raises(CommandError, match="there is no event"):
        run("replay", dead, "--account", "a")
    with pytest.raises(CommandError, match=f"^Nothing is replayed: processed already .*: {done}.$"):
        run("replay", dead, done)
    assert rows_of(database_url, "SELECT DISTINCT state FROM events ORDER BY 1") == [("dead",), ("processed",)]
    assert run("replay", dead, done, "--force") == "2 events are pending again.\n"
    assert run("replay", dead) == "0 events are pending again, 1 pending already.\n"
    antidote(database_url)
    assert worked(database_url) == 2
    assert rows_of(database_url, "SELECT state, effect, attempts, replays FROM events") == [("processed", "applied", 1, 1)] * 2


@pytest.mark.parametrize("arguments", [(), (NOWHERE, "--dead"), ("--dead", "--force"), (NOWHERE, "--entity", "leads")])
def test_a_replay_that_names_nothing_clear_is_refused(arguments: tuple[str, ...]) -> None:
    """Ids or all dead ones, and each option only where it means something."""
    refused = CliRunner().invoke(app, ["replay", *arguments]).exception
    assert isinstance(refused, CommandError)
    assert str(refused).startswith(("Name the events", "--force goes with ids"))


async def test_a_replay_waits_until_a_worker_has_settled_everything(database_url: str, tmp_path: Path, start_worker: StartWorker) -> None:
    """It ends with what became of them, and fails if any is dead again."""
    body = form_body("leads", "update", lead(id="twelve"), lead(id=POISON), lead(id=1))
    run_sql(database_url, f"ALTER TABLE leads ADD CONSTRAINT no_thirteen CHECK (id <> {POISON})")
    async with opened(database_url) as repository, connect(database_url) as connection:
        await accept_at(database_url, delivered(body))
        for _ in range(2):
            await attempt(repository, connection)
        await make_due(connection)
    run_sql(database_url, "ALTER TABLE leads DROP CONSTRAINT no_thirteen")
    start_worker(database_url, env={"WORKER_POLL_SECONDS": "0.1"})
    command = [sys.executable, "-m", "amo_receiver", "replay", "--dead", "--wait"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env=service_environment(database_url, tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "2 events are pending again.\n"), done.stderr
    assert done.stderr.splitlines()[-1] == "amo-webhooks: 1 dead, 1 processed; amo-webhooks events list --state dead says why."


@pytest.mark.parametrize(
    ("arguments", "db_url", "sentence"),
    [
        (["events", "show", NOWHERE], None, f"amo-webhooks: There is no event {NOWHERE}: never was, or pruned."),
        (["events", "list"], "postgresql://u:p@127.0.0.1:1/x", "amo-webhooks: The database is not reached (ConnectionRefusedError)"),
    ],
    ids=["unknown", "no-database"],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    database_url: str, tmp_path: Path, arguments: list[str], db_url: str | None, sentence: str
) -> None:
    """No traceback, and nothing on standard output."""
    command = [sys.executable, "-m", "amo_receiver", *arguments]
    env = service_environment(db_url or database_url, tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_what_is_wrong_with_the_database_is_said_in_the_persons_words(run: Run, database_url: str) -> None:
    """No database configured, the wrong password, no schema."""
    with pytest.raises(ConfigurationError, match="DB_URL is not set"):
        run("events", "list", DB_URL=None)
    with pytest.raises(CommandError, match="refuses the user or the password"):
        run("events", "list", DB_URL=database_url.replace("postgres:", "postgres:not"))
    with pytest.raises(CommandError, match="no database of the name"):
        run("events", "list", DB_URL=database_url + "x")
    with pytest.raises(CommandError, match="run amo-webhooks migrate upgrade head"):
        run("fields", DB_URL=database_url.rpartition("/")[0] + "/postgres")


def test_everything_works_through_the_pooler(run: Run, pooled_url: str) -> None:
    """DB_URL may lead through one in transaction mode, and these commands need no other connection."""
    (event,) = stored(pooled_url, leads(lead(id=1)))
    assert ids_in(run("events", "list", "--json", DB_URL=pooled_url)) == [event]
    assert event in run("events", "show", event, DB_URL=pooled_url)
    assert "1 event is pending again" in run("replay", event, "--force", DB_URL=pooled_url)
    assert worked(pooled_url) == 1
    assert "123458" in run("fields", DB_URL=pooled_url)
    assert "Deleted 1 processed events" in run("prune", "--processed-days", 0, DB_URL=pooled_url)


def test_the_custom_fields_and_statuses_that_arrived_are_listed_with_what_they_map_to(run: Run, database_url: str) -> None:
    """By account and how many have them, matched by id, code or name; values are personal data and not shown."""
    own = custom_field(777, NAME, name="[b]Район[/b]")
    cost = custom_field(4321, "5", name="Стоимость объекта")
    stored(
        database_url,
        leads(lead(id=1, custom_fields=[own, cost, custom_field(123458, "google", name="utm")])),
        leads(lead(id=2, status_id=99, custom_fields=[own])),
        leads(lead(id=1, custom_fields=[own], status_id=None), account="32000002"),
        delivered(
            form_body("contacts", "add", {"id": "3", "name": NAME, "custom_fields": [custom_field(5, "+7000", name="x", code="phone")]})
        ),
        delivered(json_body("leads", "update", digital_pipeline_lead(id=3, custom_fields_values=[custom_field_v4(777, "v")]))),
    )
    document = json.loads(run("fields", "--json"))
    keys = ("account_id", "entity", "id", "name", "code", "cards", "column", "matched_by")
    assert [tuple(row[key] for key in keys) for row in document["custom_fields"]] == [
        (ACCOUNT, "leads", "777", "[b]Район[/b]", None, 3, None, None),
        (ACCOUNT, "leads", "123458", "utm", None, 1, "utm_source", "id"),
        (ACCOUNT, "leads", "4321", "Стоимость объекта", None, 1, "property_cost", "name"),
        ("32000002", "leads", "777", "[b]Район[/b]", None, 1, None, None),
        (ACCOUNT, "contacts", "5", "x", "phone", 1, "phone", "code"),
    ]
    assert [(row["account_id"], row["id"], row["status"], row["cards"]) for row in document["statuses"]] == [
        (ACCOUNT, 1, "new", 1), (ACCOUNT, 2, "contacted", 1), (ACCOUNT, 99, None, 1),
    ]  # fmt: skip
    output = run("fields")
    assert "From the newest 10000 leads and contacts of each account" in output
    assert "[b]Район[/b]" in output
    assert NAME not in output
    assert json.loads(run("fields", "--json", "--account", "32000002", "--entity", "leads"))["custom_fields"][0]["cards"] == 1
    assert json.loads(run("fields", "--json", "--entity", "contacts"))["statuses"] == []


def test_fields_are_mapped_by_the_mapping_file_in_use(run: Run, database_url: str, tmp_path: Path) -> None:
    """An account's own table included; and a sample is taken from the newest cards."""
    path = tmp_path / "own.toml"
    path.write_text('[accounts.32000001.leads.fields]\nutm_term = [777]\n[accounts.32000001.leads.status]\n99 = "lost"\n')
    stored(
        database_url,
        leads(lead(id=1, status_id=2, custom_fields=[custom_field(776, "x")])),
        leads(lead(id=2, status_id=99, custom_fields=[custom_field(777, "x")])),
        leads(lead(id=3, custom_fields=[custom_field(778, "x")]), account="32000002"),
    )
    document = json.loads(run("fields", "--json", "--sample", 1, MAPPING_FILE=str(path)))
    assert [(row["id"], row["column"], row["cards"]) for row in document["custom_fields"]] == [("777", "utm_term", 1), ("778", None, 1)]
    assert [(row["id"], row["status"], row["cards"]) for row in document["statuses"]] == [(99, "lost", 1), (1, None, 1)]


def test_without_any_cards_there_is_nothing_to_map(run: Run) -> None:
    """An empty database gives a sentence and no empty tables."""
    assert "None has a custom field or a status." in run("fields")


@pytest.mark.parametrize("command", [["events", "list"], ["events", "show"], ["replay"], ["prune"], ["fields"]], ids=" ".join)
def test_help_has_an_example(command: list[str]) -> None:
    """A line to start from."""
    text = CliRunner().invoke(app, [*command, "--help"]).stdout
    assert f"Example: amo-webhooks {' '.join(command)}" in " ".join(text.split())
