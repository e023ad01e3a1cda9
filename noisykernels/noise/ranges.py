"""Sizes of a model's sites over calibration data: a unit of additive levels that is the same for every row."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, shown
from noisykernels._util.files import replacing

__all__ = ["Ranges"]


class Ranges(Mapping[str, float]):
    """The size of each site of a model, as `calibrate` finds it, for ``Noise(add=..., relative=ranges)``.

    A mapping from names of sites to numbers, which cannot be changed. Two are equal that hold the same.

    Args:
        sizes: of each site, by name.
        method: how they were found, in words.

    Raises:
        TypeError: sizes that are no mapping from names to numbers.
        ValueError: a size that is negative or not finite.

    Example:
        >>> ranges = Ranges({"input": 1.0, "fc:linear#0": 4.5}, method="max")
        >>> ranges, ranges["input"]
        (Ranges(2 sites, method='max', digest='6e8f85bd2350e26e'), 1.0)
    """

    def __init__(self, sizes: Mapping[str, float], method: str = "") -> None:
        if not isinstance(sizes, Mapping):
            raise TypeError(f"Ranges: sizes must be numbers by names of sites, got {shown(sizes)}")
        if not isinstance(method, str):
            raise TypeError(f"Ranges: method must be a text, got {shown(method)}")
        for site, size in sizes.items():
            known = Range(0).of(size)
            if not isinstance(site, str) or known is None or known not in Range(0):
                error = ValueError if isinstance(site, str) and known is not None else TypeError
                raise error(
                    f"Ranges: sizes must be finite numbers of at least 0 by names of sites, got {shown(size)} of "
                    f"{shown(site)}"
                )
        self._sizes, self.method = {site: float(size) for site, size in sizes.items()}, method

    @property
    def digest(self) -> str:
        """What tells these from others: of all names and sizes, to the bit."""
        said = json.dumps([[site, size.hex()] for site, size in sorted(self._sizes.items())])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def told(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"method": self.method, "digest": self.digest, "sizes": dict(self._sizes)}

    def save(self, path: str | Path) -> None:
        """Writes a JSON file.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp()) / "ranges.json"
            >>> Ranges({"input": 0.1}).save(file)
            >>> Ranges.load(file) == Ranges({"input": 0.1})
            True
        """
        check_arguments(Ranges.save, locals())
        with replacing(Path(path)) as file:
            file.write(json.dumps(self.told(), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Ranges:
        """What `save` has written.

        Raises:
            ValueError: a file that holds no ranges, or not those that it says.
        """
        check_arguments(Ranges.load, locals())
        try:
            return cls.of(json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:  # also of bytes that are no text
            raise ValueError(f"Ranges.load: {path}: expected what save() writes: {error}") from error

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Ranges:
        """What `told` says, such as the ``meta.noise["relative"]`` of a study.

        Raises:
            ValueError: it says no ranges, or their digest is that of others.
        """
        if not isinstance(told, Mapping) or not {"sizes", "digest"} <= told.keys():
            raise ValueError(f"Ranges.of: told must hold sizes of sites and their digest, got {shown(told)}")
        made = cls(told["sizes"], told.get("method", ""))
        if made.digest != told["digest"]:
            raise ValueError(
                f"Ranges.of: told must hold sizes of digest {told['digest']!r}, got those of {made.digest!r}"
            )
        return made

    def at(self, site: str) -> float:
        """The size of a site.

        Raises:
            ValueError: it is not among those that were calibrated.
        """
        if not isinstance(site, str):
            raise TypeError(f"Ranges.at: site must be a name, got {shown(site)}")
        if site not in self._sizes:
            close = difflib.get_close_matches(site, self._sizes, n=3)
            hint = f"; there is {', '.join(map(repr, close))}" if close else ""
            raise ValueError(f"Ranges: there is no size of site {site!r}: calibrate() the model that is run{hint}")
        size: float = self._sizes[site]
        return size

    def __getitem__(self, site: str) -> float:
        size: float = self._sizes[site]
        return size

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __eq__(self, other: object) -> bool:
        return self._sizes == other._sizes if isinstance(other, Ranges) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Ranges({len(self)} sites, method={self.method!r}, digest={self.digest!r})"
