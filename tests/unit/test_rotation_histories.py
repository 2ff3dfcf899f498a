"""Histories of a rotation: an API server, an operator that dies anywhere, pods that lag, a sender, a person and clocks, all at once.

What is promised, and checked after every step, is in the docstrings of the invariants. What is not: keys that stood only in a keyring
that was lost, and what was retired in the second between the document and the status if a backup is restored just then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Literal, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from amo_operator.evidence import Observed, Report, Wanted
from amo_operator.keyring import CorruptKeyring, KeyKind, Keyring, Retired, credentials, fingerprint, read_keyring, write_keyring
from amo_operator.rotation import decide
from amo_receiver.amocrm.keyring_file import parse_source

if TYPE_CHECKING:
    from amo_operator.evidence import Decision
    from amo_operator.keyring import Key
    from amo_receiver.amocrm.keyring import Source

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
READS_EVERY = 6 * HOUR
"""How long a sender of ours may go on with what it has read of the credentials."""
NOT_YET = 2**63
"""The generation of a document that has not been written."""
LEAST_OVERLAP = 12 * HOUR
"""The overlap, less what the operator's clock may be wrong at both ends of it (6 h each)."""
BUSY, SELDOM = "77", "78"
"""An account that has news all the time, and one that only has some when a rule says so."""


@dataclass
class Pod:
    """A service pod: what it has mounted, whether it answers, and whether its kubelet refreshes at all."""

    name: str
    source: Source | None
    answers: bool = True
    knows_matches: bool = True
    refreshes: bool = True
    is_from_backup: bool = False

    def accepts(self, kind: KeyKind, secret: str, now: datetime, account: str = "") -> bool:
        return (
            self.source is not None
            and (not account or self.source.serves(account))
            and any(key.kind == kind and key.secret == secret.encode() and key.active(now) for key in self.source.keys)
        )


@dataclass
class Signer:
    """Who signs with one kind of key; nothing is promised while ``is_promised`` is false."""

    secret: str | None = None
    is_promised: bool = False


class Versions(NamedTuple):
    """By which a write tells whether what it replaces still is what was read."""

    document: int = 0
    credentials: int = 0
    resource: int = 0


@dataclass(frozen=True)
class Observation:
    """What an operator has read, and what is true of the matches at that moment, whether it was told or not."""

    wanted: Wanted
    observed: Observed
    versions: Versions
    matches: dict[str, datetime]


