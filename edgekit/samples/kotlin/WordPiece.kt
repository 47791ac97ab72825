// BERT's WordPiece tokenizer in plain Kotlin: the same ids as the bundle's tokenizer.json gives in Python.
// Needs org.json, which Android has. Special tokens written out in a text ("[SEP]") are read as plain text.
package edgekit.sample

import java.text.Normalizer
import org.json.JSONArray
import org.json.JSONObject

/** `tokenizer` is the parsed tokenizer.json; `maxLength` counts special tokens too. */
class WordPiece(tokenizer: JSONObject, private val maxLength: Int) {
    private class Token(val id: Int, val word: Int)

    private val model = tokenizer.getJSONObject("model")
    private val vocabulary = model.getJSONObject("vocab")
    private val unknown = vocabulary.getInt(model.getString("unk_token"))
    private val prefix = model.getString("continuing_subword_prefix")
    private val longestWord = model.getInt("max_input_chars_per_word")
    private val normalizer = tokenizer.getJSONObject("normalizer")
    private val lowercase = normalizer.getBoolean("lowercase")
    private val stripAccents = if (normalizer.isNull("strip_accents")) lowercase else normalizer.getBoolean("strip_accents")
    private val single: List<Piece>
    private val pair: List<Piece>

    /** A part of the sequence around the texts: text 0 or 1, or a special token. */
    private class Piece(val text: Int, val id: Int, val type: Int)

    init {
        val ends = tokenizer.getJSONObject("post_processor")
        if (ends.getString("type") == "TemplateProcessing") {
            single = template(ends.getJSONArray("single"), ends)
            pair = template(ends.getJSONArray("pair"), ends)
        } else {
            val start = Piece(-1, ends.getJSONArray("cls").getInt(1), 0)
            val end = ends.getJSONArray("sep").getInt(1)
            single = listOf(start, Piece(0, 0, 0), Piece(-1, end, 0))
            pair = single + listOf(Piece(1, 0, 1), Piece(-1, end, 1))
        }
    }

    private fun template(parts: JSONArray, ends: JSONObject): List<Piece> = (0 until parts.length()).map {
        val part = parts.getJSONObject(it)
        if (part.has("Sequence")) {
            val text = part.getJSONObject("Sequence")
            Piece(if (text.getString("id") == "A") 0 else 1, 0, text.getInt("type_id"))
        } else {
            val token = part.getJSONObject("SpecialToken")
            val known = ends.getJSONObject("special_tokens").getJSONObject(token.getString("id"))
            Piece(-1, known.getJSONArray("ids").getInt(0), token.getInt("type_id"))
        }
    }

    /** Encodes a text, or a pair of texts; where that is too long, the second text (or the only one) is cut. */
    fun encode(text: String, second: String? = null): Encoded {
        val pieces = if (second == null) single else pair
        val tokens = listOf(tokens(text), if (second == null) emptyList() else tokens(second)).toMutableList()
        val last = if (second == null) 0 else 1
        val room = maxLength - pieces.count { it.text < 0 } - (if (second == null) 0 else tokens[0].size)
        tokens[last] = tokens[last].take(maxOf(room, 0))
        val ids = ArrayList<Int>()
        val types = ArrayList<Int>()
        val texts = ArrayList<Int>()
        val words = ArrayList<Int>()
        for (piece in pieces) {
            for (token in if (piece.text < 0) listOf(Token(piece.id, -1)) else tokens[piece.text]) {
                ids.add(token.id)
                texts.add(piece.text)
                types.add(piece.type)
                words.add(token.word)
            }
        }
        return Encoded(ids.toIntArray(), types.toIntArray(), texts.toIntArray(), words.toIntArray())
    }

    private fun tokens(text: String): List<Token> =
        words(text).withIndex().flatMap { (i, word) -> split(normalize(word)).flatMap { pieces(it) }.map { Token(it, i) } }

    /** Longest match first; a word with a part that is not in the vocabulary becomes the unknown token. */
    private fun pieces(word: String): List<Int> {
        val points = word.codePoints().toArray()
        if (points.size > longestWord) return listOf(unknown)
        val found = ArrayList<Int>()
        var start = 0
        while (start < points.size) {
            var end = points.size
            while (end > start && !vocabulary.has(piece(points, start, end))) end--
            if (end == start) return listOf(unknown)
            found.add(vocabulary.getInt(piece(points, start, end)))
            start = end
        }
        return found
    }

