// Draw a bundle's golden image with ONNX Runtime on Android or on a JVM: Loop.draw(File("NAME.edgesd"), index).
//
// Tested on a JVM, not on Android: compiled by Kotlin 1.3, with ONNX Runtime's Java API declared by the test and its computing done by
// ONNX Runtime in Python. Needs com.microsoft.onnxruntime:onnxruntime-android (on a JVM: onnxruntime) and org.json, which Android has.
package edgesd

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.security.MessageDigest
import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.sqrt
import org.json.JSONObject

class Plan(val tensors: Map<String, Tensor>) {
    val rows = tensors.getValue("timestep").values.size
    val history = tensors.getValue("b").values.size / rows
    val start = tensors["start"]?.values?.get(0) ?: 1.0
    fun at(name: String, row: Int): Float = tensors.getValue(name).values[row].toFloat()
    fun weight(name: String, row: Int, j: Int): Float = tensors.getValue(name).values[row * history + j].toFloat()
}

// Values of any dtype as Double, which holds float32 exactly, and integers of programs.
class Tensor(val shape: List<Int>, val values: DoubleArray) {
    fun floats(): FloatArray = FloatArray(values.size) { values[it].toFloat() }
}

class Drawn(val image: FloatArray, val golden: FloatArray, val shape: List<Int>)

object Loop {
    fun sample(plan: Plan, program: (FloatArray, Int) -> FloatArray, noise: (Int) -> FloatArray): FloatArray {
        var x = noise(-1)
        val count = x.size
        for (i in 0 until count) x[i] = plan.start.toFloat() * x[i]
        val base = x.copyOf()
        val memory = ArrayList<FloatArray>() // newest first
        for (row in 0 until plan.rows) {
            val e = program(x, row)
            val p = plan.at("p", row); val q = plan.at("q", row); val u = plan.at("u", row)
            val a = plan.at("a", row); val next = plan.at("a_next", row); val c = plan.at("c", row)
            memory.add(0, FloatArray(count) { p * x[it] + q * e[it] })
            if (memory.size > plan.history) memory.removeAt(plan.history)
            val z = if (c != 0f) noise(row) else null
            val after = FloatArray(count)
            for (i in 0 until count) {
                base[i] = u * x[i] + a * base[i]
                for (j in memory.indices) base[i] = base[i] + plan.weight("b", row, j) * memory[j][i]
                after[i] = next * base[i]
                for (j in memory.indices) after[i] = after[i] + plan.weight("b_next", row, j) * memory[j][i]
                if (z != null) after[i] = after[i] + c * z[i]
            }
            x = after
        }
        return x
    }

    fun draw(folder: File, index: Int = 0): Drawn {
        val manifest = JSONObject(File(folder, "manifest.json").readText())
        expectVersion("manifest.json", manifest, 3)
        val (header, columns) = safetensors(read(folder, manifest, "plan.safetensors"))
        expectVersion("plan.safetensors", header, 1)
        val (goldenHeader, golden) = safetensors(read(folder, manifest, "golden.safetensors"))
        expectVersion("golden.safetensors", goldenHeader, 2)
        val plan = Plan(columns)
        val names = header.getJSONArray("programs")
        val programs = (0 until names.length()).map { Program.load(folder, manifest, names.getString(it))!! }
        val temporal = Program.load(folder, manifest, "temporal")
        val decoder = Program.load(folder, manifest, "decoder")

        val labels = goldenHeader.getJSONArray("labels")
        val rows: List<FloatArray> = if (labels.length() > 0) {
            val label = intArrayOf(labels.getInt(index))
            (0 until plan.rows).map { temporal!!(floatArrayOf(plan.at("timestep", it)), label) }
        } else {
            val features = columns.getValue("features").floats()
            val width = features.size / plan.rows
            (0 until plan.rows).map { features.copyOfRange(it * width, (it + 1) * width) }
        }
        val which = columns.getValue("program").values
        val seed = goldenHeader.getLong("seed")
        val count = golden.getValue("$index.final").values.size
        val last = sample(plan, { x, row -> programs[which[row].toInt()](x, rows[row]) }, { gaussian(seed, index.toLong(), it, count) })
        val image = if (decoder != null) decoder(last) else last
        val wanted = golden.getValue("$index." + if (decoder != null) "image" else "final")
        return Drawn(image, wanted.floats(), wanted.shape)
    }

