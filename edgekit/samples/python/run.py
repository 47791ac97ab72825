"""How to call this bundle's models from Python, in one file to copy from. It needs no edgekit:

    pip install numpy tokenizers onnxruntime            # for the ONNX model
    pip install numpy tokenizers ai-edge-litert         # for the TFLite model (float only: tflite-runtime)
    python samples/python/run.py "a text" [--format onnx|tflite]

A question-answering model takes two texts, question and context; an image model the path of an image (pip install
pillow). A text longer than `max_length` tokens is cut here; `edgekit run` reads on in overlapping windows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

BUNDLE = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    """Read the arguments, encode, run the model, print what its outputs mean."""
    manifest: dict[str, Any] = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser()
    parser.add_argument("given", nargs="+")
    parser.add_argument("--format", choices=[model["format"] for model in manifest["models"]])
    arguments = parser.parse_args()
    model = next(m for m in manifest["models"] if arguments.format in (None, m["format"]))
    run = run_onnx if model["format"] == "onnx" else run_tflite
    if manifest["kind"] == "image-classification":
        outputs = run(manifest, BUNDLE / model["path"], {"pixel_values": pixels(manifest, arguments.given[0])})
        print(json.dumps(best_label(manifest, outputs["logits"])))
        return
    encoding = encode(manifest, arguments.given)
    inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    outputs = run(manifest, BUNDLE / model["path"], {k: np.array([v], dtype=np.int64) for k, v in inputs.items()})
    print(json.dumps(decode(manifest, arguments.given, encoding, outputs), ensure_ascii=False))


def encode(manifest: dict[str, Any], given: list[str]) -> Any:
    """Text, or a pair of texts, to ids; for token classification word by word, as in training."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = Tokenizer.from_file(str(BUNDLE / manifest["encoder"] / "tokenizer.json"))
    tokenizer.no_padding()
    cut = "only_second" if manifest["kind"] == "question-answering" else "longest_first"
    tokenizer.enable_truncation(manifest["max_length"], strategy=cut)
    if manifest["kind"] == "token-classification":
        if isinstance(tokenizer.pre_tokenizer, ByteLevel):
            tokenizer.pre_tokenizer.add_prefix_space = True
        return tokenizer.encode(given[0].split(), is_pretokenized=True)
    return tokenizer.encode(*given)


def run_onnx(manifest: dict[str, Any], path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, without the batch dimension. ONNX takes any batch and length."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = manifest["target"]["runtime"]["threads"]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {i.name: inputs[i.name] for i in session.get_inputs()})
    return {name: np.asarray(output)[0] for name, output in zip(names, found, strict=True)}


def run_tflite(manifest: dict[str, Any], path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with TFLite, which has one signature a length: pad to the smallest that fits."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        if next(m for m in manifest["models"] if m["format"] == "tflite")["quantized"]:
            raise SystemExit(
                "tflite-runtime 2.14 computes int8 per channel wrongly; pip install ai-edge-litert"
            ) from None
        from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=manifest["target"]["runtime"]["threads"])
    runners = [interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()]
    lengths = [max(i["shape"][1] for i in runner.get_input_details().values()) for runner in runners]
    needed = next(iter(inputs.values())).shape[1]
    length, _, runner = min((n, i, r) for i, (n, r) in enumerate(zip(lengths, runners, strict=True)) if n >= needed)
    ready: dict[str, np.ndarray] = {}
    for name, details in runner.get_input_details().items():
        value = inputs[name]
        if value.ndim == 2:
            fill = manifest["pad_id"] if name == "input_ids" else 0
            value = np.pad(value, ((0, 0), (0, length - needed)), constant_values=fill)
        ready[name] = value.astype(details["dtype"])
    per_token = manifest["kind"] in ("token-classification", "question-answering")
    return {name: output[0][:needed] if per_token else output[0] for name, output in runner(**ready).items()}


def decode(manifest: dict[str, Any], given: list[str], encoding: Any, outputs: dict[str, np.ndarray]) -> Any:
    """What the outputs mean."""
    kind, labels = manifest["kind"], manifest["labels"]
    if kind == "text-classification":
        return best_label(manifest, outputs["logits"])
    if kind == "token-classification":  # a word's label stands at its first token
        first = {word: i for i, word in reversed(list(enumerate(encoding.word_ids))) if word is not None}
        words = given[0].split()
        return [[words[word], labels[int(outputs["logits"][i].argmax())]] for word, i in sorted(first.items())]
    if kind == "question-answering":  # the best span that lies in the context and does not end before it starts
        context = np.array([s == 1 for s in encoding.sequence_ids])
        pairs = np.add.outer(outputs["start_logits"], outputs["end_logits"])
        pairs[~np.triu(np.outer(context, context))] = -np.inf
        start, end = np.unravel_index(pairs.argmax(), pairs.shape)
        return given[1][encoding.offsets[start][0] : encoding.offsets[end][1]]
    return outputs["sentence_embedding"].tolist()


def best_label(manifest: dict[str, Any], logits: np.ndarray) -> dict[str, Any]:
    """The label with the greatest logit, and its softmax."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = int(shares.argmax())
    return {"label": manifest["labels"][best], "probability": round(float(shares[best]), 4)}


def pixels(manifest: dict[str, Any], path: str) -> np.ndarray:
    """An image as the model takes it: float32 [1, 3, height, width], resized, scaled and normalised."""
    from PIL import Image, ImageOps

    config = json.loads((BUNDLE / manifest["encoder"] / "preprocessor_config.json").read_text(encoding="utf-8"))
    size, image = config["size"], ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    array = np.asarray(image.resize((size["width"], size["height"]), config["resample"])).astype(np.float64)
    array = (array * (config["rescale_factor"] if config["do_rescale"] else 1)).astype(np.float32)
    if config["do_normalize"]:
        array = (array - np.float32(config["image_mean"])) / np.float32(config["image_std"])
    return array.transpose(2, 0, 1)[None]


if __name__ == "__main__":
    main()
