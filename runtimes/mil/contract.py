"""Does a Core ML package keep the contract of its bundle's manifest?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.errors import EdgeSDError

# Name, shape and type of an input or output.
Interface = Sequence[tuple[str, tuple[int, ...], str]]


def check_contract(path: Path, metadata: Mapping[str, str], contract: Contract, inputs: Interface, outputs: Interface) -> None:
    """The package's own contract, inputs and outputs must be the manifest's: what differs is found here, not in a picture.

    Args:
        metadata: the package's; it may hold the contracts of several programs, one of them is looked for.

    Raises:
        EdgeSDError: they are not.
    """
    try:
        inside = json.loads(metadata.get(METADATA_KEY, ""))
    except ValueError:
        inside = None
    if not isinstance(inside, list) or contract.model_dump(mode="json") not in inside:
        raise EdgeSDError(
            f"the contract inside {path} is not the manifest's of the {contract.program}: they are of different exports or plans",
            "export the bundle again",
        )
    for wanted, found in ((contract.inputs, inputs), (contract.outputs, outputs)):
        ours = [(spec.name, spec.shape, spec.dtype) for spec in wanted]
        if ours != list(found):
            raise EdgeSDError(f"{path} has {list(found)}, its contract says {ours}", "export the bundle again")
