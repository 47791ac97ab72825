// Prints what the samples make of a file of texts, for comparison with Python's tokenizers.
import edgekit.sample.*
import java.io.File
import org.json.JSONArray
import org.json.JSONObject

fun main(args: Array<String>) {
    if (args[0] == "ids") {
        val tokenizer = WordPiece(JSONObject(File(args[1]).readText()), args[2].toInt())
        val texts = JSONArray(File(args[3]).readText())
        val found = JSONArray()
        for (i in 0 until texts.length()) {
            val given = texts.getJSONArray(i)
            val encoded = tokenizer.encode(given.getString(0), if (given.length() > 1) given.getString(1) else null)
            found.put(
                JSONObject().put("ids", JSONArray(encoded.ids.toList())).put("types", JSONArray(encoded.types.toList()))
                    .put("words", JSONArray(encoded.words.toList())).put("texts", JSONArray(encoded.texts.toList()))
            )
        }
        println(found)
        return
    }
    val bundle = Bundle(File(args[1]))
    val input = Encoded(intArrayOf(5, 0, 3, -2, 7), IntArray(5), intArrayOf(-1, 0, 0, 0, -1), intArrayOf(-1, 0, 1, 1, -1))
    for (model in listOf(bundle.liteRt(), bundle.onnx())) model.use {
        println(wordLabels(input, it.run(input.inputs()), bundle.labels))
    }
    val context = Encoded(IntArray(5), IntArray(5), intArrayOf(-1, 0, 1, 1, 1), intArrayOf(-1, 0, 0, 1, 2))
    val start = floatArrayOf(9f, 9f, 0f, 3f, 2f)
    val end = floatArrayOf(9f, 9f, 4f, 1f, 2f)
    println(span(context, mapOf("start_logits" to start, "end_logits" to end)))
    val config = JSONObject(
        """{"size": {"width": 2, "height": 1}, "do_rescale": true, "rescale_factor": 0.5, "do_normalize": true,
            "image_mean": [1, 2, 3], "image_std": [1, 2, 4]}"""
    )
    val pixels = Pixels(config).inputs(intArrayOf(0x7f020406, 0x00080a0c)).getValue("pixel_values")
    println(pixels.shape.toList().toString() + pixels.floats!!.toList())
}
