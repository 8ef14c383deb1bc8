"""What every run begins with: images, an autoencoder where the model denoises latents, and a teacher; each once."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from edge_sd.autoencoder import open_autoencoder
from edge_sd.data import DataConfig, ImageData, open_data, source_key
from edge_sd.decoder import Decoder, image_shape
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import UsageError
from edge_sd.foreign import Foreign, open_model, refuse_other_teacher
from edge_sd.latents import LatentData, encode_data, refuse_margin
from edge_sd.models import PRESETS, ModelConfig
from edge_sd.pipeline.config import AutoencoderSection, TeacherSection
from edge_sd.pipeline.stages import Stages, hash_of
from edge_sd.training import Progress, fit, fit_autoencoder
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.reconstruction import AutoencoderLearner

# (stage, done, total, note): where a long stage has come to.
Update = Callable[[str, int, int, str], None]


class Learning:
    """The common beginning, in a run's folder.

    Args:
        student: what will be trained with it; it decides the size of samples.
        overwrite: train again where the settings have changed.
        update: called as a long stage goes on.
    """

    def __init__(
        self,
        data: DataConfig,
        autoencoder: AutoencoderSection | None,
        teacher: TeacherSection,
        student: ModelConfig,
        out: Path,
        stages: Stages,
        *,
        overwrite: bool = False,
        update: Update = lambda stage, done, total, note: None,
    ) -> None:
        self._data, self._autoencoder, self._teacher, self._student = data, autoencoder, teacher, student
        self._stages, self._overwrite, self._update = stages, overwrite, update
        self.teacher_path = teacher.checkpoint or out / "teacher" / DenoiseLearner.result_name
        self.autoencoder_path = None
        if autoencoder is not None:
            self.autoencoder_path = autoencoder.checkpoint or out / "autoencoder" / AutoencoderLearner.result_name

    def check(self) -> None:
        """Refuse, before anything long, a teacher of other samples than the student's.

        Raises:
            UsageError: it is one.
        """
        teacher = None if self._teacher.preset is not None else self.open_teacher()
        model = self._teacher.section.config if teacher is None else teacher.checkpoint.header.model
        shape = model.sample_shape
        if model.num_classes != self._student.num_classes:
            raise UsageError(
                f"the teacher knows {model.num_classes} classes, the student {self._student.num_classes}",
                "give both one num_classes",
            )
        if shape != self._student.sample_shape:
            raise UsageError(
                f"the teacher denoises {shape}, the student {self._student.sample_shape}",
                "give both one image_size and in_channels",
            )
        section = self._autoencoder
        if section is not None:
            refuse_margin(self._data.crop)
        decoder = None
        if section is not None and section.checkpoint is not None:
            decoder = open_autoencoder(section.checkpoint).decoder
        if teacher is not None and (section is None or decoder is not None):  # of one to be trained the latents are not known yet
            refuse_other_teacher(teacher, self._student.sample_shape, decoder)
        if section is None:
            return
        channels = section.config.latent_channels if decoder is None else decoder.latent_channels
        if channels != self._student.in_channels:
            raise UsageError(
                f"the autoencoder makes {channels} channels, the student denoises {self._student.in_channels}",
                "give the models in_channels and out_channels of the autoencoder",
            )

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        if self._autoencoder is None or self.autoencoder_path is None:
            return self._student.image_size
        if self._autoencoder.checkpoint is None:
            return self._student.image_size * self._autoencoder.config.factor
        return image_shape(open_autoencoder(self.autoencoder_path).decoder, self._student.sample_shape)[-1]

    @cached_property
    def images(self) -> ImageData:
        """All images."""
        return open_data(self._data, self.image_size, lambda done, total: self._update("images", done, total, ""))

    @cached_property
    def samples(self) -> ImageData | LatentData:
        """What the denoisers learn from: the images, or their latents."""
        if self.autoencoder_path is None:
            return self.images
        codec = open_autoencoder(self.autoencoder_path)
        return encode_data(self.images, codec, observe=lambda done, total: self._update("latents", done, total, ""))

    def decoder(self) -> Decoder | None:
        """The way back to images, where the denoisers make latents."""
        return self.samples.decoder if isinstance(self.samples, LatentData) else None

    def key(self) -> dict[str, str]:
        """Stands for what the denoisers learn from, without decoding an image."""
        key = {"data": source_key(self._data)}
        return key if self.autoencoder_path is None else {**key, "autoencoder": hash_of(self.autoencoder_path)}

    def open_teacher(self) -> Foreign:
        """The teacher, and the decoder that it brings."""
        return open_model(self.teacher_path)

    def walk(self) -> None:
        """Train the autoencoder and the teacher, where they are not given and not done."""
        section, teacher = self._autoencoder, self._teacher
        if section is not None and section.checkpoint is None and self.autoencoder_path is not None:
            folder = self.autoencoder_path.parent
            self._stages.run(
                "autoencoder",
                section.model_dump(mode="json"),
                {"data": source_key(self._data)},
                [self.autoencoder_path],
                lambda: fit_autoencoder(
                    section.config, self.images, section.train, folder, overwrite=self._overwrite,
                    observe=lambda p: self.trained("autoencoder", p),
                ),
            )  # fmt: skip
        if teacher.preset is None:
            return
        chosen, preset = teacher.section, PRESETS[teacher.preset]
        self._stages.run(
            "teacher",
            chosen.model_dump(mode="json"),
            self.key(),
            [self.teacher_path],
            lambda: fit(
                chosen.config, SCHEDULES[preset.schedule], preset.prediction, self.samples, chosen.train,
                self.teacher_path.parent, overwrite=self._overwrite, observe=lambda p: self.trained("teacher", p),
            ),
        )  # fmt: skip

    def trained(self, stage: str, progress: Progress) -> None:
        """Say where a training has come to."""
        self._update(stage, progress.step, progress.steps, str(progress))
