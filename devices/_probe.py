"""What Linux and Android say of themselves: one shell script that reads it, one function that makes a fingerprint of it."""

import re

from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.errors import DeviceError

# Constant: nothing is ever put into it. Each line of its output is NAME=VALUE; a file that is not there says nothing.
SCRIPT = r"""
say() { [ -n "$2" ] && printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n\r' '  ')"; }
file() { [ -r "$2" ] && say "$1" "$(tr -d '\000' < "$2" 2>/dev/null | head -n 1)"; }
say machine "$(uname -m)"; say kernel "$(uname -s) $(uname -r)"
say memory "$(sed -n 's/^MemTotal: *\([0-9]*\) kB.*/\1/p' /proc/meminfo 2>/dev/null)"
say cores "$(grep -c '^processor' /proc/cpuinfo 2>/dev/null)"
say processor "$(sed -n 's/^\(model name\|Hardware\|Model\)[[:space:]]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
say parts "$(sed -n 's/^CPU part[[:space:]]*: *//p' /proc/cpuinfo 2>/dev/null | sort -u)"
if command -v getprop > /dev/null 2>&1; then
  say brand "$(getprop ro.product.manufacturer)"; say product "$(getprop ro.product.model)"
  say soc "$(getprop ro.soc.model)"; say platform "$(getprop ro.board.platform)"
  say android "$(getprop ro.build.version.release)"; say build "$(getprop ro.build.fingerprint)"
fi
say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null)"
file product /proc/device-tree/model; file product /sys/devices/virtual/dmi/id/product_name
for c in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  file khz "$c/cpuinfo_max_freq"; file governor "$c/scaling_governor"
done
for z in /sys/class/thermal/thermal_zone*; do
  [ -r "$z/temp" ] && say zone "$(cat "$z/temp" 2>/dev/null) $(cat "$z/type" 2>/dev/null)"
done
for s in /sys/class/power_supply/*; do
  [ -r "$s/type" ] || continue
  line="$(cat "$s/type")"
  for f in online status capacity; do line="$line|$(cat "$s/$f" 2>/dev/null)"; done
  say supply "$line"
done
exit 0
"""

# Of ARM's own cores (MIDR part numbers), where the system names none: the arm64 kernel gives numbers alone.
_ARM_PARTS = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
    0xD82: "Cortex-X4", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
}  # fmt: skip
_LINE = re.compile(r"([a-z]+)=(.*)")


def read_probe(text: str, *, device: str, address: str = "", emulated: bool = False) -> DeviceInfo:
    """Make a fingerprint of what `SCRIPT` printed.

    Raises:
        DeviceError: it lacks what every Linux says: machine, kernel, processors and memory.
    """
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        if (match := _LINE.fullmatch(line.strip())) and match[2].strip():
            said.setdefault(match[1], []).append(match[2].strip().strip('"'))

    def one(name: str) -> str:
        return said.get(name, [""])[0]

    cores, memory = one("cores"), one("memory")
    missing = [name for name in ("machine", "kernel") if not one(name)]
    missing += [name for name, value in (("cores", cores), ("memory", memory)) if not value.isdecimal() or int(value) < 1]
    if missing:
        raise DeviceError(
            f"{device}:{address} did not say its {', '.join(missing)}" if address else f"{device} did not say its {missing[0]}",
            "is it Linux or Android, with a POSIX shell that prints nothing else?",
        )
    android = one("android")
    return DeviceInfo(
        device=device,
        address=address,
        model=f"{one('brand')} {one('product')}".strip() or one("processor") or one("machine"),
        processor=_processor(said) or one("machine"),
        machine=one("machine"),
        cores=int(cores),
        max_mhz=tuple(int(value) / 1000 for value in said.get("khz", []) if value.isdecimal()),
        memory_bytes=int(memory) * 1024,
        system=f"Android {android} ({one('build')}), {one('kernel')}" if android else f"{one('os')} {one('kernel')}".strip(),
        governor="/".join(dict.fromkeys(said.get("governor", []))),
        **_power(said.get("supply", [])),
        celsius=dict(filter(None, map(_zone, said.get("zone", [])))),
        emulated=emulated,
    )


def _processor(said: dict[str, list[str]]) -> str:
    soc = next((said[name][0] for name in ("soc", "processor", "platform") if name in said), "")
    parts = []
    for part in " ".join(said.get("parts", [])).split():
        if re.fullmatch(r"0x[0-9a-f]{1,4}", part):
            parts.append(_ARM_PARTS.get(int(part, 16), part))
    cores = " + ".join(parts)
    return f"{soc} ({cores})" if soc and cores else soc or cores


def _power(supplies: list[str]) -> dict[str, object]:
    """Fields `power` and `battery_percent`; a battery that is full on a charger counts as mains."""
    power, percent = "", None
    for supply in supplies:
        kind, online, status, capacity = (*supply.split("|"), "", "", "")[:4]
        if kind.strip() == "Battery":
            percent = int(capacity) if capacity.strip().isdecimal() and int(capacity) <= 100 else percent
            states = {"Charging": "charging", "Discharging": "battery", "Full": "mains", "Not charging": "mains"}
            power = states.get(status.strip(), power)
        elif online.strip() == "1" and not power:
            power = "mains"
    return {"power": power, "battery_percent": percent}


def _zone(text: str) -> tuple[str, float] | None:
    """`47000 cpu-thermal` is 47 °C; some drivers give degrees, and zones that are off give nonsense."""
    value, _, kind = text.partition(" ")
    try:
        number = float(value)
    except ValueError:
        return None
    celsius = number / 1000 if abs(number) >= 1000 else number
    return (kind.strip() or "zone", celsius) if -40 < celsius < 150 else None
