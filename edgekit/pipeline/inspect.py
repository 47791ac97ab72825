"""What a model is made of, and what it will weigh, before any work.

Of a model folder or hub name only config.json is read: the model is built on torch's `meta` device, which has shapes
and no memory. Of a bundle, `.onnx` or `.tflite` the file itself is read, without torch.

Predicted memory follows one rule, measured on MiniLM-L6 and a 2-layer student in C programs on x86-64 and ARM64: what
the runtime takes before any model (ONNX Runtime about 30 MB, LiteRT about 9 MB), and the weights twice, since they are
loaded or mapped and then packed once more for the kernels. Activations at batch 1 are small beside that. It came
within 10 % for int8 files of 14 to 23 MB; it is a prediction, and a device says what is true.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgekit import bundle
from edgekit.errors import InputError
from edgekit.pipeline.parts import buffer_bytes, parts, read_onnx, read_tflite
from edgekit.records import Format, Part, Record

if TYPE_CHECKING:
    from rich.tree import Tree
    from torch import nn

_FLOOR_BYTES: dict[Format, int] = {"onnx": 30_000_000, "tflite": 9_000_000}
_COPIES = 2


class Module(Record):
    """A part of a model. `parameters` counts a weight that several parts share at the first of them only."""

    name: str
    kind: str
    parameters: int
    share: float
    children: tuple["Module", ...] = ()


class Weights(Record):
    """Bytes of all weights at one precision, and of the embedding tables among them.

    At int8, matrices take a byte a weight and four a row for its scale; biases and norms stay float32.
    """

    precision: Literal["float32", "float16", "int8", "int8, embeddings float32"]
    bytes: int
    embedding_bytes: int


class Candidate(Record):
    """A file that could be made, or is there, and its predicted peak memory in a C program at batch 1."""

    format: Format
    precision: str
    bytes: int
    predicted_peak_rss_bytes: int


class Inspection(Record):
    """What `inspect` found. `None` and empty where a thing cannot be told from what was given."""

    source: str
    what: Literal["model", "bundle", "onnx", "tflite"]
    family: str | None = None
    parameters: int | None = None
    embedding_parameters: int | None = None
    tree: Module | None = None
    weights: tuple[Weights, ...] = ()
    length: int | None = None
    flops: int | None = None
    """Of one forward pass, batch 1, at `length` tokens; a multiplication and an addition count as two. Only of the
    families that edgekit can build from.
    """
    operators: dict[str, int] = Field(default_factory=dict)
    constant_bytes: dict[str, int] = Field(default_factory=dict)
    """Of a file: bytes of constants by type."""
    parts: tuple[Part, ...] = ()
    """Of a file: its bytes by part of the model; their sum is its size."""
    candidates: tuple[Candidate, ...] = ()
    models: tuple["Inspection", ...] = ()
    """Of a bundle: its model files."""


def inspect(source: str, length: int = 128) -> Inspection:
    """Inspect a model folder, a hub name, a bundle (folder or zip), or a `.onnx` or `.tflite` file.

    `length` is the sequence length in tokens for FLOPs; images have their own. Raises `InputError` for what is none of
    these, or cannot be built.
    """
    path = Path(source)
    if path.suffix in (".onnx", ".tflite"):
        return _file(path)
    if path.suffix == ".zip" or (path / bundle.MANIFEST).is_file():
        return _bundle(path)
    return _model(source, length)


def _bundle(path: Path) -> Inspection:
    with bundle.opened(path) as (folder, manifest):
        models = tuple(
            _file(folder / model.path).model_copy(update={"source": model.path}) for model in manifest.models
        )
    trained = [stage.facts.parameters for stage in manifest.stages if stage.facts.parameters is not None]
    return Inspection(
        source=str(path),
        what="bundle",
        parameters=trained[-1] if trained else None,
        candidates=tuple(candidate for model in models for candidate in model.candidates),
        models=models,
    )


def _file(path: Path) -> Inspection:
    if not path.is_file():
        raise InputError(f"{path}: there is no such model file")
    format: Format = "onnx" if path.suffix == ".onnx" else "tflite"
    try:
        operators, constants = (_read_onnx if format == "onnx" else _read_tflite)(path)
        spent = parts(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: reading it needs {error.name}: pip install 'edgekit[build]'") from None
    precision = (
        "int8" if constants.get("int8", 0) + constants.get("uint8", 0) > sum(constants.values()) / 2 else "float32"
    )
    candidate = _candidate(format, precision, sum(part.bytes for part in spent))
    return Inspection(
        source=str(path), what=format, operators=dict(operators.most_common()),
        constant_bytes=dict(constants.most_common()), parts=spent, candidates=(candidate,),
    )  # fmt: skip


def _read_onnx(path: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each operator stands in the graph, and the bytes of its constants by type."""
    from onnx import helper

    graph = read_onnx(path).graph
    constants: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        constants[dtype.name] += _product(tensor.dims) * dtype.itemsize
    return Counter(node.op_type for node in graph.node), constants


