"""lm-eval on a model with noise at its projections: perplexity and a choice, from files that are written here.

Needs the extra `models`. The same from the command line is
`python -m noisykernels.integrations.harness --model nk-hf --model_args pretrained=DIR,level=0.3,where=*_proj ...`
"""

import json
import tempfile
from pathlib import Path

import lm_eval
import torch

import noisykernels as nk
from noisykernels.zoo import LlamaSizes, language, save_for_transformers

TEXT = "In the beginning was the word, and the word was read by those who had eyes to read it. "
TASK = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/words.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def run(folder: Path) -> dict[float, float]:
    """Accuracy at some levels."""
    sizes = LlamaSizes(vocabulary=280, width=32, blocks=2, heads=4, shared=2, hidden=64)
    model, tokenizer = language(sizes, [TEXT * 40], steps=60, length=32, lr=1e-2, cache=folder)
    save_for_transformers(folder / "model", model, tokenizer)
    words = TEXT.split()
    rows = [
        {"text": " ".join(words[i : i + 4]), "choices": [words[i + 4], "eyes", "or"], "answer": 0} for i in range(12)
    ]
    (folder / "words.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "words.yaml").write_text(TASK.replace("FOLDER", str(folder)))
    nk.integrations.lm_eval_model()  # from here on lm-eval knows nk-hf
    found = {}
    for level in (0.0, 0.3, 3.0):
        results = lm_eval.simple_evaluate(
            "nk-hf", dict(pretrained=str(folder / "model"), max_length=64, level=level, where="*_proj", seed=1),
            tasks=["words"], batch_size=4, device="cpu", bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        )  # fmt: skip
        found[level] = results["results"]["words"]["acc,none"]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        for level, accuracy in run(Path(made)).items():
            print(f"level {level}: accuracy {accuracy:.2f}")
