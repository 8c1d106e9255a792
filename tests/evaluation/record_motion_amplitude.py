"""Records the motion amplitude of ``motion_clip`` as HeliosBench computes it: a filter of FFmpeg scales stored frames.

    python tests/evaluation/record_motion_amplitude.py

Prints the values that motion_amplitude_test.py holds, measured without any code of helios_jax.
"""

import pathlib
import tempfile

import av
import cv2
import numpy as np

HEIGHT, WIDTH, FRAMES = 480, 832, 12


def motion_clip(file: pathlib.Path, right: float, down: float) -> None:
    """Writes a clip of a smooth pattern that moves by so many pixels a frame."""
    y, x = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    waves = [(61.0, 0.4, 0.1), (43.0, 1.3, 1.7), (83.0, 2.2, 0.9), (37.0, 2.9, 2.6), (53.0, 0.9, 4.0)]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in range(FRAMES):
            total = sum(
                np.sin(2 * np.pi / length * ((x - right * t) * np.cos(angle) + (y - down * t) * np.sin(angle)) + phase)
                for length, angle, phase in waves
            )
            grey = np.round(128 + 22 * total).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.stack([grey] * 3, axis=-1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def amplitude(file: pathlib.Path) -> float:
    """The published computation."""
    means, before = [], None
    with av.open(str(file)) as container:
        graph = av.filter.Graph()
        stream = container.streams.video[0]
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        scale = graph.add("scale", "640:368:flags=bicubic")
        pixels = graph.add("format", "rgb24")
        sink = graph.add("buffersink")
        source.link_to(scale)
        scale.link_to(pixels)
        pixels.link_to(sink)
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            grey = cv2.cvtColor(graph.pull().to_ndarray(), cv2.COLOR_RGB2GRAY)
            if before is not None:
                flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                means.append(cv2.resize(flow, (16, 9), interpolation=cv2.INTER_AREA).mean())
            before = grey
    return abs(float(np.mean(means)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for motion in ((3.0, 1.0), (-2.0, 0.5), (1.0, -1.0)):
            clip = pathlib.Path(folder) / "clip.mp4"
            motion_clip(clip, *motion)
            print(motion, amplitude(clip))
