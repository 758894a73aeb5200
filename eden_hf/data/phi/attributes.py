"""DICOM attributes that the Basic Application Level Confidentiality Profile (PS3.15 Annex E) removes or replaces.

The table is `dicom-anonymizer`'s. By it an attribute goes (X), is emptied (Z) or gets a dummy (D), UIDs get others
(U). Whether a value is a dummy, and a UID another, cannot be told: those count as such where the file says that it
was de-identified (PatientIdentityRemoved is YES), but for names of persons, and for dates unless it says that these
were changed as well (LongitudinalTemporalInformationModified). What had to go is found in any case, but for the
dummies that de-identifying programs are known to write. Beside the profile, texts that may stay are found where they
name a person or a day, as are documents within the file and overlays in bits of its pixels.
"""

import re
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from eden_hf.data.dicom import parse_dicom
from eden_hf.data.errors import DecodeError
from eden_hf.data.phi.findings import told_apart
from eden_hf.data.phi.names import name_findings

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset, FileDataset

_Action = Literal["remove", "dummy", "uid"]
_ACTIONS: dict[str, _Action] = {
    "X_TAGS": "remove", "X_Z_TAGS": "remove", "X_D_TAGS": "remove", "X_Z_D_TAGS": "remove",
    "D_TAGS": "dummy", "Z_TAGS": "dummy", "Z_D_TAGS": "dummy",
    "U_TAGS": "uid", "X_Z_U_STAR_TAGS": "uid",
}  # fmt: skip
#: Values that de-identifying programs write.
_DUMMY = re.compile(
    r"[\W_]*(?:anon\w*|de-?identified|removed?|dummy|none|unknown|not? ?(?:applicable|available)|n/?a|x+|0*y?|[\W_]+"
    r"|0*1?01?01\d*(?:\.0+)?(?:[+-]0+)?|0+(?:\.0+)?|https?://anonymi[sz]ed\.invalid)[\W_]*",
    re.IGNORECASE,
)
_DATES = ("DA", "DT", "TM")
_TEXTS = ("CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
#: Groups of overlays, and where these say in which bit of the pixels they are.
_OVERLAYS, _OVERLAY_BIT, _OVERLAY_DATA = 0xFF00FFFF, 0x60000102, 0x3000
#: What says that pixels show who it is.
_WARNINGS = ("BurnedInAnnotation", "RecognizableVisualFeatures")


def attribute_findings(data: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Attributes of a DICOM file, as `(keyword, value)`; those of sequences with the sequence's keyword before a dot.

    Args:
        data: The whole file: attributes may lie behind the pixels.
        name: What errors call it.

    Raises:
        ImportError: the extra `phi` is not installed.
        Exception: whatever pydicom raises on damaged files.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImportError("DICOM attributes need pydicom: pip install eden_hf[phi]") from error
    dataset, whole = _parsed(data, name)
    removed = str(dataset.get("PatientIdentityRemoved", "")).strip().upper()
    if removed != "YES":
        yield "PatientIdentityRemoved", removed or "absent: nothing says that it was de-identified"
    yield from ((name, "YES") for name in _WARNINGS if str(dataset.get(name, "")).strip().upper() == "YES")
    if any(data[:128]) and data[128:132] == b"DICM" and data[:2] not in (b"II", b"MM"):  # a TIFF as well
        yield "preamble", repr(data[:128].rstrip(b"\0"))
    moved = str(dataset.get("LongitudinalTemporalInformationModified", "")).strip().upper()
    trusted = (removed == "YES", removed == "YES" and moved in ("REMOVED", "MODIFIED"))
    yield from _within(dataset.file_meta, *trusted)
    yield from _within(dataset, *trusted)
    if not whole:
        raise DecodeError("damaged pixels: what lies behind them cannot be read; restore it, or leave it out")


def _parsed(data: bytes, name: str) -> "tuple[FileDataset, bool]":
    """The data set, and whether it is whole; with damaged pixels pydicom may drop all, so then what is before them."""
    header = parse_dicom(BytesIO(data), name, header_only=True)
    try:
        whole = parse_dicom(BytesIO(data), name)
    except Exception:  # pydicom raises anything on damaged files
        return header, False
    return (header, False) if len(whole) < len(header) else (whole, True)


def _within(dataset: "Dataset", deidentified: bool, dates_changed: bool, above: str = "") -> Iterator[tuple[str, str]]:
    """Attributes of a data set and of those within it."""
    for element in dataset:
        name = above + (element.keyword or str(element.tag))
        action = _action(element.tag)
        if element.is_empty or element.tag.is_private_creator:
            continue
        if element.tag.is_private:
            yield name, f"private: {_shown(element) if _is_large(element) else element.repval}"
        elif action is not None and not _may_stay(element, action, deidentified, dates_changed):
            yield name, _shown(element)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _within(item, deidentified, dates_changed, f"{name}.")
        elif _tells_more(element, dataset):
            yield name, _shown(element)


def _tells_more(element: "DataElement", dataset: "Dataset") -> bool:
    """Whether what the profile lets stay names a person or a day, is of any kind, or an overlay in the pixels."""
    if element.tag & _OVERLAYS == _OVERLAY_BIT:
        return bool(element.value) and (element.tag.group, _OVERLAY_DATA) not in dataset
    if element.keyword in ("EncapsulatedDocument", "PrivateInformation"):
        return True
    return _names_people(element)


def _names_people(element: "DataElement") -> bool:
    return element.VR in _TEXTS and any(any(name_findings(str(value))) for value in _values(element))


def _may_stay(element: "DataElement", action: _Action, deidentified: bool, dates_changed: bool) -> bool:
    if element.VR != "SQ" and all(_DUMMY.fullmatch(str(value)) for value in _values(element)):
        return True
    if action == "uid":  # PatientIdentityRemoved tells of all of them at once
        return True
    if element.VR in _DATES:
        return dates_changed
    return action == "dummy" and deidentified and element.VR != "PN" and not _names_people(element)


def _values(element: "DataElement") -> list[object]:
    from pydicom.multival import MultiValue

    return list(element.value) if isinstance(element.value, MultiValue) else [element.value]


def _is_large(element: "DataElement") -> bool:
    return element.VR == "SQ" or isinstance(element.value, bytes)


def _shown(element: "DataElement") -> str:
    """A value; of what does not fit a line what tells it apart, as it may change."""
    if element.VR == "SQ":
        return f"a sequence of {len(element.value)}: {told_apart(str(element.value).encode(errors='surrogatepass'))}"
    return told_apart(element.value) if isinstance(element.value, bytes) else str(element.value)


def _action(tag: int) -> _Action | None:
    single, repeated = _profile()
    return single.get(tag) or next((action for value, mask, action in repeated if tag & mask == value), None)


@cache
def _profile() -> tuple[dict[int, _Action], list[tuple[int, int, _Action]]]:
    """What becomes of each tag, and of groups of tags that have a value under a mask (60xx)."""
    try:
        from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
    except ImportError as error:
        raise ImportError("the profile of DICOM needs dicom-anonymizer: pip install eden_hf[phi]") from error
    single: dict[int, _Action] = {}
    repeated: list[tuple[int, int, _Action]] = []
    for name, action in _ACTIONS.items():
        for group, element, *mask in getattr(table, name):
            if mask:
                repeated.append((group << 16 | element, mask[0] << 16 | mask[1], action))
            else:
                single[group << 16 | element] = action
    return single, repeated
