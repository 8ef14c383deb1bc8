"""Another plan for a finished bundle: new rows, new goldens, the same programs."""

from pathlib import Path

from edge_sd.bundle import Bundle, write_bundle
from edge_sd.bundle.manifest import CARD, DECODER, GOLDEN, PLAN, REFERENCE, Manifest
from edge_sd.decoder import load_decoder
from edge_sd.diffusion import Plan
from edge_sd.diffusion.choice import lineage
from edge_sd.diffusion.plan import refuse_other_process
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export._card import carded
from edge_sd.export._check import targets
from edge_sd.export._export import ExportRequest, draw, labels_of, save_goldens
from edge_sd.export._programs import contracts
from edge_sd.files import link_or_copy
from edge_sd.quantize.checkpoint import load_any
from edge_sd.sampling import plan_features


def swap_plan(bundle: Bundle, plan: Plan, out: Path, *, goldens: int | None = None) -> Bundle:
    """Write a bundle with another plan; no program is exported again, only the contracts inside them are replaced.

    Args:
        plan: for the model's own schedule and prediction; its time features, where it has any, are made anew.
        out: may be the bundle itself, which is then replaced as a whole.
        goldens: golden trajectories of the new bundle; as many as before if left out.

    Raises:
        EdgeSDError: the plan is of another schedule or prediction, or tuned for another model.
    """
    manifest = bundle.manifest
    checkpoint = load_any(bundle.path / REFERENCE)
    refuse_other_process(plan, manifest.noise_schedule, manifest.prediction, bundle.path, lineage(checkpoint.header))
    if bundle.plan.header.widths != plan.header.widths:
        ours, theirs = (" and ".join(map(str, header.widths)) or "one" for header in (bundle.plan.header, plan.header))
        raise UsageError(
            f"the programs of {bundle.path} have widths {ours}, and the plan wants {theirs}", "export the model with this plan"
        )
    if len(bundle.plan.header.programs) > 1 and not plan.header.widths:
        raise UsageError(
            f"{bundle.path} was quantized in groups of the steps of its own plan", "quantize with --groups 1, or for this plan"
        )
    model = checkpoint.build(plan.header.widths)
    decoder = load_decoder(bundle.path / DECODER) if (bundle.path / DECODER).exists() else None
    count = len(bundle.golden.trajectories) if goldens is None else goldens
    request = ExportRequest(targets=(), seed=bundle.golden.header.seed, goldens=count)
    bare = plan.bare()
    filled = bare if manifest.labelled else bare.with_features(plan_features(model, bare))

    def fill(folder: Path) -> Manifest:
        for name in manifest.files:
            if name not in (PLAN, GOLDEN, CARD):
                link_or_copy(bundle.path / name, folder / name)
        trajectories = draw(filled, model, None if decoder is None else decoder.build(), request)
        labels = labels_of(model, request.goldens)
        filled.save(folder / PLAN)
        save_goldens(folder, trajectories, request.seed, labels)
        temporal = any(contract.program == "temporal" for contract in manifest.contracts)
        known = contracts(filled, trajectories, labels, temporal=temporal)
        for target, file in {(program.target, program.file) for program in manifest.programs if program.target != "torch"}:
            if target not in targets():
                raise EdgeSDError(
                    f"{bundle.path} holds programs of the unknown target {target}", "install what it was exported with"
                )
            targets()[target].stamp(folder / file, known)
        changed = manifest.model_copy(update={"name": out.stem, "contracts": tuple(known)})
        return carded(folder, changed, filled, checkpoint.header)

    return write_bundle(out, fill, overwrite=True)
