"""The device side of the Android Debug Bridge, with a phone's shell, files and sensors behind it, and failures by script.

Debian's own `adb` client talks to it on loopback. A phone here is a process in namespaces of its own: Android's shell (mksh) and
commands (toybox) on a root with /system, /data and /sys as a phone has them, and nothing of this machine but its libraries. It
proves the conversation and what becomes of it when it breaks; of Android's C library and kernel it says nothing.
"""

from adbd.phone import Phone as Phone
from adbd.script import CutFile as CutFile
from adbd.script import CutOutput as CutOutput
from adbd.script import Kill as Kill
from adbd.script import Locked as Locked
from adbd.script import Silent as Silent
from adbd.script import Slow as Slow
from adbd.script import Stall as Stall
from adbd.script import Step as Step
from adbd.script import Throttle as Throttle
from adbd.script import Unplug as Unplug
