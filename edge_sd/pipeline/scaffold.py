"""A first configuration for somebody's images and device, with a reason beside each setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml
from PIL import Image

from edge_sd.data.decode import FORMATS
from edge_sd.data.local import find_files
from edge_sd.errors import EdgeSDError, unknown
from edge_sd.models import PRESETS
from edge_sd.models.autoencoder import AutoencoderConfig
from edge_sd.models.count import count
from edge_sd.pipeline.config import RunConfig
from edge_sd.validation import validated

# Device → targets, and the runtimes that prove and time them where the configuration is run.
DEVICES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "android": (("executorch", "onnx"), ("executorch", "onnxruntime"), ("executorch", "onnxruntime")),
    "iphone": (("coreml",), ("coreml-reference",), ("torch",)),
    "mac": (("coreml", "onnx"), ("coreml-reference", "onnxruntime"), ("onnxruntime",)),
    "browser": (("onnx",), ("onnxruntime",), ("onnxruntime",)),
    "board": (("executorch", "onnx"), ("executorch", "onnxruntime"), ("executorch", "onnxruntime")),
    "host": (("onnx",), ("onnxruntime",), ("onnxruntime",)),
}
# What comes after the run, on the device itself.
_THEN = {
    "android": "edge-sd bench {bundle} --device adb:SERIAL",
    "iphone": "edge-sd bench {bundle} --device apple:IDENTIFIER",
    "mac": "edge-sd parity {bundle} --runtime coreml, on the Mac",
    "browser": "edge-sd serve {bundle}",
    "board": "edge-sd bench {bundle} --device ssh:me@board",
    "host": "edge-sd bench {bundle}",
}
_LOOKED_AT = 64


@dataclass(frozen=True)
class Survey:
    """What a folder of images holds.

    Attributes:
        count: of its images.
        sizes: (width, height) in pixels of some of them, evenly picked.
        classes: names of its sub-folders with images.
    """

    source: str
    count: int
    sizes: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]

    @property
    def short_side(self) -> int:
        """Of the median image."""
        return int(median(min(size) for size in self.sizes))

    @property
    def uniform(self) -> bool:
        """Whether all that were looked at are squares of one size."""
        return len(set(self.sizes)) == 1 and self.sizes[0][0] == self.sizes[0][1]


def survey(source: str) -> Survey:
    """Look into a folder of images.

    Raises:
        UsageError: it holds none, or files of more than one kind.
        EdgeSDError: it holds shards, or none of its images can be read.
    """
    files = find_files(source)
    if files.kind != "folder":
        raise EdgeSDError(f"{source} holds {files.kind} files, which are not looked into", "give a folder of images")
    step = max(1, len(files.paths) // _LOOKED_AT)
    sizes = []
    for path in files.paths[::step][:_LOOKED_AT]:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sizes.append(image.size)
        except OSError:
            continue  # `--data` counts and names what is broken
    if not sizes:
        raise EdgeSDError(f"none of the images in {source} can be read", "give images as PNG, JPEG or WebP")
    folders = {path.parent.relative_to(files.root).parts[:1] for path in files.paths}
    return Survey(source, len(files.paths), tuple(sizes), tuple(sorted(parts[0] for parts in folders if parts)))


def scaffold(found: Survey, device: str, name: str) -> str:
    """A commented configuration of `edge-sd run`.

    Raises:
        UsageError: an unknown device.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    targets, proved, timed = DEVICES[device]
    sizes = sorted(min(size) for size in found.sizes)
    spread = f"{sizes[0]} px" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]} px"
    size, model = _model(found)
    resize = not found.uniform or found.sizes[0][0] != size
    lines = [
        f"# What edge-sd run does with {found.source!r}: {found.count} images, shorter side {spread}. Any line may be changed;",
        "# a stage that is done is done again only if what it depends on has changed.",
        f"name: {name}",
        "data:",
        f"  source: {_quoted(found.source)}",
        f"  resize: {str(resize).lower()}  # "
        + (f"to {size} px, the centre cut out" if resize else f"all that were looked at are {size}×{size}"),
    ]
    if found.classes:
        some = ", ".join(map(repr, found.classes[:4]))
        lines.append(f"  # labels: true  # learn the {len(found.classes)} sub-folders as classes: {some}")
    lines += [
        *model,
        "sample: {solver: dpmpp, steps: 20}  # each step costs the same; edge-sd search finds plans of fewer",
        f"export: {{targets: [{', '.join(targets)}]}}  # for {device}; edge-sd list targets",
        f"parity: {{runtimes: [{', '.join(proved)}]}}  # a program that draws something else fails the run",
        f"bench: {{runtimes: [{', '.join(timed)}]}}  # here; then, on the device:",
        f"#   {_THEN[device].format(bundle=f'out/{name}/{name}.edgesd')}",
        "# and with weights of 4 bits:",
        f"#   edge-sd quantize out/{name}/student/checkpoint.safetensors --bits 4{_flags(targets)}",
    ]
    text = "\n".join(lines) + "\n"
    validated(RunConfig, yaml.safe_load(text), "the proposed configuration")
    return text


def _model(found: Survey) -> tuple[int, Sequence[str]]:
    """Pixels that images are brought to, and the sections of the models."""
    epochs = f"{{}} steps of 32 see each of {found.count} images about {{}} times"

    def seen(steps: int) -> str:
        return epochs.format(f"{steps:,}", max(1, round(32 * steps / found.count)))

    if found.short_side < 48:
        size, teacher, student = (16, "tiny16-teacher", "tiny16") if found.short_side < 32 else (32, "small32", "small32")
        wide = "" if size == 16 else "\n  model: {width: 96, gating: false}  # wider than the student, and plain"
        return size, [
            f"teacher:  # {size}×{size} pixels are denoised as they are\n  preset: {teacher}{wide}",
            f"  train: {{steps: 20000}}  # {seen(20000)}; 200 for a trial of the whole way",
            f"student:  # wavelet-gated, distilled from the teacher\n  preset: {student}",
            "  train: {steps: 20000}",
        ]
    size = 128 if found.short_side >= 128 else 64
    factor = AutoencoderConfig().factor
    latent = size // factor
    teacher_macs, student_macs = (count(PRESETS[name].config).macs for name in ("latent16-teacher", "latent16"))
    sized = f"\n  model: {{image_size: {latent}}}" if latent != 16 else ""
    return size, [
        f"autoencoder:  # {size}×{size} pixels become {latent}×{latent} latents: {factor**2} times fewer places in each step",
        "  train: {steps: 5000}",
        f"teacher:\n  preset: latent16-teacher{sized}",
        f"  train: {{steps: 9000, warmup: 200}}  # {seen(9000)}; 200 for a trial of the whole way",
        f"student:  # wavelet-gated, {teacher_macs / student_macs:.1f} times fewer multiply-accumulates than the teacher",
        f"  preset: latent16{sized}",
        "  train: {steps: 12000, warmup: 200}",
    ]


def _flags(targets: Sequence[str]) -> str:
    return "".join(f" --target {target}" for target in targets)


def _quoted(source: str) -> str:
    """As YAML takes it, whatever the folder is called."""
    return yaml.safe_dump(str(Path(source)), default_style='"').strip()
