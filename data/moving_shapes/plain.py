"""Drawing of scenes of the first style."""

from helios_jax.data.draws import Draws
from helios_jax.data.moving_shapes.drawing import arrange, draw_attributes, start_in_room
from helios_jax.data.moving_shapes.world import Description, Scene


def sample_plain_scene(seed: int, index: int, *, num_shapes: int | None = None) -> Scene:
    """Draws scene ``index`` of the world ``seed``.

    Attributes are uniform and independent, with these exceptions. The colours of a scene differ. Smaller shapes are
    in front of larger ones, so that none is hidden. A shape starts in the half of its room that it moves away
    from, so that its direction can be seen before it turns. Starts are drawn several times, and the draw in which
    shapes overlap least is used; directions that leave no room for all shapes are drawn again.

    Args:
        seed: The world.
        index: The scene; scenes are independent of each other.
        num_shapes: Shapes in it; None draws 1, 2 or 3.

    Raises:
        ValueError: More shapes than colours, or fewer than one.
    """
    draws = Draws(seed, index)
    drawn = draw_attributes(draws, num_shapes)
    order = sorted(range(len(drawn.kinds)), key=drawn.area)
    shapes, _, starts = arrange(
        draws, drawn, order, prepare=lambda shapes: None, start=lambda shape, _: start_in_room(draws, shape)
    )
    description = Description(shapes=shapes, background=drawn.background, lighting=drawn.lighting)
    return Scene(description=description, starts=starts, phrasing=drawn.phrasing)
