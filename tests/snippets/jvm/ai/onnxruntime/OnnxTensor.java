package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;

public final class OnnxTensor implements OnnxValue {
    final ByteBuffer bytes;
    final long[] shape;
    final boolean integers;

    OnnxTensor(ByteBuffer bytes, long[] shape, boolean integers) throws OrtException {
        long count = 4;
        for (long side : shape) count *= side;
        if (count != bytes.capacity()) throw new OrtException(bytes.capacity() + " bytes are no tensor of " + count);
        this.bytes = bytes;
        this.shape = shape;
        this.integers = integers;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = room(data);
        bytes.asFloatBuffer().put(data);
        return new OnnxTensor(bytes, shape, false);
    }

    public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
        ByteBuffer bytes = room(data);
        bytes.asIntBuffer().put(data);
        return new OnnxTensor(bytes, shape, true);
    }

    private static ByteBuffer room(Buffer data) {
        return ByteBuffer.allocate(4 * data.remaining());
    }

    public FloatBuffer getFloatBuffer() {
        return bytes.asFloatBuffer();
    }

    @Override
    public void close() {}
}