    // One of the bundle's files, as it was exported.
    fun read(folder: File, manifest: JSONObject, name: String): ByteArray {
        val data = File(folder, name).readBytes()
        val hash = MessageDigest.getInstance("SHA-256").digest(data).joinToString("") { "%02x".format(it) }
        check(hash == manifest.getJSONObject("files").getJSONObject(name).getString("sha256")) { "$name has changed" }
        return data
    }

    // A safetensors file: the header that edge-sd keeps in its metadata, and the tensors by name.
    fun safetensors(data: ByteArray): Pair<JSONObject, Map<String, Tensor>> {
        val buffer = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN)
        val size = buffer.getLong(0).toInt()
        val entries = JSONObject(String(data, 8, size, Charsets.UTF_8))
        val tensors = HashMap<String, Tensor>()
        for (key in entries.keys()) {
            val name = key as String // org.json's iterators had no types once
            if (name == "__metadata__") continue
            val entry = entries.getJSONObject(name)
            val shape = entry.getJSONArray("shape").let { list -> (0 until list.length()).map { list.getInt(it) } }
            val begin = 8 + size + entry.getJSONArray("data_offsets").getInt(0)
            val count = shape.fold(1) { product, side -> product * side }
            val values = when (val dtype = entry.getString("dtype")) {
                "F32" -> DoubleArray(count) { buffer.getFloat(begin + 4 * it).toDouble() }
                "F64" -> DoubleArray(count) { buffer.getDouble(begin + 8 * it) }
                "I64" -> DoubleArray(count) { buffer.getLong(begin + 8 * it).toDouble() }
                else -> error("unknown dtype $dtype")
            }
            tensors[name] = Tensor(shape, values)
        }
        return Pair(JSONObject(entries.getJSONObject("__metadata__").getString("edge_sd")), tensors)
    }

    private fun expectVersion(name: String, header: JSONObject, known: Int) {
        val found = header.getInt("schema_version")
        check(found == known) { "$name has schema version $found, this reads $known" }
    }

    // Philox-4×32-10 and Box–Muller, to the bit what the golden trajectories start from.
    fun gaussian(seed: Long, index: Long, row: Int, count: Int): FloatArray {
        val low = 0xFFFFFFFFL
        val values = FloatArray(count)
        for (block in 0 until (count + 3) / 4) {
            var c = longArrayOf(block.toLong(), row + 1L, index and low, index ushr 32)
            var k0 = seed and low
            var k1 = seed ushr 32
            repeat(10) {
                val p0 = c[0] * 0xD2511F53L // 64 bits: the sign bit is the product's highest
                val p1 = c[2] * 0xCD9E8D57L
                c = longArrayOf((p1 ushr 32) xor c[1] xor k0, p1 and low, (p0 ushr 32) xor c[3] xor k1, p0 and low)
                k0 = (k0 + 0x9E3779B9L) and low
                k1 = (k1 + 0xBB67AE85L) and low
            }
            val four = boxMuller(c[0], c[1]) + boxMuller(c[2], c[3])
            for (i in 0 until 4) if (4 * block + i < count) values[4 * block + i] = four[i]
        }
        return values
    }

    private val LN = DoubleArray(11) { 1.0 / (2 * it + 1) }
    private val SIN = DoubleArray(9) { sign(it) / factorial(2 * it + 1) }
    private val COS = DoubleArray(10) { sign(it) / factorial(2 * it) }

    private fun sign(k: Int): Double = if (k % 2 == 0) 1.0 else -1.0

    private fun factorial(n: Int): Double = (2..n).fold(1.0) { product, k -> product * k }

    private fun horner(x: Double, coefficients: DoubleArray): Double =
        coefficients.reversed().reduce { total, coefficient -> total * x + coefficient }

    private fun boxMuller(w0: Long, w1: Long): FloatArray {
        var m = (2.0 * w0 + 1) / 8589934592.0 // 2³³
        var e = 0
        while (m < 0.7071067811865476) {
            m *= 2
            e -= 1
        }
        val s = (m - 1) / (m + 1)
        val radius = sqrt(-2 * (e * 0.6931471805599453 + 2 * s * horner(s * s, LN)))
        val halfPi = 1.5707963267948966
        val t = ((w1 and 0x3FFFFFFFL) + 0.5) / 1073741824.0 * halfPi - halfPi / 2 // 2³⁰
        val sin = t * horner(t * t, SIN)
        val cos = horner(t * t, COS)
        val turn = (w1 ushr 30).toInt()
        val x = if (turn % 2 == 1) sin else cos
        val y = if (turn % 2 == 1) cos else sin
        return floatArrayOf((radius * if (turn == 1 || turn == 2) -x else x).toFloat(), (radius * if (turn >= 2) -y else y).toFloat())
    }
}

