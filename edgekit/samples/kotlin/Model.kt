// Runs this bundle's model on Android, with LiteRT or with ONNX Runtime. In build.gradle.kts, what you use of:
//
//     implementation("com.google.ai.edge.litert:litert:1.4.0")
//     implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
//
// A model is opened once and kept; opening it is what takes time and memory. Call `run` from one thread at a time.
package edgekit.sample

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.Closeable
import java.io.File
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

/** The bundle, unpacked to a folder of the app, for example `File(context.filesDir, "bundle")`. */
class Bundle(private val folder: File) {
    private val manifest = JSONObject(File(folder, "manifest.json").readText())
    private val threads = manifest.getJSONObject("target").getJSONObject("runtime").getInt("threads")
    private val models = manifest.getJSONArray("models").let { all -> (0 until all.length()).map { all.getJSONObject(it) } }

    val maxLength = manifest.getInt("max_length")
    val labels = manifest.getJSONArray("labels").let { all -> (0 until all.length()).map { all.getString(it) } }

    /** A file of the tokenizer or image preprocessor, parsed. */
    fun processor(name: String) = JSONObject(File(File(folder, manifest.getString("encoder")), name).readText())

    fun liteRt(): Model = LiteRt(file("tflite"), threads, manifest.getInt("pad_id"))

    fun onnx(): Model = Onnx(file("onnx"), threads)

    private fun file(format: String) = File(folder, models.first { it.getString("format") == format }.getString("path"))
}

/** One input, without padding: ids (`ints`) or pixels (`floats`), row by row. */
class Input(val ints: IntArray?, val floats: FloatArray?, val shape: LongArray)

interface Model : Closeable {
    /** The outputs by name, row by row. What the model does not take of `inputs` is left out. */
    fun run(inputs: Map<String, Input>): Map<String, FloatArray>
}

/** TFLite has a signature for each length: this pads to the smallest that fits. */
class LiteRt(file: File, threads: Int, private val padId: Int) : Model {
    private val interpreter = Interpreter(file, Interpreter.Options().setNumThreads(threads))

    override fun run(inputs: Map<String, Input>): Map<String, FloatArray> {
        val needed = inputs.values.first().shape[1]
        val key = interpreter.signatureKeys.filter { length(it) >= needed }.sortedBy { length(it) }.firstOrNull()
            ?: throw IllegalArgumentException("the input has $needed tokens, more than the model takes")
        val given = HashMap<String, Any>()
        for (name in interpreter.getSignatureInputs(key)) {
            val input = inputs.getValue(name)
            given[name] = if (input.ints == null) FloatBuffer.wrap(input.floats)
            else IntBuffer.wrap(padded(input.ints, length(key), if (name == "input_ids") padId else 0))
        }
        val outputs = interpreter.getSignatureOutputs(key).associate {
            it to FloatBuffer.allocate(interpreter.getOutputTensorFromSignature(it, key).numElements())
        }
        interpreter.runSignature(given, outputs, key)
        return outputs.mapValues { it.value.array() }
    }

    private fun length(key: String): Int =
        interpreter.getInputTensorFromSignature(interpreter.getSignatureInputs(key)[0], key).shape()[1]

    private fun padded(values: IntArray, length: Int, fill: Int) =
        IntArray(length) { if (it < values.size) values[it] else fill }

    override fun close() = interpreter.close()
}

/** ONNX takes any length. */
class Onnx(file: File, threads: Int) : Model {
    private val environment = OrtEnvironment.getEnvironment()
    private val options = OrtSession.SessionOptions().also { it.setIntraOpNumThreads(threads) }
    private val session = environment.createSession(file.path, options)

    override fun run(inputs: Map<String, Input>): Map<String, FloatArray> {
        val given = session.inputNames.associateWith { tensor(inputs.getValue(it)) }
        val result = session.run(given)
        try {
            return session.outputNames.associateWith { name ->
                val values = (result.get(name).get() as OnnxTensor).floatBuffer
                FloatArray(values.remaining()).also { values.get(it) }
            }
        } finally {
            result.close()
            given.values.forEach { it.close() }
        }
    }

    private fun tensor(input: Input): OnnxTensor {
        val ints = input.ints ?: return OnnxTensor.createTensor(environment, FloatBuffer.wrap(input.floats), input.shape)
        val longs = LongArray(ints.size) { ints[it].toLong() }
        return OnnxTensor.createTensor(environment, LongBuffer.wrap(longs), input.shape)
    }

    override fun close() {
        session.close()
        options.close()
    }
}

/** text-classification and image-classification: the label with the greatest logit. */
fun label(outputs: Map<String, FloatArray>, labels: List<String>): String =
    labels[best(outputs.getValue("logits"), 0, labels.size)]

/** The place of the greatest of `count` values from `start` on. */
fun best(values: FloatArray, start: Int, count: Int): Int {
    var found = 0
    for (i in 1 until count) if (values[start + i] > values[start + found]) found = i
    return found
}
