"""A real kube-apiserver on a real etcd, without root, and the accesses to it.

No controllers run beside it: what they would do and the tests need is in ``controllers.py``.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2
import trustme

from amo_receiver.embedded.folder import free_port
from children import Child

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = ("etcd", "kube-apiserver")
WHY_NOT = (
    "KUBEBUILDER_ASSETS is not set: it names the folder with etcd and kube-apiserver (setup-envtest downloads one), "
    "without which nothing can be proven against a real API server"
)
SERVICE_RANGE = "10.0.0.0/24"
REQUEST_TIMEOUT_S = 30.0
TRIES, PAUSE_S = 8, 0.25
NOT_NOW = {429, 500, 502, 503, 504}
"""What it answers under load, and while it sets up its storage for a definition that is new or changed."""


class Refused(AssertionError):  # noqa: N818 - named for what happened
    """An answer that is neither a success nor 404."""

    def __init__(self, call: str, answer: httpx2.Response) -> None:
        super().__init__(f"{call}: {answer.status_code} {answer.text}")
        self.status = answer.status_code


def assets() -> Path | None:
    """Return the folder of the programs, or None where it is not set; a folder without them is a mistake."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        return None
    folder = Path(named).expanduser()
    missing = [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]
    if missing:
        raise FileNotFoundError(f"KUBEBUILDER_ASSETS={named} has no {' and no '.join(missing)}")
    return folder


def kubeconfig(url: str, ca_path: Path, user: Mapping[str, str], *, namespace: str = "default") -> str:
    """Write out an access: JSON, which every reader of YAML reads too."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": url, "certificate-authority": str(ca_path)}}],
            "users": [{"name": "tests", "user": dict(user)}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": namespace}}],
            "current-context": "tests",
        }
    )


class Etcd(Child):
    """The API server's database; it answers when its health is good."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        peers = f"http://127.0.0.1:{free_port()}"
        command = [str(program), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]
        super().__init__(command, cwd=folder, env={"PATH": os.defpath, "HOME": str(folder)}, log_path=folder / "etcd.log")

    def is_ready(self) -> bool:
        """Ask /health."""
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/health", trust_env=False).is_success
        return False


class ApiServer(Child):
    """The API server: RBAC on, tokens of ServiceAccounts are issued and checked."""

    def __init__(self, programs: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_path)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._etcd = Etcd(programs / "etcd", folder)
        self.admin = self._issue("admin", "admin", common_name="admin", organization_name="system:masters")
        self.kubeconfig = folder / "admin.kubeconfig"
        self.kubeconfig.write_text(kubeconfig(self.url, self.ca_path, {"client-certificate": self.admin[0], "client-key": self.admin[1]}))
        self._client = httpx2.Client(base_url=self.url, verify=self.client_context(), trust_env=False, timeout=REQUEST_TIMEOUT_S)
        command = [str(programs / "kube-apiserver"), *self._flags()]
        super().__init__(command, cwd=folder, env={"PATH": os.defpath, "HOME": str(folder)}, log_path=folder / "kube-apiserver.log")

    def _issue(self, name: str, *identities: str, **subject: str) -> tuple[str, str]:
        """Issue a certificate; return the paths of it and of its key."""
        paths = (self.folder / f"{name}.pem", self.folder / f"{name}.key")
        issued = self.ca.issue_cert(*identities, **subject)  # type: ignore[arg-type]
        issued.cert_chain_pems[0].write_to_path(paths[0])
        issued.private_key_pem.write_to_path(paths[1])
        return str(paths[0]), str(paths[1])

    def _flags(self) -> list[str]:
        certificate, key = self._issue("serving", "127.0.0.1", "localhost")
        _, tokens_key = self._issue("tokens", "tokens")
        flags = {
            "etcd-servers": self._etcd.url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": self.port,
            "service-cluster-ip-range": SERVICE_RANGE,
            "authorization-mode": "RBAC",
            "client-ca-file": self.ca_path,
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": tokens_key,
            "service-account-signing-key-file": tokens_key,
            "cert-dir": self.folder / "generated",
            "endpoint-reconciler-type": "none",  # nobody reaches it by its Service, and a loopback address is no endpoint
            "profiling": "false",
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def serving_context(self) -> ssl.SSLContext:
        """Return what another server needs to be trusted by who trusts this one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        return context

    def client_context(self, *, admin: bool = True) -> ssl.SSLContext:
        """Return what a client needs to trust this server, and to be the administrator."""
        context = ssl.create_default_context(cafile=self.ca_path)
        if admin:
            context.load_cert_chain(*self.admin)
        return context

    def is_ready(self) -> bool:
        """Ask /readyz, which waits for the roles that RBAC comes with."""
        with suppress(httpx2.HTTPError):
            return self._client.get("/readyz").is_success
        return False

    def start(self) -> Self:
        """Start both programs, or the API server alone if it was killed."""
        if not self._etcd.is_ready():
            self._etcd.start()
        return super().start()

    def end(self) -> None:
        """End both at once: nothing of theirs is wanted again."""
        self._client.close()
        for program in (self, self._etcd):
            with suppress(AssertionError):
                program.kill()

    def ask(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", **headers: str) -> dict[str, Any]:
        """Ask as the administrator, for what no typed client can; 404 is ``{}``, and what is refused for now is asked again.

        :raises Refused: the answer is no success.
        """
        content = None if body is None else json.dumps(body).encode()
        again = NOT_NOW | ({httpx2.codes.CONFLICT} if method == "PATCH" else set())  # it names no version: only two at once collide
        for pause_s in [PAUSE_S * number for number in range(1, TRIES)] + [0]:
            answer = self._client.request(method, path, content=content, headers={"Content-Type": content_type, **headers})
            if answer.status_code not in again:
                break
            time.sleep(pause_s)
        if answer.status_code == httpx2.codes.NOT_FOUND:
            return {}
        if not answer.is_success:
            raise Refused(f"{method} {path}", answer)
        read: dict[str, Any] = answer.json()
        return read

    def serves(self, path: str) -> bool:
        """Tell whether a path is served: a new kind is 404 at first, then 429 while its storage begins."""
        return self._client.get(path).is_success
