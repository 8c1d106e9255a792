"""``moving_shapes``: a procedural, captioned, unlimited world, for tests and small models.

One to three coloured shapes of three sizes and speeds move in eight directions and bounce off the borders, over plain
or fading backgrounds in various lights. A caption states all of it, ``parse_caption`` reads captions, and ``score``
finds out from pixels alone whether a video shows what its caption says.

    scene = sample_scene(seed=0, index=7)
    frames = render(scene, 99, 64, 64)
    score(frames, caption(scene)).recovered
"""

from helios_jax._lazy import lazy_exports

_EXPORTS = {
    "caption": "helios_jax.data.moving_shapes.captions",
    "parse_caption": "helios_jax.data.moving_shapes.captions",
    "vocabulary": "helios_jax.data.moving_shapes.captions",
    "Observation": "helios_jax.data.moving_shapes.observation",
    "observe": "helios_jax.data.moving_shapes.observation",
    "render": "helios_jax.data.moving_shapes.rendering",
    "Score": "helios_jax.data.moving_shapes.scoring",
    "score": "helios_jax.data.moving_shapes.scoring",
    "MovingShapes": "helios_jax.data.moving_shapes.source",
    "STYLES": "helios_jax.data.moving_shapes.styles",
    "WindowScore": "helios_jax.data.moving_shapes.windows",
    "score_window": "helios_jax.data.moving_shapes.windows",
    "score_windows": "helios_jax.data.moving_shapes.windows",
    "Description": "helios_jax.data.moving_shapes.world",
    "Scene": "helios_jax.data.moving_shapes.world",
    "Shape": "helios_jax.data.moving_shapes.world",
    "sample_scene": "helios_jax.data.moving_shapes.styles",
}

__all__ = list(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
