"""OVA: an appliance in a tar archive, of which one disk is read.

The archive holds an OVF descriptor (XML), perhaps a manifest with checksums, and disks, here VMDK images.  Of several disks the one
that the descriptor lists first is taken, unless one is named; `notes` says which and what was left.  With a manifest, it must name the
descriptor and the disk, and both must have the checksums that it gives.  Signatures (`.cert`) are not looked at.

Specification: "Open Virtualization Format Specification", DMTF DSP0243, version 2.1.1, sections 5.1 to 5.3 (package, manifest) and 7.1
(references), 9.1 (disks).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from xml.parsers import expat

from ringfence.backends.block.foreign.tar import Member, members
from ringfence.backends.block.foreign.vmdk import VmdkBlock
from ringfence.backends.block.foreign.window import Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import MIB

_MAX_TEXT_BYTES = MIB
_MAX_ELEMENTS = 10_000
_CHUNK_BYTES = MIB
_MANIFEST_LINE = re.compile(r"(SHA1|SHA256|SHA384|SHA512)[ \t]*\(([^()\r\n]{1,255})\)[ \t]*=[ \t]*([0-9A-Fa-f]{40,128})[ \t]*")


@dataclass
class _Envelope:
    """What the descriptor says: files by their id, and the files of its disks in order."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    disks: list[dict[str, str]] = field(default_factory=list)


class OvaBlock(VmdkBlock):
    """`member` is the name of the disk's file in the archive."""

    format = "ova"

    def __init__(self, file: HostFile, window: Window, member: str | None = None) -> None:
        found = {one.name: one for one in members(window)}
        descriptor = next((one for name, one in found.items() if name.lower().endswith(".ovf")), None)
        if descriptor is None:
            raise ImageError(f"{window.name} holds no OVF descriptor.", "Check the path; an OVA is a tar archive with an .ovf file.")
        names = _disk_names(window, _parse(window, _text(window, descriptor)), found)
        if not names:
            raise ImageError(f"The appliance {window.name} has no disk.", "Give another one.")
        if member is not None and member not in names:
            raise UserError(f"{window.name} has no disk named {member!r}.", f"It has: {', '.join(names)[:1000]}.")
        chosen = member or names[0]
        self.member = chosen
        checked = _check_manifest(window, found, descriptor, found[chosen])
        disk = found[chosen]
        part = Window(file, disk.offset, disk.size_bytes, f"{window.name} ({chosen})")
        super().__init__(file, part, alone=True)
        others = [name for name in names if name != chosen]
        left = f"; left out: {', '.join(others)[:1000]}" if others else ""
        self.notes += (f"The disk is {chosen}{left}.", checked)


def _text(window: Window, member: Member) -> bytearray:
    if member.size_bytes > _MAX_TEXT_BYTES:
        raise window.damaged(f"its {member.name[:100]!r} is too large ({member.size_bytes} bytes)")
    return window.read(member.offset, member.size_bytes, "descriptor")


def _parse(window: Window, data: bytearray) -> _Envelope:
    """Document type declarations are refused, and with them entities: nothing is expanded and nothing fetched."""
    envelope, count = _Envelope(), 0
    parser = expat.ParserCreate(namespace_separator="}")

    def refuse_doctype(*_: object) -> None:
        raise window.damaged("its OVF descriptor has a document type declaration")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MAX_ELEMENTS:
            raise window.damaged("its OVF descriptor has too many elements")
        local = name.rpartition("}")[2]
        values = {key.rpartition("}")[2]: value for key, value in attributes.items()}
        if local == "File":
            if envelope.files.setdefault(values.get("id", ""), values) is not values:
                raise window.damaged("its OVF descriptor has two files with one id")
        elif local == "Disk":
            envelope.disks.append(values)

    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    try:
        parser.Parse(bytes(data), True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: an encoding that Python does not know
        raise window.damaged(f"its OVF descriptor is not XML ({error})") from error
    return envelope


def _disk_names(window: Window, envelope: _Envelope, found: dict[str, Member]) -> list[str]:
    names: list[str] = []
    for disk in envelope.disks:
        reference = disk.get("fileRef")
        if reference is None:  # an empty disk, to be made when the appliance is deployed
            continue
        if "parentRef" in disk:
            raise ImageError(f"A disk of {window.name} holds only the changes to another one, which is not supported.", "Export it anew.")
        entry = envelope.files.get(reference, {})
        name = entry.get("href", "")
        if name not in found:
            raise ImageError(
                f"The descriptor of {window.name} refers to the disk {name[:100]!r}, which is not in the archive.",
                "Disks are only read from the archive itself; get it complete.",
            )
        if entry.get("compression", "identity").lower() not in ("", "identity") or entry.get("chunkSize"):
            raise ImageError(f"The disk {name[:100]!r} of {window.name} is compressed as a file or split.", "Export it without.")
        if name not in names:
            names.append(name)
    return names


def _check_manifest(window: Window, found: dict[str, Member], descriptor: Member, disk: Member) -> str:
    """What can be said about the checksums.  Raises ImageError when they are wrong."""
    manifest = found.get(descriptor.name[: -len(".ovf")] + ".mf") or next((m for n, m in found.items() if n.lower().endswith(".mf")), None)
    if manifest is None:
        return "The archive has no manifest, so that its checksums could not be compared."
    sums: dict[str, tuple[str, str]] = {}
    for line in _text(window, manifest).decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        match = _MANIFEST_LINE.fullmatch(line.strip())
        if match is None:
            raise window.damaged(f"the line {line[:80]!r} of its manifest is not a checksum")
        sums[match[2].strip()] = (match[1].lower(), match[3].lower())
    for member in (descriptor, disk):
        if member.name not in sums:
            raise window.damaged(f"its manifest does not name {member.name[:100]!r}")
        method, expected = sums[member.name]
        if _digest(window, member, method) != expected:
            raise window.damaged(f"{member.name[:100]!r} does not have the {method.upper()} checksum of the manifest")
    return f"Descriptor and disk have the {sums[disk.name][0].upper()} checksums of the manifest."


def _digest(window: Window, member: Member, method: str) -> str:
    digest = hashlib.new(method)
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(1, member.size_bytes))))
    for at in range(0, member.size_bytes, len(buffer)):
        part = buffer[: member.size_bytes - at]
        window.read_into(member.offset + at, part)
        digest.update(part)
    return digest.hexdigest()
