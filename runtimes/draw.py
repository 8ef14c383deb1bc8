"""Samples of a bundle for an evaluation, in any runtime."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle, open_bundle, trace
from edge_sd.diffusion.choice import PlanSource
from edge_sd.evaluation.draw import Draw, Drawer, labels_of, origin_of
from edge_sd.evaluation.record import Origin
from edge_sd.evaluation.reference import rgb_pixels
from edge_sd.runtimes._loop import open_sampler, rows_of
from edge_sd.runtimes._runtime import find_runtime


@dataclass(frozen=True)
class BundleDrawer(Drawer):
    """Samples of a bundle.

    Attributes:
        runtime: its name.
        plan: another plan than the bundle's own; its rows of time features come from the reference inside the bundle.
        label: class of all of them; None takes all classes in turn, where the model knows any.
    """

    path: Path
    runtime: str = "onnxruntime"
    plan: PlanSource | None = None
    seed: int = 0
    label: int | None = None

    @property
    def size(self) -> int:
        manifest = self._bundle().manifest
        names = [contract.program for contract in manifest.contracts]
        return manifest.contract("decoder").outputs[0].shape[-1] if "decoder" in names else manifest.sample_shape[-1]

    @property
    def origin(self) -> Origin:
        bundle = self._bundle()
        labels = labels_of(bundle.manifest.model, self.label)[1]
        return origin_of("bundle", self.path, bundle.manifest.digest, self.runtime, bundle.plan, self.seed, labels)

    def open(self, threads: int | None) -> Draw:
        bundle, runtime = self._bundle(), find_runtime(self.runtime)
        labels, _ = labels_of(bundle.manifest.model, self.label)
        rows = [self._rows(bundle, label, threads) for label in labels or (None,)]
        denoiser, decoder = open_sampler(runtime, bundle, threads)

        def draw_block(indices: range) -> NDArray[np.uint8]:
            finals = [trace(bundle.plan, denoiser, self.seed, index, rows[index % len(rows)]).final for index in indices]
            return rgb_pixels(np.stack(finals if decoder is None else [decoder(final[None])[0] for final in finals]))

        return draw_block

    def _bundle(self) -> Bundle:
        """The bundle with the plan that is asked for."""
        bundle = open_bundle(self.path)
        if self.plan is None:
            return bundle
        from edge_sd.bundle.manifest import REFERENCE
        from edge_sd.quantize.checkpoint import load_any, plan_from

        return replace(bundle, plan=plan_from(load_any(self.path / REFERENCE), self.plan))

    def _rows(self, bundle: Bundle, label: int | None, threads: int | None) -> NDArray[np.float32]:
        if self.plan is None:
            return rows_of(bundle, find_runtime(self.runtime), label, threads)
        from edge_sd.bundle.manifest import REFERENCE
        from edge_sd.quantize.checkpoint import load_any
        from edge_sd.sampling import plan_features

        return plan_features(load_any(self.path / REFERENCE).build(), bundle.plan, label)
