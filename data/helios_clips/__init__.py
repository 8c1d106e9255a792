"""``helios_clips``: captioned parts of video files, in TFDS's format (array_record, no TensorFlow needed).

A corpus is a JSON list of ``{"path": "a.mp4", "cut": [0, 129], "crop": [x0, x1, y0, y1], "fps": 24.0,
"num_frames": 129, "resolution": {"height": 480, "width": 832}, "cap": ["A red fox ..."]}`` and a folder with the
files, the format of Helios (arXiv 2603.04379) and Open-Sora-Plan. ``build`` checks every clip, decides its bucket
(``ClipRules``) and stores the encoded video; ``decode_clip`` turns a record into frames, in a grain pipeline:

    records = open_clips(folder)
    frames = decode_clip(records[i], epoch=epoch, index=i)
"""

from helios_jax._lazy import lazy_exports

_EXPORTS = {
    "BuildReport": "helios_jax.data.helios_clips.builder",
    "HeliosClips": "helios_jax.data.helios_clips.builder",
    "Skipped": "helios_jax.data.helios_clips.builder",
    "build": "helios_jax.data.helios_clips.builder",
    "open_clips": "helios_jax.data.helios_clips.builder",
    "open_report": "helios_jax.data.helios_clips.builder",
    "decode_clip": "helios_jax.data.helios_clips.decode",
    "read_frames": "helios_jax.data.helios_clips.decode",
    "ClipError": "helios_jax.data.helios_clips.metadata",
    "ClipMetadata": "helios_jax.data.helios_clips.metadata",
    "read_clip_list": "helios_jax.data.helios_clips.metadata",
    "Bucket": "helios_jax.data.helios_clips.rules",
    "ClipRules": "helios_jax.data.helios_clips.rules",
    "LENGTHS": "helios_jax.data.helios_clips.rules",
    "RESOLUTIONS": "helios_jax.data.helios_clips.rules",
}

__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
