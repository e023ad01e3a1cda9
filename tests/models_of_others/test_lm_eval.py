"""lm-eval's model `nk-hf` against its own `hf`, on small tasks from files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import noisykernels as nk
from noisykernels.datasets import BytePairs
from noisykernels.zoo import Llama, LlamaSizes, save_for_transformers

lm_eval = pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

TEXT = "In the beginning was the word, and the word was read by those who had eyes to read it. " * 4
CHOICE = """
task: nk_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: nk_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rolling.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
UNTIL = """
task: nk_until
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rolling.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text[:14]}}"
doc_to_target: "{{text[14:]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
TASKS = ["nk_choice", "nk_rolling", "nk_until"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, tasks and their data."""
    made: Path = tmp_path_factory.mktemp("lm_eval")
    pairs = BytePairs.trained(TEXT, 280)
    torch.manual_seed(0)
    model = Llama(LlamaSizes(vocabulary=len(pairs), width=32, blocks=2, heads=4, shared=2, hidden=48, length=64))
    save_for_transformers(made / "model", model, pairs)
    words = TEXT.split()
    choice = [
        {
            "question": " ".join(words[i : i + 2 + i % 5]),
            "answer": i % 3,
            "choices": [words[i + 7], words[i + 8], "and it"],
        }
        for i in range(9)
    ]
    rolling = [{"text": " ".join(words[i : i + 6 * i + 4])} for i in range(5)]  # some are longer than a window
    for name, rows in (("choice", choice), ("rolling", rolling)):
        (made / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for task in (CHOICE, ROLLING, UNTIL):
        name = task.split()[1]
        (made / f"{name}.yaml").write_text(task.replace("FOLDER", str(made)))
    return made


def results(folder: Path, model: str = "nk-hf", size: int = 1, tasks: Any = TASKS, **args: Any) -> dict[str, Any]:
    """Of each request of each task, what the model answered."""
    nk.integrations.lm_eval_model()
    found = lm_eval.simple_evaluate(
        model=model, model_args=dict(pretrained=str(folder / "model"), max_length=32, dtype="float32") | args,
        tasks=list(tasks), batch_size=size, device="cpu", bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    return {
        name: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in found["samples"].items()
    }


def numbers(found: Any) -> list[float]:
    """Log-likelihoods of answers, whatever they are in."""
    if isinstance(found, list | tuple):
        return [n for part in found for n in numbers(part)]
    return [float(found)] if isinstance(found, float | int) and not isinstance(found, bool) else []


@pytest.fixture(scope="module")
def clean(folder: Path) -> dict[str, Any]:
    return results(folder, "hf", size=4)


def test_without_noise_it_is_hf(folder: Path, clean: dict[str, Any]) -> None:
    assert results(folder, level=0, size=4) == clean


@pytest.mark.parametrize(
    "args",
    [
        dict(level=0.3, where="*_proj", seed=1),
        dict(level=0.3, relative="rms", where="cache:*", seed=1),
        dict(level=0.3, noise="mixed", seed=2, detail="attention"),
        dict(level=0.1, target="weight", relative="channel", where="*.q_proj *.o_proj", seed=1),
    ],
    ids=["projections", "cache", "mixed", "weights"],
)
def test_noise_does_not_depend_on_batches(folder: Path, clean: dict[str, Any], args: dict[str, Any]) -> None:
    one, four = results(folder, **args), results(folder, size=4, **args)
    for task in ("nk_choice", "nk_rolling"):
        assert numbers(one[task]) == pytest.approx(numbers(four[task]), abs=1e-4)  # roundings of products, summed up
        assert max(abs(a - b) for a, b in zip(numbers(one[task]), numbers(clean[task]), strict=True)) > 0.005
    assert one["nk_until"] == four["nk_until"]


def test_noise_does_not_depend_on_company(folder: Path) -> None:
    args: dict[str, Any] = dict(level=0.3, where="*_proj", seed=1)
    every, alone = results(folder, **args), results(folder, tasks=["nk_choice"], **args)["nk_choice"]
    assert alone == every["nk_choice"]  # other tasks are of no matter, nor what lm-eval keeps of a context
    assert alone == results(folder, tasks=["nk_choice"], **args | {"logits_cache": False})["nk_choice"]
    other = results(folder, tasks=["nk_choice"], **args | {"seed": 3})["nk_choice"]
    assert numbers(other) != numbers(alone)


def test_the_noise_is_that_of_the_contract(folder: Path) -> None:
    """One request, in a loop written out."""
    transformers = pytest.importorskip("transformers")
    from noisykernels.integrations.harness import _hashed

    found = results(folder, tasks=["nk_choice"], level=0.3, where="*_proj", seed=5)["nk_choice"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    row = json.loads((folder / "choice.jsonl").read_text().splitlines()[2])
    context = tokenizer(row["question"])["input_ids"]
    whole = tokenizer(f"{row['question']} {row['choices'][1]}")["input_ids"]
    ids = torch.tensor([whole[:-1]])
    rows = nk.TokenRows(32, _hashed([ids], 2**32 // 32))
    with nk.inject(model, nk.Noise(add=0.3), where="*_proj"), nk.noise_state(model, seed=5, rows=rows):
        scores = model(ids).logits.log_softmax(-1)[0]
    value = sum(float(scores[i - 1, whole[i]]) for i in range(len(context), len(whole)))
    assert found[2][1][0][0] == pytest.approx(value, abs=1e-4)


def test_ids_are_those_of_the_text_alone() -> None:
    from noisykernels.integrations.harness import _hashed

    rows = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [5, 0, 6, 7, 0], [0, 0, 0, 0, 0]])
    one, two, other, none = _hashed([rows], 2**27)
    assert one == two == _hashed([torch.tensor([[5, 6, 7]])], 2**27)[0] == 35433697 and len({one, other, none}) == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (dict(), "nk-hf: the following arguments are required: level"),
        (dict(level=-1), "nk-hf: argument level: expected"),
        (dict(level="high"), "nk-hf: argument level: expected"),
        (dict(level=0.1, noise="some"), "nk-hf: argument noise: invalid choice: 'some'"),
        (dict(level=0.1, relative="tiles"), "nk-hf: argument relative: expected"),
        (dict(level=0.1, target="weight", noise="mixed"), "target weight goes with --noise add or mul"),
        (dict(level=0.1, where=3), "nk-hf: where must be names or patterns, got 3"),
        (dict(level=0.1, where="*_prox"), r"\*_prox"),
    ],
    ids=["nothing", "negative", "word", "noise", "relative", "mixed", "where", "no-site"],
)
def test_what_is_wrong_is_told(folder: Path, args: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        results(folder, tasks=["nk_choice"], **args)


def test_the_command_line(folder: Path) -> None:
    told = (
        "pretrained=" + str(folder / "model") + ",max_length=32,dtype=float32,noise=add,level=0.3,where=*_proj,seed=1"
    )
    asked = [
        "--model", "nk-hf", "--model_args", told, "--tasks", "nk_choice", "--include_path", str(folder), "--device",
        "cpu", "--batch_size", "2", "--output_path", str(folder / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "noisykernels.integrations.harness", *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nk_choice" in done.stdout and "acc_norm" in done.stdout
    (samples,) = (folder / "out").rglob("samples_nk_choice*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    written = [float(r["resps"][1][0][0]) for r in sorted(rows, key=lambda r: r["doc_id"])]
    here = results(folder, tasks=["nk_choice"], level=0.3, where="*_proj", seed=1)["nk_choice"]
    assert written == pytest.approx([answers[1][0][0] for answers in here], abs=1e-3)
