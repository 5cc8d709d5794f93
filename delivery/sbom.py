"""The bill of materials of an image or environment: CycloneDX JSON of what inventory.py found.

Every Python distribution and Debian package with version, licences, package URL and, where pip recorded it, the digest
of the file that it came from; our own packages are marked with the commit they were built from. One inventory gives the
same document, but for the time that it bears. What is not said: which files of which component an image holds.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_supported_id
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from delivery.licences import Licences, debian_licences, python_licences
from delivery.packages import PREFIX
from posttrain.core.errors import WorkError

NAMESPACE = uuid.UUID("0f1d9a5c-6a51-5a0e-9c39-3b6f2c1e7d10")
"""Of the documents' serial numbers, which are made from their content."""


def bill_of_materials(subject: str, inventory: Mapping[str, Any], commit: str, made: datetime) -> str:
    """The document as CycloneDX 1.6 JSON, valid by the library's own schema.

    `subject` names what the inventory is of (an image with its tag), `commit` is what our packages were built from.
    """
    content = json.dumps([subject, inventory, commit], sort_keys=True)
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, content))
    bom.metadata.timestamp = made
    name, _, version = subject.rpartition(":") if ":" in subject else (subject, "", "")
    top = Component(type=ComponentType.CONTAINER, name=name, version=version or None, bom_ref=subject)
    bom.metadata.component = top
    places = _places(inventory["python"])
    python = {key: _python_component(found, commit) for key, found in places.items()}
    others = [_debian_component(found, inventory["distribution"]) for found in inventory["debian"]]
    if inventory["interpreter"]:
        others.append(_interpreter(inventory["interpreter"]))
    bom.components.update([*python.values(), *others])
    bom.register_dependency(top, [*python.values(), *others])
    imported = {name: python[name, version] for name, version in reversed(places)}
    for key, found in places.items():
        bom.register_dependency(
            python[key], [imported[name] for name in _needed(found["requires"]) if name in imported]
        )
    return validated(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def validated(document: str) -> str:
    """The document itself; WorkError where it is not valid CycloneDX 1.6 JSON."""
    trouble = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    if trouble is not None:
        raise WorkError(f"the bill of materials is not valid CycloneDX: {' '.join(str(trouble).split())[:500]}")
    return document


def _python_component(found: Mapping[str, Any], commit: str) -> Component:
    name = canonicalize_name(found["name"])
    ours = name.startswith(PREFIX)
    properties = [Property(name="posttrain:path", value=path) for path in found["paths"]]
    if ours:
        properties += [Property(name="posttrain:ours", value="true"), Property(name="posttrain:commit", value=commit)]
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=d) for kind, d in found["hashes"].items() if kind == "sha256"]
    return Component(
        type=ComponentType.LIBRARY,
        name=found["name"],
        version=found["version"],
        description=found["summary"] or None,
        # Ours are in no index: under pypi another one's package of that name would be meant.
        purl=PackageURL("generic" if ours else "pypi", None, name, found["version"]),
        bom_ref=f"python:{name}@{found['version']}",
        licenses=_licences(python_licences(found)),
        hashes=hashes,
        properties=properties,
    )


def _places(distributions: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Name and version to the distribution with all its paths: a library that others carry along lies in several
    places. Those nearest to the root come first, which are the ones that are imported."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for distribution in sorted(distributions, key=lambda d: (d["path"].count("/"), d["path"])):
        key = (canonicalize_name(distribution["name"]), distribution["version"])
        found.setdefault(key, {**distribution, "paths": []})["paths"].append(distribution["path"])
    return found


def _needed(requires: Iterable[str]) -> list[str]:
    """The names that a distribution needs without its extras, on this kind of machine."""
    needed: dict[str, None] = {}
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # old metadata may have what PEP 508 does not allow; its component is listed anyway
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed[canonicalize_name(requirement.name)] = None
    return list(needed)


def _debian_component(found: Mapping[str, Any], distribution: Mapping[str, str]) -> Component:
    name, version, architecture = found["name"], found["version"], found["architecture"]
    qualifiers = {"arch": architecture, "distro": f"{distribution['id']}-{distribution['version']}"}
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        description=found["summary"] or None,
        purl=PackageURL("deb", distribution["id"], name, version, qualifiers),
        bom_ref=f"debian:{name}:{architecture}@{version}",
        licenses=_licences(debian_licences(found)),
        properties=[Property(name="posttrain:source", value=f"{found['source']} {found['source_version']}")],
    )


def _interpreter(version: str) -> Component:
    return Component(
        type=ComponentType.PLATFORM,
        name="CPython",
        version=version,
        purl=PackageURL("generic", None, "cpython", version),
        bom_ref=f"cpython@{version}",
        licenses=_licences(Licences(("PSF-2.0",))),
    )


def _licences(found: Licences) -> Sequence[DisjunctiveLicense | LicenseExpression]:
    """CycloneDX holds either one expression or a list of ids and names."""
    acknowledgement = LicenseAcknowledgement.CONCLUDED if found.concluded else LicenseAcknowledgement.DECLARED
    if len(found.spdx) == 1 and not found.names and not is_supported_id(found.spdx[0]):
        return [LicenseExpression(found.spdx[0], acknowledgement=acknowledgement)]
    ids = [DisjunctiveLicense(id=term, acknowledgement=acknowledgement) for term in found.spdx if is_supported_id(term)]
    compound = [term for term in found.spdx if not is_supported_id(term)]
    return ids + [DisjunctiveLicense(name=term, acknowledgement=acknowledgement) for term in [*compound, *found.names]]
