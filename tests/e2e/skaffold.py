"""What skaffold does with skaffold.yaml, where it cannot be had: build, deploy with Helm, copy changed files, verify."""

from __future__ import annotations

import io
import json
import re
import tarfile
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from e2e.cluster import Cluster
    from e2e.images import Builder

ROOT = Path(__file__).parents[2]
FILE = ROOT / "skaffold.yaml"
LOCAL_OPTIONS = {"target": "--target", "dockerfile": "-f"}


class Pipeline(NamedTuple):
    """The file as one profile has it."""

    document: dict[str, Any]

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        """What is built, an image after those that it requires."""
        return sorted(self.document["build"]["artifacts"], key=lambda each: len(each.get("requires", ())))

    @property
    def release(self) -> dict[str, Any]:
        """What is deployed."""
        (found,) = self.document["deploy"]["helm"]["releases"]
        return dict(found)


def pipeline(profile: str = "") -> Pipeline:
    """Read the file and apply a profile: its patches, and what it adds."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    profiles = {each["name"]: each for each in document.pop("profiles")}
    chosen = profiles[profile] if profile else {}
    for patch in chosen.get("patches", []):
        document = patched(document, patch)
    return Pipeline(document | {key: chosen[key] for key in ("verify",) if key in chosen})


def patched(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return the document with one `add` of JSON Patch done, the only operation that the file uses."""
    assert patch["op"] == "add", patch
    made = deepcopy(document)
    *path, last = patch["path"].removeprefix("/").split("/")
    place: Any = made
    for name in path:
        place = place[int(name) if isinstance(place, list) else name]
    if isinstance(place, list):
        place.insert(len(place) if last == "-" else int(last), patch["value"])
    else:
        place[last] = patch["value"]
    return made


def variable(image: str) -> str:
    """Return an image's name as it stands in the names of template variables."""
    return re.sub(r"[-./:]", "_", image)


def rendered(template: str, images: dict[str, str]) -> str:
    """Fill `{{.IMAGE_REPO_x}}` and `{{.IMAGE_TAG_x}}`; an artifact that is not built is an error."""
    values: dict[str, str] = {}
    for name, built in images.items():
        values[f"IMAGE_REPO_{variable(name)}"], _, values[f"IMAGE_TAG_{variable(name)}"] = built.rpartition(":")
    return re.sub(r"\{\{\.(\w+)\}\}", lambda found: values[found[1]], template)


def values_options(release: dict[str, Any], images: dict[str, str], folder: Path) -> list[str]:
    """Return Helm's options for a release, the later ones before the earlier: files, overrides, templates."""
    overrides = folder / "overrides.yaml"
    overrides.write_text(json.dumps(release.get("overrides", {})), encoding="utf-8")
    files = [*(str(ROOT / name) for name in release.get("valuesFiles", [])), str(overrides)]
    filled = {path: rendered(template, images) for path, template in release["setValueTemplates"].items()}
    return [*(part for name in files for part in ("--values", name)), *(f"--set-string={path}={value}" for path, value in filled.items())]


def destinations(artifact: dict[str, Any], changed: str) -> Iterable[str]:
    """Return where a changed file of the checkout is copied to, by the artifact's rules; nowhere means that the image is built anew."""
    for rule in artifact.get("sync", {}).get("manual", []):
        folder, _, rest = rule["src"].partition("**")
        assert not rest, f"{rule['src']}: only whole folders are understood here"
        if changed.startswith(folder):
            yield f"{rule['dest']}/{changed.removeprefix(rule['strip'])}"


class Skaffold:
    """Runs a profile in a cluster; each image gets the repository's name in front, as with `--default-repo`."""

    def __init__(self, cluster: Cluster, builder: Builder, repository: str, folder: Path) -> None:
        self.images: dict[str, str] = {}
        self._made: set[str] = set()
        self.cluster = cluster
        self._builder = builder
        self._repository = repository
        self._folder = folder

    def build(self, chosen: Pipeline) -> None:
        """Build what the profile names, and load it."""
        for each in chosen.artifacts:
            docker = each.get("docker", {})
            # By what it is built of, as its tag policy has it: what profiles have in common is built once.
            name = f"{self._repository}/{each['image']}:{docker.get('target', 'release')}"
            options = [part for key, option in LOCAL_OPTIONS.items() if key in docker for part in (option, docker[key])]
            options += [f"--build-arg={one['alias']}={self.images[one['image']]}" for one in each.get("requires", [])]
            if name not in self._made:
                self._builder.make(name, ROOT / each.get("context", "."), *options)
            self._made.add(name)
            self.images[each["image"]] = name

    def deploy(self, chosen: Pipeline, options: Sequence[str] = ()) -> None:
        """Install or upgrade the release."""
        release = chosen.release
        command = ["upgrade", "--install", release["name"], str(ROOT / release["chartPath"]), "--wait", "--timeout", "5m"]
        command += ["--create-namespace"] if release.get("createNamespace") else []
        self.cluster.helm(*command, *values_options(release, self.images, self._folder), *options)

    def sync(self, chosen: Pipeline, changed: str, content: bytes) -> list[str]:
        """Copy a changed file into the pods that run its image; return their names."""
        pods = []
        for artifact in chosen.artifacts:
            for place in destinations(artifact, changed):
                pods += self._copy(self.images[artifact["image"]], place, content)
        return pods

    def _copy(self, image: str, place: str, content: bytes) -> list[str]:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(place.removeprefix("/"))
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
        pods = []
        for pod in self.cluster.items("pods", "--field-selector=status.phase=Running"):
            for container in pod["spec"]["containers"]:
                if container["image"] == image and "deletionTimestamp" not in pod["metadata"]:
                    name = pod["metadata"]["name"]
                    command = ("exec", "-i", name, "-c", container["name"], "--", "tar", "xmf", "-", "-C", "/", "--no-same-owner")
                    self.cluster.kubectl(*command, stdin=archive.getvalue())
                    pods.append(name)
        return pods

    def verify(self, chosen: Pipeline) -> list[str]:
        """Run the profile's tests in the cluster, one after the other; return what each printed, and fail if one fails."""
        return [self._run(each) for each in chosen.document["verify"]]

    def _run(self, test: dict[str, Any]) -> str:
        job = yaml.safe_load((ROOT / test["executionMode"]["kubernetesCluster"]["jobManifestPath"]).read_text(encoding="utf-8"))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["name"] == test["container"]["name"]
        container["image"] = self.images[test["container"]["image"]]
        name = f"job/{job['metadata']['name']}"
        self.cluster.kubectl("delete", "--ignore-not-found", "--wait", name)
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(job))
        ended = lambda: self.cluster.get(name).get("status", {}).get("conditions")  # noqa: E731 - said where it is used
        self.cluster.until(ended, f"the end of {name}", test["timeout"])
        printed = self.cluster.kubectl("logs", name)
        assert self.cluster.get(name)["status"].get("succeeded") == 1, printed
        return printed
