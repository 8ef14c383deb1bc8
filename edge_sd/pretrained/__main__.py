"""How the shipped models are made of a finished run: `python -m edge_sd.pretrained RUN edge_sd/pretrained/emoji64`.

The run is that of docs/emoji64.yaml. Weights are rounded to float16; the decoder, whose hash names the latent space, stays as
it is, and so does the encoder beside it.
"""

import shutil
import sys
from pathlib import Path

from edge_sd.checkpoint import load_checkpoint


def ship(run: Path, out: Path) -> list[Path]:
    """Write student, teacher, decoder and autoencoder of a run to a folder, and return the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for role in ("teacher", "student"):
        path = out / f"{role}.safetensors"
        load_checkpoint(run / role / "checkpoint.safetensors").rounded().save(path, half=True)
        files.append(path)
    for source in (run / "student" / "decoder.safetensors", run / "autoencoder" / "autoencoder.safetensors"):
        files.append(Path(shutil.copyfile(source, out / source.name)))
    return files


if __name__ == "__main__":
    for file in ship(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB")
