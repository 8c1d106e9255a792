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
    "BuildReport": "data.helios_clips.builder",
    "HeliosClips": "data.helios_clips.builder",
    "Skipped": "data.helios_clips.builder",
    "build": "data.helios_clips.builder",
    "open_clips": "data.helios_clips.builder",
    "open_report": "data.helios_clips.builder",
    "decode_clip": "data.helios_clips.decode",
    "read_frames": "data.helios_clips.decode",
    "ClipError": "data.helios_clips.metadata",
    "ClipMetadata": "data.helios_clips.metadata",
    "read_clip_list": "data.helios_clips.metadata",
    "Bucket": "data.helios_clips.rules",
    "ClipRules": "data.helios_clips.rules",
    "LENGTHS": "data.helios_clips.rules",
    "RESOLUTIONS": "data.helios_clips.rules",
}

__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
