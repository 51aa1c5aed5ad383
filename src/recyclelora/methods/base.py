"""A method is a way to adapt a backbone. This file is the interface that every method implements.

    settings   typed settings, with the published defaults
    attach     freezes the backbone, except what the method trains       role      which learning rate a parameter has
    save       writes the trained tensors                                is_drawn  what else a checkpoint has to hold
    merge      loads them and merges them into the weights               keep      adds what stays after merging
    adapter    loads them beside the weights, as a model of PEFT
    updates    gives the change of each weight                           scale     the factor of the update

The folder of a trained method holds the files that PEFT writes for its adapter, and `trained.safetensors` with the
other trained tensors of the backbone. Only methods set `requires_grad` in a backbone.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from peft import PeftModel
from torch import nn

from recyclelora.adapter.optim import role_of
from recyclelora.errors import UserError
from recyclelora.files import save_tensors
from recyclelora.methods.reading import ADAPTER, CONFIG, TRAINED, load_adapter, load_trained
from recyclelora.methods.settings import Settings
from recyclelora.methods.update import Update
from recyclelora.models.backbone import Backbone

BIASES_OF_LAYERS = "recycle_only"
"""What the configuration of RecycleLoRA's adapter says if the biases of the adapted layers are a part of it."""
FILES = (CONFIG, ADAPTER, TRAINED)
"""The files in the folder of a method's trained weights; not every method writes all of them."""


class MethodSettings(Settings):
    """The settings of a method."""


S = TypeVar("S", bound=MethodSettings)


class Method(ABC, Generic[S]):
    """One method. A subclass defines `settings` and `_attach`, and overrides what differs from the defaults here.

    name: the method's name in a recipe.
    paper: where the method and its default settings come from.
    """

    settings: type[S]

    def __init__(self, name: str, paper: str = "") -> None:
        self.name, self.paper = name, paper

    def attach(self, backbone: Backbone, settings: S, draw: bool = True, cache_factors: bool = False) -> None:
        """Freeze the backbone, except what the method trains, and add the adapters.

        Args:
            draw: factorise the weights; False if a checkpoint that holds the directions is loaded afterwards.
            cache_factors: keep the factors of the weights in the cache folder, and read those that are there already.

        Raises:
            UserError: a rank is too large for a layer, or the model lacks the layers to adapt.
        """
        backbone.requires_grad_(False)
        try:
            self._attach(backbone, settings, draw, cache_factors)
        except re.error as error:
            raise UserError(
                f"{self.name} on {backbone.model_name}: adapter.target_modules is not a valid regular expression "
                f"({error}); correct it, or give a list of names"
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.name} on {backbone.model_name}: {error}") from error

    @abstractmethod
    def _attach(self, backbone: Backbone, settings: S, draw: bool, cache_factors: bool) -> None:
        """Put the adapters on a frozen backbone; arguments as in `attach`."""

    def keep(self, backbone: Backbone, settings: S) -> None:
        """Add the modules that stay after merging to a bare backbone, without their values; most methods have none."""

    def link_head(self, backbone: Backbone, head: nn.Module) -> None:
        """Change the head as the method needs it, once the adapters are on the backbone.

        Raises:
            UserError: the head does not fit the settings.
        """

    def role(self, name: str) -> str:
        """The role of a parameter in the optimiser, by its name; see `recyclelora.adapter.optim.param_groups`."""
        return role_of(name)

    def is_drawn(self, name: str) -> bool:
        """Whether a tensor that is not trained was computed at the start and has to be in a checkpoint."""
        return False

    def scale(self, settings: S) -> float | None:
        """The factor by which the method's update is multiplied; None if it has no such factor."""
        return None

    def updates(self, backbone: Backbone, settings: S, folder: Path) -> Iterator[Update]:
        """The change of each layer's weight by training; with two adapters, one update for each.

        Args:
            backbone: the untrained model; it is modified.
            folder: the folder that `save` wrote.

        Raises:
            UserError: the method does not change weights, or the folder cannot be read (see `merge`).
        """
        raise UserError(f"method {self.name} does not change the weights of the base model, so there are no updates")

    def save(self, backbone: Backbone, folder: Path) -> None:
        """Write the adapter as a PEFT folder, and the other trained tensors; write nothing if nothing was trained."""
        saved_by_peft = None
        if isinstance(backbone.model, PeftModel):
            saved_by_peft = f".{backbone.model.base_model.prefix}"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*changes the base weights of the model")  # PEFT converts it below
                backbone.model.save_pretrained(str(folder), **self._peft_options(backbone))
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            for file in folder.iterdir():  # some of which only their owner could read
                file.chmod(folder.stat().st_mode & 0o666)
        trained = {
            _plain_name(name): value
            for name, value in self._state(backbone)
            if not (saved_by_peft and saved_by_peft in name)
        }
        if trained:
            save_tensors(folder / TRAINED, trained)

    def _peft_options(self, backbone: Backbone) -> dict[str, Any]:
        """Options of PEFT's `save_pretrained`."""
        return {}

    def _state(self, backbone: Backbone) -> Iterator[tuple[str, Any]]:
        """The tensors to save: the trained ones, and those of `is_drawn`."""
        model = backbone.model
        yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
        yield from ((name, value) for name, value in model.named_buffers() if self.is_drawn(name))

    def merge(self, backbone: Backbone, settings: S, folder: Path) -> None:
        """Load what `save` wrote into a bare backbone, with the adapters merged into the weights.

        Raises:
            UserError: a file is missing or damaged, or was made for another model.
        """
        with self._reading(backbone, folder):
            self._merge(backbone, settings, folder)

    def adapter(self, backbone: Backbone, settings: S, folder: Path) -> PeftModel:
        """Load what `save` wrote into a bare backbone, beside its weights, for programs that use PEFT.

        Biases that were trained too are a part of the adapter, as its configuration says.

        Raises:
            UserError: the method has no adapter that PEFT could load, or as `merge`.
        """
        raise UserError(
            f"method {self.name} has no adapter of PEFT; export the whole model, with --format merged, onnx or torch"
        )

    @contextmanager
    def _reading(self, backbone: Backbone, folder: Path) -> Iterator[None]:
        """Name the folder in every error while it is read."""
        if not folder.is_dir():
            raise UserError(f"{folder}: the adapter of this {self.name} run is missing; restore it or train again")
        try:
            yield
        except UserError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # PEFT raises whatever a wrong value in a file leads to
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{folder}: not an adapter for {backbone.model_name} ({reason}); restore it or train again"
            ) from error

    def _merge(self, backbone: Backbone, settings: S, folder: Path) -> None:
        self.keep(backbone, settings)
        load_trained(backbone.model, folder / TRAINED, self._needed(backbone, settings))

    def _needed(self, backbone: Backbone, settings: S) -> set[str]:
        """Names of the tensors that `trained.safetensors` has to hold."""
        return set()


