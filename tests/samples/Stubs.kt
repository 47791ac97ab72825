// Stands in for Android's two runtimes, which need a phone: the calls that the samples make, as their Java APIs declare
// them, and a model that gives each token's id back as its logits [1, 0 - id], so that padding and shapes can be seen.
package org.tensorflow.lite

import java.io.File
import java.nio.FloatBuffer
import java.nio.IntBuffer

class Tensor(private val shape: IntArray) {
    fun shape(): IntArray = shape
    fun numElements(): Int = shape.fold(1) { a, b -> a * b }
}

class Interpreter(private val file: File, private val options: Options) : AutoCloseable {
    class Options {
        var threads = 0
        fun setNumThreads(count: Int): Options = also { it.threads = count }
    }

    val signatureKeys = arrayOf("len_16", "len_8")
    private fun length(key: String) = key.removePrefix("len_").toInt()
    fun getSignatureInputs(key: String): Array<String> = arrayOf("attention_mask", "input_ids")
    fun getSignatureOutputs(key: String): Array<String> = arrayOf("logits")
    fun getInputTensorFromSignature(name: String, key: String) = Tensor(intArrayOf(1, length(key)))
    fun getOutputTensorFromSignature(name: String, key: String) = Tensor(intArrayOf(1, length(key), 2))

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, key: String) {
        check(options.threads == 3 && file.name == "model.tflite" && inputs.keys == setOf("attention_mask", "input_ids"))
        val ids = inputs.getValue("input_ids") as IntBuffer
        check(ids.remaining() == length(key))
        println("litert $key " + (0 until ids.remaining()).map { ids.get(it) })
        val logits = outputs.getValue("logits") as FloatBuffer
        while (ids.hasRemaining()) logits.put(1f).put(ids.get().toFloat())
    }

    override fun close() = println("litert closed")
}
