"""Bundle + job → result on a device. A new device is a new file in this folder."""

from edge_sd.devices._device import Device as Device
from edge_sd.devices._device import devices as devices
from edge_sd.devices._device import find_device as find_device
from edge_sd.devices._job import BenchResult as BenchResult
from edge_sd.devices._job import Job as Job
