"""The PHI guard: what may tell who a patient is, found in files before they are shared (`eden check-phi`).

It looks at DICOM attributes (by the profile of DICOM PS3.15 Annex E), at names in file and folder names, at what
EXIF, PNG, JPEG and TIFF carry beside the pixels, and for text burned into them. It finds mistakes; that it finds
nothing proves nothing.
"""

from eden_hf.data.phi.checking import PhiReport, check_phi, data_findings, file_findings, guard, names_in
from eden_hf.data.phi.findings import Finding, PhiError, in_short, not_accepted, read_accepted
from eden_hf.data.phi.names import name_findings

__all__ = [
    "Finding",
    "PhiError",
    "PhiReport",
    "check_phi",
    "data_findings",
    "file_findings",
    "guard",
    "in_short",
    "name_findings",
    "names_in",
    "not_accepted",
    "read_accepted",
]
