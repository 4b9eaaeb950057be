"""Faster rendering of Crafter's frames, with identical pixels and identical use of the world's random numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import crafter
import numpy as np
from crafter.engine import ItemView, LocalView, _draw, _draw_alpha
from numpy.typing import NDArray

__all__ = ["install_fast_views"]


def install_fast_views(env: crafter.Env) -> None:
    """Replace the views of Crafter's engine by faster ones; the semantic map, which is unused, is dropped.

    Args:
        env: the engine, changed in place.
    """
    unit = env._size // env._view
    env._local_view = _TiledView(env._world, env._textures, env._local_view._grid, unit)
    env._item_view = _CachedItemView(env._textures, env._item_view._grid)
    env._sem_view = lambda: None


class _TiledView(LocalView):
    """The map around the player, assembled from prerendered tiles; daylight and sleep effects are Crafter's own.

    Crafter's own view draws 63 textures one by one and then iterates over all objects of the world.
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
            """Draw an object's texture on top of a material."""
            canvas = self._tiles[material].copy()
            _draw_alpha(canvas, (0, 0), textures.get(texture, unit))
            return canvas

        self._tile = tile

    def __call__(self, player: Any, unit: NDArray[np.int64]) -> NDArray[np.float64]:
        world, grid = self._world, self._grid
        corner = player.pos - self._offset
        # The visible part of the world as slices, once in world coordinates and once in view coordinates.
        low, high = np.maximum(corner, 0), np.minimum(corner + grid, self._area)
        world_area = tuple(map(slice, low, high))
        view_area = tuple(map(slice, low - corner, high - corner))
        materials = np.full(grid, self._outside)
        materials[view_area] = world._mat_map[world_area]
        tiles = self._tiles[materials]
        visible_tiles, object_ids = tiles[view_area], world._obj_map[world_area]
        for x, y in zip(*np.nonzero(object_ids), strict=True):
            texture = world._objects[object_ids[x, y]].texture
            visible_tiles[x, y] = self._tile(int(materials[view_area][x, y]), texture)
        canvas = self._light(tiles.transpose(0, 2, 1, 3, 4).reshape(self._shape), world.daylight)
        return self._sleep(canvas) if player.sleeping else canvas


class _CachedItemView(ItemView):
    """The inventory, redrawn only when it has changed."""

    _drawn_amounts: tuple[int, ...] | None = None
    _canvas: NDArray[np.uint8]

    def __call__(self, inventory: dict[str, int], unit: NDArray[np.int64]) -> NDArray[np.uint8]:
        amounts = tuple(inventory.values())
        if amounts != self._drawn_amounts:
            self._canvas, self._drawn_amounts = super().__call__(inventory, unit), amounts
        return self._canvas
