"""What results must stay: fixed small studies and calls of operators, and digests of all that they give.

``python tests/helpers/recorded.py --digests`` writes the digests of tests/data/v0_1_0 anew, ``--write`` the files there
too, which were made by version 0.1.0 and should stay; ``--show NAME`` prints what a digest is of, and without arguments
it names those that differ. Whoever changes a result on purpose says so in the changelog and writes them anew. The cases
are in the files beside this one whose names begin with recorded_.

The cases are exact by construction, so that neither the machine nor the number of threads matters: weights and data
are small whole numbers, and where noise would enter a contraction its inputs are rounded to a coarse grid first
(`Grid`), or only one product of each sum differs from zero. Figures that come from a fit or from transcendental
functions are written with six digits, levels of a search with twelve. Two models, `attention` and `plain mlp`, are not
exact: their counts are the same at all levels and numbers of threads because no prediction is that close.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import recorded_injection
import recorded_messages
import recorded_operators
import recorded_stores
import recorded_studies
import recorded_texts
import recorded_walks
import torch
from recorded_digests import Parts, canonical, told
from recorded_files import FOLDER, SETTINGS, STORES, activation_walk, lose_half, machine, noisy_net, trained

from noisykernels.zoo import save_checkpoint

# In the order of digests.json.
OF = (
    recorded_walks,
    recorded_stores,
    recorded_studies,
    recorded_texts,
    recorded_messages,
    recorded_operators,
    recorded_injection,
)
CASES = {name: function for module in OF for name, function in module.case.items()}


@functools.cache
def parts_of(name: str) -> Parts:
    """What a case gives; each is run once in a process."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return CASES[name]()


def value_of(name: str) -> Any:
    """What the digest ``case: part`` is of."""
    which, part = name.split(": ")
    return parts_of(which)[part]


def now() -> dict[str, str]:
    """All digests, as the present code makes them."""
    return {f"{name}: {part}": told(value) for name in CASES for part, value in parts_of(name).items()}


def native_digests() -> dict[str, str]:
    """The digests that the native tests hold every level, compiler and machine against."""
    folder = Path(__file__).resolve().parents[1] / "native"
    found = {}
    for source in sorted(folder.rglob("*.cpp")):
        found.update(dict(re.findall(r"(k\w*Digest) = (0x[0-9a-f]{16})", source.read_text())))
    return found


def write() -> None:
    """Writes digests and files anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    activation_walk(None).save(FOLDER / "study.json")
    for name, run in STORES.items():
        run(FOLDER / f"{name}.db")
        lose_half(FOLDER / f"{name}.db", FOLDER / f"{name}-half.db")
    model = noisy_net()
    save_checkpoint(FOLDER / "checkpoint.pt", model, SETTINGS, trained(model, 2, 0))
    torch.save(model.state_dict(), FOLDER / "state.pt")
    write_digests(machine())


def write_digests(of: dict[str, str]) -> None:
    """Writes the digests anew; the files beside them are of the machine that is named."""
    content = {"machine": of, "native": native_digests(), "digests": now()}
    (FOLDER / "digests.json").write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def recorded() -> dict[str, Any]:
    """The content of digests.json."""
    found: dict[str, Any] = json.loads((FOLDER / "digests.json").read_text())
    return found


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--write"]:
        write()
    elif arguments[:1] == ["--digests"]:
        write_digests(recorded()["machine"])
    elif arguments[:1] == ["--show"]:
        print(canonical(value_of(" ".join(arguments[1:]))))
    else:
        old, new = recorded()["digests"], now()
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        print(f"{len(new)} digests, {len(different)} differ", *different, sep="\n")
        sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv[1:])
