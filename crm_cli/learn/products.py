"""Procedural products, drawn at random from families of things that are sold."""

from __future__ import annotations

from collections.abc import Callable

from crm_cli.learn.families import food, furniture, household, packaging, toys, vessels, wear
from crm_cli.learn.materials import Random
from crm_cli.learn.parts import Part, Product, assemble, colour

Family = Callable[[Random], list[Part]]

FAMILIES: dict[str, Family] = {
    "bottle": vessels.bottle,
    "can": vessels.can,
    "jar": vessels.jar,
    "mug": vessels.mug,
    "bowl": vessels.bowl,
    "vase": vessels.vase,
    "teapot": vessels.teapot,
    "pan": vessels.pan,
    "fruit": food.fruit,
    "burger": food.burger,
    "carton": packaging.carton,
    "package": packaging.package,
    "book": packaging.book,
    "bag": packaging.bag,
    "chest": packaging.chest,
    "shoe": wear.shoe,
    "boot": wear.boot,
    "hat": wear.hat,
    "headphones": wear.headphones,
    "chair": furniture.chair,
    "armchair": furniture.armchair,
    "sofa": furniture.sofa,
    "stool": furniture.stool,
    "table": furniture.table,
    "shelf": furniture.shelf,
    "lamp": household.lamp,
    "street_lamp": household.street_lamp,
    "appliance": household.appliance,
    "car": toys.car,
    "animal": toys.animal,
    "plush": toys.plush,
    "plant": household.plant,
    "tool": household.tool,
}
"""Every family by its name; the order is the order of the labels in training shards."""


def make_product(rng: Random, family: str | None = None) -> Product:
    """Draw a product of a family (one of FAMILIES; drawn too where None)."""
    name = family or list(FAMILIES)[rng.integers(len(FAMILIES))]
    return assemble(name, FAMILIES[name](rng))


__all__ = ["FAMILIES", "Family", "Product", "colour", "make_product"]
