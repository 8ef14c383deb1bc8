"""What a device is, in a form that says which figures may be compared."""

from typing import Literal

from pydantic import Field

from edge_sd.validation import Record


class DeviceInfo(Record):
    """A device's fingerprint, read when it was connected to.

    Attributes:
        device: how it was reached: host, ssh, adb, emulator, browser, apple.
        address: which one of them, as it was given: a serial, USER@HOST; empty where there is one only.
        model: what it says on the box.
        processor: model of the processor or the SoC.
        machine: instruction set, as `uname -m` names it.
        cores: logical processors.
        max_mhz: highest frequency of each of them, where the device tells.
        system: operating system and its build.
        governor: what sets the frequency; empty where the device does not tell.
        power: mains, battery, or a battery that charges; empty where the device does not tell.
        battery_percent: None where there is no battery.
        celsius: of each thermal zone, by its type, at the time of reading.
        emulated: its processor is imitated: its times say nothing of a real one.
    """

    device: str
    address: str = ""
    model: str
    processor: str
    machine: str
    cores: int = Field(ge=1)
    max_mhz: tuple[float, ...] = ()
    memory_bytes: int = Field(ge=0)
    system: str
    governor: str = ""
    power: Literal["", "mains", "battery", "charging"] = ""
    battery_percent: int | None = Field(default=None, ge=0, le=100)
    celsius: dict[str, float] = Field(default_factory=dict)
    emulated: bool = False

    @property
    def lasting(self) -> dict[str, object]:
        """What of it stays the same from one minute to the next: not how warm it is, nor how full its battery."""
        return self.model_dump(mode="json", exclude={"celsius", "battery_percent"})

    @property
    def title(self) -> str:
        """As a table names it."""
        return f"{self.device}:{self.address}" if self.address else self.device