def _read_tflite(path: Path) -> tuple[Counter[str], Counter[str]]:
    """The same of a TFLite file; operators are those of one signature, the last."""
    from ai_edge_litert import schema_py_generated as schema

    model = read_tflite(path)
    operators = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    # several signatures share a buffer
    buffers = {tensor.buffer: types[tensor.type].lower() for graph in model.subgraphs for tensor in graph.tensors}
    constants: Counter[str] = Counter()
    for index, dtype in buffers.items():
        constants[dtype] += buffer_bytes(model.buffers[index])
    last = model.subgraphs[model.signatureDefs[-1].subgraphIndex if model.signatureDefs else 0]
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in last.operators]
    names = [operators[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]
    return Counter(names), +constants


def _candidate(format: Format, precision: str, size: int) -> Candidate:
    predicted = _FLOOR_BYTES[format] + _COPIES * size
    return Candidate(format=format, precision=precision, bytes=size, predicted_peak_rss_bytes=predicted)


def _product(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _model(source: str, length: int) -> Inspection:
    """Of a Hugging Face folder or hub name, from its config.json alone."""
    model = _on_meta(source)
    from edgekit.pipeline import families

    tree, embeddings = _tree(model)
    weights = _weights(model, embeddings)
    known = model.config.model_type in families.FAMILIES
    flops, operators = _count(model, source, length) if known else (None, Counter[str]())
    whole = {entry.precision: entry.bytes for entry in weights}
    formats: tuple[Format, ...] = ("onnx", "tflite")
    return Inspection(
        source=source,
        what="model",
        family=model.config.model_type,
        parameters=tree.parameters,
        embedding_parameters=sum(weight.numel() for weight in embeddings),
        tree=tree,
        weights=weights,
        length=length if model.main_input_name == "input_ids" else None,
        flops=flops,
        operators=dict(operators.most_common()),
        candidates=tuple(
            _candidate(format, precision, whole[precision]) for format in formats for precision in ("float32", "int8")
        ),
    )


def _on_meta(source: str) -> Any:
    """The model without weights."""
    try:
        import torch
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        from edgekit.pipeline import models
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source}: inspecting a model folder needs {error.name}: pip install 'edgekit[build]'"
        ) from None

    folder = Path(source)
    if not folder.exists() and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise InputError(f"{source}: there is no such model folder or bundle")
    if folder.exists() and not (folder / "config.json").is_file():
        raise InputError(f"{source}: is neither a model folder (it has no config.json) nor a bundle (no manifest.json)")
    try:
        config: Any = models.configuration(folder) if folder.exists() else AutoConfig.from_pretrained(source)
        config._attn_implementation = "eager"  # whose multiplications are plain matrix products, which are counted
        with torch.device("meta"):
            return models.named_class(config)(config).eval()
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"{source}: no model can be built from its config.json: {said}") from None


def _tree(model: Any) -> tuple[Module, list[Any]]:
    """The parts that hold weights, and the weights of the embedding tables."""
    from torch import nn

    total = sum(weight.numel() for weight in model.parameters())
    seen: set[int] = set()
    embeddings: list[Any] = []

    def part(name: str, module: "nn.Module") -> Module:
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in seen]
        seen.update(id(weight) for weight in own)
        if isinstance(module, nn.Embedding):
            embeddings.extend(own)
        children = tuple(part(child, inner) for child, inner in module.named_children())
        count = sum(weight.numel() for weight in own) + sum(child.parameters for child in children)
        kept = tuple(child for child in children if child.parameters)
        kind = type(module).__name__
        return Module(name=name, kind=kind, parameters=count, share=count / max(total, 1), children=kept)

    return part(model.config.model_type, model), embeddings


def _weights(model: Any, embeddings: list[Any]) -> tuple[Weights, ...]:
    def quantized(weight: Any) -> int:
        return weight.numel() + 4 * weight.shape[0] if weight.ndim > 1 else 4 * weight.numel()

    every = list(model.parameters())
    count, tables = (sum(weight.numel() for weight in some) for some in (every, embeddings))
    small, small_tables = (sum(quantized(weight) for weight in some) for some in (every, embeddings))
    return (
        Weights(precision="float32", bytes=4 * count, embedding_bytes=4 * tables),
        Weights(precision="float16", bytes=2 * count, embedding_bytes=2 * tables),
        Weights(precision="int8", bytes=small, embedding_bytes=small_tables),
        Weights(
            precision="int8, embeddings float32", bytes=small - small_tables + 4 * tables, embedding_bytes=4 * tables
        ),
    )