class Cluster(RuleBasedStateMachine):
    """The world around decide()."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 22, tzinfo=UTC)
        self.skew = timedelta()
        self.document: str | None = None
        self.versions = Versions()
        self.backups: list[str] = []
        self.credentials: dict[str, str] | None = None
        self.input: str | None = None
        self.wrong_since: datetime | None = None
        self.annotation: str | None = None
        self.status_generation = 0
        self.status_retired: tuple[Retired, ...] = ()
        self.status_keys: frozenset[str] = frozenset()
        self.pods: list[Pod] = []
        self.pods_before: set[str] = set()
        self.numbers = count()
        self.matches: dict[str, dict[str, datetime]] = {}
        self.sender = Signer()
        self.urls = {BUSY: Signer(), SELDOM: Signer()}
        self.account_births: dict[str, int] = {}
        self.births: dict[str, int] = {}
        self.unproved: set[str] = set()
        self.published: dict[str, Key] = {}
        self.gone: set[str] = set()
        self.highest = 0
        self.made: list[str] = []
        self.clicked: list[str] = []
        self.stale: Observation | None = None
        self.last: Decision | None = None

    def secret(self) -> str:
        self.made.append(f"SECRET-{len(self.made)}-{'x' * 20}")
        return self.made[-1]

    @initialize(
        mode=st.sampled_from(["ref", "generate", None]),
        has_url=st.booleans(),
        pods=st.integers(0, 3),
        accounts=st.sampled_from([None, (BUSY,), (BUSY, SELDOM)]),
    )
    def install(self, mode: Literal["ref", "generate"] | None, has_url: bool, pods: int, accounts: tuple[str, ...] | None) -> None:
        kinds: list[KeyKind] = (["client_secret"] if mode == "generate" else []) + (["url_key"] if has_url or mode is None else [])
        self.wanted = Wanted("client", accounts, mode, dict.fromkeys(kinds, 30 * DAY))
        for _ in range(pods):
            self.pod_starts()

    # --- what the operator sees and does

    @property
    def held(self) -> Keyring | None:
        try:
            return read_keyring(self.document) if self.document is not None else None
        except CorruptKeyring:
            return None

    @property
    def is_told(self) -> bool:
        """The status tells what the document does."""
        held = self.held
        return held is None or (self.status_generation >= held.generation and set(held.retired) <= set(self.status_retired))

    def change(self, **versions: int) -> None:
        """Note that something was written: what was read before is old."""
        now = self.versions._asdict()
        self.versions = self.versions._replace(**{name: now[name] + count for name, count in versions.items()})

    def observe(self) -> Observation:
        reports = tuple(self.report(pod) for pod in self.pods)
        names = {pod.name for pod in self.pods}
        steady, self.pods_before = names == self.pods_before, names
        floor = max([self.status_generation, *(report.generation or 0 for report in reports)])
        problem = None if self.held else "missing" if self.document is None else "corrupt"
        observed = Observed(
            self.now + self.skew,
            self.held,
            problem,
            self.input,
            self.credentials,
            reports,
            steady,
            self.annotation,
            floor,
            self.status_retired,
            self.status_keys,
        )
        matches = {name: max(accounts.values()) for name, accounts in self.matches.items()}
        return Observation(self.wanted, observed, self.versions, matches)

    def report(self, pod: Pod) -> Report:
        if not pod.answers or pod.source is None:
            return Report(pod.name, pod.name, "it does not answer", None)
        names = frozenset(key.fingerprint for key in pod.source.keys)
        accounts = {name: dict(self.matches[name]) for name in names if name in self.matches and pod.knows_matches}
        matched = {name: max(each.values()) for name, each in accounts.items()}
        return Report(pod.name, pod.name, None, pod.source.generation, names, matched, accounts, self.now, pod.knows_matches)

    @rule()
    def observe_and_hesitate(self) -> None:
        """Read now and act later, as a second operator does, or this one on a slow node."""
        self.stale = self.observe()

    @precondition(lambda self: self.stale is not None)
    @rule(steps=st.integers(0, 3))
    def act_late(self, steps: int) -> None:
        assert self.stale is not None
        observation, self.stale = self.stale, None
        self.act(observation, steps)

    @rule(steps=st.sampled_from([0, 1, 2, 3, 3, 3, 3]))
    def reconcile(self, steps: int) -> None:
        self.act(self.observe(), steps)

    def act(self, observation: Observation, steps: int) -> None:
        """Decide and write: the document, the credentials, the status, each by compare-and-set; die after ``steps`` of them."""
        wanted, observed, versions = observation.wanted, observation.observed, observation.versions
        decision = decide(wanted, observed, self.secret)
        self.check(wanted, observed, decision)
        keyring = decision.keyring
        if steps >= 1 and keyring is not None and keyring is not observed.keyring:
            if versions.document != self.versions.document:
                return
            self.write(observation, keyring)
        if steps >= 2 and keyring is not None and wanted.rotate_every:
            texts = credentials(keyring, is_generated=wanted.client_secret == "generate")
            if texts != observed.credentials:
                if versions.credentials != self.versions.credentials:
                    return
                self.credentials = texts
                self.change(credentials=1)
        if steps >= 3 and keyring is not None:
            status = (keyring.generation, keyring.retired, keyring.fingerprints)
            if status != (self.status_generation, self.status_retired, self.status_keys):
                if versions.resource != self.versions.resource:
                    return
                self.status_generation, self.status_retired, self.status_keys = status
                self.change(resource=1)
        self.last = decision

    def write(self, observation: Observation, keyring: Keyring) -> None:
        wanted, observed, before = observation.wanted, observation.observed, observation.observed.keyring
        assert keyring.generation > self.highest, "G5: the generation only grows"
        self.highest = keyring.generation
        assert not keyring.fingerprints & self.gone, "G4: what was retired or revoked never comes back"
        self.gone |= {each.fingerprint for each in keyring.retired}
        for key in keyring.keys:
            was = next((each for each in before.keys if each.secret == key.secret), None) if before else None
            # Pods that do not hear of it refuse it at the old time; those that have seen it lost and back must see it again.
            had = self.published.get(key.secret)
            if key.secret in self.births and (had is None or (had.not_after and not key.not_after)):
                self.births[key.secret] = keyring.generation
                self.unproved.add(key.secret)
            self.births.setdefault(key.secret, keyring.generation)
            if key.state == "current" and (was is None or was.state != "current"):
                self.check_promotion(observed, keyring, key.kind, key.secret)
        known_retired = {each.fingerprint for each in observed.known_retired}
        for left in before.keys if before else ():
            if left.fingerprint not in keyring.fingerprints | wanted.revoke | known_retired:
                self.check_departure(observation, left)
        for account in self.urls:
            served = [document is not None and account in (document.accounts or self.urls) for document in (before, keyring)]
            if served == [False, True]:
                self.account_births[account] = keyring.generation
        self.published = {key.secret: key for key in keyring.keys}
        self.backups.append(write_keyring(keyring))
        self.document = self.backups[-1]
        self.change(document=1)

    def check_departure(self, observation: Observation, left: Key) -> None:
        """G3: not before the overlap is over, and not before it was quiet; at the latest at its not_after."""
        wanted, now = observation.wanted, observation.observed.now
        assert left.state == "previous", "G3: only previous keys retire"
        assert now >= left.since + wanted.overlap, "G3: not before the overlap is over"
        matched = observation.matches.get(left.fingerprint)
        is_at_end = left.not_after is not None and now >= left.not_after
        assert is_at_end or matched is None or now >= matched + wanted.quiet_period, "G3: not while it is used"

    def check_promotion(self, observed: Observed, keyring: Keyring, kind: KeyKind, secret: str) -> None:
        """G2: who was next is current only once every pod that has a keyring accepts it; unless there is no other to go on with."""
        before = observed.keyring.one(kind, "current") if observed.keyring else None
        is_forced = before is None or before.fingerprint not in keyring.fingerprints or observed.keyring.generation < observed.floor  # type: ignore[union-attr]
        if is_forced:
            self.unproved.add(secret)
            return
        behind = [pod for pod in self.pods if pod.source and not pod.is_from_backup and not pod.accepts(kind, secret, self.now)]
        assert not behind, "G2: promoted before every pod has it"

    def check(self, wanted: Wanted, observed: Observed, decision: Decision) -> None:
        told = " ".join([repr(decision), repr(observed), *(f"{note.message}" for note in decision.changes), decision.action or ""])
        assert not [secret for secret in self.made if secret in told], "G6: fingerprints only"
        again = decide(wanted, replace(observed, keyring=decision.keyring), self.secret)
        assert (again.keyring, again.changes) == (decision.keyring, ()), "G7: decided once"
        if decision.keyring is not None:
            source = parse_source("acme", write_keyring(decision.keyring))
            assert source.generation == decision.keyring.generation
            assert {key.fingerprint for key in source.keys} == decision.keyring.fingerprints
            assert read_keyring(write_keyring(decision.keyring)) == decision.keyring
            assert bool(decision.changes) == (decision.keyring is not observed.keyring)

    # --- pods

    @precondition(lambda self: len(self.pods) < 4)
    @rule()
    def pod_starts(self) -> None:
        pod = Pod(f"pod-{next(self.numbers)}", None)
        self.pods.append(pod)
        self.mount(pod)
        pod.is_from_backup = pod.source is not None and pod.source.generation < self.highest

    def mount(self, pod: Pod) -> None:
        """Read the file as the service does: a missing, corrupt or older one is ignored."""
        if self.held is None or self.document is None:
            return
        source = parse_source("acme", self.document)
        if pod.source is None or source.generation >= pod.source.generation:
            pod.source = source
            pod.is_from_backup &= source.generation < self.highest

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), does=st.sampled_from(["refresh", "refresh", "answers", "knows_matches", "stuck", "goes"]))
    def something_of_a_pod(self, data: st.DataObject, does: str) -> None:
        pod = data.draw(st.sampled_from(self.pods))
        if does == "refresh" and pod.refreshes:
            self.mount(pod)
        elif does == "answers":
            pod.answers = not pod.answers
        elif does == "knows_matches":
            pod.knows_matches = not pod.knows_matches
        elif does == "stuck":
            pod.refreshes = not pod.refreshes
        elif does == "goes":
            self.pods.remove(pod)

    @rule(steps=st.lists(st.sampled_from([3, 3, 3, 2, 1]), min_size=1, max_size=4), hours=st.sampled_from([0, 0, 1, 25]))
    def rounds_of_healthy_pods(self, steps: list[int], hours: int) -> None:
        """Let a rotation get on: without this, chance seldom brings one to its end."""
        self.skew = timedelta()
        for pod in self.pods:
            pod.answers = pod.refreshes = pod.knows_matches = True
        for each in steps:
            self.all_refresh()
            self.reconcile(each)
            self.all_refresh()
            self.signed_requests_are_accepted()
            self.entered_urls_are_accepted()
        self.time_passes(hours)

    @precondition(lambda self: "url_key" in self.wanted.rotate_every and "url_key" in (self.credentials or {}))
    @rule(moved=st.sets(st.sampled_from([BUSY, SELDOM])), hours=st.sampled_from([2, 25, 24 * 8]))
    def rotation_of_urls(self, moved: set[str], hours: int) -> None:
        """Let a person move some of the accounts that had the same URL key: by chance, all of this seldom happens together."""
        for account in (BUSY, SELDOM):
            self.person_enters_url(account)
        self.person_asks_for_rotation(f"rotation {len(self.made)}")
        self.rounds_of_healthy_pods([3, 3, 3, 3], 0)
        for account in sorted(moved):
            self.person_enters_url(account)
        self.rounds_of_healthy_pods([3, 3, 3], hours)
        self.rounds_of_healthy_pods([3, 3], hours)

    @rule()
    def all_refresh(self) -> None:
        for pod in self.pods:
            if pod.refreshes:
                self.mount(pod)

    # --- senders and people

    @rule()
    def sender_reads(self) -> None:
        """Let a sender of ours read its credentials."""
        if self.wanted.client_secret == "generate" and self.credentials and "client_secret" in self.credentials:
            self.sender = self.told("client_secret")

    def told(self, kind: KeyKind) -> Signer:
        """Sign with what stands in the credentials, even if it was revoked a moment ago."""
        assert self.credentials is not None
        secret = self.credentials[kind]
        return Signer(secret, fingerprint(secret) not in self.wanted.revoke)

    @precondition(lambda self: "url_key" in self.wanted.rotate_every and "url_key" in (self.credentials or {}))
    @rule(account=st.sampled_from([BUSY, SELDOM]))
    def person_enters_url(self, account: str) -> None:
        """Enter it for one account; what it then sends first is what the operator knows of that."""
        signer = self.urls[account] = self.told("url_key")
        # Credentials of a kind that is on its way out may be there still, if the operator died before it wrote them.
        signer.is_promised &= any(key.secret == signer.secret and key.not_after is None for key in self.held.keys) if self.held else True
        signer.is_promised &= self.call(account) and account in (self.wanted.accounts or self.urls)

    @rule()
    def sender_signs(self) -> None:
        secret = self.sender.secret
        if secret and any(pod.accepts("client_secret", secret, self.now) for pod in self.pods):
            self.matches.setdefault(fingerprint(secret), {})[""] = self.now

    @rule(account=st.sampled_from([BUSY, SELDOM]))
    def amocrm_calls(self, account: str) -> None:
        self.call(account)

    def call(self, account: str) -> bool:
        """Let amoCRM call an account's URL; tell whether a pod takes it."""
        secret = self.urls[account].secret
        is_accepted = secret is not None and any(pod.accepts("url_key", secret, self.now, account) for pod in self.pods)
        if secret and is_accepted:
            self.matches.setdefault(fingerprint(secret), {})[account] = self.now
        return is_accepted

    @precondition(lambda self: self.wanted.client_secret == "ref")
    @rule(does=st.sampled_from(["click", "write", "write", "wrong", "back", "delete"]), data=st.data())
    def person_and_amocrm(self, does: str, data: st.DataObject) -> None:
        """Cut amoCRM over at once with the click; then let the person write, sometimes the wrong thing."""
        signer = self.sender
        if does == "click" or signer.secret is None:
            self.clicked.append(self.secret())
            self.sender = Signer(self.clicked[-1])
        elif does == "write":
            self.input, self.wrong_since = signer.secret + "\n", None
            signer.is_promised = fingerprint(signer.secret) not in self.gone | self.wanted.revoke
            if signer.secret in self.published and self.published[signer.secret].not_after:
                self.births[signer.secret] = NOT_YET
        else:
            others = [secret for secret in self.clicked if secret != signer.secret and does == "back"]
            self.input = None if does == "delete" else data.draw(st.sampled_from(others)) if others else self.secret()
            if does != "delete":
                self.wrong_since = self.wrong_since or self.now
                # Nobody knows the secret any more if it stood only in a keyring that was lost.
                signer.is_promised &= self.held is not None and self.held.generation == self.highest

    # --- the resource

    @rule(text=st.sampled_from(["a", "b", "c"]))
    def person_asks_for_rotation(self, text: str) -> None:
        self.annotation = text
        self.change(resource=1)

    @rule(accounts=st.sampled_from([None, (BUSY,), (BUSY, SELDOM)]), paused=st.sampled_from([False, False, True]))
    def spec_changes(self, accounts: tuple[str, ...] | None, paused: bool) -> None:
        self.wanted = replace(self.wanted, accounts=accounts, paused=paused)
        for account, signer in self.urls.items():
            signer.is_promised &= account in (accounts or self.urls)
        self.change(resource=1)

    @precondition(lambda self: self.wanted.client_secret is not None)
    @rule()
    def url_key_is_lost_or_wanted(self) -> None:
        every = dict(self.wanted.rotate_every)
        if every.pop("url_key", None) is None:
            every["url_key"] = 30 * DAY
        self.wanted = replace(self.wanted, rotate_every=every)
        for signer in self.urls.values():
            signer.is_promised = False
        self.change(resource=1)

    @precondition(lambda self: self.held is not None and self.held.keys)
    @rule(data=st.data())
    def person_revokes(self, data: st.DataObject) -> None:
        assert self.held is not None
        key = data.draw(st.sampled_from(self.held.keys))
        self.wanted = replace(self.wanted, revoke=self.wanted.revoke | {key.fingerprint})
        for signer in (self.sender, *self.urls.values()):
            signer.is_promised &= signer.secret != key.secret
        self.change(resource=1)

    @precondition(lambda self: self.is_told and self.document is not None)
    @rule(how=st.sampled_from(["missing", "corrupt", "older"]), data=st.data())
    def keyring_is_lost(self, how: str, data: st.DataObject) -> None:
        self.document = (
            {"missing": None, "corrupt": '{"version": 1, "generation": "'}.get(how)
            if how != "older"
            else data.draw(st.sampled_from(self.backups))
        )
        self.change(document=1)
        told = self.input.strip() if self.wanted.client_secret == "ref" and self.input else None
        self.sender.is_promised &= self.sender.secret in (told, (self.credentials or {}).get("client_secret"))
        for account, signer in self.urls.items():
            signer.is_promised &= signer.secret == (self.credentials or {}).get("url_key")
            signer.is_promised &= self.held is None or account in (self.held.accounts or self.urls)

    @rule()
    def credentials_are_lost(self) -> None:
        if self.held is not None and self.held.generation == self.status_generation == self.highest:
            self.credentials = None
            self.change(credentials=1)

    # --- time

    @rule(hours=st.sampled_from([0.01, 1, 6, 23, 30, 24 * 8, 24 * 31]))
    def time_passes(self, hours: float) -> None:
        self.stale, end = None, self.now + hours * HOUR
        if self.wanted.client_secret == "generate" and "client_secret" not in (self.credentials or {}):
            self.sender.is_promised = False  # it cannot be told until the operator is back
        while self.now < end:
            self.now = min(end, self.now + READS_EVERY)
            self.sender_reads()

    @rule(hours=st.integers(-6, 6))
    def operators_clock_jumps(self, hours: int) -> None:
        self.stale, self.skew = None, hours * HOUR

    # --- promises

    @invariant()
    def signed_requests_are_accepted(self) -> None:
        """G1, client secret: each pod with a keyring accepts what the sender signs with.

        Generated: any pod at all, however far behind it is, once the secret was promoted by proof; one that had to be made current
        without (the first one, or after a revoke or a loss) from the generation on in which it came.
        Referenced: from the generation on in which the secret came after the person wrote it. Between the click and that document
        nothing is promised. If the input Secret is overwritten with something else, the old secret is accepted for the overlap.
        """
        if self.wanted.client_secret == "ref" and self.wrong_since and self.now - self.wrong_since >= LEAST_OVERLAP:
            self.sender.is_promised = False
        self.accepted("client_secret", self.sender)

    @invariant()
    def entered_urls_are_accepted(self) -> None:
        """G1, URL key: a URL that was read from the credentials and entered in amoCRM is accepted until a new one is entered.

        For each account by itself, however seldom it has news, from the generation on in which it may send.
        """
        self.call(BUSY)
        for account, signer in self.urls.items():
            self.accepted("url_key", signer, account)

    def accepted(self, kind: KeyKind, signer: Signer, account: str = "") -> None:
        if signer.secret is None or not signer.is_promised or signer.secret not in self.births:
            return
        is_proved = signer.secret not in self.unproved and not (kind == "client_secret" and self.wanted.client_secret == "ref")
        for pod in self.pods:
            has_it = pod.source is not None and pod.source.generation >= self.births[signer.secret]
            may_send = pod.source is not None and pod.source.generation >= self.account_births.get(account, 0)
            if not pod.is_from_backup and may_send and (has_it or is_proved):
                assert pod.accepts(kind, signer.secret, self.now, account), f"G1: {pod.name} rejects a valid {kind} {account}"

    def teardown(self) -> None:
        """When everything is healthy the rotation ends: one key of each kind, in every pod, and nothing to wait for."""
        if not hasattr(self, "wanted"):
            return
        self.skew, self.stale, self.wanted = timedelta(), None, replace(self.wanted, paused=False)
        for pod in self.pods:
            pod.answers = pod.refreshes = pod.knows_matches = True
        self.pods.append(Pod("the-last", None))
        for _ in range(60):
            self.all_refresh()
            self.reconcile(3)
            self.time_passes(6)
            if self.wanted.client_secret == "ref" and (self.last is None or self.last.action):
                self.sender = Signer(self.secret())
                self.input = self.sender.secret
            for account, signer in self.urls.items():
                if "url_key" in self.wanted.rotate_every and signer.secret != (self.credentials or {}).get("url_key"):
                    self.person_enters_url(account)
                self.call(account)
            self.entered_urls_are_accepted()
            self.signed_requests_are_accepted()
            held = self.held
            wanted = {kind for kind in ("client_secret", "url_key") if self.wanted.mode(kind)}  # type: ignore[arg-type]
            if self.last and held and self.last.waits is None and {key.kind for key in held.keys} == wanted and not self.last.changes:
                assert len(held.keys) == len(wanted)
                return
        raise AssertionError(f"it never settles: {self.last}")


TestHistories = Cluster.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


@given(
    mode=st.sampled_from(["ref", "generate", None]),
    rotations=st.lists(st.tuples(st.sets(st.sampled_from([BUSY, SELDOM])), st.sampled_from([2, 25, 24 * 8])), min_size=1, max_size=4),
    accounts=st.sampled_from([None, (BUSY, SELDOM)]),
)
def test_whoever_is_moved_when(
    mode: Literal["ref", "generate"] | None, rotations: list[tuple[set[str], int]], accounts: tuple[str, ...] | None
) -> None:
    """G1 for every account, whichever of them a person has moved by when; the machine above seldom gets so far."""
    cluster = Cluster()
    cluster.install(mode, True, 2, accounts)
    if mode == "ref":
        cluster.person_and_amocrm("click", None)  # type: ignore[arg-type]
        cluster.person_and_amocrm("write", None)  # type: ignore[arg-type]
    cluster.rounds_of_healthy_pods([3, 3], 0)
    for moved, hours in rotations:
        cluster.rotation_of_urls(moved, hours)
        cluster.entered_urls_are_accepted()
        cluster.signed_requests_are_accepted()
    cluster.teardown()
