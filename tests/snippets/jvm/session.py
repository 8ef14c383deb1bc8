"""An ONNX Runtime session for OrtSession.java: feeds come in on stdin, the first output goes to stdout, big-endian.

`python session.py MODEL`
"""

import os
import struct
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime


def main(model: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        feeds = {}
        for _ in range(struct.unpack(">i", head)[0]):
            name = source.read(struct.unpack(">H", source.read(2))[0]).decode()
            integers, rank = struct.unpack(">?i", source.read(5))
            shape = struct.unpack(f">{rank}i", source.read(4 * rank))
            values = np.frombuffer(source.read(4 * int(np.prod(shape))), ">i4" if integers else ">f4")
            feeds[name] = values.reshape(shape).astype(np.int32 if integers else np.float32)
        found = session.run(None, feeds)[0].astype(">f4").tobytes()
        out.write(struct.pack(">i", len(found)) + found)
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
