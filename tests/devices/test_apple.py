"""Apple's hardware, as far as Linux can tell: it is refused, with words that say what to do instead."""

import platform
from pathlib import Path

import pytest

from edge_sd.bundle import Bundle
from edge_sd.devices import Job, bench, devices
from edge_sd.devices.apple import Apple
from edge_sd.errors import ExitCode, InstallationError, UsageError
from verbs import call


def test_it_is_refused_where_there_is_no_core_ml(bundle: Bundle) -> None:
    with pytest.raises(
        InstallationError, match="device apple: Core ML runs on Apple's systems only, this is " + platform.system()
    ) as caught:
        bench("apple", bundle, Job(runtime="onnxruntime"))
    assert caught.value.code == ExitCode.ENVIRONMENT
    assert "coreml-reference" in caught.value.hint
    assert call("bench", bundle.path, "--device", "apple:SOME-PHONE").failed_with(5, "Core ML runs on Apple's systems only")
    assert call("list", "devices").code == 0


@pytest.mark.parametrize("odd", ["; reboot", "a b", "'", "-x y", "a\nb", "x" * 65])
def test_an_odd_identifier_reaches_nothing(odd: str) -> None:
    with pytest.raises(UsageError, match="is no identifier of a device"):
        devices()["apple"].open(odd)


def test_core_ml_tools_has_what_it_will_be_asked_for(tmp_path: Path) -> None:
    """Its experimental names, which may move with a version: they are looked at here, not run."""
    import inspect

    from coremltools.models.ml_program.experimental import perf_utils, remote_device

    assert list(inspect.signature(perf_utils.MLModelBenchmarker).parameters) == ["model", "device"]
    assert {"inputs", "iterations"} <= inspect.signature(perf_utils.MLModelBenchmarker.benchmark_predict).parameters.keys()
    assert "credentials" in inspect.signature(remote_device.Device.prepare_for_model_debugging).parameters
    told = {"identifier", "udid", "name", "type", "os_version", "os_build_number", "state"}
    assert told <= remote_device.Device.__dataclass_fields__.keys()
    assert remote_device.DeviceState.CONNECTED
    assert "development_team" in remote_device.AppSigningCredentials.__dataclass_fields__
    assert Apple.address.startswith("[")
