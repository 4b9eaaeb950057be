"""Crafter's picture, drawn faster: the same bytes, and the same draws from the world's random numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import crafter
import numpy as np
from crafter.engine import ItemView, LocalView, _draw, _draw_alpha
from numpy.typing import NDArray

__all__ = ["draw_faster"]


def draw_faster(env: crafter.Env) -> None:
    """Replace an environment's views by those of this file, and leave out the semantic map, which nobody reads."""
    unit = env._size // env._view
    env._local_view = _TiledView(env._world, env._textures, env._local_view._grid, unit)
    env._item_view = _KeptItemView(env._textures, env._item_view._grid)
    env._sem_view = lambda: None


class _TiledView(LocalView):
    """The map around the player, put together of ready tiles; light and sleep are Crafter's own.

    Crafter pastes 63 textures one by one and then looks at every object of the world.
    """

    def __init__(self, world: Any, textures: Any, grid: NDArray[np.int64], unit: NDArray[np.int64]) -> None:
        super().__init__(world, textures, grid)
        self._shape = (*(grid * unit).tolist(), 3)
        width, height = unit.tolist()
        names = world._mat_names
        self._outside = len(names)
        self._tiles = np.full((len(names) + 1, width, height, 3), 127, np.uint8)
        for material, name in names.items():
            _draw(self._tiles[material], (0, 0), textures.get(name, unit))

        @cache
        def tile(material: int, texture: str) -> NDArray[np.uint8]:
            """An object of `texture` standing on `material`."""
            canvas = self._tiles[material].copy()
            _draw_alpha(canvas, (0, 0), textures.get(texture, unit))
            return canvas

        self._tile = tile

    def __call__(self, player: Any, unit: NDArray[np.int64]) -> NDArray[np.float64]:
        world, grid = self._world, self._grid
        corner = player.pos - self._offset
        # What of the view lies inside of the world, in the world's coordinates and in the view's.
        low, high = np.maximum(corner, 0), np.minimum(corner + grid, self._area)
        there = tuple(map(slice, low, high))
        here = tuple(map(slice, low - corner, high - corner))
        materials = np.full(grid, self._outside)
        materials[here] = world._mat_map[there]
        tiles = self._tiles[materials]
        inside, numbers = tiles[here], world._obj_map[there]
        for x, y in zip(*np.nonzero(numbers), strict=True):
            texture = world._objects[numbers[x, y]].texture
            inside[x, y] = self._tile(int(materials[here][x, y]), texture)
        canvas = self._light(tiles.transpose(0, 2, 1, 3, 4).reshape(self._shape), world.daylight)
        return self._sleep(canvas) if player.sleeping else canvas


class _KeptItemView(ItemView):
    """The inventory, drawn only when it has changed."""

    _drawn: tuple[int, ...] | None = None
    _canvas: NDArray[np.uint8]

    def __call__(self, inventory: dict[str, int], unit: NDArray[np.int64]) -> NDArray[np.uint8]:
        amounts = tuple(inventory.values())
        if amounts != self._drawn:
            self._canvas, self._drawn = super().__call__(inventory, unit), amounts
        return self._canvas
