"""Makes docs/context-parallel.md: what ``context_parallel`` and ``baracuda_ring`` serve and refuse.

``python tests/helpers/ring_coverage.py`` tries every model type over two gloo ranks (some minutes)
and writes the data file and the page. With ``--page`` it only writes the page, from the data file.
A test tries some of them again and compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(_ROOT / "tests"))

from helpers.context_forms import CAUGHT, REFUSED
from helpers.rank_pool import RankPool

DATA = _ROOT / "tests" / "interop" / "ring_coverage.json"
PAGE = _ROOT / "docs" / "context-parallel.md"
WORKER = _ROOT / "tests" / "interop" / "torch_worker.py"
WAYS = ("context_parallel", "register")

HEAD = """\
# What context_parallel catches

`tests/helpers/ring_coverage.py` makes this page: do not edit it. The program tries every row over two gloo
ranks with random weights, and compares the result with that of one process. *Right* is a relative error of at
most 1e-4. *Refused* is a typed error that names its cause, on every rank at once on the CPU. No row is wrong.

The forms that are right can also be trained (`tests/interop/test_torch_context.py`). Gradients flow through the
ring, and `backward` may be called outside of the context. If activations are checkpointed, call `backward`
within it: attention that is computed again outside of the context is an error.

## Forms of attention in PyTorch

"""

NOT_SEEN = """
## What cannot be seen

The context does not notice the following. Avoid them yourself:

- kernels that bypass PyTorch's dispatcher, such as the `flash_attn`, `xformers` and Triton packages called by
  the model itself;
- attention that is written out without a softmax over the last dimension of the scores (`exp` and a sum,
  `log_softmax`, scores with the keys in another dimension), over scores of two dimensions, or over scores of
  three dimensions with other numbers of rows and keys; and code that a compiler other than Dynamo has fused;
- other code that mixes rows: cumulative sums, rolls, shifts by one token, pooling over the sequence (LSTM, GRU,
  RNN and one-dimensional convolution are noticed);
- positions that a model of your own counts from its shard's first row, instead of taking `position_ids`; for
  models of transformers they are compared, but not under `torch.compile`;
- attention in the kernel of an operator of your own (`torch.library.custom_op`), where compiled code calls the
  operator, or a dispatch mode is active (selective activation checkpointing, `FlopCounterMode`);
- attention that another thread computes: the context belongs to its thread, and to the threads of autograd that
  work at a `backward` called in it;
- a model that was registered (`baracuda_ring`) and is called layer by layer: then only its attention is checked.

A softmax of three dimensions whose last two are equal counts as attention. So a model with as many experts as
this rank has rows is refused.
"""


def render(data: dict[str, Any]) -> str:
    lines = [HEAD, "| form | |", "|---|---|"]
    for row in data["forms"]:
        lines.append(f"| {row['name']} | {_cell(row)} |")
    lines += ["", f"## Models of transformers {data['transformers']}", ""]
    lines += ["Causal and masked language models by `model_type`, as the library makes them, on contiguous",
              "shards of 16 rows. Types that have windows get windows of 8 rows, and are tried a second time",
              "without.", ""]  # fmt: skip
    lines += ["| model type | `context_parallel` | `baracuda_ring` |", "|---|---|---|"]
    for row in data["models"]:
        first, second = (row[way] for way in WAYS)
        same = first == second
        lines.append(
            f"| {row['name']} | {_cell(first)} | {'the same' if same else _cell(second)} |"
        )
    if data["not_built"]:
        lines += ["", "Not tried, because no such model has the small sizes of this trial: "
                  + ", ".join(data["not_built"]) + "."]  # fmt: skip
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n" + NOT_SEEN


def _cell(row: dict[str, str]) -> str:
    why = row["why"].replace("|", "\\|").replace("<", "&lt;")
    why = why.partition(": ")[2] if why.startswith("rank ") else why
    return row["is"] if row["is"] == "right" else f"{row['is']}: {_short(why)}"


def _short(text: str) -> str:
    return text if len(text) <= 110 else text[:107] + "..."


def try_form(pool: Any, name: str) -> dict[str, str]:
    answer = pool.run({"do": "within", "what": name}, seconds=120)[0]
    if answer["error"]:
        return {"name": name, "is": "refused", "why": answer["message"][:200]}
    return {"name": name, "is": "right" if answer["relative"] <= 1e-4 else "wrong", "why": ""}


def try_model(pool: Any, model_type: str) -> list[dict[str, Any]]:
    """The rows of a type: one as it is, and one without windows if they are refused."""
    row = _try(pool, model_type, windows=True)
    rows = [row]
    if any(word in row[WAYS[0]]["why"] for word in ("window", "chunk")):
        rows.append(_try(pool, model_type, windows=False))
    return rows


def _try(pool: Any, model_type: str, windows: bool) -> dict[str, Any]:
    """The result of each way. It is the same on every rank, apart from the rank in an error."""
    name = model_type if windows else f"{model_type}, no window shorter than the sequence"
    row: dict[str, Any] = {"name": name, "type": model_type}
    for way in WAYS:
        task = {"do": "model_type", "model": model_type, "by": way, "windows": windows}
        answers = pool.run(task, seconds=120)
        kinds = {answer["is"] for answer in answers}
        if len(kinds) > 1:
            raise AssertionError(f"{name} by {way}: the ranks differ: {answers}")
        own = next((a for a in answers if not a["why"].startswith("rank ")), answers[0])
        row[way] = {"is": own["is"], "why": own["why"]}
    return row


def model_types() -> list[str]:
    from transformers.models.auto import modeling_auto as auto

    return sorted(
        {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    )


def main() -> None:
    if "--page" in sys.argv:
        PAGE.write_text(render(json.loads(DATA.read_text())))
        return
    import transformers

    names = [name for name in sys.argv[1:] if not name.startswith("-")] or model_types()
    data: dict[str, Any] = {"transformers": transformers.__version__, "models": [], "not_built": []}
    pool = RankPool(2, WORKER, backend="gloo")
    data["forms"] = [try_form(pool, name) for name in (*CAUGHT, *REFUSED)]
    for name in names:
        try:
            rows = try_model(pool, name)
        except AssertionError as error:  # a hang or a crash: a new ring, and a row that says so
            print(name, str(error)[-1500:], flush=True)
            failed = {way: {"is": "fails", "why": "see above"} for way in WAYS}
            rows = [{"name": name, "type": name} | failed]
            pool.close()
            pool = RankPool(2, WORKER, backend="gloo")
        for row in rows:
            print(json.dumps(row), flush=True)
            if row[WAYS[0]]["is"] == "not built":
                data["not_built"].append(row["name"])
            else:
                data["models"].append(row)
    pool.close()
    if len(sys.argv) == 1:
        DATA.write_text(json.dumps(data, indent=1) + "\n")
        PAGE.write_text(render(data))


if __name__ == "__main__":
    main()
