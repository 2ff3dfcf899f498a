"""What skaffold.yaml names exists: images and their stages, values of the chart, files to copy, ports, custom resources."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml

from chart.rendering import CHART, of_kind, one, rendered
from e2e.skaffold import FILE, ROOT, destinations, pipeline, values_options, variable

if TYPE_CHECKING:
    from pathlib import Path

    from chart.rendering import Manifest

PROFILES = ["", *(each["name"] for each in yaml.safe_load(FILE.read_text(encoding="utf-8"))["profiles"])]


def deployed(profile: str, folder: Path) -> list[Manifest]:
    """Return the objects of the release as a profile deploys it."""
    chosen = pipeline(profile)
    release = chosen.release
    assert ROOT / release["chartPath"] == CHART
    images = {each["image"]: f"example.test/{each['image']}:built" for each in chosen.artifacts}
    return rendered(None, *values_options(release, images, folder), release=release["name"], namespace=release["namespace"])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_deploys_what_it_builds(profile: str, tmp_path: Path) -> None:
    """Each image of the release that is ours is the one just built, also inside the custom resource."""
    objects = deployed(profile, tmp_path)
    images = set(re.findall(r"'image': '([^']+)'", str(objects)))
    assert {each for each in images if "amo-webhooks" in each} == {
        f"example.test/amo-webhooks{name}:built" for name in ("", "-operator", "-pgbouncer")
    }
    (migration,) = of_kind(objects, "SchemaMigration")
    assert migration["spec"]["image"] == "example.test/amo-webhooks:built"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_image_can_be_built(profile: str) -> None:
    """Its Dockerfile is there, has the stage that is asked for, and copies what is there."""
    artifacts = pipeline(profile).artifacts
    for each in artifacts:
        docker = each.get("docker", {})
        context = ROOT / each.get("context", ".")
        text = (context / docker.get("dockerfile", "Dockerfile")).read_text(encoding="utf-8")
        assert docker.get("target", "") in {"", *re.findall(r"^FROM .* AS (\w+)$", text, flags=re.MULTILINE)}
        copied = [name for names in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for name in names.split()]
        assert [name for name in copied if not (context / name).exists()] == []
        known = {other["image"] for other in artifacts}
        assert {one["image"] for one in each.get("requires", [])} <= known
        assert [one["alias"] for one in each.get("requires", [])] == re.findall(r"^ARG (\w+)$", text, flags=re.MULTILINE)[
            : len(each.get("requires", []))
        ]


def test_templates_name_images_that_are_built() -> None:
    """With the letters that template variables may have."""
    names = {variable(each["image"]) for each in pipeline().artifacts}
    used = re.findall(r"\{\{\.IMAGE_(?:REPO|TAG)_(\w+)\}\}", FILE.read_text(encoding="utf-8"))
    assert set(used) == names


def test_a_file_of_the_service_is_copied_where_its_image_runs_it() -> None:
    """And only those: what else changes is built anew."""
    service, *others = pipeline("dev").artifacts
    dockerfile = (ROOT / service["docker"]["dockerfile"]).read_text(encoding="utf-8")
    (place,) = destinations(service, "service/amo_receiver/inbox/batch.py")
    assert f"COPY service/amo_receiver {place.removesuffix('/inbox/batch.py')}\n" in dockerfile
    assert list(destinations(service, "migrations/versions/0001_deliveries_events_cards.py")) == []
    assert not any("sync" in each for each in [*others, *pipeline().artifacts])


@pytest.mark.parametrize("profile", PROFILES)
def test_ports_lead_to_what_is_deployed(profile: str, tmp_path: Path) -> None:
    """Each to an object of the release; a Service has that port."""
    objects = deployed(profile, tmp_path)
    for each in pipeline(profile).document["portForward"]:
        found = one(objects, each["resourceType"].capitalize(), each["resourceName"])
        if found["kind"] == "Service":
            assert each["port"] in [port["port"] for port in found["spec"]["ports"]]


def test_our_custom_resources_are_selected() -> None:
    """Or skaffold neither replaces their images nor labels them."""
    kinds = {
        f"{yaml.safe_load(path.read_text(encoding='utf-8'))['spec']['names']['kind']}.amo-webhooks.io"
        for path in (CHART / "crds").iterdir()
    }
    assert {each["groupKind"] for each in pipeline().document["resourceSelector"]["allow"]} == kinds


def test_the_sender_s_job_fits_the_release(tmp_path: Path) -> None:
    """It asks the release's Service, with the credentials of its integration."""
    chosen = pipeline("ci")
    (test,) = chosen.document["verify"]
    job = yaml.safe_load((ROOT / test["executionMode"]["kubernetesCluster"]["jobManifestPath"]).read_text(encoding="utf-8"))
    objects = deployed("ci", tmp_path)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    host, port = {each["name"]: each["value"] for each in container["env"]}["ADDRESS"].split(":")
    assert int(port) in [each["port"] for each in one(objects, "Service", host)["spec"]["ports"]]
    (integration,) = of_kind(objects, "AmoIntegration")
    (mounted,) = [each["secret"]["secretName"] for each in job["spec"]["template"]["spec"]["volumes"] if "secret" in each]
    assert mounted == f"{integration['metadata']['name']}-credentials"
    assert job["metadata"]["namespace"] == chosen.release["namespace"]
    assert test["container"]["image"] in [each["image"] for each in chosen.artifacts]