    private fun piece(points: IntArray, start: Int, end: Int): String =
        (if (start > 0) prefix else "") + String(points, start, end - start)

    private fun normalize(word: String): String {
        var points = word.codePoints().toArray().asList()
        if (normalizer.getBoolean("clean_text")) points = points.filter { !isControl(it) }
        if (normalizer.getBoolean("handle_chinese_chars")) {
            points = points.flatMap { if (isChinese(it)) listOf(SPACE, it, SPACE) else listOf(it) }
        }
        var text = String(points.toIntArray(), 0, points.size)
        if (stripAccents) text = Normalizer.normalize(text, Normalizer.Form.NFD).replace(Regex("\\p{Mn}"), "")
        // Letter by letter, as in Python's tokenizers: String.toLowerCase would turn a final sigma into another letter.
        return if (lowercase) lower(text) else text
    }

    private fun lower(text: String): String {
        val result = StringBuilder()
        for (point in text.codePoints().toArray()) {
            if (point == DOTTED_I) result.append("i\u0307") else result.appendCodePoint(Character.toLowerCase(point))
        }
        return result.toString()
    }

    /** Splits at white space, and makes each punctuation mark a word of its own. */
    private fun split(text: String): List<String> {
        val found = ArrayList<String>()
        val word = StringBuilder()
        fun finish() {
            if (word.isNotEmpty()) found.add(word.toString())
            word.setLength(0)
        }
        for (point in text.codePoints().toArray()) {
            when {
                isSpace(point) -> finish()
                isPunctuation(point) -> {
                    finish()
                    found.add(String(intArrayOf(point), 0, 1))
                }
                else -> word.appendCodePoint(point)
            }
        }
        finish()
        return found
    }

    companion object {
        private const val SPACE = 0x20
        private const val DOTTED_I = 0x130

        /** The words of a text, by white space: what `Encoded.words` counts. */
        fun words(text: String): List<String> {
            val found = ArrayList<String>()
            val word = StringBuilder()
            for (point in text.codePoints().toArray()) {
                if (!isSpace(point)) word.appendCodePoint(point)
                if (isSpace(point) && word.isNotEmpty()) {
                    found.add(word.toString())
                    word.setLength(0)
                }
            }
            if (word.isNotEmpty()) found.add(word.toString())
            return found
        }

        private fun isSpace(point: Int): Boolean =
            point == 0x09 || point == 0x0a || point == 0x0d || Character.getType(point) in SPACES

        private fun isControl(point: Int): Boolean =
            point == 0 || point == 0xfffd || (!isSpace(point) && Character.getType(point) in CONTROLS)

        private fun isPunctuation(point: Int): Boolean =
            point in 33..47 || point in 58..64 || point in 91..96 || point in 123..126 ||
                Character.getType(point) in PUNCTUATION

        private fun isChinese(point: Int): Boolean = point in 0x4e00..0x9fff || point in 0x3400..0x4dbf ||
            point in 0x20000..0x2a6df || point in 0x2a700..0x2b73f || point in 0x2b740..0x2b81f ||
            point in 0x2b920..0x2ceaf || point in 0xf900..0xfaff || point in 0x2f800..0x2fa1f

        private val SPACES = setOf(
            Character.SPACE_SEPARATOR.toInt(), Character.LINE_SEPARATOR.toInt(), Character.PARAGRAPH_SEPARATOR.toInt()
        )
        private val CONTROLS = setOf(
            Character.CONTROL.toInt(), Character.FORMAT.toInt(), Character.PRIVATE_USE.toInt(),
            Character.UNASSIGNED.toInt(), Character.SURROGATE.toInt()
        )
        private val PUNCTUATION = setOf(
            Character.CONNECTOR_PUNCTUATION.toInt(), Character.DASH_PUNCTUATION.toInt(),
            Character.START_PUNCTUATION.toInt(), Character.END_PUNCTUATION.toInt(),
            Character.INITIAL_QUOTE_PUNCTUATION.toInt(), Character.FINAL_QUOTE_PUNCTUATION.toInt(),
            Character.OTHER_PUNCTUATION.toInt()
        )
    }
}
