package ai.onnxruntime;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Map;

/** The process EDGE_SD_PYTHON session.py MODEL: names, shapes and values go in, the first output's values come out, all big-endian. */
public class OrtSession implements AutoCloseable {
    private final Process process;
    private final DataOutputStream out;
    private final DataInputStream in;

    OrtSession(String modelPath) throws OrtException {
        try {
            process = new ProcessBuilder(System.getenv("EDGE_SD_PYTHON"), System.getenv("EDGE_SD_SESSION"), modelPath)
                .redirectError(ProcessBuilder.Redirect.INHERIT)
                .start();
        } catch (IOException error) {
            throw new OrtException(error.getMessage());
        }
        out = new DataOutputStream(process.getOutputStream());
        in = new DataInputStream(process.getInputStream());
    }

    public Result run(Map<String, ? extends OnnxTensor> inputs) throws OrtException {
        try {
            out.writeInt(inputs.size());
            for (Map.Entry<String, ? extends OnnxTensor> input : inputs.entrySet()) {
                OnnxTensor tensor = input.getValue();
                out.writeUTF(input.getKey());
                out.writeBoolean(tensor.integers);
                out.writeInt(tensor.shape.length);
                for (long side : tensor.shape) out.writeInt((int) side);
                out.write(tensor.bytes.array());
            }
            out.flush();
            byte[] values = new byte[in.readInt()];
            in.readFully(values);
            return new Result(new OnnxTensor(ByteBuffer.wrap(values), new long[] {values.length / 4}, false));
        } catch (IOException error) {
            throw new OrtException(error.getMessage());
        }
    }

    @Override
    public void close() throws OrtException {
        process.destroy();
    }

    public static class SessionOptions implements AutoCloseable {
        @Override
        public void close() {}
    }

    public static class Result implements AutoCloseable {
        private final OnnxValue first;

        Result(OnnxValue first) {
            this.first = first;
        }

        public OnnxValue get(int index) {
            return first;
        }

        @Override
        public void close() {}
    }
}
