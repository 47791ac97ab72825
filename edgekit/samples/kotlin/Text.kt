// Texts in, answers out, by the kind of the model (`kind` in manifest.json). With WordPiece.kt beside this file:
//
//     val bundle = Bundle(File(context.filesDir, "bundle"))
//     val tokenizer = WordPiece(bundle.processor("tokenizer.json"), bundle.maxLength)
//     val model = bundle.liteRt()                                  // or bundle.onnx()
//     val input = tokenizer.encode(text)
//     val labels = wordLabels(input, model.run(input.inputs()), bundle.labels)   // one for each WordPiece.words(text)
//
// Without WordPiece.kt the model has another kind of tokenizer, which this sample does not hold. Fill `Encoded` from a
// library that reads tokenizer.json, such as Hugging Face's tokenizers (Rust) called through JNI.
package edgekit.sample

/**
 * A text, or a pair, as the model takes it. For each token: its id, its segment, which text it is of (0, 1, or -1 for
 * a special token) and which word of that text by white space (-1 for a special token).
 */
class Encoded(val ids: IntArray, val types: IntArray, val texts: IntArray, val words: IntArray) {
    fun inputs(): Map<String, Input> {
        val shape = longArrayOf(1, ids.size.toLong())
        val mask = IntArray(ids.size) { 1 }
        return mapOf(
            "input_ids" to Input(ids, null, shape),
            "attention_mask" to Input(mask, null, shape),
            "token_type_ids" to Input(types, null, shape)
        )
    }
}

/** token-classification: the label of each word, which stands at the word's first token. Words that were cut have none. */
fun wordLabels(input: Encoded, outputs: Map<String, FloatArray>, labels: List<String>): List<String> {
    val found = sortedMapOf<Int, String>()
    for ((token, word) in input.words.withIndex()) {
        if (word >= 0 && word !in found) {
            found[word] = labels[best(outputs.getValue("logits"), token * labels.size, labels.size)]
        }
    }
    return found.values.toList()
}

/** question-answering: the best span of the context (the second text), as its first and last word; null for none. */
fun span(input: Encoded, outputs: Map<String, FloatArray>): Pair<Int, Int>? {
    val start = outputs.getValue("start_logits")
    val end = outputs.getValue("end_logits")
    val context = input.ids.indices.filter { input.texts[it] == 1 }
    var found: Pair<Int, Int>? = null
    var most = Float.NEGATIVE_INFINITY
    for (a in context) for (b in context) {
        if (b >= a && start[a] + end[b] > most) {
            most = start[a] + end[b]
            found = Pair(input.words[a], input.words[b])
        }
    }
    return found
}

/** sentence-embedding: a vector of length 1; the dot product of two is their cosine. */
fun embedding(outputs: Map<String, FloatArray>): FloatArray = outputs.getValue("sentence_embedding")