def _count(model: Any, source: str, length: int) -> tuple[int, Counter[str]]:
    """FLOPs of one forward pass by torch's own counter (`torch.utils.flop_counter`: matrix products and convolutions,
    each multiply-add as two), and how often each ATen operator is called.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    operators: Counter[str] = Counter()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operators[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    config = model.config
    if model.main_input_name == "input_ids":
        longest = getattr(config, "max_position_embeddings", length)
        if length > longest:
            raise InputError(f"--length: {length} tokens, and {source} takes at most {longest}")
        feeds = {"input_ids": torch.ones(1, length, dtype=torch.long, device="meta")}  # a mask's values would be read
    else:
        size = (
            (config.image_size, config.image_size) if isinstance(config.image_size, int) else tuple(config.image_size)
        )
        feeds = {"pixel_values": torch.ones(1, config.num_channels, *size, device="meta")}
    flops = FlopCounterMode(display=False)
    model.requires_grad_(False)
    config.pad_token_id = None  # else some families look for padding in the ids, which have no values here
    with torch.no_grad(), flops, Names():
        model(**feeds)
    return flops.get_total_flops(), operators


def lines(found: Inspection) -> str:
    """An inspection as text for a terminal, at most 80 columns wide."""
    from rich.console import Console

    from edgekit.tables import size

    console = Console(width=80, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        for block in _blocks(found, size):
            console.print(block, markup=False) if isinstance(block, str) else console.print(block)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())


def _blocks(found: Inspection, size: Any) -> Iterator[Any]:
    from rich.table import Table

    yield found.source
    count = f", {found.parameters:,} parameters" if found.parameters is not None else ""
    yield (found.family or found.what) + count
    if found.tree:
        tables = found.embedding_parameters or 0
        yield f"embedding tables: {tables:,}, {tables / max(found.tree.parameters, 1):.1%}\n"
        yield _rich(found.tree)
        yield ""
    if found.weights:
        table = Table("weights at", box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("all", "embeddings", "without embeddings"):
            table.add_column(name, justify="right")
        for row in found.weights:
            rest = row.bytes - row.embedding_bytes
            table.add_row(row.precision, size(row.bytes), size(row.embedding_bytes), size(rest))
        yield table
        yield ""
    if found.flops is not None:
        yield f"FLOPs{f' at {found.length} tokens' if found.length else ''}: {found.flops / 1e9:.3g} G, batch 1"
    if found.constant_bytes:
        yield "constants: " + ", ".join(f"{name} {size(count)}" for name, count in found.constant_bytes.items())
    if found.operators:
        yield "operators: " + ", ".join(f"{name} {count}" for name, count in found.operators.items())
    if found.parts:
        table = Table("bytes of", box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("size", "share"):
            table.add_column(name, justify="right")
        whole = sum(part.bytes for part in found.parts)
        for part in found.parts:
            table.add_row(part.name, size(part.bytes), f"{part.bytes / whole:.1%}")
        yield ""
        yield table
    for model in found.models:
        yield ""
        yield from _blocks(model.model_copy(update={"candidates": ()}), size)
    if found.candidates:
        table = Table("candidate", box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("size", "predicted peak memory"):
            table.add_column(name, justify="right")
        for row in found.candidates:
            table.add_row(f"{row.format} {row.precision}", size(row.bytes), size(row.predicted_peak_rss_bytes))
        yield ""
        yield table
        yield "Predicted: the runtime itself and the weights twice. A device says what is true."


def _rich(root: Module) -> "Tree":
    """The tree; neighbours that are alike but for their number are one line: `0-5: 6 x BertLayer`."""
    from rich.text import Text
    from rich.tree import Tree

    def label(module: Module, name: str, times: int) -> Text:
        each = f", {module.parameters:,} each" if times > 1 else ""
        kind = f"{times} x {module.kind}" if times > 1 else module.kind
        text = f"{name} {module.parameters * times:,} {module.share * times:.1%}  {kind}{each}"
        return Text(text, overflow="ellipsis", no_wrap=True)

    def grow(tree: Tree, module: Module) -> None:
        children = list(module.children)
        while children:
            first = children[0]
            alike = 1
            while alike < len(children) and first.name.isdigit() and _alike(first, children[alike]):
                alike += 1
            name = first.name if alike == 1 else f"{first.name}-{children[alike - 1].name}"
            grow(tree.add(label(first, name, alike)), first)
            children = children[alike:]

    tree = Tree(label(root, root.name, 1))
    grow(tree, root)
    return tree


def _alike(a: Module, b: Module) -> bool:
    return a.children == b.children and (a.kind, a.parameters) == (b.kind, b.parameters)
