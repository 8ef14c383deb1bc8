"""Bundles that are damaged on purpose."""

from pathlib import Path

from edge_sd.bundle import Manifest, file_entries
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.files import read_model, write_model


def reseal(bundle: Path) -> None:
    """Bring a manifest's hashes up to date with what now lies in the folder, as an export that went wrong would leave it."""
    manifest = read_model(Manifest, bundle / MANIFEST)
    write_model(bundle / MANIFEST, manifest.model_copy(update={"files": file_entries(bundle)}).sealed())
