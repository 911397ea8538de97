"""Scenes of the demo world as pixels: antialiased PIL pictures and the frames of clips."""

from pathlib import Path

from PIL import Image, ImageDraw

from macaw_lit.data.demo.scenes import BACKGROUNDS, FRAMES, RGB, SIDE, Clip, Picture

OVERSAMPLING = 4  # drawn this much larger, then averaged: smooth edges and positions between pixels


def draw_picture(picture: Picture) -> Image.Image:
    """The picture as an RGB image of 64×64 pixels."""
    canvas = _canvas(picture.background)
    for thing in picture.things:
        _shape(canvas, thing.shape, thing.x, thing.y, thing.radius, thing.tint)
    return canvas.reduce(OVERSAMPLING)


def draw_frames(clip: Clip) -> list[Image.Image]:
    """The clip's 24 frames, RGB, 64×64 pixels each."""
    frames = []
    for index in range(FRAMES):
        canvas = _canvas(clip.background)
        x, y = clip.start[0] + index * clip.step[0], clip.start[1] + index * clip.step[1]
        _shape(canvas, clip.shape, x, y, clip.radius, clip.tints[index >= clip.turn])
        frames.append(canvas.reduce(OVERSAMPLING))
    return frames


def write_picture(path: Path, picture: Picture) -> None:
    """Writes the picture as a JPEG, without the chroma subsampling that smears colours at this size."""
    draw_picture(picture).save(path, quality=92, subsampling=0)


def _canvas(background: str) -> Image.Image:
    return Image.new("RGB", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), BACKGROUNDS[background])


def _shape(canvas: Image.Image, shape: str, x: float, y: float, radius: float, tint: RGB) -> None:
    pen = ImageDraw.Draw(canvas)
    x, y, r = x * OVERSAMPLING, y * OVERSAMPLING, radius * OVERSAMPLING
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    elif shape == "square":
        pen.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=tint)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=tint)
    else:
        arm = 0.32 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=tint)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=tint)
