"""Write pgbouncer.ini and userlist.txt from the DSN in DB_URL and the settings that are given: `pooling.py SETTINGS FOLDER`."""

import os
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TLS = {
    "sslmode": "server_tls_sslmode",
    "sslrootcert": "server_tls_ca_file",
    "sslcert": "server_tls_cert_file",
    "sslkey": "server_tls_key_file",
}


def configuration(url: str, settings: str, users: Path) -> tuple[str, str]:
    """Return both files; every database name leads to the one server."""
    parts = urlsplit(url)
    if "," in parts.netloc.rpartition("@")[2]:
        sys.exit("The DSN names several hosts, of which pgbouncer cannot choose the one that writes: set pgbouncer.enabled=false.")
    if not (parts.hostname and parts.username):
        sys.exit("The DSN names no host or no user: it is written postgresql://user:password@host:5432/name.")
    query = parse_qs(parts.query)
    tls = "".join(f"{name} = {query[key][-1]}\n" for key, name in TLS.items() if key in query)
    server = f"* = host={parts.hostname} port={parts.port or 5432}"
    user, password = (unquote(text or "").replace('"', '""') for text in (parts.username, parts.password))
    return f"[databases]\n{server}\n\n[pgbouncer]\nauth_file = {users}\n{tls}{settings}", f'"{user}" "{password}"\n'


if __name__ == "__main__":
    settings, folder = map(Path, sys.argv[1:3])
    users = folder / "userlist.txt"
    # Whoever runs pgbouncer may be another user of the same group.
    os.umask(0o027)
    ini, userlist = configuration(os.environ["DB_URL"], settings.read_text(encoding="utf-8"), users)
    (folder / "pgbouncer.ini").write_text(ini, encoding="utf-8")
    users.write_text(userlist, encoding="utf-8")
