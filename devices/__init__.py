"""Bundle + job → result on a device. A new device is a new file in this folder."""

from edge_sd.devices._bench import bench as bench
from edge_sd.devices._bench import bench_on as bench_on
from edge_sd.devices._bench import prove as prove
from edge_sd.devices._device import Connection as Connection
from edge_sd.devices._device import Device as Device
from edge_sd.devices._device import devices as devices
from edge_sd.devices._device import find_device as find_device
from edge_sd.devices._fingerprint import DeviceInfo as DeviceInfo
from edge_sd.devices._job import BenchResult as BenchResult
from edge_sd.devices._job import Job as Job
from edge_sd.devices._job import Latency as Latency
from edge_sd.devices._job import Measurement as Measurement
from edge_sd.devices._job import Moment as Moment
from edge_sd.devices._job import Outcome as Outcome