class PeftMethod(Method[S]):
    """A method whose adapters are created, loaded and merged by PEFT."""

    def _merge(self, backbone: Backbone, settings: S, folder: Path) -> None:
        needed = self._needed(backbone, settings)
        backbone.model = load_adapter(backbone.model, folder, self._stored_settings(backbone, settings))
        backbone.model = backbone.model.merge_and_unload()
        load_trained(backbone.model, folder / TRAINED, needed)

    def adapter(self, backbone: Backbone, settings: S, folder: Path) -> PeftModel:
        with self._reading(backbone, folder):
            needed = self._needed(backbone, settings)
            model = load_adapter(backbone.model, folder, self._stored_settings(backbone, settings))
            if needed:
                biases = {_plain_name(name): name for name, _ in model.named_parameters() if name.endswith(".bias")}
                load_trained(model, folder / TRAINED, needed, biases)
                model.peft_config["default"].bias = BIASES_OF_LAYERS
            backbone.model = model.get_base_model()
        return model

    @abstractmethod
    def _stored_settings(self, backbone: Backbone, settings: S) -> dict[str, Any]:
        """What `adapter_config.json` has to say, by its keys. The adapted layers are compared by their tensors."""

    def updates(self, backbone: Backbone, settings: S, folder: Path) -> Iterator[Update]:
        with self._reading(backbone, folder):
            model = load_adapter(backbone.model, folder, self._stored_settings(backbone, settings))
            for name, module in model.get_base_model().named_modules():
                yield from self._layer_updates(name, module)

    @abstractmethod
    def _layer_updates(self, name: str, module: nn.Module) -> Iterator[Update]:
        """The updates of one layer; none if the module is not adapted."""


def _plain_name(name: str) -> str:
    """The name of a parameter in the base model, without the parts that PEFT adds."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
