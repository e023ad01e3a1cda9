"""Settings that were published, one line each, as lists for ``hardware=``; knows of no layer and no model."""

from noisykernels.presets.published import afm, aihwkit_pcm, joshi, memse

__all__ = ["afm", "aihwkit_pcm", "joshi", "memse"]
