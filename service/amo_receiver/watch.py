"""Files that change while the service runs: the keyring folder, the mapping, accounts; noticed by polling within 2 s."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from amo_receiver.amocrm import fields
from amo_receiver.amocrm.keyring import Keyring, environment_source
from amo_receiver.amocrm.keyring_file import parse_source
from amo_receiver.errors import ConfigurationError
from amo_receiver.log import get_logger

if TYPE_CHECKING:
    from amo_receiver.amocrm.keyring import Source
    from amo_receiver.settings import Settings

MOST_FILE_BYTES = 262_144
MOST_FILES = 1_000

logger = get_logger(__name__)

Fingerprint = Callable[[], Hashable]


def signature(path: Path) -> Hashable:
    """Summarise a file, or a folder and its visible entries, so that a change of content changes the summary."""
    try:
        entries = visible_entries(path) if path.is_dir() else []
    except OSError as error:
        return (str(path), type(error).__name__)
    return tuple(_stat_signature(entry) for entry in (path, *entries))


def _stat_signature(path: Path) -> Hashable:
    # Kubernetes volumes swap the folder behind a symlink, hence the resolved path; a chmod mends a file, hence mode and ctime.
    try:
        status = path.stat()
        return (os.path.realpath(path), status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        return (str(path), type(error).__name__)


def visible_entries(folder: Path) -> list[Path]:
    """List the entries without the hidden ones (``..data`` of a Kubernetes volume), by name, one more than ``MOST_FILES`` at most."""
    with os.scandir(folder) as entries:
        visible = (Path(entry.path) for entry in entries if not entry.name.startswith("."))
        return sorted(islice(visible, MOST_FILES + 1))


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a regular file.

    :raises ConfigurationError: it is none, is larger than ``most_bytes`` or cannot be read.
    """
    try:
        # Non-blocking, because opening a named pipe would otherwise wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigurationError("it is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(most_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"it cannot be read ({type(error).__name__})") from error
    if len(content) > most_bytes:
        raise ConfigurationError(f"it is larger than {most_bytes} bytes")
    return content


class KeyringDirectory:
    """The sources of one folder, a file each (``acme`` or ``acme.json``); what was good once is kept until something newer is good.

    Revoke a source by a file of a higher generation with an empty list of keys; a file that disappears changes nothing.
    """

    def __init__(
        self, path: Path, summarise: Callable[[Path], Hashable] = signature, on_refused: Callable[[], object] = lambda: None
    ) -> None:
        self._path = path
        self._summarise = summarise
        self._on_refused = on_refused
        self._sources: dict[str, Source] = {}
        self._problems: set[tuple[str, str]] = set()
        self._summary: Hashable = None
        self._settled = False
        self._revision = 0

    @property
    def sources(self) -> Mapping[str, Source]:
        """Return the sources held, by name."""
        return MappingProxyType(self._sources)

    def revision(self) -> int:
        """Poll, and return a number that grows with every change: the fingerprint for ``Watch.add``."""
        self.poll()
        return self._revision

    def poll(self) -> bool:
        """Read the folder if it changed or was not in order, and tell whether the sources changed."""
        # Settled after two equal summaries: a file written twice within one tick of the clock has one summary for two contents.
        current = self._summarise(self._path)
        if current == self._summary and self._settled:
            return False
        self._settled, self._summary = current == self._summary, current
        return self.load()

    def load(self) -> bool:
        """Read every file now, and tell whether the sources changed."""
        problems: set[tuple[str, str]] = set()
        newer = list(self._read(problems))
        for file, problem in sorted(problems - self._problems):
            logger.warning("Keyring file ignored, what was loaded before stays in force: %s", problem, file=file)
            self._on_refused()
        for source in newer:
            logger.info("Keyring source loaded: %s", source.name, generation=source.generation, keys=len(source.keys))
        self._problems = problems
        self._settled = self._settled and not problems
        self._sources |= {source.name: source for source in newer}
        self._revision += bool(newer)
        return bool(newer)

    def _read(self, problems: set[tuple[str, str]]) -> Iterator[Source]:
        """Yield the sources that are newer than those held, and collect what is wrong with the others."""
        try:
            files = [entry for entry in visible_entries(self._path) if not entry.is_dir()]
        except OSError as error:
            problems.add((str(self._path), f"the folder cannot be read ({type(error).__name__})"))
            return
        if not files:
            problems.add((str(self._path), "the folder is empty"))
            return
        if len(files) > MOST_FILES:
            problems.add((str(self._path), f"the folder has more than {MOST_FILES} files"))
        seen: set[str] = set()
        for file in files[:MOST_FILES]:
            name = file.name.removesuffix(".json")
            try:
                source = self._read_source(name, file, seen)
            except ConfigurationError as error:
                problems.add((file.name, str(error)))
            else:
                if source is not None:
                    yield source
            seen.add(name)
        problems.update((name, "it is missing") for name in self._sources.keys() - seen)

    def _read_source(self, name: str, file: Path, seen: set[str]) -> Source | None:
        """Read one file; None when it says what is held already."""
        if name in seen:
            raise ConfigurationError("there is another file for the same source")
        source = parse_source(name, read_bounded(file, MOST_FILE_BYTES))
        held = self._sources.get(name)
        if held is None or source.generation > held.generation:
            return source
        if source.generation < held.generation:
            raise ConfigurationError(f"generation {source.generation} is lower than {held.generation}, which is loaded")
        if source != held:
            raise ConfigurationError(f"its content changed and its generation did not: raise it above {held.generation}")
        return None