// An ONNX program as a function of its inputs, in the contract's order.
class Program private constructor(private val session: OrtSession, private val inputs: List<Pair<String, LongArray>>) {
    operator fun invoke(vararg values: Any): FloatArray {
        val feeds = LinkedHashMap<String, OnnxTensor>()
        for ((i, input) in inputs.withIndex()) {
            feeds[input.first] = when (val value = values[i]) {
                is FloatArray -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(value), input.second)
                is IntArray -> OnnxTensor.createTensor(environment, IntBuffer.wrap(value), input.second)
                else -> error("neither float32 nor int32")
            }
        }
        val result = session.run(feeds)
        try {
            val buffer = (result.get(0) as OnnxTensor).floatBuffer
            return FloatArray(buffer.remaining()).also { buffer.get(it) }
        } finally {
            result.close()
        }
    }

    companion object {
        private val environment: OrtEnvironment = OrtEnvironment.getEnvironment()

        // null where the bundle has no ONNX program of that name.
        fun load(folder: File, manifest: JSONObject, name: String): Program? {
            val programs = manifest.getJSONArray("programs").let { list -> (0 until list.length()).map { list.getJSONObject(it) } }
            val found = programs.firstOrNull { it.getString("target") == "onnx" && it.getString("name") == name } ?: return null
            val contracts = manifest.getJSONArray("contracts").let { list -> (0 until list.length()).map { list.getJSONObject(it) } }
            val specs = contracts.first { it.getString("program") == name }.getJSONArray("inputs")
            val inputs = (0 until specs.length()).map { specs.getJSONObject(it) }.map { spec ->
                val shape = spec.getJSONArray("shape")
                Pair(spec.getString("name"), LongArray(shape.length()) { shape.getLong(it) })
            }
            Loop.read(folder, manifest, found.getString("file"))
            val session = environment.createSession(File(folder, found.getString("file")).path, OrtSession.SessionOptions())
            return Program(session, inputs)
        }
    }
}

fun main(arguments: Array<String>) {
    val index = arguments.getOrElse(1) { "0" }.toInt()
    val drawn = Loop.draw(File(arguments[0]), index)
    var signal = 0.0
    var noise = 0.0
    var largest = 0.0
    for ((i, value) in drawn.golden.withIndex()) {
        val difference = drawn.image[i].toDouble() - value
        signal += value.toDouble() * value
        noise += difference * difference
        largest = max(largest, abs(difference))
    }
    println("image %d: %.1f dB, largest difference %.1e".format(index, 10 * log10(signal / max(noise, 1e-300)), largest))
    if (arguments.size > 2) {
        val bytes = ByteBuffer.allocate(4 * drawn.image.size).order(ByteOrder.LITTLE_ENDIAN)
        drawn.image.forEach { bytes.putFloat(it) }
        File(arguments[2]).writeBytes(bytes.array())
    }
}
