"""Classes and latents through every target: the whole bundle is what torch is, and says what it could not prove."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from damage import reseal
from edge_sd.bundle import Bundle, open_bundle, trace
from edge_sd.bundle.contract import METADATA_KEY
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.checkpoint import Checkpoint, load_checkpoint
from edge_sd.decoder import Decoder, load_decoder
from edge_sd.errors import EdgeSDError, ExitCode, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.quiet import quiet
from edge_sd.runtimes import find_runtime, rows_of, sample_bundle
from edge_sd.runtimes.parity import check_parity
from edge_sd.sampling import sample_model

BUNDLES = ("latent", "by_context", "by_addition")
RUNTIMES = ("torch", "onnxruntime", "executorch")


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


# Parity


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bundle", BUNDLES, indirect=True)
def test_every_program_is_at_par_in_every_runtime(bundle: Bundle, runtime: str) -> None:
    result, _ = check_parity(bundle, runtime)
    assert result.passed, result.verdict
    assert result.worst_step.forced.value_db >= 80
    assert result.final.snr_db >= 80
    assert result.temporal is not None
    assert result.temporal.value_db >= 80
    if "decoder" in {contract.program for contract in bundle.manifest.contracts}:
        assert result.decoder is not None
        assert result.decoder.value_db >= 80
    else:
        assert result.decoder is None


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bundle", ["by_context", "by_addition"], indirect=True)
def test_a_class_is_drawn_as_the_model_draws_it(bundle: Bundle, runtime: str) -> None:
    """And another class from the same noise is another picture."""
    found = find_runtime(runtime)
    session, model = found.load(bundle), load_checkpoint(bundle.path / "reference.safetensors").build()
    drawn = []
    for label in range(3):
        rows = rows_of(bundle, found, label)
        samples = sample_bundle(session, bundle.plan, seed=11, count=2, features=rows)
        expected = sample_model(model, bundle.plan, seed=11, count=2, batch_size=1, label=label)
        assert snr_db(expected, samples) > 75
        drawn.append(samples)
    assert max(snr_db(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2))) < 40


@pytest.mark.parametrize(("label", "said"), [(None, "not None"), (3, "not 3"), (-1, "not -1")])
def test_a_class_that_is_missing_or_unknown(label: int | None, said: str, by_context: Bundle) -> None:
    with pytest.raises(UsageError, match=f"this model draws one of 3 classes, {said}"):
        rows_of(by_context, find_runtime("onnxruntime"), label)


def test_a_class_where_there_are_none(latent: Bundle) -> None:
    with pytest.raises(UsageError, match="this model knows no classes"):
        rows_of(latent, find_runtime("onnxruntime"), 0)
    np.testing.assert_array_equal(rows_of(latent, find_runtime("onnxruntime"), None), latent.plan.features)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_are_decoded(runtime: str, latent: Bundle, decoder: Decoder) -> None:
    import torch

    found = find_runtime(runtime)
    images = sample_bundle(
        found.load(latent), latent.plan, seed=3, count=2, decoder=found.load(latent, program="decoder")
    )  # the goldens' own noise
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), np.float32)
    for image, golden in zip(images, latent.golden.trajectories, strict=True):
        assert golden.image is not None
        assert snr_db(golden.image, image) > 75
        with torch.no_grad():
            decoded = decoder.build()(torch.from_numpy(golden.final[None]))[0].numpy()
        np.testing.assert_allclose(golden.image, decoded, rtol=0, atol=1e-5)
    assert load_decoder(latent.path / "decoder.safetensors").header == decoder.header


def test_a_decoder_of_another_latent_is_refused(
    make_checkpoint: Callable[..., Checkpoint], decoder: Decoder, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(in_channels=4, out_channels=4, gating=False)
    with pytest.raises(EdgeSDError, match=r"decoder|latent channels"):
        export_bundle(checkpoint, tmp_path / "x.edgesd", ExportRequest(("onnx",), steps=3), decoder=decoder)
    assert not list(tmp_path.iterdir())


# What each target wrote


def test_executorch_is_one_file_with_a_method_for_each_program(latent: Bundle) -> None:
    for name in ("denoiser", "temporal", "decoder"):
        program = latent.program("executorch", name)
        assert (program.file, program.entry, program.options) == ("programs.pte", name, {"delegate": "xnnpack"})
        assert program.placement is not None
        assert program.placement.outside_share is not None
    denoiser = latent.program("executorch").placement
    assert denoiser is not None
    assert (denoiser.delegate_calls, denoiser.outside) == (1, {}), "the rewrites are there so that all of it is delegated"


def core_ml(package: Path) -> Any:
    """The package's spec, read by Core ML Tools' own loader; its weights are read too."""
    with quiet():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    return spec


def test_for_ios_18_core_ml_is_one_package_with_a_function_for_each_program(latent: Bundle) -> None:
    names = {"denoiser", "temporal", "decoder"}
    assert {path.name for path in latent.path.glob("*.mlpackage")} == {"programs.mlpackage"}
    spec = core_ml(latent.path / "programs.mlpackage")
    assert {function.name for function in spec.description.functions} == names
    assert set(spec.mlProgram.functions) == names
    assert spec.description.defaultFunctionName == "denoiser"
    for name in names:
        program = latent.program("coreml", name)
        assert (program.file, program.entry) == ("programs.mlpackage", name)
        assert program.options == {"precision": "fp16", "os": "iOS18"}
    held = json.loads(spec.description.metadata.userDefined[METADATA_KEY])
    assert {contract["program"] for contract in held} == names


def test_for_ios_17_core_ml_is_a_package_for_each_program(by_context: Bundle) -> None:
    assert {path.name for path in by_context.path.glob("*.mlpackage")} == {"denoiser.mlpackage", "temporal.mlpackage"}
    for name in ("denoiser", "temporal"):
        spec, contract = core_ml(by_context.path / f"{name}.mlpackage"), by_context.manifest.contract(name)
        assert [value.name for value in spec.description.input] == [one.name for one in contract.inputs]
        assert [value.name for value in spec.description.output] == [one.name for one in contract.outputs]
        (held,) = json.loads(spec.description.metadata.userDefined[METADATA_KEY])
        assert held == contract.model_dump(mode="json")
        program = by_context.program("coreml", name)
        assert (program.entry, program.options["os"]) == ("", "iOS17")
        assert program.placement is not None
        assert program.placement.verdict == "Core ML: decided on the device; not known here"


def test_temporal_is_in_no_denoiser(latent: Bundle) -> None:
    operators = {node.op_type for node in onnx.load(latent.path / "denoiser.onnx").graph.node}
    assert not operators & {"Sin", "Cos"}
    assert {"Sin", "Cos"} <= {node.op_type for node in onnx.load(latent.path / "temporal.onnx").graph.node}


@pytest.mark.parametrize("delegate", ["coreml", "vulkan"])
def test_a_delegate_of_another_machine_is_lowered_and_not_run(
    delegate: Any, make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    request = ExportRequest(("executorch",), TargetOptions(executorch_delegate=delegate), steps=3, goldens=1)
    bundle = export_bundle(make_checkpoint(), tmp_path / "x.edgesd", request)
    place = bundle.program("executorch").placement
    assert place is not None
    assert (place.delegate, place.note, place.outside_share) == (delegate, "lowered here, not run here", None)
    assert place.delegate_calls >= 1
    assert "share not measured" in place.verdict
    with pytest.raises(EdgeSDError, match=rf"programs\.pte is lowered to {delegate}, which does not run here") as refused:
        check_parity(bundle, "executorch")
    assert (refused.value.code, refused.value.hint) == (ExitCode.FAILURE, "edge-sd export --delegate xnnpack")
    assert check_parity(bundle, "torch")[0].passed


# What is refused when it is read back


@pytest.fixture
def damaged(onnx_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_bundle.path, tmp_path / "x.edgesd"))


def test_a_contract_inside_the_program_that_is_not_the_manifests(damaged: Path) -> None:
    """Hashes are right, so that nothing else could tell."""
    file = damaged / "denoiser.onnx"
    model = onnx.load(file)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    contract = json.loads(entry.value)
    contract["plan"]["timesteps"][0] -= 1
    entry.value = json.dumps(contract)
    onnx.save(model, file)
    reseal(damaged)
    bundle = open_bundle(damaged)
    with pytest.raises(EdgeSDError, match="the contract inside the ONNX denoiser is not the manifest's"):
        find_runtime("onnxruntime").load(bundle)
    find_runtime("torch").load(bundle)


@pytest.mark.parametrize("version", [4, 99])
def test_a_manifest_of_a_newer_version(version: int, damaged: Path) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps({**manifest, "schema_version": version, "unheard_of": []}))
    with pytest.raises(EdgeSDError, match=rf"has schema version {version}, this edge-sd reads version 3") as refused:
        open_bundle(damaged)
    assert "newer edge-sd" in refused.value.hint


def test_a_manifest_of_an_older_version(damaged: Path) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 1}))
    with pytest.raises(EdgeSDError, match="has schema version 1, this edge-sd reads version 3") as refused:
        open_bundle(damaged)
    assert "again" in refused.value.hint


def test_goldens_start_where_a_runtime_starts(by_addition: Bundle) -> None:
    """The noise of trajectory i is that of sample i: what parity proves is what a user draws."""
    session, golden = find_runtime("onnxruntime").load(by_addition), by_addition.golden.trajectories[1]
    own = trace(by_addition.plan, session, by_addition.golden.header.seed, 1, golden.features)
    np.testing.assert_array_equal(own.samples[0], golden.samples[0])
    assert snr_db(golden.final, own.final) >= 80