@dataclass(slots=True)
class _Watched:
    fingerprint: Fingerprint
    callback: Callable[[], object]
    last: Hashable = None
    failure: str = ""


class Watch:
    """Call back when files change; add before the first reading, or a change between the two is missed."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def add(self, target: Path | Iterable[Path] | Fingerprint, callback: Callable[[], object]) -> None:
        """Call ``callback`` each time the file, the folder, one of several or the value of ``target()`` changes from now on."""
        if callable(target):
            fingerprint = target
        else:
            paths = [target] if isinstance(target, Path) else list(target)

            def fingerprint() -> Hashable:
                return tuple(signature(path) for path in paths)

        watched = _Watched(fingerprint, callback)
        watched.last = self._take(watched)
        self._watched.append(watched)

    async def run(self, interval_seconds: float = 1.0) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            self.check()

    def check(self) -> None:
        """Poll once; an error of a callback is logged and neither ends the watch nor is the callback repeated before the next change."""
        # On the event loop, not in a thread: a few stat calls, and callbacks may then replace objects that requests use.
        for watched in self._watched:
            current = self._take(watched)
            if current == watched.last:
                continue
            watched.last = current
            try:
                watched.callback()
            except ConfigurationError as error:
                logger.error("The former one stays in force: %s", error, error_type="ConfigurationError")  # noqa: TRY400
            except Exception:  # one broken file must not end the watching of the others
                logger.exception("A changed file could not be taken over; the former one stays in force")

    def _take(self, watched: _Watched) -> Hashable:
        try:
            current = watched.fingerprint()
        except Exception as error:
            if watched.failure != repr(error):
                logger.exception("A watched file could not be looked at")
            watched.failure = repr(error)
            return watched.last
        watched.failure = ""
        return current


def load_mapping(settings: Settings) -> fields.Mapping:
    """Read the mapping file, or the shipped one."""
    if settings.mapping_file is None:
        return fields.Mapping.parse((files("amo_receiver") / "mapping.toml").read_text("utf-8"))
    try:
        return fields.Mapping.parse(settings.mapping_file.read_text("utf-8"))
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"MAPPING_FILE {settings.mapping_file} cannot be read ({type(error).__name__}).") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"MAPPING_FILE {settings.mapping_file}: {error}") from error


def load_keyring(settings: Settings, directory: KeyringDirectory | None) -> Keyring:
    """Join the environment's credentials and the keyring folder's."""
    secret = settings.amocrm_client_secret.get_secret_value()
    default = environment_source(settings.amocrm_client_id, secret) if settings.amocrm_client_id else None
    token, account = settings.amocrm_webhook_token.get_secret_value(), settings.amocrm_account_id
    return Keyring.build(default, dict(directory.sources) if directory else {}, token or None, account or None)
