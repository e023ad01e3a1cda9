"""How much noise each projection of a language model can take, run by `make lm`: table, heat map, report.

The zoo's small Llama, trained once on English text (some minutes, then it is cached), or with `--model hf:FOLDER` one
that transformers loads from a folder on disk. The level asked for is where perplexity has grown by 5 %. What is stopped
goes on where it was when it is called again: training from its last hundred steps, the walk from what its store keeps.
"""

import argparse
import hashlib
import importlib
import sys
import time
from pathlib import Path

import torch

import noisykernels as nk
from noisykernels.datasets import DataNotFound, kjv
from noisykernels.plotting import plot_blocks
from noisykernels.zoo import language

FOLDER = "hf:"


def loaded(name: str, steps: int) -> tuple[torch.nn.Module, object]:
    """A model and its tokenizer."""
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        if not (folder / "config.json").is_file():
            sys.exit(f"--model {name}: no config.json in {folder}")
        transformers = importlib.import_module("transformers")  # in the environment of `make test-models`
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        model.config.use_cache = False
        return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    first, start = 0, 0.0  # of this call, which may go on from a later step than the first

    def told(step: int, loss: float) -> None:
        nonlocal first, start
        if not first:
            first, start = step, time.monotonic()
        elif step % 50 == 0:
            rate = (step - first) / (time.monotonic() - start)
            left = f"{rate:.1f} steps a second, {(steps - step) / rate / 60:.1f} minutes left"
            print(f"training: step {step} of {steps}, loss {loss:.3f}, {left}", flush=True)

    return language(steps=steps, on_step=told)


def run(out: Path, *arguments: str) -> nk.Study:
    """The study, as asked for; table, picture and report go to a folder."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", default="llama", help=f"llama, or {FOLDER}FOLDER")
    asked.add_argument("--steps", type=int, default=1500, help="of training, if not cached")
    asked.add_argument("--windows", type=int, default=32, help="of the text, each a row")
    asked.add_argument("--length", type=int, default=128, help="tokens of a window")
    asked.add_argument("--rel-ci", type=float, default=0.05, help="half-width of the intervals")
    asked.add_argument("--sites", nargs="+", default=["*_proj"], help="names or patterns")
    asked.add_argument("--relative", choices=("rms", "max", "std"), help="levels as shares of that of the value")
    asked.add_argument("--memory", type=float, default=1.0, help="GiB that a pass may take")
    options = asked.parse_args(arguments)
    if options.model != "llama" and not options.model.startswith(FOLDER):
        asked.error(f"--model: expected llama or {FOLDER}FOLDER, got {options.model}")
    model, tokenizer = loaded(options.model, options.steps)
    out.mkdir(parents=True, exist_ok=True)
    what = hashlib.sha256(repr(sorted(vars(options).items())).encode()).hexdigest()[:8]  # a store has one question
    data = nk.tokens(kjv("test"), tokenizer, length=options.length).first(options.windows)
    study = nk.walk(
        model, data, noise=nk.Noise(add=1.0, relative=options.relative), metric="perplexity", at=nk.Ratio(1.05), seed=0,
        sites=options.sites, search=nk.Search(rel_ci=options.rel_ci), progress=True,
        compute=nk.Compute(memory=int(options.memory * 2**30)), store=out / f"lm-{what}.store",
        description=(options.model, f"{len(data['labels'])} x {options.length} tokens of the King James Bible"),
    )  # fmt: skip
    print(study.table())
    study.save(out / "lm.json")
    study.report(out / "lm.html")
    plot_blocks(study).figure.savefig(out / "lm.png", dpi=150, bbox_inches="tight")
    print(f"written: {out / 'lm.json'}, {out / 'lm.html'}, {out / 'lm.png'}")
    return study


if __name__ == "__main__":
    sys.modules["torchvision"] = None  # text needs none, and one of another torch fails on import
    try:
        run(Path("results"), *sys.argv[1:])
    except (DataNotFound, ImportError) as error:
        sys.exit(f"lm: {error}")
    except KeyboardInterrupt:
        sys.exit("lm: stopped; the same command goes on from here")
