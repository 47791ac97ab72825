// An image in, a label out:
//
//     val bundle = Bundle(File(context.filesDir, "bundle"))
//     val pixels = Pixels(bundle.processor("preprocessor_config.json"))
//     val scaled = Bitmap.createScaledBitmap(bitmap, pixels.width, pixels.height, true)
//     val argb = IntArray(pixels.width * pixels.height)
//     scaled.getPixels(argb, 0, pixels.width, 0, 0, pixels.width, pixels.height)
//     val model = bundle.liteRt()                                  // or bundle.onnx()
//     val name = label(model.run(pixels.inputs(argb)), bundle.labels)
//
// createScaledBitmap reads four pixels where Pillow, in training, averages all that fall together: for an image much
// larger than the model's size, halve it until it is less than twice that size before this.
package edgekit.sample

import org.json.JSONArray
import org.json.JSONObject

/** `config` is the parsed preprocessor_config.json. */
class Pixels(config: JSONObject) {
    val width = config.getJSONObject("size").getInt("width")
    val height = config.getJSONObject("size").getInt("height")
    private val scale = if (config.getBoolean("do_rescale")) config.getDouble("rescale_factor") else 1.0
    private val normalize = config.getBoolean("do_normalize")
    private val mean = floats(config.getJSONArray("image_mean"))
    private val deviation = floats(config.getJSONArray("image_std"))

    private fun floats(array: JSONArray) = FloatArray(array.length()) { array.getDouble(it).toFloat() }

    /** `argb` [height * width], as Bitmap.getPixels gives it, to the model's input [1, 3, height, width]. */
    fun inputs(argb: IntArray): Map<String, Input> {
        val values = FloatArray(3 * argb.size)
        for (channel in 0..2) for (i in argb.indices) {
            val value = (((argb[i] shr (16 - 8 * channel)) and 0xff) * scale).toFloat()
            values[channel * argb.size + i] = if (normalize) (value - mean[channel]) / deviation[channel] else value
        }
        val shape = longArrayOf(1, 3, height.toLong(), width.toLong())
        return mapOf("pixel_values" to Input(null, values, shape))
    }
}
