"""What decodes images: part of the key of everything that is made of decoded images and kept."""

from importlib.metadata import PackageNotFoundError, version

from eden_hf import __version__

PACKAGES = ("pillow", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm")


def decoder_versions() -> dict[str, str | None]:
    """Versions of this package and of the decoders, `None` where one is not installed.

    What was decoded by others is not found again: pictures change with versions, and images that could not be read
    can be once their decoder is installed.
    """
    return {"eden_hf": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
